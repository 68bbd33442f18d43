//! The kernel half's own maps and links, found from outside as an intruder would.

use aya::{
    maps::{Array, Map, MapData, MapInfo, loaded_maps},
    programs::{ProgramInfo, loaded_programs},
};
use gophership::pressure::{Cause, OverrideUntil, Zone};
use gophership_common::{MAP_SOCKETS, MAP_VERDICT, PROGRAM_TCP_PROBE, VerdictPage};

use super::common::judging::Judging;

/// As the kernel half and user space share it.
pub(crate) type VerdictMap = Array<MapData, VerdictPage>;

/// The kernel half's own map and its id, found from outside. Leaves the zone overridden, Yellow.
pub(crate) fn verdict_map(judging: &Judging) -> (u32, VerdictMap) {
    // Other VERDICT maps may be loaded on this machine: ours is told by when it last changed.
    judging.pressure.set_override(Some(OverrideUntil {
        zone: Zone::Yellow,
        until_ns: None,
    }));
    judging.wait_for(Zone::Yellow, Cause::Override);
    // The word changes first; what is seen last may still be the transition before.
    let ktime_ns = || {
        let last = judging.transitions().pop()?;
        (last.to.cause() == Cause::Override).then_some(last.ktime_ns)
    };
    judging.wait("transition", || ktime_ns().is_some());
    let since_ns = ktime_ns().unwrap();
    loaded_maps()
        .filter_map(Result::ok)
        .filter(|info| info.name_as_str() == Some(MAP_VERDICT))
        .filter_map(|info| {
            let data = MapData::from_id(info.id()).ok()?;
            Some((info.id(), VerdictMap::try_from(Map::Array(data)).ok()?))
        })
        .find(|(_, map)| map.get(&0, 0).is_ok_and(|page| page.since_ns == since_ns))
        .expect("the VERDICT map can be found from outside")
}

/// Takes probes that see a socket close off their tracepoints, behind the kernel half's back.
pub(crate) fn detach(judging: &Judging, probes: &[&str]) {
    let (verdict, _) = verdict_map(judging);
    judging.pressure.set_override(None);
    let arrival = program(PROGRAM_TCP_PROBE, verdict);
    let sockets = maps_of(&arrival)
        .into_iter()
        .find(|&id| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str() == Some(MAP_SOCKETS)))
        .expect("the arrival probe has the sockets");
    for name in probes {
        close_link_of(program(name, sockets).id());
    }
}

/// Closes the link of this program, if its owner doesn't look.
fn close_link_of(program: u32) {
    let link = std::fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .flatten()
        .find(|fd| {
            std::fs::read_to_string(fd.path()).is_ok_and(|info| {
                let has = |key: &str| info.lines().any(|line| line.starts_with(key));
                has("link_id:") && info.contains(&format!("prog_id:\t{program}\n"))
            })
        })
        .expect("this process holds the probe's link");
    let link: i32 = link.file_name().to_str().unwrap().parse().unwrap();
    let nothing = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: `link` stays open, so that its owner can close it; it is just no link any more.
    let replaced = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&nothing), link) };
    assert_eq!(replaced, link, "{}", std::io::Error::last_os_error());
}

/// The program of this name that uses this map.
pub(crate) fn program(name: &str, map: u32) -> ProgramInfo {
    loaded_programs()
        .filter_map(Result::ok)
        // The kernel keeps 15 characters of a name.
        .filter(|program| program.name_as_str().is_some_and(|n| name.starts_with(n)))
        .find(|program| maps_of(program).contains(&map))
        .expect("the program can be found from outside")
}

/// Ids of the maps that it uses.
pub(crate) fn maps_of(program: &ProgramInfo) -> Vec<u32> {
    program.map_ids().unwrap().unwrap_or_default()
}

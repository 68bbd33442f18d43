//! The kernel half's own word, read past the daemon, which may be stopped.

use std::fs;

use aya::maps::{Array, Map, MapData, MapInfo};
use gophership_common::{Cause, VerdictPage, Word, Zone};
use nix::unistd::Pid;

use super::{PATIENCE, holds_within};

/// The verdict in the kernel's own map, read past the daemon.
pub(crate) struct Verdict(Array<MapData, VerdictPage>);

impl Verdict {
    /// Finds the map among the descriptors that the daemon holds: other daemons have their own.
    #[track_caller]
    pub(crate) fn of(daemon: Pid) -> Self {
        let descriptors = fs::read_dir(format!("/proc/{daemon}/fdinfo")).expect("its descriptors");
        let id = descriptors
            .flatten()
            .filter_map(|fd| fs::read_to_string(fd.path()).ok())
            .filter_map(|info| {
                let line = info.lines().find_map(|l| l.strip_prefix("map_id:"))?;
                line.trim().parse().ok()
            })
            .find(|&id| MapInfo::from_id(id).is_ok_and(|m| m.name_as_str() == Some("VERDICT")))
            .expect("the daemon holds a map named VERDICT");
        let map = Map::Array(MapData::from_id(id).expect("the map opens"));
        Self(Array::try_from(map).expect("an array of VerdictPage"))
    }

    /// What it is now.
    #[track_caller]
    pub(crate) fn word(&self) -> Word {
        self.0.get(&0, 0).expect("the verdict reads").word
    }

    /// Waits for `zone` by `cause`, and shows what was there instead.
    #[track_caller]
    pub(crate) fn expect(&self, zone: Zone, cause: Cause, when: &str) {
        let became = holds_within(PATIENCE, || {
            let word = self.word();
            (word.zone(), word.cause()) == (zone, cause)
        });
        assert!(
            became,
            "{when}: wanted {zone:?} by {cause:?}, the kernel's word is {:?}",
            self.word()
        );
    }
}

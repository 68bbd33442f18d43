//! The tick: its age, its death, and what it makes of numbers that are not there or wrong.

use std::{thread, time::Duration};

use aya::maps::{Array, Map, MapData, MapInfo};
use gophership::pressure::{Cause, Signal, Source, TICK_DEAD_MIN, Zone, monotonic_ns};
use gophership_common::{PROGRAM_TCP_PROBE, VerdictPage};

use super::{
    behind::{VerdictMap, maps_of, program, verdict_map},
    common::judged_listener::{JudgedListener, read_all, write_until_full},
    config,
};

#[test]
fn an_idle_tick_keeps_its_age_bounded() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let mut ages: Vec<Duration> = (0..60)
        .map(|_| {
            thread::sleep(Duration::from_millis(37));
            fixture.judging.pressure.snapshot().judged_age
        })
        .collect();
    ages.sort();
    eprintln!(
        "tick age over 60 looks: median {:?}, greatest {:?}",
        ages[30], ages[59]
    );
    assert!(ages[59] < Duration::from_millis(500), "{ages:?}");
    assert_eq!(fixture.judging.pressure.snapshot().source, Source::Kernel);
}

#[test]
fn a_dead_tick_is_replaced_and_comes_back() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let (_, mut verdict) = verdict_map(&fixture.judging);
    // A next period that never comes: no CPU claims it.
    set_next_tick(&mut verdict, u64::MAX);
    fixture.judging.wait("takeover", || {
        fixture.judging.pressure.snapshot().source == Source::Stochastic
    });
    let snapshot = fixture.judging.pressure.snapshot();
    assert!(snapshot.why_not_kernel.is_some());
    fixture.judging.wait("judgement of user space's own", || {
        fixture.judging.pressure.snapshot().judged_age < TICK_DEAD_MIN
    });
    // What user space can measure it does; the rest is away with the tick.
    let known = |signal| fixture.judging.pressure.snapshot().signal(signal).clone();
    fixture.judging.wait("signals of user space's own", || {
        let backlog = known(Signal::ListenBacklog);
        // A small kernel may be without TCP's diagnostics.
        backlog.available || backlog.reason.contains("NETLINK_SOCK_DIAG")
    });
    let lost = known(Signal::KswapdWakeups);
    assert!(
        !lost.available && lost.reason.contains("no tick"),
        "{lost:?}"
    );
    fixture.judging.pressure.set_override(None);
    fixture.judging.wait_for(Zone::Green, Cause::None);
    // The probes still count, and user space judges by them.
    let (mut client, mut server) = fixture.connection();
    let written = write_until_full(&mut client);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
    read_all(&mut server, written);
    fixture.judging.wait_for(Zone::Green, Cause::None);

    set_next_tick(&mut verdict, 0);
    fixture.judging.wait("return of the tick", || {
        fixture.judging.pressure.snapshot().source == Source::Kernel
    });
}

#[test]
fn what_was_not_measured_yet_is_no_worst_value() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let reading = |signal| fixture.judging.pressure.snapshot().signal(signal).clone();
    // Low is bad, and the watch thread posts it only after the tick has begun to judge.
    fixture.judging.wait("available memory", || {
        reading(Signal::MemoryAvailable).available
    });
    let memory = reading(Signal::MemoryAvailable);
    assert!(memory.worst.is_some_and(|worst| worst > 0.0), "{memory:?}");
    let heartbeat = reading(Signal::HeartbeatAge);
    assert!(
        !heartbeat.available && heartbeat.worst.is_none(),
        "{heartbeat:?}"
    );
}

/// As if many tasks had ended their reclaim at once, and one of them found no chance to be counted.
#[test]
fn a_reclaim_whose_end_was_lost_does_not_stall_for_ever() {
    /// Of `Measures` in the kernel half, whose fourth number is the host's stall.
    const BYTES: usize = 41_400;
    const STALL: usize = 3 * size_of::<u64>();
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let (verdict, _) = verdict_map(&fixture.judging);
    let measures = maps_of(&program(PROGRAM_TCP_PROBE, verdict))
        .into_iter()
        .find(|&id| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str() == Some("MEASURES")))
        .expect("the arrival probe has the measures");
    let data = Map::Array(MapData::from_id(measures).unwrap());
    let mut map: Array<MapData, [u8; BYTES]> = Array::try_from(data).unwrap();
    let stall = |map: &Array<MapData, [u8; BYTES]>| {
        let page = map.get(&0, 0).unwrap();
        u64::from_ne_bytes(page[STALL..STALL + 8].try_into().unwrap())
    };
    let write = |map: &mut Array<MapData, [u8; BYTES]>, since_us: u64| {
        let mut page = map.get(&0, 0).unwrap();
        page[STALL..STALL + 8].copy_from_slice(&(since_us << 16 | 1).to_ne_bytes());
        map.set(0, page, 0).unwrap();
    };
    let now_us = monotonic_ns() / 1000;
    write(&mut map, now_us - 59_000_000);
    fixture.judging.wait("a stall that is under way", || {
        fixture.judging.value(Signal::MemoryStall) > 0.5
    });
    fixture.judging.wait("its end", || stall(&map) == 0);
    fixture
        .judging
        .wait("calm", || fixture.judging.value(Signal::MemoryStall) < 0.5);
}

fn set_next_tick(verdict: &mut VerdictMap, next_tick_ns: u64) {
    let page = verdict.get(&0, 0).unwrap();
    verdict
        .set(
            0,
            VerdictPage {
                next_tick_ns,
                ..page
            },
            0,
        )
        .unwrap();
}

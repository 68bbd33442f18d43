//! What else than sockets the verdict follows, and how its changes are told.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use gophership::pressure::{
    Cause, Config, IngestScope, Occurrence, OverrideUntil, Signal, Zone, monotonic_ns,
};
use gophership_common::{EVENTS_BYTES, Event};

use super::{
    common::{
        judged_listener::{JudgedListener, write_until_full},
        judging::{self, PATIENCE, wait},
    },
    config,
};

#[test]
fn the_first_zone_begins_with_the_daemon_not_with_the_machine() {
    let before_ns = monotonic_ns();
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let age = fixture.judging.pressure.snapshot().age;
    assert!(
        age <= Duration::from_nanos(monotonic_ns() - before_ns),
        "{age:?}"
    );
}

#[test]
fn a_stale_heartbeat_turns_red() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let line = fixture.judging.pressure.engine(1);
    // A worker that has never beaten is no cause, however long that lasts.
    fixture.judging.wait_for_ticks(2);
    assert_eq!(fixture.judging.zone_and_cause(), (Zone::Green, Cause::None));
    line.beat();
    fixture.judging.wait_for(Zone::Red, Cause::Heartbeat);
    let beating = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while beating.load(Ordering::Relaxed) {
                line.beat();
                thread::sleep(Duration::from_millis(10));
            }
        });
        fixture.judging.wait_for(Zone::Green, Cause::None);
        beating.store(false, Ordering::Relaxed);
    });
}

#[test]
fn an_override_holds_expires_and_clears() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let red = |until_ns| {
        Some(OverrideUntil {
            zone: Zone::Red,
            until_ns,
        })
    };
    fixture.judging.pressure.set_override(red(None));
    fixture.judging.wait_for(Zone::Red, Cause::Override);
    assert!(fixture.judging.pressure.snapshot().override_active);
    fixture.judging.wait_for_ticks(3);
    assert_eq!(
        fixture.judging.zone_and_cause(),
        (Zone::Red, Cause::Override)
    );
    // Clearing doesn't wait for the hold: the signals never said Red.
    fixture.judging.pressure.set_override(None);
    fixture.judging.wait_for(Zone::Green, Cause::None);
    assert!(!fixture.judging.pressure.snapshot().override_active);

    let until_ns = monotonic_ns() + 300_000_000;
    fixture.judging.pressure.set_override(red(Some(until_ns)));
    fixture.judging.wait_for(Zone::Red, Cause::Override);
    fixture.judging.wait_for(Zone::Green, Cause::None);
    assert!(monotonic_ns() >= until_ns, "ended early");

    // The operator's Green outranks a full socket, and gives way to it.
    fixture.judging.pressure.set_override(Some(OverrideUntil {
        zone: Zone::Green,
        until_ns: None,
    }));
    fixture.judging.wait_for(Zone::Green, Cause::Override);
    let (mut client, _server) = fixture.connection();
    write_until_full(&mut client);
    fixture.judging.wait("depth", || {
        fixture.judging.value(Signal::ReceiveQueueStalled) > 0.02
    });
    assert_eq!(
        fixture.judging.zone_and_cause(),
        (Zone::Green, Cause::Override)
    );
    fixture.judging.pressure.set_override(None);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
}

#[test]
fn events_without_room_in_the_ring_are_counted_and_told_of() {
    let config = Config {
        tick: Duration::from_millis(1),
        ..config()
    };
    let scope = IngestScope {
        ports: vec![],
        h2_window_bytes: 0,
        vault_dir: None,
    };
    let Some(pressure) = judging::start(&config, &scope) else {
        return;
    };
    // Nobody drains the ring: each change of the word takes some of it.
    let verdict = pressure.verdict();
    let zones = [Zone::Red, Zone::Yellow].into_iter().cycle();
    for zone in zones.take(4 * EVENTS_BYTES as usize / size_of::<Event>()) {
        let until_ns = None;
        pressure.set_override(Some(OverrideUntil { zone, until_ns }));
        wait("the zone", || verdict.load().zone() == zone, String::new);
        if pressure.snapshot().events_lost > 0 {
            break;
        }
    }
    let (lost, transitions) = {
        let snapshot = pressure.snapshot();
        (snapshot.events_lost, snapshot.transitions)
    };
    assert!(lost > 0, "{transitions} events fit the ring");

    let (sender, told) = mpsc::channel();
    let watch = pressure.spawn_watch(move |occurrence| drop(sender.send(occurrence.clone())));
    let watch = watch.unwrap();
    let mut seen = 0;
    let events = loop {
        match told
            .recv_timeout(PATIENCE)
            .expect("what was lost is told of")
        {
            Occurrence::EventsLost { events, .. } => break events,
            Occurrence::Transition(_) => seen += 1,
            Occurrence::OomKill { .. } | Occurrence::Source { .. } => {}
        }
    };
    assert_eq!(events, pressure.snapshot().events_lost);
    assert_eq!(seen + events, pressure.snapshot().transitions);
    drop(watch);
}

//! The fallback: the same verdicts from user space alone.

#[path = "common/pressure.rs"]
mod judged;

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use gophership::pressure::{
    Budget, Cause, Config, IngestScope, KernelMode, Occurrence, OverrideUntil, Pressure,
    SignalReading, Source, Transition, WatchHandle, Zone, memory_limit_bytes, monotonic_ns,
};

const HOLD: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);

fn config() -> Config {
    Config {
        sample_every: 64,
        ..judged::config(KernelMode::Off)
    }
}

struct Fixture {
    pressure: Arc<Pressure>,
    seen: Arc<Mutex<Vec<Transition>>>,
    _watch: WatchHandle,
}

impl Fixture {
    fn start(config: &Config) -> Self {
        let scope = IngestScope {
            ports: vec![4317],
            h2_window_bytes: 0,
            vault_dir: None,
        };
        let pressure = Arc::new(Pressure::start(config, &scope, 2).unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let watch = pressure
            .spawn_watch(move |occurrence| {
                if let Occurrence::Transition(transition) = occurrence {
                    sink.lock().unwrap().push(*transition);
                }
            })
            .unwrap();
        Self {
            pressure,
            seen,
            _watch: watch,
        }
    }

    fn wait_for(&self, zone: Zone, cause: Cause) {
        let start = Instant::now();
        loop {
            let word = self.pressure.verdict().load();
            if (word.zone(), word.cause()) == (zone, cause) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no {zone:?} by {cause:?}: {:#?}",
                self.pressure.snapshot()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn available(&self, name: &str) -> bool {
        let snapshot = self.pressure.snapshot();
        let found = snapshot
            .signals
            .iter()
            .find(|reading| reading.signal.as_str() == name);
        found
            .unwrap_or_else(|| panic!("no signal {name}"))
            .available
    }
}

#[test]
fn budgets_of_all_workers_add_up() {
    let fixture = Fixture::start(&config());
    let [first, second] = [0, 1].map(|worker| fixture.pressure.engine(worker));
    first.set_used(Budget::Ingest, 1000, 1000);
    second.set_used(Budget::Ingest, 0, 1000);
    second.set_used(Budget::Export, 10, 1000);
    // Half in use: Green. Waits until the posted values have been judged.
    let start = Instant::now();
    while !fixture.available("budget_ingest") {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(!fixture.available("budget_vault"));

    second.set_used(Budget::Ingest, 700, 1000);
    fixture.wait_for(Zone::Yellow, Cause::Budget);
    second.set_used(Budget::Ingest, 950, 1000);
    fixture.wait_for(Zone::Red, Cause::Budget);
    first.set_used(Budget::Ingest, 0, 1000);
    second.set_used(Budget::Ingest, 0, 1000);
    let freed = Instant::now();
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(freed.elapsed() >= HOLD, "lowered before the hold was over");

    let seen = fixture.seen.lock().unwrap();
    let steps: Vec<_> = seen.iter().map(|t| (t.from.zone(), t.to.zone())).collect();
    assert_eq!(
        steps,
        [
            (Zone::Green, Zone::Yellow),
            (Zone::Yellow, Zone::Red),
            (Zone::Red, Zone::Green)
        ]
    );
}

#[test]
fn a_stale_heartbeat_turns_red_and_a_retired_worker_is_not_late() {
    let fixture = Fixture::start(&config());
    let line = fixture.pressure.engine(1);
    line.beat();
    fixture.wait_for(Zone::Red, Cause::Heartbeat);
    line.retire();
    fixture.wait_for(Zone::Green, Cause::None);
}

#[test]
fn an_override_holds_expires_and_clears() {
    let fixture = Fixture::start(&config());
    let until_ns = monotonic_ns() + 300_000_000;
    fixture.pressure.set_override(Some(OverrideUntil {
        zone: Zone::Red,
        until_ns: Some(until_ns),
    }));
    fixture.wait_for(Zone::Red, Cause::Override);
    assert!(fixture.pressure.snapshot().override_active);
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(monotonic_ns() >= until_ns, "ended early");

    fixture.pressure.engine(0).set_used(Budget::Vault, 99, 100);
    fixture.wait_for(Zone::Red, Cause::Budget);
    fixture.pressure.set_override(Some(OverrideUntil {
        zone: Zone::Yellow,
        until_ns: None,
    }));
    fixture.wait_for(Zone::Yellow, Cause::Override);
    // Falls back to what the signals say, not to where it was before.
    fixture.pressure.set_override(None);
    fixture.wait_for(Zone::Red, Cause::Budget);
}

#[test]
fn operations_bring_a_sample_forward() {
    let fixture = Fixture::start(&config());
    let line = fixture.pressure.engine(0);
    // Far more samples than the 100 ms period alone would take: each sees a fresh judgement.
    let start = Instant::now();
    let mut samples = 0;
    let mut last_age = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(1) {
        for _ in 0..64 {
            line.operation();
        }
        thread::sleep(Duration::from_millis(2));
        let age = fixture.pressure.snapshot().judged_age;
        samples += u32::from(age < last_age);
        last_age = age;
    }
    assert!(samples > 15, "{samples} samples in a second");
}

#[test]
fn says_who_judges_and_what_it_cannot_see() {
    let fixture = Fixture::start(&config());
    let snapshot = fixture.pressure.snapshot();
    assert_eq!(snapshot.source, Source::Stochastic);
    assert!(snapshot.why_not_kernel.is_some());
    let start = Instant::now();
    while !fixture.available("memory_available") {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    for name in ["receive_queue", "memory_stall", "cpu_wait", "disk_latency"] {
        let snapshot = fixture.pressure.snapshot();
        let found = |reading: &&SignalReading| reading.signal.as_str() == name;
        let reading = snapshot.signals.iter().find(found).unwrap();
        assert!(!reading.available, "{name}");
        assert!(
            reading.reason.contains("off in the configuration"),
            "{name}: {}",
            reading.reason
        );
    }
    for name in ["heartbeat_age", "budget_export"] {
        assert!(!fixture.available(name), "{name}");
    }
    assert!(memory_limit_bytes() > 1 << 20);
}

#[test]
fn the_first_zone_begins_with_the_daemon_not_with_the_machine() {
    let before_ns = monotonic_ns();
    let fixture = Fixture::start(&config());
    let age = fixture.pressure.snapshot().age;
    assert!(
        age <= Duration::from_nanos(monotonic_ns() - before_ns),
        "{age:?}"
    );
}

#[test]
fn too_many_ports_or_workers_are_errors() {
    let scope = |ports| IngestScope {
        ports,
        h2_window_bytes: 0,
        vault_dir: None,
    };
    assert!(Pressure::start(&config(), &scope(vec![1; 9]), 1).is_err());
    assert!(Pressure::start(&config(), &scope(vec![1]), 129).is_err());
}

//! The kernel half judges by itself: it turns Red while the daemon is stopped, and back when it runs.

mod common;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually, holds_within,
    load::{Intensity, Load},
    messages::Shape,
    oracle,
    settings::Settings,
    sink::Sink,
    verdict::Verdict,
};
use gophership_common::{Cause, Zone};
use nix::sys::signal::Signal;
use rustls::version::TLS13;

/// More in flight than any window of a connection holds, so that a stopped reader's socket fills;
/// at a pace that leaves a healthy daemon headroom, since one without is rightly under pressure.
const LOAD: Intensity = Intensity {
    connections: 2,
    in_flight: 128,
    pace: Some(100),
    shape: Shape {
        records: 8,
        body_bytes: 8_000,
    },
    seed: 30,
};

/// Whether the kernel half judges; where it can't, the test has nothing to say, but says so.
#[track_caller]
fn kernel_judges(daemon: &Daemon<'_>) -> bool {
    let source = daemon.text("/source");
    if source == "kernel" {
        return true;
    }
    let mut why = daemon.log_lines("kernel").join("\n");
    if let Some(reason) = daemon.status().get("source_reason") {
        why = format!("{reason}\n{why}");
    }
    let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|v| v == "1");
    assert!(
        !required,
        "GOPHERSHIP_REQUIRE_KERNEL=1, but {source} judges. The daemon says:\n{why}"
    );
    eprintln!("not tested: the kernel half doesn't judge here ({source}). The daemon says:\n{why}");
    false
}

/// One test at a time: what is healthy here must have the machine to itself.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_load(home: &Home, daemon: &Daemon<'_>) -> Load {
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    Load::start(daemon.grpc(), &tls, LOAD)
}

#[test]
fn a_full_socket_of_a_stopped_daemon_is_red_by_receive_queue() {
    let _turn = alone();
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    if !kernel_judges(&daemon) {
        return;
    }
    let verdict = Verdict::of(daemon.pid());
    let load = start_load(&home, &daemon);
    eventually("the load runs", PATIENCE, || load.acked() > 50);

    daemon.stop();
    verdict.expect(Zone::Red, Cause::ReceiveQueue, "stopped under load");
    assert!(daemon.is_stopped(), "the kernel judged by itself");

    daemon.signal(Signal::SIGCONT);
    let after = load.acked();
    eventually("the load goes on", PATIENCE, || load.acked() > after);
    let tally = load.stop();
    verdict.expect(Zone::Green, Cause::None, "continued, and the load is over");
    daemon.await_zone("green");
    let red = [("to", "red"), ("cause", "receive_queue")];
    eventually("the transition in the metrics", PATIENCE, || {
        daemon.metric("gophership_zone_transitions_total", &red) >= 1.0
    });
    assert!(tally.broken.is_empty(), "broken: {:?}", tally.broken);
    oracle::await_arrival(&tally.acked, &sink, 2 * PATIENCE);
}

#[test]
fn a_stopped_daemon_without_load_is_red_by_heartbeat() {
    let _turn = alone();
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    if !kernel_judges(&daemon) {
        return;
    }
    let verdict = Verdict::of(daemon.pid());
    verdict.expect(Zone::Green, Cause::None, "idle");

    daemon.stop();
    verdict.expect(Zone::Red, Cause::Heartbeat, "stopped without load");
    assert!(daemon.is_stopped(), "the kernel judged by itself");

    daemon.signal(Signal::SIGCONT);
    verdict.expect(Zone::Green, Cause::None, "continued");
    daemon.await_zone("green");
}

#[test]
fn a_healthy_daemon_under_the_same_load_is_not_red_by_receive_queue() {
    let _turn = alone();
    let home = Home::new();
    let sink = Sink::up();
    // On a machine that is shared with other work a worker may lack its CPU for longer than the 5 ms
    // that are the default: that is pressure, but not what is tested here.
    let mut settings = Settings::to(sink.destination("main", "10s"));
    settings.thresholds.push("receive_queue: { for: 100ms }");
    let daemon = Daemon::start(&home, &settings);
    if !kernel_judges(&daemon) {
        return;
    }
    let load = start_load(&home, &daemon);
    eventually("1000 acknowledgements", 4 * PATIENCE, || {
        load.acked() >= 1000
    });
    let tally = load.stop();
    assert!(tally.broken.is_empty(), "broken: {:?}", tally.broken);
    assert!(tally.refused.is_empty(), "refused: {:?}", tally.refused);
    // Events arrive in order: once the last change is Green and seen, so is any Red before it.
    daemon.await_zone("green");
    let red = [("to", "red"), ("cause", "receive_queue")];
    let transitions = daemon.metric("gophership_zone_transitions_total", &red);
    assert!(
        transitions < 1.0,
        "{transitions} transitions to Red by receive_queue"
    );
}

#[test]
fn the_operators_override_is_in_the_kernels_word() {
    let _turn = alone();
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    if !kernel_judges(&daemon) {
        return;
    }
    let verdict = Verdict::of(daemon.pid());
    daemon.ctl(&["override", "--zone", "red", "--for", "1h"]);
    verdict.expect(Zone::Red, Cause::Override, "overridden");
    assert!(verdict.word().overridden());
    daemon.ctl(&["override", "--clear"]);
    verdict.expect(Zone::Green, Cause::None, "cleared");
    // One request in between, so that an override is known not to disturb the way of Green.
    let message = common::messages::Messages::new(31, LOAD.shape).message();
    daemon.producer().export_all(std::slice::from_ref(&message));
    oracle::await_arrival(&[message], &sink, Duration::from_secs(30));
}

#[test]
fn every_signal_of_the_kernel_half_is_available() {
    let _turn = alone();
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    if !kernel_judges(&daemon) {
        return;
    }
    // What depends on more than the kernel half: a cgroup of version 2, a first write to the vault,
    // a kernel with PSI, a vault on a block device.
    let machine = [
        "memory_pressure_cgroup",
        "vault_write",
        "memory_pressure",
        "cpu_pressure",
        "io_pressure",
        "disk_latency",
        "disk_depth",
    ];
    let missing = || {
        let status = daemon.status();
        let signals = status["signals"].as_object().expect("signals");
        signals
            .iter()
            .filter(|(name, signal)| signal["available"] != true && !machine.contains(&&***name))
            .map(|(name, signal)| format!("{name}: {}", signal["reason"]))
            .collect::<Vec<_>>()
    };
    let mut last = missing();
    let complete = holds_within(PATIENCE, || {
        last = missing();
        last.is_empty()
    });
    assert!(complete, "unavailable: {last:#?}");
    // And what isn't available says why, everywhere.
    for (name, signal) in daemon.status()["signals"].as_object().expect("signals") {
        let reason = signal["reason"].as_str().unwrap_or_default();
        assert_eq!(
            signal["available"] == true,
            reason.is_empty(),
            "{name}: {signal}"
        );
    }
}

#[test]
fn the_kernel_half_logs_only_when_asked() {
    let _turn = alone();
    let home = Home::new();
    let sink = Sink::up();
    let lines = |level: &str| {
        let settings = Settings::to(sink.destination("main", "10s"));
        let env = [("GOPHERSHIP_TELEMETRY__LOG__LEVEL", level)];
        let daemon = Daemon::start_with_env(&home, &settings, &env);
        if !kernel_judges(&daemon) {
            return None;
        }
        let seen = |text| move |daemon: &Daemon<'_>| !daemon.log_lines(text).is_empty();
        let changed = seen("\"to\":\"red\"");
        daemon.ctl(&["override", "--zone", "red", "--for", "1h"]);
        eventually("the change of zone", PATIENCE, || changed(&daemon));
        daemon.ctl(&["override", "--clear"]);
        eventually("the change back", PATIENCE, || {
            seen("\"to\":\"green\"")(&daemon)
        });
        let lines = daemon.log_lines("kernel half: zone");
        assert!(daemon.terminate(PATIENCE).success());
        Some(lines)
    };
    let Some(asked) = lines("info,gophership::pressure::kernel=trace") else {
        return;
    };
    assert!(!asked.is_empty(), "asked for, and silent");
    assert_eq!(lines("debug"), Some(Vec::new()));
}

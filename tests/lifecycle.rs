//! Starting, ending, draining, and what operators and probes see.

mod common;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, GOPHERSHIP, Home},
    eventually,
    load::{Intensity, Load},
    messages::{Messages, Shape},
    oracle, process,
    producer::{Call, Failure, Pending},
    settings::Settings,
    sink::{Answer, Sink},
    telemetry,
};
use nix::sys::signal::Signal;
use rustls::version::TLS13;
use serde_json::Value;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// A drain is bounded; this is the bound that a container's 30 s of grace leaves.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn sigterm_answers_what_is_in_flight_and_exits_with_0() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    let settings = Settings {
        // What is in flight waits for the destination, which will not answer in time.
        ack_within: "300s",
        ..Settings::to(sink.destination("main", "300s"))
    };
    let mut daemon = Daemon::start(&home, &settings);
    let producer = daemon.producer();
    // Small, so that all of them are sent at once, whatever the windows of HTTP/2.
    let small = Shape {
        records: 2,
        body_bytes: 100,
    };
    // And no more than a connection has streams.
    let in_flight: Vec<(Bytes, Pending)> = Messages::new(50, small)
        .take(12)
        .into_iter()
        .map(|message| (message.clone(), producer.start(Call::logs(message))))
        .collect();
    eventually("the destination holds a request", PATIENCE, || {
        sink.holding() > 0
    });
    // Sent last on the same connection and answered at once: the others are in the daemon.
    producer
        .export(Bytes::new())
        .expect("an empty request is OK");
    daemon.signal(Signal::SIGTERM);
    let mut acked = Vec::new();
    for (number, (message, pending)) in in_flight.into_iter().enumerate() {
        match pending.wait() {
            Ok(_) => acked.push(message),
            Err(Failure::Status(status)) => eprintln!("request {number} was refused: {status}"),
            Err(Failure::Connection(reason)) => panic!("request {number} got no answer: {reason}"),
        }
    }
    assert_eq!(daemon.await_exit(DRAIN_WITHIN).code(), Some(0));
    drop(daemon);
    assert_eq!(sink.stored_count(), 0);

    sink.answer(Answer::Accept);
    let daemon = Daemon::start(&home, &settings);
    oracle::await_arrival(&acked, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn sigterm_under_load_loses_nothing_that_was_acknowledged() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "10s"));
    let daemon = Daemon::start(&home, &settings);
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let intensity = Intensity {
        connections: 2,
        in_flight: 4,
        pace: None,
        shape: SHAPE,
        seed: 51,
    };
    let load = Load::start(daemon.grpc(), &tls, intensity);
    eventually("200 acknowledgements", PATIENCE, || load.acked() >= 200);
    assert_eq!(daemon.terminate(DRAIN_WITHIN).code(), Some(0));
    let tally = load.stop();

    let daemon = Daemon::start(&home, &settings);
    oracle::await_arrival(&tally.acked, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn a_drained_daemon_is_alive_but_not_ready_and_its_status_answers() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let messages = Messages::new(52, SHAPE).take(30);
    daemon.producer().export_all(&messages);
    assert_eq!(code(&daemon, "/readyz"), 200);

    daemon.ctl(&["drain", "--timeout", "20s"]);
    // Drained means: what was taken is at the destination, or in the vault.
    let pending = daemon.figure("/vault/entries_pending");
    let arrived = oracle::arrivals(&messages, &sink.stored());
    let missing = arrived.iter().filter(|&&count| count == 0).count() as u64;
    assert!(
        missing <= pending,
        "{missing} messages are neither delivered nor in the vault ({pending} pending)"
    );
    assert_eq!(code(&daemon, "/readyz"), 503);
    assert_eq!(code(&daemon, "/healthz"), 200);
}

#[test]
fn a_drain_can_be_taken_back() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let messages = Messages::new(56, SHAPE).take(15);
    daemon.producer().export_all(&messages[..5]);
    daemon.ctl(&["drain", "--timeout", "20s"]);
    assert_eq!(code(&daemon, "/readyz"), 503);
    daemon.ctl(&["drain", "--cancel"]);
    eventually("the daemon is ready again", PATIENCE, || {
        code(&daemon, "/readyz") == 200
    });
    // The vault has sealed its segment, and goes on in another one.
    daemon.producer().export_all(&messages[5..10]);
    daemon.ctl(&["override", "--clear"]);
    daemon.await_zone("green");
    daemon.producer().export_all(&messages[10..]);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn without_auto_the_vault_is_replayed_when_the_operator_says_so() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        replay_auto: false,
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let messages = Messages::new(57, SHAPE).take(50);
    let producer = daemon.producer();
    producer.export_all(&messages);
    daemon.ctl(&["override", "--clear"]);
    daemon.await_zone("green");
    // By way of Green, past what lies in the vault.
    let green = Messages::new(58, SHAPE).take(5);
    producer.export_all(&green);
    oracle::await_arrival(&green, &sink, PATIENCE);
    assert_eq!(oracle::arrivals(&messages, &sink.stored()), vec![0; 50]);

    daemon.ctl(&["replay"]);
    let again = oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(again, 0);
}

#[test]
fn a_paused_replay_sends_nothing_until_it_is_resumed() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let messages = Messages::new(59, SHAPE).take(20);
    let producer = daemon.producer();
    producer.export_all(&messages);
    daemon.ctl(&["replay", "--pause"]);
    daemon.ctl(&["override", "--clear"]);
    daemon.await_zone("green");
    let green = Messages::new(62, SHAPE).take(5);
    producer.export_all(&green);
    oracle::await_arrival(&green, &sink, PATIENCE);
    assert_eq!(daemon.text("/replay/state"), "paused");
    assert_eq!(oracle::arrivals(&messages, &sink.stored()), vec![0; 20]);

    daemon.ctl(&["replay", "--resume"]);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn the_last_drain_order_counts_and_a_stop_is_not_taken_back() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    let mut daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "300s")));
    // Its export goes on, so the pipeline isn't empty.
    let message = Messages::new(63, SHAPE).take(1);
    daemon.producer().export_all(&message);
    std::thread::scope(|scope| {
        scope.spawn(|| home.ctl(&["drain", "--exit", "--timeout", "60s"]));
        eventually("the drain has begun", PATIENCE, || {
            code(&daemon, "/readyz") == 503
        });
        // In place of the first one: the daemon stays.
        home.ctl(&["drain", "--timeout", "1s"]);
    });
    daemon.ctl(&["drain", "--cancel"]);
    assert_eq!(code(&daemon, "/readyz"), 200);

    daemon.signal(Signal::SIGTERM);
    eventually("the daemon drains", PATIENCE, || {
        code(&daemon, "/readyz") == 503
    });
    let cancelled = home.ctl(&["drain", "--cancel"]);
    assert_eq!(cancelled.code, Some(1), "{cancelled}");
    sink.answer(Answer::Accept);
    assert_eq!(daemon.await_exit(DRAIN_WITHIN).code(), Some(0));
    assert_eq!(oracle::arrivals(&message, &sink.stored()), vec![1]);
}

#[track_caller]
fn code(daemon: &Daemon<'_>, path: &str) -> u16 {
    let (code, _) = telemetry::get(daemon.telemetry(), path).expect("telemetry answers");
    code
}

#[test]
fn health_and_metrics_are_served_under_their_promised_names() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    assert_eq!(code(&daemon, "/healthz"), 200);
    assert_eq!(code(&daemon, "/readyz"), 200);
    assert_eq!(code(&daemon, "/nothing"), 404);

    // A metric with labels exists once it has counted: make each count.
    let messages = Messages::new(53, SHAPE).take(20);
    let producer = daemon.producer();
    producer.export_all(&messages[..10]);
    oracle::await_arrival(&messages[..10], &sink, PATIENCE);
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    producer.export_all(&messages[10..]);

    let (_, text) = telemetry::get(daemon.telemetry(), "/metrics").expect("/metrics answers");
    for name in [
        "gophership_ingester_zone",
        "gophership_somatic_pivots_total",
        "gophership_ingester_requests_total",
        "gophership_ingester_records_total",
        "gophership_ingester_bytes_total",
        "gophership_zone_transitions_total",
        "gophership_vault_bytes",
        "gophership_vault_entries_pending",
        "gophership_vault_records_pending",
        "gophership_vault_sync_seconds",
        "gophership_export_requests_total",
        "gophership_export_records_total",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    ] {
        assert!(telemetry::declares(&text, name), "no {name} in:\n{text}");
    }
    let sum = |name: &str| telemetry::sum(&text, name, &[]);
    assert_eq!(sum("gophership_ingester_zone"), 2.0);
    assert_eq!(sum("gophership_ingester_requests_total"), 20.0);
    assert_eq!(sum("gophership_ingester_records_total"), 200.0);
    assert_eq!(sum("gophership_vault_entries_pending"), 10.0);
    assert_eq!(sum("gophership_vault_records_pending"), 100.0);
    assert!(sum("gophership_export_records_total") >= 100.0);
}

#[test]
fn an_override_is_audited_with_who_and_why() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon.ctl(&[
        "override",
        "--zone",
        "red",
        "--reason",
        "a drill of the pivot",
    ]);
    daemon.ctl(&["override", "--clear"]);
    // The line is there before the answer: no wait.
    let log = fs::read_to_string(home.audit_log()).expect("the audit log is there");
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "one line for each change: {log}");
    let uid = nix::unistd::getuid().as_raw();
    for line in &lines {
        assert_eq!(line["who"]["uid"], uid, "{log}");
        assert_eq!(line["result"], "ok", "{log}");
    }
    assert_eq!(lines[0]["arguments"]["reason"], "a drill of the pivot");
    assert!(log.contains("override"), "what was done: {log}");

    let status = daemon.status();
    assert_eq!(status["override"], Value::Null, "cleared");
}

#[test]
fn an_override_expires() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon.ctl(&["override", "--zone", "red", "--for", "2s"]);
    daemon.await_zone("red");
    daemon.await_zone("green");
    let message = Messages::new(54, SHAPE).take(1);
    daemon.producer().export_all(&message);
    oracle::await_arrival(&message, &sink, PATIENCE);
}

#[test]
fn the_health_command_tells_a_running_daemon_from_none() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "10s"));
    // The probe reads the port from the configuration, so it can't be 0.
    let port = free_port();
    let listen = ("GOPHERSHIP_TELEMETRY__LISTEN", port.to_string());
    let yaml = settings.yaml(&home).replace(
        "listen: \"127.0.0.1:0\"\n",
        &format!("listen: \"{port}\"\n"),
    );
    assert!(yaml.contains(&listen.1), "the configuration has the port");
    let config = home.write_config("probe.yaml", &yaml);
    let arguments = [
        "health",
        "--config",
        config.to_str().expect("a path in UTF-8"),
    ];

    let before = home.gophership(&arguments);
    assert_eq!(before.code, Some(1), "no daemon: {before}");
    let daemon = Daemon::start_with_env(&home, &settings, &[(listen.0, &listen.1)]);
    let running = home.gophership(&arguments);
    assert_eq!(running.code, Some(0), "a running daemon: {running}");
    // A probe that has nothing but the variable, which is all it needs.
    let mut probe = Command::new(GOPHERSHIP);
    probe.arg("health").env(listen.0, &listen.1);
    let probed = process::run(&mut probe, PATIENCE);
    assert_eq!(probed.code, Some(0), "by the environment: {probed}");
    assert_eq!(daemon.terminate(DRAIN_WITHIN).code(), Some(0));
    let after = home.gophership(&arguments);
    assert_eq!(after.code, Some(1), "a daemon that ended: {after}");
}

/// A port that nobody listens on now; the daemon's start fails loudly if that changes meanwhile.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    listener.local_addr().expect("the bound address")
}

#[test]
fn a_variable_of_the_environment_overrides_one_key() {
    let home = Home::new();
    let sink = Sink::up();
    let elsewhere = home.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    let path = elsewhere.to_str().expect("a path in UTF-8");
    let daemon = Daemon::start_with_env(
        &home,
        &Settings::to(sink.destination("main", "10s")),
        &[("GOPHERSHIP_VAULT__DIR", path)],
    );
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let messages = Messages::new(55, SHAPE).take(3);
    daemon.producer().export_all(&messages);
    let entries = |path| fs::read_dir(path).expect("a directory").count();
    assert!(
        entries(&elsewhere) > 0,
        "nothing in the vault of the variable"
    );
    assert_eq!(entries(&home.vault()), 0, "something in the file's vault");
}

#[test]
fn the_operators_socket_is_private_and_its_absence_has_its_own_exit_code() {
    let home = Home::new();
    let none = home.ctl(&["status"]);
    assert_eq!(none.code, Some(3), "no daemon: {none}");
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let socket = fs::metadata(home.control_socket()).expect("the socket is there");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let status = daemon.status();
    for key in [
        "version",
        "zone",
        "cause",
        "zone_since",
        "source",
        "override",
        "signals",
        "memory",
        "ingest",
        "export",
        "vault",
        "replay",
        "ledger",
    ] {
        assert!(status.get(key).is_some(), "no {key} in {status:#}");
    }
    let usage = home.ctl(&["override", "--zone", "purple"]);
    assert_eq!(usage.code, Some(2), "no such zone: {usage}");
}

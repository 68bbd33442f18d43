//! What the daemon refuses, and how it says so.

mod common;

use std::{ffi::OsStr, io::Write, os::unix::ffi::OsStrExt, process::Command};

use bytes::Bytes;
use common::{
    PATIENCE,
    certs::{Certs, ClientIdentity},
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    oracle, process,
    producer::{self, Call, Failure, Producer},
    settings::Settings,
    sink::Sink,
};
use flate2::{Compression, write::GzEncoder};
use rustls::version::{TLS12, TLS13};
use tonic::Code;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// Something that no valid request is: far above the tests' `max_request_bytes` of 2 MiB.
const TOO_LARGE: Shape = Shape {
    records: 3,
    body_bytes: 1024 * 1024,
};

fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(bytes)
        .expect("compressing into memory works");
    encoder
        .finish()
        .expect("compressing into memory works")
        .into()
}

#[track_caller]
fn refusal(producer: &Producer, call: Call, code: Code) -> tonic::Status {
    let status = producer
        .start(call)
        .wait()
        .expect_err("it was acknowledged")
        .status();
    assert_eq!(status.code(), code, "{status:?}");
    status
}

#[test]
fn tls_1_2_is_refused() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let old = home.certs().client(ClientIdentity::Shown, &[&TLS12]);
    let problem = Producer::connect(daemon.grpc(), old).expect_err("TLS 1.2 was accepted");
    assert!(problem.contains("TLS handshake"), "{problem}");
    // The same client with TLS 1.3 is served: the version was the reason.
    let messages = Messages::new(40, SHAPE).take(1);
    daemon.producer().export_all(&messages);
    oracle::await_arrival(&messages, &sink, PATIENCE);
}

/// In TLS 1.3 a client learns only after its own handshake that its certificate was refused.
#[track_caller]
fn assert_not_served(daemon: &Daemon<'_>, certs: &Certs, identity: ClientIdentity) {
    let tls = certs.client(identity, &[&TLS13]);
    let Ok(producer) = Producer::connect(daemon.grpc(), tls) else {
        return;
    };
    match producer.export(Messages::new(41, SHAPE).message()) {
        Err(Failure::Connection(_)) => {}
        other => panic!("the client was served: {other:?}"),
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    assert_not_served(&daemon, home.certs(), ClientIdentity::None);
    assert_eq!(daemon.figure("/ingest/records"), 0);
    assert_eq!(sink.seen(), 0);
}

#[test]
fn a_client_with_a_certificate_of_another_ca_is_refused() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    // It trusts the daemon's CA, but its own certificate is another CA's.
    let stranger = home.path("stranger");
    let certs = Certs::init(&stranger);
    let ca = home.certs().path("ca.pem");
    std::fs::copy(ca, certs.path("ca.pem")).expect("the daemon's CA is copied");
    assert_not_served(&daemon, &certs, ClientIdentity::Shown);
    assert_eq!(daemon.figure("/ingest/records"), 0);
}

#[test]
fn malformed_protobuf_is_an_invalid_argument() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let producer = daemon.producer();
    let valid = Messages::new(42, SHAPE).message();
    let malformed: [(&str, Bytes); 4] = [
        ("not protobuf", Bytes::from_static(b"\xff\xff\xff\xff")),
        ("cut off", valid.slice(..valid.len() - 7)),
        // resource_logs { scope_logs, five bytes long, of which none is there }
        ("cut off inside", Bytes::from_static(b"\x0a\x02\x12\x05")),
        // resource_logs as a varint
        ("of the wrong wire type", Bytes::from_static(b"\x08\x01")),
    ];
    for (what, message) in malformed {
        eprintln!("sending a message that is {what}");
        refusal(&producer, Call::logs(message), Code::InvalidArgument);
    }
    // The connection is none the worse for it.
    producer
        .export(valid.clone())
        .expect("a valid message is acknowledged");
    oracle::await_arrival(&[valid], &sink, PATIENCE);
    assert_eq!(daemon.figure("/ingest/records"), SHAPE.records);
}

#[test]
fn a_message_that_is_too_large_is_refused_for_good() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let producer = daemon.producer();
    let message = Messages::new(43, TOO_LARGE).message();
    let status = refusal(
        &producer,
        Call::logs(message.clone()),
        Code::ResourceExhausted,
    );
    // RetryInfo would tell the producer to send it again, for ever.
    assert_eq!(producer::retry_delay(&status), None);

    let bomb = gzip(&{
        let mut message = vec![0x0a, 0x80, 0x80, 0x80, 0x02];
        message.resize(5 + 4 * 1024 * 1024, 0);
        message
    });
    assert!(bomb.len() < 64 * 1024);
    let call = Call::logs(bomb).compressed("gzip");
    let status = refusal(&producer, call, Code::ResourceExhausted);
    assert_eq!(producer::retry_delay(&status), None);

    let valid = Messages::new(44, SHAPE).take(1);
    producer.export_all(&valid);
    oracle::await_arrival(&valid, &sink, PATIENCE);
}

#[test]
fn gzip_is_accepted_and_the_message_inside_is_delivered() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let producer = daemon.producer();
    let messages = Messages::new(45, SHAPE).take(20);
    let send = |messages: &[Bytes]| {
        for message in messages {
            let call = Call::logs(gzip(message)).compressed("gzip");
            producer.start(call).wait().expect("gzip is acknowledged");
        }
    };
    send(&messages[..10]);
    // Also by way of the vault.
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    send(&messages[10..]);
    eventually("ten entries in the vault", PATIENCE, || {
        daemon.figure("/vault/entries_pending") == 10
    });
    daemon.ctl(&["override", "--clear"]);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    assert_eq!(
        daemon.figure("/ingest/records"),
        20 * SHAPE.records,
        "records are counted in compressed requests, too"
    );

    let broken = Call::logs(Bytes::from_static(b"not gzip")).compressed("gzip");
    refusal(&producer, broken, Code::InvalidArgument);
    let unknown = Call::logs(messages[0].clone()).compressed("snappy");
    refusal(&producer, unknown, Code::Unimplemented);
}

#[test]
fn an_empty_request_is_ok_and_nothing_is_sent_for_it() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let response = daemon.producer().export(Bytes::new());
    let response = response.expect("an empty request is OK");
    assert!(
        response.is_empty(),
        "the response has no partial success: {response:?}"
    );
    assert_eq!(daemon.figure("/ingest/records"), 0);
    assert_eq!(daemon.figure("/vault/entries_pending"), 0);
}

#[test]
fn traces_and_metrics_are_unimplemented() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let producer = daemon.producer();
    for path in [
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    ] {
        let call = Call::to(path, Messages::new(46, SHAPE).message());
        refusal(&producer, call, Code::Unimplemented);
    }
}

#[test]
fn a_full_vault_refuses_with_retry_info_and_keeps_what_it_acknowledged() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        workers: 1,
        max_request_bytes: "256KiB",
        batch_max_bytes: "256KiB",
        segment_bytes: "1MiB",
        vault_max_bytes: "4MiB",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let producer = daemon.producer();
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");

    // About 128 KiB each: 4 MiB hold at most 32 of them, or twice that by compression.
    let mut messages = Messages::new(
        47,
        Shape {
            records: 16,
            body_bytes: 8_000,
        },
    );
    let mut acked = Vec::new();
    let status = loop {
        let message = messages.message();
        match producer.export(message.clone()) {
            Ok(_) => acked.push(message),
            Err(failure) => break failure.status(),
        }
        assert!(acked.len() < 200, "25 MB fit into a vault of 4 MiB");
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let delay = producer::retry_delay(&status).expect("RetryInfo tells when to come again");
    // Nothing is replayed in Red, so nobody can tell: a second, give or take a fifth.
    assert!((800..=1200).contains(&delay.as_millis()), "{delay:?}");
    let code = refusal(&producer, Call::logs(messages.message()), Code::Unavailable);
    assert!(producer::retry_delay(&code).is_some());
    assert!(!acked.is_empty());

    daemon.ctl(&["override", "--clear"]);
    let again = oracle::await_arrival(&acked, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(again, 0);

    // Replayed segments make room again.
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let message = messages.message();
    eventually("room in the vault", PATIENCE, || {
        producer.export(message.clone()).is_ok()
    });
}

#[test]
fn a_variable_of_somebody_else_need_not_be_utf_8() {
    let home = Home::new();
    let yaml = Settings::to(Sink::down().destination("main", "10s")).yaml(&home);
    let mut check = Command::new(env!("CARGO_BIN_EXE_gophership"));
    check
        .args(["config", "check"])
        .arg(home.write_config("good.yaml", &yaml))
        .env("SOMEBODY_ELSES", OsStr::from_bytes(&[0xff, 0xfe]));
    process::run(process::without_own_variables(&mut check), PATIENCE).expect_success();
}

#[test]
fn an_unknown_key_is_an_error_that_names_key_and_line() {
    let home = Home::new();
    let good = Settings::to(Sink::down().destination("main", "10s")).yaml(&home);
    let path = home.write_config("good.yaml", &good);
    home.gophership(&["config", "check", path.to_str().expect("a path in UTF-8")])
        .expect_success();

    let bad = good.replace("  segment_bytes:", "  segment_byte:");
    let line = bad
        .lines()
        .position(|l| l.contains("segment_byte:"))
        .expect("the key is there")
        + 1;
    let path = home.write_config("bad.yaml", &bad);
    let path = path.to_str().expect("a path in UTF-8");
    for arguments in [["config", "check", path], ["run", "--config", path]] {
        let finished = home.gophership(&arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished}");
        let said = format!("{}{}", finished.stdout, finished.stderr);
        // The line is a number of its own, not a part of another.
        let mut numbers = said.split(|c: char| !c.is_ascii_digit());
        assert!(said.contains("segment_byte"), "no key in: {said}");
        assert!(
            said.contains("segment_bytes"),
            "no nearest known key in: {said}"
        );
        assert!(
            numbers.any(|n| n == line.to_string()),
            "no line {line} in: {said}"
        );
    }
}

#[test]
fn a_second_daemon_on_the_same_vault_refuses_to_start() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "10s"));
    let first = Daemon::start(&home, &settings);

    let other = Home::new();
    let vault = |home: &Home| home.vault().to_str().expect("a path in UTF-8").to_owned();
    let yaml = settings.yaml(&other).replace(&vault(&other), &vault(&home));
    let config = other.write_config("second.yaml", &yaml);
    let second = other.gophership(&["run", "--config", config.to_str().expect("a path in UTF-8")]);
    assert!(matches!(second.code, Some(1 | 2)), "{second}");
    assert!(
        second.stderr.contains(&vault(&home)),
        "the refusal doesn't name the directory: {second}"
    );

    let messages = Messages::new(48, SHAPE).take(5);
    first.producer().export_all(&messages);
    oracle::await_arrival(&messages, &sink, PATIENCE);
}

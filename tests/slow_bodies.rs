//! Bodies that come slowly, or whose length nobody says: they keep the ingest budget from nobody.

mod common;

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    producer,
    settings::Settings,
    sink::Sink,
    wire::{DATA, END_HEADERS, HEADERS, PING, RST_STREAM, Wire, export_head, frame},
};
use flate2::{Compression, write::GzEncoder};
use rustls::{ClientConfig, version::TLS13};

const LARGE: usize = 6 << 20;
const RED: f64 = 2.0;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// The budget has 32 MiB: enough for three large messages, not for a fourth, beside some connections.
fn settings(sink: &Sink) -> Settings {
    Settings {
        max_request_bytes: "6MiB",
        memory_total: "64MiB",
        memory_export: "20%",
        segment_bytes: "16MiB",
        ..Settings::to(sink.destination("main", "10s"))
    }
}

fn tls(home: &Home) -> Arc<ClientConfig> {
    home.certs().client(ClientIdentity::Shown, &[&TLS13])
}

fn reserved(daemon: &Daemon<'_>, what: &str) -> f64 {
    daemon.metric("gophership_ingester_reserved_bytes", &[("for", what)])
}

fn used(daemon: &Daemon<'_>) -> u64 {
    daemon.figure("/memory/components/ingest/used")
}

fn is_red(daemon: &Daemon<'_>) -> bool {
    daemon.metric("gophership_ingester_zone", &[]) == RED
}

/// A request that announces a large message, of which a hundred bytes come.
fn beginning(stream: u32) -> Vec<u8> {
    let announced = producer::frame(&vec![0; LARGE], false);
    let head = frame(HEADERS, END_HEADERS, stream, &export_head(&[]));
    [head, frame(DATA, 0, stream, &announced[..100])].concat()
}

/// Opens streams that stop after a hundred bytes, and another for each that the daemon ends.
fn trickle(mut wire: Wire, is_over: &AtomicBool) {
    const STREAMS: u32 = 4;
    let mut next = 1;
    for _ in 0..STREAMS {
        wire.write(&beginning(next)).expect("it is taken");
        next += 2;
    }
    while !is_over.load(Relaxed) {
        let Some(said) = wire.frame() else { return };
        // A reset follows the answer.
        if said.kind == RST_STREAM {
            wire.write(&beginning(next)).expect("it is taken");
            next += 2;
        }
    }
}

#[test]
fn two_that_trickle_large_messages_keep_nobody_out() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &settings(&sink));
    let tls = tls(&home);
    let mut messages = Messages::new(97, SHAPE);
    let producer = daemon.producer();
    producer.export_all(&messages.take(1));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let wire = Wire::http2(daemon.grpc(), &tls, &[]);
            let is_over = &is_over;
            scope.spawn(move || trickle(wire, is_over));
        }
        eventually("they hold most of it", PATIENCE, || {
            reserved(&daemon, "requests") >= 3.0 * LARGE as f64
        });
        let mut slowest = Duration::ZERO;
        for _ in 0..4 {
            let began = Instant::now();
            // At the first attempt.
            producer.export_all(&messages.take(1));
            daemon.producer().export_all(&messages.take(1));
            slowest = slowest.max(began.elapsed());
            assert!(!is_red(&daemon), "the zone is Red");
        }
        is_over.store(true, Relaxed);
        eprintln!("served within {slowest:?}");
        assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    });
}

#[test]
fn a_request_that_waits_holds_nothing_and_keeps_no_connection_out() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &settings(&sink));
    let tls = tls(&home);
    let mut waits = Wire::http2(daemon.grpc(), &tls, &[]);
    let mut hoarder = Wire::http2(daemon.grpc(), &tls, &[]);
    for stream in [1, 3, 5] {
        hoarder.write(&beginning(stream)).expect("it is taken");
    }
    let all = 3.0 * LARGE as f64;
    eventually("three are admitted", PATIENCE, || {
        reserved(&daemon, "requests") == all
    });
    let held = used(&daemon);
    waits.write(&beginning(1)).expect("it is taken");
    let began = Instant::now();
    eventually("a reader is stopped", PATIENCE, || {
        waits.write(&frame(PING, 0, 0, &[7; 8])).expect("taken");
        daemon.metric("gophership_ingester_readers_stopped", &[]) >= 1.0
    });
    assert_eq!(reserved(&daemon, "requests"), all);
    assert!(used(&daemon) <= held, "what waits is counted");
    // Another connection has its place, at once.
    let other = Wire::http2(daemon.grpc(), &tls, &[]);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(!is_red(&daemon), "the zone is Red");
    // The slowest makes way: one of the three, which haven't sent anything since.
    let answer = std::iter::from_fn(|| hoarder.frame()).find(|said| said.kind == HEADERS);
    assert!(answer.is_some_and(|said| said.stream <= 5));
    assert!(began.elapsed() < Duration::from_secs(4), "{began:?}");
    drop((waits, other));
}

#[test]
fn a_message_that_trickles_ends_long_before_its_length_would_allow() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &settings(&sink));
    let mut slow = Wire::http2(daemon.grpc(), &tls(&home), &[]);
    let began = Instant::now();
    slow.write(&beginning(1)).expect("it is taken");
    let answer = std::iter::from_fn(|| slow.frame()).find(|said| said.kind == HEADERS);
    assert_eq!(answer.expect("an answer").stream, 1);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(4), "{took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    eventually("nothing is held", PATIENCE, || {
        reserved(&daemon, "requests") == 0.0
    });
}

#[test]
fn bodies_without_a_length_reserve_little_until_more_of_them_comes() {
    const CLIENTS: usize = 24;
    const STEP: usize = 64 << 10;
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &settings(&sink));
    let mut tls = ClientConfig::clone(&tls(&home));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = Arc::new(tls);
    let mut messages = Messages::new(98, SHAPE);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&messages.message()).expect("into memory");
    let body = gzip.finish().expect("into memory");
    let (first, rest) = body.split_at(20);
    let chunk = |bytes: &[u8]| {
        let size = format!("{:x}\r\n", bytes.len());
        [size.as_bytes(), bytes, b"\r\n"].concat()
    };
    let head = b"POST /v1/logs HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\n\
        content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = Wire::connect(daemon.http(), &tls);
            let begun = [&head[..], &chunk(first)].concat();
            client.write(&begun).expect("it is taken");
            client
        })
        .collect();
    eventually("all are admitted", PATIENCE, || {
        reserved(&daemon, "requests") == (CLIENTS * STEP) as f64
    });
    daemon.producer().export_all(&messages.take(3));
    assert!(!is_red(&daemon), "the zone is Red");
    for client in &mut clients {
        let end = [chunk(rest), b"0\r\n\r\n".to_vec()].concat();
        client.write(&end).expect("it is taken");
        let mut answer = [0; 15];
        assert_eq!(client.read(&mut answer), answer.len());
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
    eventually("nothing is held", PATIENCE, || {
        reserved(&daemon, "requests") == 0.0
    });
}

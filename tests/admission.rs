//! Who is let in, and what happens when the ingest budget is spent.

mod common;

#[path = "xdp/network.rs"]
#[expect(dead_code, reason = "made for the tests of XDP")]
mod network;

use std::{
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use bytes::Bytes;
use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    oracle,
    producer::{self, Call, Producer},
    settings::Settings,
    sink::Sink,
    wire::{CANCEL, DATA, END_HEADERS, HEADERS, RST_STREAM, Wire, export_head, frame},
};
use network::{CALLED_BY_ALLOWED, CALLED_BY_DENIED, Network, PLAIN_V4};
use rustls::{ClientConfig, version::TLS13};

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// A request that announces `len` bytes and of which a hundred come.
fn beginning(stream: u32, len: usize) -> Vec<u8> {
    let announced = producer::frame(&vec![0; len], false);
    let head = frame(HEADERS, END_HEADERS, stream, &export_head(&[]));
    [head, frame(DATA, 0, stream, &announced[..100])].concat()
}

fn reserved(daemon: &Daemon<'_>, what: &str) -> f64 {
    daemon.metric("gophership_ingester_reserved_bytes", &[("for", what)])
}

#[test]
fn while_the_budget_is_spent_sockets_are_not_read_and_then_they_are() {
    const LARGE: usize = 2 << 20;
    let (home, sink) = (Home::new(), Sink::up());
    let settings = Settings {
        memory_total: "32MiB",
        // One batch.
        memory_export: "20%",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let other = daemon.producer();
    other.export_all(&Messages::new(91, SHAPE).take(1));

    // Half-received requests take all there is, until one has to wait, which holds nothing.
    let used = || daemon.figure("/memory/components/ingest/used");
    let limit = daemon.figure("/memory/components/ingest/limit");
    let mut idle: Vec<_> = (0..8)
        .map(|_| Wire::http2(daemon.grpc(), &tls, &[]))
        .collect();
    let mut hoarders = Vec::new();
    let mut hoard = || {
        let mut hoarder = idle
            .pop()
            .expect("16 MiB have no room for eight requests of 2 MiB");
        hoarder.write(&beginning(1, LARGE)).expect("it is taken");
        hoarders.push(hoarder);
        (hoarders.len() * LARGE) as f64
    };
    while limit - used() >= LARGE as u64 {
        let bytes = hoard();
        eventually("the request is admitted", PATIENCE, || {
            reserved(&daemon, "requests") == bytes
        });
    }
    let held = used();
    hoard();

    // Who has no admitted request isn't read now.
    let pending = other.start(Call::logs(Messages::new(92, SHAPE).message()));
    eventually("a reader is stopped", PATIENCE, || {
        daemon.metric("gophership_ingester_readers_stopped", &[]) >= 1.0
    });
    assert!(used() <= held, "what waits is counted");
    for mut hoarder in hoarders.drain(..) {
        hoarder
            .write(&frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes()))
            .expect("who has an admitted request is read");
    }
    // Refused at most, if it had to wait for too long; not lost.
    if let Err(failure) = pending.wait() {
        assert_eq!(failure.status().code(), tonic::Code::Unavailable);
    }
    eventually("nothing is reserved for requests", PATIENCE, || {
        reserved(&daemon, "requests") == 0.0
    });
    other.export_all(&Messages::new(93, SHAPE).take(3));
    eventually("no reader is stopped", PATIENCE, || {
        daemon.metric("gophership_ingester_readers_stopped", &[]) == 0.0
    });
}

#[test]
fn requests_that_wait_on_one_connection_do_not_keep_an_admitted_one_from_becoming_whole() {
    let (home, sink) = (Home::new(), Sink::up());
    let settings = Settings {
        memory_total: "32MiB",
        memory_export: "20%",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let producer = daemon.producer();
    // Far more than the budget and the windows, all at once on one connection.
    let large = Shape {
        records: 60,
        body_bytes: 30_000,
    };
    let messages = Messages::new(94, large).take(24);
    let pending: Vec<_> = messages
        .iter()
        .map(|message| producer.start(Call::logs(message.clone())))
        .collect();
    let mut acked = Vec::new();
    for (message, pending) in messages.iter().zip(pending) {
        match pending.wait() {
            Ok(_) => acked.push(message.clone()),
            Err(failure) => assert_eq!(failure.status().code(), tonic::Code::Unavailable),
        }
    }
    assert!(!acked.is_empty());
    oracle::await_arrival(&acked, &sink, PATIENCE);
    assert_eq!(reserved(&daemon, "requests"), 0.0);
}

#[test]
fn the_charge_of_connections_shows_in_the_budget_and_is_given_back() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let used = || daemon.figure("/memory/components/ingest/used");
    // The workers' buffers.
    let base = used();
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let wires: Vec<_> = (0..8)
        .map(|_| Wire::http2(daemon.grpc(), &tls, &[]))
        .collect();
    eventually("eight connections", PATIENCE, || {
        daemon.figure("/ingest/connections") == 8
    });
    let charged = used() - base;
    assert!(charged >= 8 * 256 * 1024, "{charged}");
    assert_eq!(reserved(&daemon, "connections"), charged as f64);
    assert_eq!(reserved(&daemon, "buffers"), base as f64);
    drop(wires);
    eventually("nothing is charged", PATIENCE, || used() == base);
}

fn remote_tests_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|v| v == "1");
    assert!(
        !required,
        "GOPHERSHIP_REQUIRE_KERNEL=1, but only root may make network namespaces"
    );
    eprintln!("nothing tested: only root may make network namespaces");
    false
}

/// A message from `producer`, which must be acknowledged.
#[track_caller]
fn served(producer: &Producer, message: &Bytes) {
    producer.export_all(std::slice::from_ref(message));
}

#[test]
fn the_newest_idle_remote_connection_goes_first_and_local_ones_are_never_refused() {
    if !remote_tests_run() {
        return;
    }
    let (home, sink) = (Home::new(), Sink::up());
    let network = Network::new();
    let settings = Settings {
        listen: "0.0.0.0:0",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let limit = [("GOPHERSHIP_INGEST__MAX_CONNECTIONS", "3")];
    let daemon = network
        .server
        .run(|| Daemon::start_with_env(&home, &settings, &limit));
    let port = daemon.grpc().port();
    let address = SocketAddr::new(PLAIN_V4.parse().expect("an address"), port);
    let message = Messages::new(95, SHAPE).message();
    let tls: Arc<ClientConfig> = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let connect = || {
        network
            .client
            .run(|| Producer::connect(address, Arc::clone(&tls)))
            .expect("a remote producer is served")
    };
    let remote = || daemon.figure("/ingest/remote_connections");

    let oldest = connect();
    served(&oldest, &message);
    let mut busy = network.client.run(|| Wire::http2(address, &tls, &[]));
    busy.write(&beginning(1, 1000)).expect("it is taken");
    let mut newest = network.client.run(|| Wire::http2(address, &tls, &[]));
    eventually("three remote ones", PATIENCE, || remote() == 3);
    eventually("the third has a request", PATIENCE, || {
        daemon.figure("/memory/components/ingest/used") > 0
    });

    // The fourth takes the place of the third, which is said good-bye to.
    let fourth = connect();
    served(&fourth, &message);
    assert_eq!(newest.good_bye(), Some(0), "a graceful end");
    served(&oldest, &message);
    assert_eq!(remote(), 3);
    assert_eq!(daemon.figure("/ingest/max_connections"), 3);

    // Local ones, at the limit: by loopback, and by the address that remote ones call.
    for host in ["127.0.0.1", PLAIN_V4] {
        let address = SocketAddr::new(host.parse().expect("an address"), port);
        let local = network
            .server
            .run(|| Producer::connect(address, Arc::clone(&tls)))
            .expect("a local producer is served");
        served(&local, &message);
        assert_eq!(remote(), 3, "nobody went for a local one");
    }
    // When all are busy, the next one waits until one has left.
    let mut others: Vec<Wire> = Vec::new();
    drop((oldest, fourth));
    eventually("one is left", PATIENCE, || remote() == 1);
    // The first one ends, if it takes too long.
    busy.write(&beginning(3, 1000)).expect("it is taken");
    for _ in 0..2 {
        let mut wire = network.client.run(|| Wire::http2(address, &tls, &[]));
        wire.write(&beginning(1, 1000)).expect("it is taken");
        others.push(wire);
    }
    eventually("three busy ones", PATIENCE, || remote() == 3);
    let waiting = std::thread::scope(|scope| {
        let last = scope.spawn(connect);
        eventually("one waits for room", PATIENCE, || {
            daemon.figure("/ingest/connections_waiting") == 1
        });
        drop(busy);
        last.join().expect("it is served in the end")
    });
    served(&waiting, &message);
}

#[test]
fn handshakes_that_nobody_finishes_keep_no_remote_producer_out() {
    if !remote_tests_run() {
        return;
    }
    let (home, sink) = (Home::new(), Sink::up());
    let network = Network::new();
    let settings = Settings {
        listen: "0.0.0.0:0",
        memory_total: "512MiB",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = network.server.run(|| Daemon::start(&home, &settings));
    // Which of its addresses somebody calls tells where he calls from.
    let at = |host: &str| {
        let host = host.parse().expect("an address");
        SocketAddr::new(host, daemon.grpc().port())
    };
    let silent = |host: &str, count: usize| -> Vec<TcpStream> {
        let connect = || TcpStream::connect(at(host)).expect("the backlog has room");
        let client = &network.client;
        client.run(|| (0..count).map(|_| connect()).collect())
    };
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let message = Messages::new(96, SHAPE).message();
    let honest_is_served = || {
        let connect = || Producer::connect(at(CALLED_BY_ALLOWED), Arc::clone(&tls));
        let honest = network.client.run(connect);
        served(&honest.expect("it is let in"), &message);
    };
    let failed = |reason| {
        let name = "gophership_ingester_failed_handshakes_total";
        let read = || daemon.metric(name, &[("reason", reason)]);
        network.server.run(read)
    };

    // One address has neither all handshakes nor all places to wait for one.
    let _one = silent(PLAIN_V4, 420);
    honest_is_served();
    // Two have all handshakes. Those that have had their time make room, long before it is up.
    let _another = silent(CALLED_BY_DENIED, 100);
    honest_is_served();
    assert_eq!(failed("timeout"), 0.0);
    assert!(failed("no_room") >= 1.0);
}

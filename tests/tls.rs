//! The handshake of the ingest listeners: what is negotiated, who is refused, and what the log says of it.

mod common;

use std::{fs, io::Write, net::TcpStream, time::Instant};

use common::{
    PATIENCE,
    authority::{Authority, NOW, Pair, Role, handshake},
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    settings::Settings,
    sink::Sink,
};
use rustls::{
    CipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
    version::TLS12,
};
use serde_json::Value;

const SHAPE: Shape = Shape {
    records: 3,
    body_bytes: 100,
};

/// A home whose files are of an authority that the test has the key of.
struct Site {
    home: Home,
    authority: Authority,
    client: Pair,
}

impl Site {
    fn new() -> Self {
        let (home, authority) = (Home::new(), Authority::new());
        let server = authority.issue(Role::Server, &NOW);
        let write = |name: &str, text: &str| {
            fs::write(home.certs().path(name), text).expect("written");
        };
        write("ca.pem", &authority.pem);
        write("server.pem", &server.cert);
        write("server.key", &server.key);
        let client = authority.issue(Role::Client, &NOW);
        Self {
            home,
            authority,
            client,
        }
    }

    fn start(&self, sink: &Sink) -> Daemon<'_> {
        Daemon::start(&self.home, &Settings::to(sink.destination("main", "10s")))
    }
}

fn failures(daemon: &Daemon<'_>, reason: &str) -> f64 {
    let name = "gophership_ingester_failed_handshakes_total";
    daemon.metric(name, &[("reason", reason)])
}

/// The fields of each line that tells of a refused connection.
fn refusals(daemon: &Daemon<'_>) -> Vec<Value> {
    let lines = daemon.log_lines("connection refused");
    let fields = lines.iter().map(|line| {
        let event: Value = serde_json::from_str(line).expect("JSON");
        event.get("fields").unwrap_or(&event).clone()
    });
    fields.collect()
}

/// Waits for the one refusal there is to be, and checks why.
#[track_caller]
fn expect_refusal(daemon: &Daemon<'_>, reason: &str, words: &[&str]) {
    eventually("the refusal is counted", PATIENCE, || {
        failures(daemon, reason) >= 1.0
    });
    let all = daemon.metric("gophership_ingester_failed_handshakes_total", &[]);
    assert_eq!(all, 1.0, "only {reason}");
    let mut told = Vec::new();
    eventually("the refusal is told", PATIENCE, || {
        told = refusals(daemon);
        !told.is_empty()
    });
    assert_eq!(told.len(), 1, "{told:?}");
    let why = told[0]["reason"].as_str().expect("a text");
    for word in words {
        assert!(why.contains(word), "no {word:?} in {why:?}");
    }
    assert!(
        told[0]["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
    );
}

#[test]
fn each_suite_of_tls_1_3_is_negotiated_by_whoever_offers_it_alone() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let mut negotiated = Vec::new();
    for suite in aws_lc_rs::ALL_CIPHER_SUITES {
        if suite.tls13().is_none() {
            continue;
        }
        let provider = CryptoProvider {
            cipher_suites: vec![*suite],
            ..aws_lc_rs::default_provider()
        };
        let client = site.authority.client_of(provider, Some(&site.client));
        let seen = handshake(daemon.grpc(), &client).expect("served");
        assert_eq!(seen.suite, suite.suite());
        negotiated.push(seen.suite);
    }
    negotiated.sort_by_key(|suite| u16::from(*suite));
    assert_eq!(
        negotiated,
        [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        ]
    );
}

#[test]
fn a_client_of_tls_1_2_is_told_of_as_one() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let old = home.certs().client(ClientIdentity::Shown, &[&TLS12]);
    handshake(daemon.grpc(), &old).expect_err("TLS 1.2 was accepted");
    expect_refusal(&daemon, "incompatible", &["TLS 1.3"]);
}

#[test]
fn a_client_without_a_certificate_is_told_of_as_one() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    handshake(daemon.grpc(), &site.authority.client(None)).expect_err("served");
    expect_refusal(
        &daemon,
        "no_certificate",
        &["no certificate", "ingest.tls.client_auth"],
    );
}

#[test]
fn a_client_of_another_authority_is_told_of_as_one() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let stranger = Authority::new().issue(Role::Client, &NOW);
    handshake(daemon.grpc(), &site.authority.client(Some(&stranger))).expect_err("served");
    expect_refusal(&daemon, "unknown_authority", &["ingest.tls.client_ca"]);
}

#[test]
fn a_client_whose_certificate_is_not_valid_now_is_told_of_as_one() {
    for (valid, word) in [(-48..-1, "expired"), (1..48, "not valid")] {
        let (site, sink) = (Site::new(), Sink::up());
        let daemon = site.start(&sink);
        let client = site.authority.issue(Role::Client, &valid);
        handshake(daemon.grpc(), &site.authority.client(Some(&client))).expect_err("served");
        expect_refusal(&daemon, "expired", &["isn't valid now", word]);
    }
}

#[test]
fn a_server_certificate_is_no_clients() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let server = site.authority.issue(Role::Server, &NOW);
    handshake(daemon.grpc(), &site.authority.client(Some(&server))).expect_err("served");
    expect_refusal(&daemon, "other", &["certificate"]);
}

#[test]
fn a_client_that_does_not_trust_the_server_is_told_of_as_one() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let mistrusting = Authority::new().client(Some(&site.client));
    handshake(daemon.grpc(), &mistrusting).expect_err("served");
    expect_refusal(&daemon, "not_trusted", &["ingest.tls.cert"]);
}

#[test]
fn a_flood_of_failing_handshakes_does_not_flood_the_log_and_is_counted_whole() {
    const FLOOD: u32 = 400;
    let (site, sink) = (Site::new(), Sink::up());
    let began = Instant::now();
    let daemon = site.start(&sink);
    for _ in 0..FLOOD {
        let mut socket = TcpStream::connect(daemon.grpc()).expect("accepted");
        // It may have been refused already.
        drop(socket.write_all(b"GET / HTTP/1.1\r\n\r\n"));
    }
    eventually("all are counted", PATIENCE, || {
        failures(&daemon, "other") >= f64::from(FLOOD)
    });
    // Ten lines in ten seconds from each of two workers.
    let most = 2 * 10 * (began.elapsed().as_secs() / 10 + 1);
    let told = refusals(&daemon);
    assert!(!told.is_empty());
    assert!(told.len() as u64 <= most, "{} lines", told.len());
    // The others are none the worse for it.
    let tls = site.authority.client(Some(&site.client));
    let producer = common::producer::Producer::connect(daemon.grpc(), tls).expect("served");
    producer.export_all(&Messages::new(70, SHAPE).take(3));
}

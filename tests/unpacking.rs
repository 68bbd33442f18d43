//! What requests unpack to is part of the ingest budget, whatever producers send.

mod common;

use std::{
    io::Write,
    ops::RangeInclusive,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually,
    http::{Answer, HttpClient, Post, Version},
    messages::{Messages, Shape},
    oracle,
    producer::{self, Call, retry_delay},
    settings::Settings,
    sink::{self, Sink},
    wire::{CANCEL, DATA, END_HEADERS, HEADERS, RST_STREAM, Wire, export_head, frame},
};
use flate2::{Compression, write::GzEncoder};
use gophership::ingest::needs::buffers_bytes;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use prost::{Message, encoding::encode_varint};
use rustls::version::TLS13;
use tonic::Code;

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

const MEMORY_TOTAL: usize = 32 * MIB;
/// Half of the total. Each worker's two buffers have 128 KiB, and the buffers leave 15.5 MiB.
const BUDGET: usize = 16 * MIB;
const WORKERS: u32 = 2;
/// `ingest.max_request_bytes`.
const LIMIT: usize = 6 * MIB;
/// Who is refused for want of memory is told to come again after so many seconds, rounded up.
const RETURN_S: RangeInclusive<u64> = 1..=36;
/// A zstd decoder's window, which is beyond the budget.
const WINDOW: usize = 8 * MIB;

fn settings(sink: &Sink) -> Settings {
    Settings {
        workers: WORKERS,
        max_request_bytes: "6MiB",
        segment_bytes: "16MiB",
        memory_total: "32MiB",
        memory_export: "20%",
        ..Settings::to(sink.destination("main", "10s"))
    }
}

fn used(daemon: &Daemon<'_>) -> usize {
    let used = daemon.figure("/memory/components/ingest/used");
    usize::try_from(used).expect("64 bits")
}

/// What is taken of the budget before anybody comes.
fn base() -> usize {
    buffers_bytes(BUDGET, WORKERS as usize)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("compressing into memory");
    encoder.finish().expect("compressing into memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("compressing into memory")
}

fn request(number: usize, body_bytes: usize) -> ExportLogsServiceRequest {
    let body = format!("{number}: {}", "a".repeat(body_bytes));
    let record = LogRecord {
        body: Some(AnyValue {
            value: Some(Value::StringValue(body)),
        }),
        // So that destinations get the bytes that were sent.
        observed_time_unix_nano: 1,
        ..LogRecord::default()
    };
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            scope_logs: vec![ScopeLogs {
                log_records: vec![record],
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
}

/// A valid message that compresses far better than any logs, of a little more than so many bytes.
fn message(number: usize, body_bytes: usize) -> Bytes {
    request(number, body_bytes).encode_to_vec().into()
}

/// As [`message`], in JSON.
fn json(number: usize, body_bytes: usize) -> Vec<u8> {
    serde_json::to_vec(&request(number, body_bytes)).expect("it has a JSON form")
}

fn client(daemon: &Daemon<'_>, version: Version) -> HttpClient {
    let certs = daemon.home().certs();
    let tls = certs.client(ClientIdentity::Shown, &[&TLS13]);
    HttpClient::connect(daemon.http(), Some(tls), version)
}

fn gzipped(content_type: &'static str, body: &[u8]) -> Post {
    Post::logs(content_type, gzip(body)).with("content-encoding", "gzip")
}

fn zstded(content_type: &'static str, body: &[u8]) -> Post {
    Post::logs(content_type, zstd(body)).with("content-encoding", "zstd")
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// A connection whose requests come only in part, and keep the budget.
struct Hoarder {
    wire: Wire,
    next: u32,
}

impl Hoarder {
    fn connect(daemon: &Daemon<'_>) -> Self {
        let tls = daemon
            .home()
            .certs()
            .client(ClientIdentity::Shown, &[&TLS13]);
        Self {
            wire: Wire::http2(daemon.grpc(), &tls, &[]),
            next: 1,
        }
    }

    /// Begins requests of `bytes` until there is no room for another one.
    fn hoard(&mut self, daemon: &Daemon<'_>, bytes: usize) {
        let announced = producer::frame(&vec![0; bytes], false);
        while BUDGET - used(daemon) >= bytes {
            let before = used(daemon);
            let head = frame(HEADERS, END_HEADERS, self.next, &export_head(&[]));
            let data = frame(DATA, 0, self.next, &announced[..100]);
            self.wire
                .write(&[head, data].concat())
                .expect("it is taken");
            self.next += 2;
            eventually("it is admitted", PATIENCE, || used(daemon) > before);
        }
    }

    fn give_up(&mut self) {
        for stream in (1..self.next).step_by(2) {
            let reset = frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
            self.wire.write(&reset).expect("it is taken");
        }
    }
}

#[test]
fn what_unpacks_to_more_than_there_is_room_for_may_come_again_and_is_then_taken() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &settings(&sink));
    assert_eq!(used(&daemon), base());
    let mut http = client(&daemon, Version::Http1);
    let grpc = daemon.producer();
    // Who is silent for long is cut off.
    assert_eq!(http.send(Post::logs(JSON, json(0, 1))).status, 200);
    let mut hoarder = Hoarder::connect(&daemon);
    eventually("three connections", PATIENCE, || {
        daemon.figure("/ingest/connections") == 3
    });
    let calm = used(&daemon);
    let sent: Vec<_> = (0..6).map(|number| message(number, 700 * KIB)).collect();
    let small: Vec<_> = (10..12).map(|number| message(number, 100 * KIB)).collect();
    let zstd_call = |message: &Bytes| Call::logs(zstd(message).into()).compressed("zstd");

    // Few enough for one connection's streams.
    for bytes in [2 * MIB, MIB, 512 * KIB, 256 * KIB] {
        hoarder.hoard(&daemon, bytes);
    }
    let hoarded = used(&daemon);
    for message in &sent[..2] {
        let answer = http.send(gzipped(PROTOBUF, message));
        assert_eq!(answer.status, 503, "{answer:?}");
        let seconds: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!(RETURN_S.contains(&seconds), "{seconds} s");
        assert!(text(&answer).contains("unpacks to"), "{}", text(&answer));
        let refused = grpc.start(zstd_call(message)).wait();
        let status = refused.expect_err("there is no room").status();
        assert_eq!(status.code(), Code::Unavailable);
        let delay = retry_delay(&status).expect("RetryInfo tells when to come again");
        assert!(RETURN_S.contains(&delay.as_millis().div_ceil(1000).try_into().expect("few")));
    }
    // What fits the workers' buffers needs none, compressed as it is.
    assert_eq!(http.send(gzipped(PROTOBUF, &small[0])).status, 200);
    assert!(grpc.start(zstd_call(&small[1])).wait().is_ok());
    eventually("what they took is given back", PATIENCE, || {
        used(&daemon) == hoarded
    });

    hoarder.give_up();
    eventually("there is room", PATIENCE, || used(&daemon) == calm);
    for message in &sent[..3] {
        assert_eq!(http.send(gzipped(PROTOBUF, message)).status, 200);
    }
    for message in &sent[3..] {
        grpc.start(zstd_call(message)).wait().expect("it is taken");
    }
    eventually("it is given back", PATIENCE, || used(&daemon) == calm);
    let all = [sent, small].concat();
    oracle::await_arrival(&all, &sink, PATIENCE);
    let refused = daemon.metric(
        "gophership_ingester_requests_total",
        &[("outcome", "refused")],
    );
    assert_eq!(refused, 4.0, "they aren't the producers' fault");
    drop((http, grpc, hoarder));
    eventually("the base", PATIENCE, || used(&daemon) == base());
}

#[test]
fn while_its_answer_is_waited_for_a_request_holds_no_more_than_its_length() {
    let (home, sink) = (Home::new(), Sink::up());
    let settings = Settings {
        ack_within: "60s",
        ..Settings {
            destinations: vec![sink.destination("main", "60s")],
            ..settings(&sink)
        }
    };
    let daemon = Daemon::start(&home, &settings);
    sink.answer(sink::Answer::Hold);
    // Both reserve far more than that until they are unpacked.
    let plain = json(1, 300 * KIB);
    let shape = Shape {
        records: 100,
        body_bytes: 1000,
    };
    let compressed = zstd(&Messages::new(96, shape).message());
    let held = plain.len() + compressed.len();
    let posts = [
        Post::logs(JSON, plain),
        Post::logs(PROTOBUF, compressed).with("content-encoding", "zstd"),
    ];
    std::thread::scope(|scope| {
        let requests: Vec<_> = posts
            .into_iter()
            .map(|post| scope.spawn(|| client(&daemon, Version::Http1).send(post).status))
            .collect();
        eventually("both are unpacked", PATIENCE, || {
            let reserved =
                daemon.metric("gophership_ingester_reserved_bytes", &[("for", "requests")]);
            reserved == held as f64
        });
        sink.answer(sink::Answer::Accept);
        for request in requests {
            assert_eq!(request.join().expect("it is answered"), 200);
        }
    });
    eventually("the base", PATIENCE, || used(&daemon) == base());
}

#[test]
fn what_can_never_be_unpacked_is_refused_for_good_with_what_to_set() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &settings(&sink));
    for version in [Version::Http1, Version::Http2] {
        let mut client = client(&daemon, version);
        // Three times 5 MiB are more than three quarters of the budget.
        let large = json(1, 5 * MIB);
        let takes = format!(
            "{} bytes of JSON, which takes {}",
            large.len(),
            3 * large.len()
        );
        for (post, named) in [
            (Post::logs(JSON, large.clone()), takes.as_str()),
            (
                Post::logs(JSON, large.clone()).in_chunks_of(100_000),
                takes.as_str(),
            ),
            (
                gzipped(JSON, &json(2, 5 * MIB + 900 * KIB)),
                "bytes decompressed (all that the ingest budget has room for",
            ),
        ] {
            let answer = client.send(post);
            assert_eq!(answer.status, 413, "{answer:?}");
            let said = text(&answer);
            assert!(said.contains(named), "{said}");
            assert!(said.contains("memory.total"), "{said}");
            assert_eq!(answer.header("retry-after"), "");
        }
        let answer = client.send(zstded(PROTOBUF, &vec![0; LIMIT + 1]));
        assert_eq!(answer.status, 413, "{answer:?}");
        let said = text(&answer);
        assert!(said.contains("ingest.max_request_bytes"), "{said}");
        for post in [
            Post::logs(JSON, json(3, 2 * MIB)),
            Post::logs(JSON, json(4, 2 * MIB)).in_chunks_of(100_000),
            gzipped(JSON, &json(5, 2 * MIB)),
        ] {
            assert_eq!(client.send(post).status, 200);
        }
    }
    eventually("the base", PATIENCE, || used(&daemon) == base());
}

/// What each of many producers sends, and the statuses that it may get.
fn hostile(number: usize) -> Vec<(Post, &'static [u16])> {
    const TAKEN: &[u16] = &[200, 503];
    const TOO_LARGE: &[u16] = &[413, 503];
    let zeros = vec![0; 64 * MIB];
    let mut all = vec![
        (gzipped(PROTOBUF, &message(number, MIB + 500 * KIB)), TAKEN),
        (zstded(PROTOBUF, &zeros), TOO_LARGE),
        (Post::logs(JSON, json(number, MIB)), TAKEN),
        (gzipped(JSON, &json(number, 2 * MIB)), TAKEN),
        (gzipped(JSON, &zeros), TOO_LARGE),
        (zstded(JSON, &json(number, MIB)).in_chunks_of(50), TAKEN),
        (Post::logs(JSON, json(number, 5 * MIB)), &[413]),
    ];
    let kinds = all.len();
    all.rotate_left(number % kinds);
    all
}

#[test]
fn many_that_send_bombs_and_large_json_at_once_stay_within_the_memory() {
    const PRODUCERS: usize = 14;
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &settings(&sink));
    let warm = client(&daemon, Version::Http1).send(Post::logs(JSON, json(0, 100)));
    assert_eq!(warm.status, 200);
    let calm_rss = daemon.memory("VmRSS");
    let taken: usize = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|number| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let version = [Version::Http1, Version::Http2][number % 2];
                    let mut client = client(daemon, version);
                    let answers = hostile(number).into_iter().map(|(post, allowed)| {
                        let answer = client.send(post);
                        assert!(allowed.contains(&answer.status), "{answer:?}");
                        if answer.status == 503 {
                            assert_ne!(answer.header("retry-after"), "");
                        }
                        answer.status == 200
                    });
                    answers.filter(|&is_taken| is_taken).count()
                })
            })
            .collect();
        let counts = producers.into_iter().map(|producer| producer.join());
        counts
            .map(|count| count.expect("its answers are right"))
            .sum()
    });
    assert!(taken > 0);
    let grown = daemon.memory("VmHWM").saturating_sub(calm_rss);
    eprintln!("{taken} taken, the memory grew by {grown} bytes");
    let overhead = WORKERS as usize * WINDOW;
    assert!(grown <= (MEMORY_TOTAL + overhead) as u64, "{grown} bytes");
    eventually("the base", PATIENCE, || used(&daemon) == base());
    let reserved = |what| daemon.metric("gophership_ingester_reserved_bytes", &[("for", what)]);
    assert_eq!(reserved("buffers"), base() as f64);
    assert_eq!(reserved("requests"), 0.0);
    assert_eq!(
        client(&daemon, Version::Http1)
            .send(Post::logs(JSON, json(1, 1)))
            .status,
        200
    );
}

/// JSON of so many bytes that is dear to unpack and refused in the end: records with nothing in them, and cut off.
fn dear_json(bytes: usize) -> Vec<u8> {
    let mut json = br#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{}"#.to_vec();
    json.extend_from_slice(&b",{}".repeat(bytes / 3));
    json
}

/// As [`dear_json`], in protobuf, which ends in a field that is none.
fn dear_protobuf(bytes: usize) -> Vec<u8> {
    let records = [&[0x12, 0].repeat(bytes / 2)[..], &[0]].concat();
    [0x12, 0x0a].into_iter().fold(records, |body, key| {
        let mut field = vec![key];
        encode_varint(body.len() as u64, &mut field);
        field.extend_from_slice(&body);
        field
    })
}

/// A daemon with one worker: all are neighbours there.
fn one_worker(sink: &Sink) -> Settings {
    Settings {
        workers: 1,
        memory_total: "128MiB",
        ..settings(sink)
    }
}

fn requests_hold(daemon: &Daemon<'_>) -> f64 {
    daemon.metric("gophership_ingester_reserved_bytes", &[("for", "requests")])
}

#[test]
fn while_large_messages_are_unpacked_their_neighbours_are_answered() {
    const ROUNDS: usize = 3;
    /// Far more than who has to wait for each of them is answered, far less than who doesn't.
    const MEANWHILE: usize = 20;
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &one_worker(&sink));
    let json = dear_json(2 * MIB);
    let posts = [
        Post::logs(JSON, json.clone()),
        gzipped(JSON, &json),
        zstded(JSON, &json),
        gzipped(PROTOBUF, &dear_protobuf(4 * MIB)),
    ];
    let all = posts.len() * ROUNDS;
    let refused = AtomicUsize::new(0);
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let mut neighbour = Wire::connect(daemon.http(), &tls);
    // With nothing in it: no destination is waited for.
    let small = format!(
        "POST /v1/logs HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 0\r\n\r\n"
    );
    let (mut answered, mut answer) = (0, [0; 1024]);
    std::thread::scope(|scope| {
        for post in posts {
            let mut hostile = client(&daemon, Version::Http1);
            let refused = &refused;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let answer = hostile.send(post.clone());
                    // Who waits for too long may come again.
                    assert!([400, 503].contains(&answer.status), "{answer:?}");
                    refused.fetch_add(1, SeqCst);
                }
            });
        }
        eventually("they are there", PATIENCE, || {
            refused.load(SeqCst) > 0 || requests_hold(&daemon) > 0.0
        });
        while refused.load(SeqCst) < all {
            neighbour.write(small.as_bytes()).expect("it is taken");
            let read = neighbour.read(&mut answer);
            assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK"));
            answered += 1;
        }
    });
    eprintln!("{answered} answered while {all} were unpacked");
    assert!(answered >= all * MEANWHILE, "{answered} of {all}");
    let outcome = [("outcome", "delivered")];
    let delivered = daemon.metric("gophership_ingester_requests_total", &outcome);
    assert_eq!(delivered, answered as f64);
}

#[test]
fn who_sends_many_large_messages_at_once_has_one_unpacked_by_turns_with_others() {
    const MANY: usize = 12;
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &one_worker(&sink));
    let many = daemon.producer();
    let mut other = client(&daemon, Version::Http1);
    assert_eq!(other.send(Post::logs(JSON, json(0, 1))).status, 200);
    let large = gzipped(JSON, &dear_json(100 * KIB));
    let dear = Bytes::from(gzip(&dear_protobuf(LIMIT - KIB)));
    let mut pending: Vec<_> = (0..MANY)
        .map(|_| many.start(Call::logs(dear.clone()).compressed("gzip")))
        .collect();
    eventually("one is unpacked", PATIENCE, || {
        requests_hold(&daemon) >= LIMIT as f64
    });
    assert_eq!(other.send(large).status, 400);
    pending.retain(|one| one.poll().is_none());
    let answered = MANY - pending.len();
    eprintln!("{answered} of {MANY} came first");
    assert!(answered <= MANY / 2, "{answered} came first");
    for one in &pending {
        let code = one.wait().expect_err("it is refused").status().code();
        // Who waits for too long may come again.
        let codes = [Code::InvalidArgument, Code::Unavailable];
        assert!(codes.contains(&code), "{code:?}");
    }
}

#[test]
fn who_leaves_while_his_message_is_unpacked_leaves_nothing_behind() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &one_worker(&sink));
    let base = used(&daemon);
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let packed = gzip(&dear_json(2 * MIB));
    let head = format!(
        "POST /v1/logs HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON}\r\ncontent-encoding: gzip\r\n\
         content-length: {}\r\n\r\n",
        packed.len()
    );
    for _ in 0..3 {
        let mut leaves = Wire::connect(daemon.http(), &tls);
        leaves
            .write(&[head.as_bytes(), &packed].concat())
            .expect("it is taken");
        eventually("it has all that it needs", PATIENCE, || {
            requests_hold(&daemon) > 2.0 * 2.0 * MIB as f64
        });
        drop(leaves);
        eventually("it is given back", PATIENCE, || used(&daemon) == base);
    }
    let stays = gzipped(JSON, &json(1, 2 * MIB));
    assert_eq!(client(&daemon, Version::Http1).send(stays).status, 200);
    eventually("the base", PATIENCE, || used(&daemon) == base);
}

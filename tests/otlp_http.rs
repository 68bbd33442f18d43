//! OTLP/HTTP: every way a request may come, and every answer it may get.

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{
    PATIENCE,
    certs::{ClientIdentity, GS_CTL},
    daemon::{Daemon, Home},
    eventually,
    http::{Answer, HttpClient, Post, Version},
    messages::{Messages, Shape},
    oracle,
    producer::{self, Call, Producer},
    settings::Settings,
    sink::Sink,
    wire::Wire,
};
use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;
use rustls::version::TLS13;
use serde_json::Value;
use tonic::Code;

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// `Settings::to` allows 2 MiB.
const LIMIT: usize = 2 * 1024 * 1024;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("compressing into memory");
    encoder.finish().expect("compressing into memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("compressing into memory")
}

/// In two members or frames, which both codecs allow.
fn in_two(compress: fn(&[u8]) -> Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    [compress(first), compress(second)].concat()
}

/// As another implementation writes it.
fn json(message: &[u8]) -> Vec<u8> {
    let request = ExportLogsServiceRequest::decode(message).expect("a valid message");
    serde_json::to_vec(&request).expect("it has a JSON form")
}

fn settings(sink: &Sink, plaintext: bool) -> Settings {
    Settings {
        plaintext,
        // One lane, so that the vault has entries in the order of the requests.
        workers: 1,
        ..Settings::to(sink.destination("main", "10s"))
    }
}

#[track_caller]
fn client(daemon: &Daemon<'_>, plaintext: bool, version: Version) -> HttpClient {
    let certs = daemon.home().certs();
    let tls = (!plaintext).then(|| certs.client(ClientIdentity::Shown, &[&TLS13]));
    HttpClient::connect(daemon.http(), tls, version)
}

/// Every way to write and compress a message.
fn every_way(messages: &mut Messages) -> Vec<(Bytes, Post, Bytes)> {
    let mut all = Vec::new();
    for content_type in [PROTOBUF, JSON] {
        for encoding in ["", "identity", "gzip", "zstd", "gzip twice", "zstd twice"] {
            let message = messages.message();
            let written = match content_type {
                PROTOBUF => message.to_vec(),
                _ => json(&message),
            };
            let (encoding, body) = match encoding {
                "gzip" => (encoding, gzip(&written)),
                "zstd" => (encoding, zstd(&written)),
                "gzip twice" => ("gzip", in_two(gzip, &written)),
                "zstd twice" => ("zstd", in_two(zstd, &written)),
                _ => (encoding, written),
            };
            let body = Bytes::from(body);
            let mut post = Post::logs(content_type, body.clone());
            if !encoding.is_empty() {
                post = post.with("content-encoding", encoding);
            }
            all.push((message, post, body));
        }
    }
    all
}

#[track_caller]
fn assert_acknowledged(answer: &Answer, post: &Post) {
    assert_eq!(answer.status, 200, "{post:?}: {answer:?}");
    let (content_type, body) = match post.content_type().as_str() {
        PROTOBUF => (PROTOBUF, &b""[..]),
        _ => (JSON, &b"{}"[..]),
    };
    assert_eq!(answer.header("content-type"), content_type);
    assert_eq!(answer.body, body);
}

/// Waits until each message is at the sink. What came as JSON has its fields in another order there.
#[track_caller]
fn await_arrival(messages: &[Bytes], sink: &Sink) {
    eventually("all messages at the sink", PATIENCE, || {
        let stored: Vec<Bytes> = sink
            .stored()
            .iter()
            .map(|stored| {
                let request = ExportLogsServiceRequest::decode(stored.clone());
                request.expect("a valid request").encode_to_vec().into()
            })
            .collect();
        let arrivals = oracle::arrivals(messages, &stored);
        arrivals.iter().all(|&arrivals| arrivals == 1)
    });
}

fn vault_raw(home: &Home) -> Vec<u8> {
    let cat = Command::new(GS_CTL)
        .args(["vault", "cat", "--format", "raw", "--dir"])
        .arg(home.vault())
        .output()
        .expect("gs-ctl runs");
    assert!(cat.status.success(), "{cat:?}");
    cat.stdout
}

/// Red: the vault has the very bytes. Green again: the destination gets them in plain protobuf, from the vault and
/// straight through.
#[track_caller]
fn every_way_is_kept_and_delivered(plaintext: bool, seed: u64) {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &settings(&sink, plaintext));
    let mut messages = Messages::new(seed, SHAPE);
    let (mut sent, mut bytes) = (Vec::new(), Vec::new());
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    for version in [Version::Http1, Version::Http2] {
        let mut client = client(&daemon, plaintext, version);
        for (message, post, body) in every_way(&mut messages) {
            assert_acknowledged(&client.send(post.clone()), &post);
            sent.push(message);
            bytes.extend_from_slice(&body);
        }
    }
    assert_eq!(
        daemon.figure("/vault/records_pending"),
        sent.len() as u64 * SHAPE.records
    );
    assert!(
        vault_raw(&home) == bytes,
        "the vault has other bytes than were sent"
    );
    let written = daemon.ctl(&[
        "vault",
        "cat",
        "--dir",
        home.vault().to_str().expect("a path in UTF-8"),
    ]);
    assert_eq!(written.stdout.lines().count(), sent.len());

    daemon.ctl(&["override", "--clear"]);
    await_arrival(&sent, &sink);
    daemon.await_empty_vault();
    for version in [Version::Http1, Version::Http2] {
        let mut client = client(&daemon, plaintext, version);
        for (message, post, _) in every_way(&mut messages) {
            // A body without a length, too.
            let post = post.in_chunks_of(700);
            assert_acknowledged(&client.send(post.clone()), &post);
            sent.push(message);
        }
    }
    await_arrival(&sent, &sink);
    let records = daemon.metric("gophership_ingester_records_total", &[("protocol", "http")]);
    assert_eq!(records, sent.len() as f64 * SHAPE.records as f64);
}

#[test]
fn over_tls_every_way_is_kept_bit_for_bit_and_delivered() {
    every_way_is_kept_and_delivered(false, 60);
}

#[test]
fn in_plaintext_every_way_is_kept_bit_for_bit_and_delivered() {
    every_way_is_kept_and_delivered(true, 61);
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// The `Status` of a refusal, in the request's format or else in JSON.
#[track_caller]
fn refused(answer: &Answer, http: u16, format: &str, grpc: Code) -> String {
    assert_eq!(answer.status, http, "{answer:?}");
    assert_eq!(answer.header("content-type"), format, "{answer:?}");
    let (code, message) = match format {
        PROTOBUF => {
            let status = RpcStatus::decode(answer.body.clone()).expect("a Status");
            (i64::from(status.code), status.message)
        }
        _ => {
            let status: Value = serde_json::from_slice(&answer.body).expect("a Status in JSON");
            let message = status["message"].as_str().expect("it has a message");
            (
                status["code"].as_i64().expect("it has a code"),
                message.to_owned(),
            )
        }
    };
    assert_eq!(code, i64::from(grpc as i32), "{message}");
    message
}

/// A daemon and clients of both versions; each test refuses to both, and sees that the connection goes on.
#[track_caller]
fn with_clients(seed: u64, test: impl Fn(&mut HttpClient)) {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &settings(&sink, false));
    let mut messages = Messages::new(seed, SHAPE);
    let mut sent = Vec::new();
    for version in [Version::Http1, Version::Http2] {
        let mut client = client(&daemon, false, version);
        test(&mut client);
        let message = messages.message();
        let post = Post::logs(PROTOBUF, message.clone());
        assert_acknowledged(&client.send(post.clone()), &post);
        sent.push(message);
    }
    await_arrival(&sent, &sink);
    assert_eq!(daemon.figure("/ingest/records"), 2 * SHAPE.records);
}

#[test]
fn what_is_malformed_is_a_bad_request_that_names_the_place() {
    with_clients(62, |client| {
        for body in [&b"\xff\xff\xff\xff"[..], b"\x0a\x02\x12\x05", b"\x08\x01"] {
            let answer = client.send(Post::logs(PROTOBUF, body));
            let said = refused(&answer, 400, PROTOBUF, Code::InvalidArgument);
            assert!(said.contains("in the field at byte "), "{said}");
        }
        for (body, place) in [
            ("", "in JSON: EOF"),
            ("[]", "expected an object"),
            ("{\"resourceLogs\":[{}", "resourceLogs[1]: EOF"),
            (
                "{\"resourceLogs\":[{\"scopeLogs\":[{},{\"logRecords\":[{},{},{},{\"traceId\":\"5b8e\"}]}]}]}",
                "resourceLogs[0].scopeLogs[1].logRecords[3].traceId: 4 hex digits",
            ),
        ] {
            let answer = client.send(Post::logs(JSON, body));
            let said = refused(&answer, 400, JSON, Code::InvalidArgument);
            assert!(said.contains(place), "{said}");
        }
        for (encoding, name) in [("gzip", "not valid gzip"), ("zstd", "not valid zstd")] {
            for content_type in [PROTOBUF, JSON] {
                let post = Post::logs(content_type, "neither of them");
                let answer = client.send(post.with("content-encoding", encoding));
                let said = refused(&answer, 400, content_type, Code::InvalidArgument);
                assert!(said.contains(name), "{said}");
            }
        }
        let cut = zstd(&[7; 10_000]);
        let post = Post::logs(PROTOBUF, cut[..cut.len() - 2].to_vec());
        let answer = client.send(post.with("content-encoding", "zstd"));
        refused(&answer, 400, PROTOBUF, Code::InvalidArgument);
    });
}

#[test]
fn other_paths_methods_and_types_are_told_what_is_served() {
    with_clients(63, |client| {
        // Large enough for a client that closes early to lose the answer.
        let body = vec![0x0a; 300_000];
        for path in ["/v1/traces", "/v1/metrics", "/v1/logs/", "/"] {
            let post = Post::logs(PROTOBUF, body.clone()).to("POST", path);
            let said = refused(&client.send(post), 404, PROTOBUF, Code::Unimplemented);
            assert!(
                said.contains(path) && said.contains("takes logs: /v1/logs"),
                "{said}"
            );
        }
        for method in ["GET", "PUT", "DELETE"] {
            let post = Post::logs(JSON, "").to(method, "/v1/logs");
            let answer = client.send(post);
            refused(&answer, 405, JSON, Code::Unimplemented);
            assert_eq!(answer.header("allow"), "POST");
        }
        for post in [
            Post::logs("text/plain", body.clone()),
            Post::logs("application/x-protobuffer", body.clone()),
            Post::logs(PROTOBUF, body.clone()).without("content-type"),
        ] {
            let said = refused(&client.send(post), 415, JSON, Code::Unimplemented);
            assert!(said.contains(PROTOBUF) && said.contains(JSON), "{said}");
        }
        let post = Post::logs(PROTOBUF, body.clone()).with("content-encoding", "br");
        let answer = client.send(post);
        let said = refused(&answer, 415, PROTOBUF, Code::Unimplemented);
        assert!(said.contains("br") && said.contains("zstd"), "{said}");
        assert_eq!(answer.header("accept-encoding"), "gzip, zstd");
    });
}

#[test]
fn what_is_too_large_is_refused_for_good_however_its_length_shows() {
    with_clients(64, |client| {
        for content_type in [PROTOBUF, JSON] {
            let large = vec![b' '; LIMIT + 1];
            for post in [
                Post::logs(content_type, large.clone()),
                Post::logs(content_type, large.clone()).in_chunks_of(10_000),
                Post::logs(content_type, gzip(&large)).with("content-encoding", "gzip"),
                Post::logs(content_type, zstd(&large)).with("content-encoding", "zstd"),
                Post::logs(content_type, zstd(&large))
                    .with("content-encoding", "zstd")
                    .in_chunks_of(30),
            ] {
                let answer = client.send(post);
                let said = refused(&answer, 413, content_type, Code::ResourceExhausted);
                assert!(said.contains("ingest.max_request_bytes"), "{said}");
                assert_eq!(answer.header("retry-after"), "");
            }
        }
        // As large as is allowed.
        let mut most = b"{\"unknown\":\"".to_vec();
        most.resize(LIMIT - 2, b' ');
        most.extend_from_slice(b"\"}");
        for post in [
            Post::logs(JSON, most.clone()),
            Post::logs(JSON, gzip(&most)).with("content-encoding", "gzip"),
            Post::logs(JSON, zstd(&most)).with("content-encoding", "zstd"),
        ] {
            assert_acknowledged(&client.send(post.clone()), &post);
        }
    });
}

#[test]
fn a_zstd_frame_that_needs_a_larger_window_is_refused() {
    with_clients(65, |client| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.window_log(27).expect("a window of 128 MiB");
        encoder
            .write_all(&[0; 1000])
            .expect("compressing into memory");
        let post = Post::logs(PROTOBUF, encoder.finish().expect("compressing into memory"));
        let answer = client.send(post.with("content-encoding", "zstd"));
        let said = refused(&answer, 400, PROTOBUF, Code::InvalidArgument);
        assert!(said.contains("window"), "{said}");
    });
}

#[test]
fn empty_requests_and_parameters_of_the_type_are_fine() {
    with_clients(66, |client| {
        for post in [
            Post::logs(PROTOBUF, ""),
            Post::logs(PROTOBUF, "").in_chunks_of(1),
            Post::logs(PROTOBUF, gzip(b"")).with("content-encoding", "gzip"),
            Post::logs(PROTOBUF, zstd(b"")).with("content-encoding", "ZSTD"),
            Post::logs(JSON, "{}"),
            Post::logs("application/json; charset=utf-8", "{\"resourceLogs\":[]}"),
            Post::logs("Application/JSON;charset=UTF-8", " { } "),
        ] {
            assert_acknowledged(&client.send(post.clone()), &post);
        }
    });
}

#[test]
fn a_body_that_is_not_in_chunks_as_it_says_is_a_bad_request() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    for body in ["zz\r\n", "1\r\naXX0\r\n\r\n", "1\r\na\r\n-1\r\n"] {
        let mut wire = Wire::connect(daemon.http(), &tls);
        let request = format!(
            "POST /v1/logs HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\n\
             transfer-encoding: chunked\r\n\r\n{body}"
        );
        wire.write(request.as_bytes()).expect("it is taken");
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        // To the end: there is no next request behind it.
        while let read @ 1.. = wire.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..read]);
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
        assert!(answer.contains("chunk"), "{body:?}: {answer}");
    }
    let invalid = daemon.metric(
        "gophership_ingester_requests_total",
        &[("outcome", "invalid")],
    );
    assert_eq!(invalid, 3.0);
}

#[test]
fn a_full_vault_is_503_with_retry_after() {
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
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let mut client = client(&daemon, false, Version::Http1);
    // About 128 KiB each: 4 MiB hold at most 32 of them, or twice that by compression.
    let shape = Shape {
        records: 16,
        body_bytes: 8_000,
    };
    let mut messages = Messages::new(67, shape);
    let mut acked = Vec::new();
    for content_type in [PROTOBUF, JSON] {
        let answer = loop {
            let message = messages.message();
            let body = match content_type {
                PROTOBUF => message.clone(),
                _ => json(&message).into(),
            };
            let answer = client.send(Post::logs(content_type, body));
            if answer.status != 200 {
                break answer;
            }
            acked.push(message);
            assert!(acked.len() < 200, "25 MB fit into a vault of 4 MiB");
        };
        refused(&answer, 503, content_type, Code::Unavailable);
        let seconds: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!((1..3600).contains(&seconds), "{seconds}");
    }
    assert!(!acked.is_empty());
    daemon.ctl(&["override", "--clear"]);
    await_arrival(&acked, &sink);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &settings(&sink, true));
    let messages = Messages::new(68, SHAPE).take(20);
    let mut written = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        let (content_type, body) = match number % 2 {
            0 => (PROTOBUF, message.to_vec()),
            _ => (JSON, json(message)),
        };
        let head = format!(
            "POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        written.extend_from_slice(head.as_bytes());
        written.extend_from_slice(&body);
    }
    written
        .extend_from_slice(b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(daemon.http()).expect("it connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answers = Vec::new();
    std::thread::scope(|scope| {
        let mut sending = stream.try_clone().expect("a second handle");
        scope.spawn(move || sending.write_all(&written).expect("it is sent"));
        stream
            .read_to_end(&mut answers)
            .expect("it closes at the end");
    });
    let answers = String::from_utf8(answers).expect("answers of text");
    let types: Vec<&str> = answers
        .lines()
        .filter_map(|line| line.strip_prefix("content-type: "))
        .collect();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), messages.len());
    assert_eq!(types.len(), messages.len() + 1);
    for (number, content_type) in types.iter().enumerate() {
        let expected = if number % 2 == 0 && number < messages.len() {
            PROTOBUF
        } else {
            JSON
        };
        assert_eq!(*content_type, expected, "answer {number}");
    }
    assert!(answers.contains("HTTP/1.1 404 Not Found"));
    await_arrival(&messages, &sink);
}

#[test]
fn a_client_that_waits_to_be_told_is_told_at_once_that_it_is_too_large() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &settings(&sink, true));
    let mut stream = TcpStream::connect(daemon.http()).expect("it connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nExpect: 100-continue\r\n\
         Content-Length: {}\r\n\r\n",
        LIMIT + 1
    );
    let asked = Instant::now();
    stream.write_all(head.as_bytes()).expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "it waited for the body"
    );
}

#[test]
fn a_unix_socket_takes_grpc_and_logs_who_connected() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        unix: true,
        ..settings(&sink, false)
    };
    let daemon = Daemon::start(&home, &settings);
    let producer = Producer::connect_unix(home.ingest_socket()).expect("it connects");
    let messages = Messages::new(69, SHAPE).take(5);
    producer.export_all(&messages);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    let who = format!("uid {}, pid {}", nix::unistd::getuid(), std::process::id());
    eventually("the producer's credentials in the log", PATIENCE, || {
        !daemon.log_lines(&who).is_empty()
    });
}

#[test]
fn grpc_in_plaintext_takes_every_encoding() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &settings(&sink, true));
    let producer = Producer::connect_plaintext(daemon.grpc()).expect("it connects");
    let messages = Messages::new(70, SHAPE).take(5);
    let [plain, gzipped, twice, zstded, zstded_twice] = &messages[..] else {
        panic!("five messages");
    };
    for call in [
        Call::logs(plain.clone()),
        Call::logs(gzip(gzipped).into()).compressed("gzip"),
        Call::logs(in_two(gzip, twice).into()).compressed("gzip"),
        Call::logs(zstd(zstded).into()).compressed("zstd"),
        Call::logs(in_two(zstd, zstded_twice).into()).compressed("zstd"),
    ] {
        producer.start(call).wait().expect("it is acknowledged");
    }
    oracle::await_arrival(&messages, &sink, PATIENCE);
    let status = |call| {
        producer
            .start(call)
            .wait()
            .expect_err("it is refused")
            .status()
    };
    let bomb = Call::logs(zstd(&vec![0; LIMIT + 1]).into()).compressed("zstd");
    assert_eq!(status(bomb).code(), Code::ResourceExhausted);
    let broken = Call::logs(Bytes::from_static(b"not zstd")).compressed("zstd");
    assert_eq!(status(broken).code(), Code::InvalidArgument);
    let unknown = status(Call::logs(plain.clone()).compressed("snappy"));
    assert_eq!(unknown.code(), Code::Unimplemented);
    let accepted = unknown.metadata().get("grpc-accept-encoding");
    assert_eq!(
        accepted.map(|names| names.as_bytes()),
        Some(&b"identity,gzip,zstd"[..])
    );
    // Whoever succeeds may learn that it needn't send as much.
    let mut client = HttpClient::connect(daemon.grpc(), None, Version::Http2);
    let mut send = |content_type| {
        let call = Post::logs(content_type, producer::frame(plain, false));
        client.send(call.to("POST", producer::LOGS))
    };
    for content_type in ["application/grpc+proto", "application/grpc; charset=utf-8"] {
        assert_eq!(send(content_type).status, 200, "{content_type}");
    }
    // None of them is protobuf in gRPC's frames.
    for content_type in [
        "application/grpc-web",
        "application/grpc+json",
        "application/grpcs",
    ] {
        assert_eq!(send(content_type).status, 415, "{content_type}");
    }
    let answer = send("application/grpc");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/grpc");
    assert_eq!(answer.header("grpc-accept-encoding"), "identity,gzip,zstd");
}

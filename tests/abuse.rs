//! Peers that abuse the ingest listeners: the daemon's memory stays bounded, and other producers are served.

mod common;

use std::{
    io::{self, Read, Write},
    iter,
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::Duration,
};

use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually,
    http::{HttpClient, Post, Version},
    messages::{Messages, Shape},
    producer::{self, Producer},
    settings::Settings,
    sink::Sink,
    wire::{
        ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY,
        HEADERS, INITIAL_WINDOW_SIZE, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire,
        export_head, frame,
    },
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::{ClientConfig, version::TLS13};

const MIB: u64 = 1024 * 1024;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// What the daemon may grow by under an attack from one connection, which is charged with less than 5 MiB; the rest is
/// the allocator's.
const GROWTH_MAX: u64 = 24 * MIB;

/// A daemon under attack, and a producer beside the attackers.
struct Scene<'h> {
    daemon: Daemon<'h>,
    bystander: Producer,
    messages: Messages,
    tls: Arc<ClientConfig>,
    calm_rss: u64,
}

impl<'h> Scene<'h> {
    #[track_caller]
    fn start(home: &'h Home, sink: &Sink) -> Self {
        Self::start_with(home, sink, &[])
    }

    #[track_caller]
    fn start_with(home: &'h Home, sink: &Sink, env: &[(&str, &str)]) -> Self {
        let settings = Settings::to(sink.destination("main", "10s"));
        let daemon = Daemon::start_with_env(home, &settings, env);
        let bystander = daemon.producer();
        let mut messages = Messages::new(90, SHAPE);
        bystander.export_all(&messages.take(50));
        let calm_rss = daemon.memory("VmRSS");
        Self {
            tls: home.certs().client(ClientIdentity::Shown, &[&TLS13]),
            daemon,
            bystander,
            messages,
            calm_rss,
        }
    }

    fn http2(&self, settings: &[(u16, u32)]) -> Wire {
        Wire::http2(self.daemon.grpc(), &self.tls, settings)
    }

    /// Connects, and sends the beginning of a ClientHello of 16 KiB.
    fn begin_handshake(&self) -> TcpStream {
        let mut socket = TcpStream::connect(self.daemon.grpc()).expect("the backlog has room");
        socket.set_read_timeout(Some(PATIENCE)).expect("it is set");
        let hello = [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
        socket.write_all(&hello).expect("it is taken");
        socket
    }

    fn http1(&self) -> Wire {
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Wire::connect(self.daemon.http(), &Arc::new(tls))
    }

    /// The bystander is served now, and so is one who comes only now.
    #[track_caller]
    fn others_are_served(&mut self) {
        self.bystander.export_all(&self.messages.take(3));
        self.daemon.producer().export_all(&self.messages.take(3));
    }

    #[track_caller]
    fn grew_by_at_most(&self, bytes: u64) {
        let grown = self.daemon.memory("VmHWM").saturating_sub(self.calm_rss);
        eprintln!("grown by {} KiB at most", grown / 1024);
        assert!(grown <= bytes, "grown by {grown} bytes");
        let (used, limit) = self.ingest_budget();
        assert!(used <= limit, "{used} of {limit}");
    }

    fn ingest_budget(&self) -> (u64, u64) {
        let status = self.daemon.status();
        let ingest = &status["memory"]["components"]["ingest"];
        let bytes = |name| common::daemon::number(ingest.get(name)).expect("a number");
        (bytes("used"), bytes("limit"))
    }
}

/// The code of the GOAWAY by which `burst` ends the connection, if it says one.
#[track_caller]
fn end_of(attacker: &mut Wire, mut burst: Vec<u8>) -> Option<u32> {
    // Who is still served hears an answer to this.
    burst.extend(frame(PING, 0, 0, &[7; 8]));
    // The daemon may close before it has taken all.
    drop(attacker.write(&burst));
    let said = iter::from_fn(|| attacker.frame()).find(|said| match said.kind {
        PING => said.flags & ACK != 0,
        kind => kind == GOAWAY,
    })?;
    assert_eq!(said.kind, GOAWAY, "the connection goes on");
    said.payload[4..8].try_into().ok().map(u32::from_be_bytes)
}

#[test]
fn rapid_resets_end_the_connection() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let head = export_head(&[]);
    for _ in 0..3 {
        let mut attacker = scene.http2(&[]);
        let mut burst = Vec::new();
        for number in 0..5_000 {
            let stream = 2 * number + 1;
            burst.extend(frame(HEADERS, END_HEADERS, stream, &head));
            burst.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
        }
        // What is said may be lost with the connection, which is closed on unread bytes.
        let said = end_of(&mut attacker, burst);
        assert!(
            said.is_none_or(|code| code == ENHANCE_YOUR_CALM),
            "{said:?}"
        );
        scene.others_are_served();
    }
    scene.grew_by_at_most(GROWTH_MAX);
}

#[test]
fn frames_that_bring_nothing_end_the_connection() {
    const UNKNOWN: u8 = 0xbb;
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let by_one = 1_u32.to_be_bytes();
    let frames = [
        frame(UNKNOWN, 0, 0, &[]),
        frame(WINDOW_UPDATE, 0, 0, &by_one),
    ];
    for (one, before) in frames.iter().zip([0.0, 1.0]) {
        assert_eq!(scene.floods(), before);
        // Ten times a second's.
        end_of(&mut scene.http2(&[]), one.repeat(200_000));
        assert_eq!(scene.floods(), before + 1.0);
        scene.others_are_served();
    }
    scene.grew_by_at_most(GROWTH_MAX);
}

#[test]
fn endless_continuations_end_the_connection() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let mut attacker = scene.http2(&[]);
    let mut taken = attacker.write(&frame(HEADERS, 0, 1, &export_head(&[])));
    // Empty ones, and ones with another header each.
    let header = [&[0, 1, b'x', 100][..], &[b'y'; 100]].concat();
    for payload in [&[][..], &header] {
        for _ in 0..10_000 {
            if taken.is_err() {
                break;
            }
            taken = attacker.write(&frame(CONTINUATION, 0, 1, payload));
        }
    }
    assert!(taken.is_err(), "20,000 continuations were taken");
    assert_eq!(scene.floods(), 0.0, "the library ends this by itself");
    scene.others_are_served();
    // One header that is never whole: nothing of it can be decoded, all of it has to be kept.
    let mut attacker = scene.http2(&[]);
    let begun = [
        &export_head(&[])[..],
        &[0, 1, b'x', 127, 0xff, 0xff, 0xff, 0x7f],
    ]
    .concat();
    let mut taken = attacker.write(&frame(HEADERS, 0, 1, &begun));
    for _ in 0..200 {
        if taken.is_ok() {
            taken = attacker.write(&frame(CONTINUATION, 0, 1, &vec![b'y'; 1 << 18]));
        }
    }
    assert!(taken.is_err(), "a header of 50 MiB was taken");
    assert_eq!(
        scene.floods(),
        1.0,
        "the library gathers six frames before it ends this"
    );
    scene.others_are_served();
    scene.grew_by_at_most(GROWTH_MAX);
}

#[test]
fn huge_header_lists_are_refused() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let value = "v".repeat(15_000);
    // More than a list may have, and less than a block.
    let head = export_head(&[("x-much", value.as_str()); 2]);
    let mut attacker = scene.http2(&[]);
    for number in 0..100 {
        let stream = 2 * number + 1;
        let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
        attacker.write(&request).expect("it is read");
        let answer = iter::from_fn(|| attacker.frame()).find(|said| said.stream == stream);
        assert_eq!(answer.expect("an answer").kind, HEADERS);
    }
    scene.others_are_served();
    assert_eq!(
        scene.daemon.metric(
            "gophership_ingester_requests_total",
            &[("outcome", "invalid")]
        ),
        0.0,
        "none of them became a request"
    );
    // What others are told of it, and that the limit is no lower.
    let tls = Some(Arc::clone(&scene.tls));
    let mut client = HttpClient::connect(scene.daemon.http(), tls, Version::Http2);
    let much: &'static str = "v".repeat(17_000).leak();
    let post = Post::logs("application/x-protobuf", scene.messages.message());
    assert_eq!(client.send(post.clone().with("x-much", much)).status, 431);
    let much = &much[..15_000];
    assert_eq!(client.send(post.with("x-much", much)).status, 200);

    // A block of 600 KB, which needn't be decoded to be refused.
    assert_eq!(scene.floods(), 0.0);
    let head = export_head(&[("x-much", value.as_str()); 40]);
    let mut attacker = scene.http2(&[]);
    drop(attacker.write(&frame(HEADERS, END_HEADERS, 1, &head)));
    attacker.good_bye();
    assert_eq!(scene.floods(), 1.0);
    scene.others_are_served();
    scene.grew_by_at_most(GROWTH_MAX);
}

#[test]
fn who_never_reads_what_he_asks_for_is_not_read_either() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let request = b"GET /v1/logs HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1_000);
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(1_000);
    let settings = frame(SETTINGS, 0, 0, &[]).repeat(1_000);
    let floods = [
        (scene.http2(&[]), pings),
        (scene.http2(&[]), settings),
        (scene.http1(), request),
    ];
    let mut attackers = Vec::new();
    for (mut attacker, flood) in floods {
        let mut rounds = 0;
        while attacker.write(&flood).is_ok() {
            rounds += 1;
            assert!(rounds < 5_000, "all is taken, and nobody reads the answers");
        }
        attackers.push(attacker);
        scene.others_are_served();
    }
    scene.grew_by_at_most(2 * GROWTH_MAX);
}

/// More than the sockets' buffers on both sides hold.
const ENDLESS_MIB: usize = 64;

/// Sends `start`, and then what has no end, which the daemon must not take for ever.
#[track_caller]
fn is_cut_off(attacker: &mut Wire, start: &str) {
    let rest = "y".repeat(1 << 20);
    let mut taken = attacker.write(start.as_bytes());
    for _ in 0..ENDLESS_MIB {
        taken = taken.and_then(|()| attacker.write(rest.as_bytes()));
    }
    assert!(taken.is_err(), "{ENDLESS_MIB} MiB were taken");
    // Closed, not only unread.
    while attacker.read(&mut [0; 1024]) > 0 {}
}

/// The first line of the answer; empty if the connection ends without one.
fn status_line(attacker: &mut Wire) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n") && attacker.read(&mut byte) > 0 {
        answer.extend(byte);
    }
    String::from_utf8_lossy(&answer).trim_end().to_owned()
}

#[test]
fn bombs_in_the_head_of_http_1_are_refused() {
    const TOO_LARGE: &str = "HTTP/1.1 431 Request Header Fields Too Large";
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let start = "POST /v1/logs HTTP/1.1\r\nhost: a\r\n";
    is_cut_off(&mut scene.http1(), &format!("{start}x: "));
    scene.others_are_served();

    let answer_to = |headers: usize| {
        let mut attacker = scene.http1();
        let head = format!("{start}{}\r\n", "x: y\r\n".repeat(headers));
        drop(attacker.write(head.as_bytes()));
        status_line(&mut attacker)
    };
    let few = answer_to(60);
    assert!(few.starts_with("HTTP/1.1 4") && few != TOO_LARGE, "{few}");
    assert_eq!(answer_to(70), TOO_LARGE);
    // The answer may be lost with the connection, which is closed on unread bytes.
    let many = answer_to(10_000);
    assert!(many.is_empty() || many == TOO_LARGE, "{many}");
    scene.others_are_served();
    scene.grew_by_at_most(GROWTH_MAX);
}

#[test]
fn bombs_around_the_chunks_of_http_1_are_refused() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let head = "POST /v1/logs HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\n\
        transfer-encoding: chunked\r\n\r\n";
    // An extension of the last chunk, and a trailer behind it.
    for start in ["0;", "0\r\nx: "] {
        let start = format!("{head}{start}");
        is_cut_off(&mut scene.http1(), &start);
        // The library's limit for each is 16 KiB.
        let answer_to = |bytes: usize| {
            let mut attacker = scene.http1();
            let request = format!("{start}{}\r\n\r\n", "y".repeat(bytes));
            drop(attacker.write(request.as_bytes()));
            status_line(&mut attacker)
        };
        assert_eq!(answer_to(100), "HTTP/1.1 200 OK");
        assert_ne!(answer_to(17 << 10), "HTTP/1.1 200 OK");
        scene.others_are_served();
    }
    scene.grew_by_at_most(GROWTH_MAX);
}

/// What a request of 3 MiB may have the daemon grow by: itself, as much for the allocator, and what is first touched of
/// batches and blocks.
const OF_A_LARGE_REQUEST: u64 = 16 * MIB;

const FOR_LARGE_REQUESTS: [(&str, &str); 3] = [
    ("GOPHERSHIP_INGEST__MAX_REQUEST_BYTES", "4MiB"),
    ("GOPHERSHIP_MEMORY__TOTAL", "64MiB"),
    ("GOPHERSHIP_VAULT__SEGMENT_BYTES", "16MiB"),
];

/// A request of a bit more than 3 MiB.
fn large() -> Vec<u8> {
    let shape = Shape {
        records: 3,
        body_bytes: 1 << 20,
    };
    Messages::new(96, shape).take(1).remove(0).to_vec()
}

#[test]
fn junk_between_small_frames_is_not_kept_with_them() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start_with(&home, &sink, &FOR_LARGE_REQUESTS);
    let body = large();
    let prefix = u32::try_from(body.len()).unwrap().to_be_bytes();
    let framed = [&[0][..], &prefix, &body].concat();
    // Of a kind that nobody knows, which is to be ignored, but not whatever its size.
    let junk = |bytes: usize| frame(0xfa, 0, 0, &vec![b'j'; bytes]);
    let mut attacker = scene.http2(&[]);
    let before = scene.floods();
    end_of(&mut attacker, junk(7000));
    eventually("it is counted", PATIENCE, || scene.floods() > before);

    let mut attacker = scene.http2(&[]);
    attacker
        .write(&frame(HEADERS, END_HEADERS, 1, &export_head(&[])))
        .expect("it is taken");
    // What any peer allows at first, until it opens its windows.
    let mut windows = [65_535_i64, 65_535];
    let mut chunks = framed.chunks(1024).peekable();
    while let Some(data) = chunks.next() {
        let needed = i64::try_from(data.len()).unwrap();
        while windows.iter().any(|&window| window < needed) {
            let said = attacker.frame().expect("the connection goes on");
            if said.kind == WINDOW_UPDATE {
                let more = u32::from_be_bytes(said.payload[..4].try_into().unwrap());
                windows[usize::from(said.stream != 0)] += i64::from(more);
            } else if said.kind == SETTINGS && said.flags & ACK == 0 {
                // Only then it holds for the daemon as well.
                attacker
                    .write(&frame(SETTINGS, ACK, 0, &[]))
                    .expect("it is taken");
                let mut settings = said.payload.chunks_exact(6);
                let window =
                    settings.find(|setting| setting[..2] == INITIAL_WINDOW_SIZE.to_be_bytes());
                let window = window.map(|setting| setting[2..].try_into().unwrap());
                windows[1] +=
                    window.map_or(0, |bytes| i64::from(u32::from_be_bytes(bytes)) - 65_535);
            }
        }
        windows.iter_mut().for_each(|window| *window -= needed);
        let flags = match chunks.peek() {
            Some(_) => 0,
            None => END_STREAM,
        };
        let piece = [frame(DATA, flags, 1, data), junk(4000)].concat();
        attacker.write(&piece).expect("it is taken");
    }
    let answered = iter::from_fn(|| attacker.frame()).any(|said| said.kind == HEADERS);
    assert!(answered);
    scene.grew_by_at_most(OF_A_LARGE_REQUEST);
    scene.others_are_served();
}

/// No window for answers: a hundred of them are on their way.
fn takes_nothing(scene: &Scene<'_>) -> Wire {
    let mut wire = scene.http2(&[(INITIAL_WINDOW_SIZE, 0)]);
    for stream in (1..200).step_by(2) {
        let request = [
            frame(HEADERS, END_HEADERS, stream, &export_head(&[])),
            frame(DATA, END_STREAM, stream, &[0; 5]),
        ];
        wire.write(&request.concat()).expect("requests are taken");
    }
    wire
}

/// The beginning of HTTP/2's preface, which may be one of HTTP/1.1's methods.
fn half_greetings(scene: &Scene<'_>) -> [Wire; 3] {
    let greet = |to, part: &[u8]| {
        let mut wire = Wire::connect(to, &scene.tls);
        wire.write(part).expect("it is taken");
        wire
    };
    [
        greet(scene.daemon.grpc(), b"P"),
        greet(scene.daemon.http(), b"P"),
        greet(scene.daemon.http(), &PREFACE[..23]),
    ]
}

/// One test, because each of them ends by the same half minute.
#[test]
fn slow_and_stuck_peers_lose_their_streams_and_connections() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let connected = scene.daemon.figure("/ingest/connections");
    let (calm, _) = scene.ingest_budget();
    let head = frame(HEADERS, END_HEADERS, 1, &export_head(&[]));

    let mut takes_nothing = takes_nothing(&scene);
    // The beginning of a handshake.
    let mut unfinished = scene.begin_handshake();
    // TLS, and then nothing.
    let mut silent = Wire::connect(scene.daemon.grpc(), &scene.tls);
    let mut half_greetings = half_greetings(&scene);
    // Announces a message and sends none of it.
    let mut stops = scene.http2(&[]);
    let announced = producer::frame(&[0; 60_000], false);
    stops
        .write(&[&head[..], &frame(DATA, 0, 1, &announced[..100])].concat())
        .expect("taken");
    // Sends it byte by byte.
    let mut trickles = scene.http2(&[]);
    trickles
        .write(&[&head[..], &frame(DATA, 0, 1, &announced[..100])].concat())
        .expect("taken");
    // Doesn't even say how long it is.
    let mut unknown = scene.http2(&[]);
    unknown
        .write(&[&head[..], &frame(DATA, 0, 1, &announced[..3])].concat())
        .expect("taken");
    eventually("two requests hold their bytes", PATIENCE, || {
        scene.reserved("requests") == 120_000
    });
    let trickling = thread::spawn(move || {
        while trickles.write(&frame(DATA, 0, 1, &[0])).is_ok() {
            thread::sleep(Duration::from_millis(200));
        }
    });
    scene.others_are_served();

    assert_eq!(unfinished.read(&mut [0]).expect("an end"), 0);
    // Its socket is closed before that.
    eventually("it is counted", PATIENCE, || {
        scene.failed_handshakes("timeout") == 1.0
    });
    assert_eq!(silent.good_bye(), None);
    for half in &mut half_greetings {
        half.good_bye();
    }
    takes_nothing.good_bye();
    for slow in [&mut stops, &mut unknown] {
        let answer = iter::from_fn(|| slow.frame()).find(|f| f.kind == HEADERS);
        assert_eq!(answer.expect("an answer").stream, 1);
    }
    eventually("no request holds bytes", PATIENCE, || {
        scene.reserved("requests") == 0
    });
    let closed = scene.daemon.metric(
        "gophership_ingester_connections_closed_total",
        &[("reason", "stuck")],
    );
    assert_eq!(closed, 5.0);
    drop((stops, unknown, silent, takes_nothing));
    scene.others_are_served();
    drop(trickling);
    let refused = scene.daemon.metric(
        "gophership_ingester_requests_total",
        &[("outcome", "refused")],
    );
    assert_eq!(refused, 3.0);
    scene.grew_by_at_most(GROWTH_MAX);
    eventually("as in the beginning", PATIENCE, || {
        // The one that trickles may still be there.
        scene.daemon.figure("/ingest/connections") <= connected + 1
    });
    assert!(scene.ingest_budget().0 <= calm + 5 * MIB);
}

impl Scene<'_> {
    /// Connections closed because of what only abuse is.
    fn floods(&self) -> f64 {
        let flood = [("reason", "flood")];
        let closed = "gophership_ingester_connections_closed_total";
        self.daemon.metric(closed, &flood)
    }

    fn failed_handshakes(&self, reason: &str) -> f64 {
        let failed = "gophership_ingester_failed_handshakes_total";
        self.daemon.metric(failed, &[("reason", reason)])
    }

    fn reserved(&self, what: &str) -> u64 {
        let bytes = self
            .daemon
            .metric("gophership_ingester_reserved_bytes", &[("for", what)]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of bytes"
        )]
        let bytes = bytes as u64;
        bytes
    }
}

#[test]
fn handshakes_that_are_never_finished_hold_up_nobody() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let attackers: Vec<_> = (0..300).map(|_| scene.begin_handshake()).collect();
    scene.bystander.export_all(&scene.messages.take(3));
    // These are local: none is refused, but the budget bounds how many are served at once.
    let (used, limit) = scene.ingest_budget();
    assert!(used <= limit / 4 * 3, "{used} of {limit}");
    // Behind all of them, one that means it: they make room for it, long before their time is up.
    scene.others_are_served();
    assert_eq!(scene.failed_handshakes("timeout"), 0.0);
    assert!(scene.failed_handshakes("no_room") >= 1.0);
    // Only as many as it took, and the oldest first.
    let hears = |socket: &TcpStream| {
        socket.set_nonblocking(true).expect("it is set");
        let mut socket = socket;
        socket.read(&mut [0]).map_err(|error| error.kind())
    };
    assert_ne!(hears(&attackers[0]), Err(io::ErrorKind::WouldBlock));
    assert_eq!(hears(&attackers[299]), Err(io::ErrorKind::WouldBlock));
    drop(attackers);
    scene.grew_by_at_most(64 * MIB);
}

#[test]
fn who_greets_by_half_holds_up_nobody_without_tls_either() {
    let (home, sink) = (Home::new(), Sink::up());
    let settings = Settings {
        plaintext: true,
        unix: true,
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let greet = |to: &mut dyn Write| to.write_all(b"P").expect("it is taken");
    let unix = iter::repeat_with(|| {
        let mut socket = UnixStream::connect(home.ingest_socket()).expect("the backlog has room");
        greet(&mut socket);
        socket
    });
    let tcp = iter::repeat_with(|| {
        let mut socket = TcpStream::connect(daemon.http()).expect("the backlog has room");
        greet(&mut socket);
        socket
    });
    let attackers: (Vec<_>, Vec<_>) = (unix.take(100).collect(), tcp.take(100).collect());

    // Behind all of them, and all of them are local.
    let mut messages = Messages::new(97, SHAPE);
    let over_tcp = Producer::connect_plaintext(daemon.grpc()).expect("it is served");
    over_tcp.export_all(&messages.take(3));
    let over_unix = Producer::connect_unix(home.ingest_socket()).expect("it is served");
    over_unix.export_all(&messages.take(3));
    let ended = daemon.metric(
        "gophership_ingester_failed_handshakes_total",
        &[("reason", "no_room")],
    );
    assert!(ended >= 1.0);
    // And nobody fills the log.
    let told = daemon.log_lines("a local producer has connected").len();
    assert!((1..=30).contains(&told), "{told} lines");
    drop(attackers);
}

/// Enough for 10,000 connections, each with its charge, most of which nobody uses.
const MUCH_MEMORY: &[(&str, &str)] = &[
    ("GOPHERSHIP_MEMORY__TOTAL", "8GiB"),
    ("GOPHERSHIP_MEMORY__INGEST", "80%"),
    ("GOPHERSHIP_MEMORY__EXPORT", "1%"),
    ("GOPHERSHIP_MEMORY__VAULT", "1%"),
];

#[test]
fn ten_thousand_idle_connections_cost_what_the_documentation_says() {
    let (home, sink) = (Home::new(), Sink::up());
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, files, files).expect("up to the hard limit");
    // Fewer where the host hasn't the memory or the descriptors.
    let has_memory = gophership::pressure::memory_limit_bytes() >= 10 << 30;
    let (env, idle) = if has_memory && files >= 11_000 {
        (MUCH_MEMORY, 10_000)
    } else {
        (&[][..], 200)
    };
    let mut scene = Scene::start_with(&home, &sink, env);
    // Local ones, which `ingest.max_connections` doesn't limit.
    let attackers: Vec<_> = (0..idle).map(|_| scene.http2(&[])).collect();
    eventually("all of them are served", PATIENCE, || {
        scene.daemon.figure("/ingest/connections") >= idle
    });
    let each = (scene.daemon.memory("VmRSS") - scene.calm_rss) / idle;
    eprintln!("{idle} idle connections, {each} bytes each");
    assert!(each <= 48 * 1024, "{each} bytes");
    scene.others_are_served();
    drop(attackers);
    eventually("they are gone", PATIENCE, || {
        scene.daemon.figure("/ingest/connections") <= 2
    });
}

/// What each connection is charged with at least, as the documentation says.
const SMALLEST_CHARGE: u64 = 224 * 1024;

#[test]
fn who_stops_in_the_middle_of_everything_holds_less_than_the_smallest_charge() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let mut attackers: Vec<_> = (0..140).map(|_| scene.http2(&[])).collect();
    let header = [&[0, 1, b'x', 127, 0x81, 0xfe, 0x01][..], &[b'y'; 16_000]].concat();
    let header = [export_head(&[]), header].concat();
    for attacker in &mut attackers {
        // As many messages as may be, of which not even the length is known.
        for stream in [1, 3, 5, 7] {
            let head = frame(HEADERS, END_HEADERS, stream, &export_head(&[]));
            let begun = [head, frame(DATA, 0, stream, &[0; 3])].concat();
            attacker.write(&begun).expect("it is taken");
        }
        // A header that isn't whole, a frame that isn't, and a TLS record that isn't.
        let more = frame(CONTINUATION, 0, 9, &[b'y'; 16_000]);
        let begun = [&frame(HEADERS, 0, 9, &header), &more[..more.len() - 1]].concat();
        attacker.write(&begun).expect("it is taken");
        let record = [&[0x17, 3, 3, 0x40, 0x10][..], &[7; 16_390]].concat();
        attacker.write_below_tls(&record).expect("it is taken");
    }
    // Behind all of them, so that all has been read.
    scene.others_are_served();
    assert_eq!(scene.floods(), 0.0);
    let open = scene.daemon.figure("/ingest/connections");
    assert!(open > 140, "{open} connections");
    let each = (scene.daemon.memory("VmRSS") - scene.calm_rss) / 140;
    eprintln!("{each} bytes each");
    assert!(each <= SMALLEST_CHARGE, "{each} bytes");
    drop(attackers);
}

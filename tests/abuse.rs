//! Peers that abuse the ingest listeners: the daemon's memory stays bounded, and other producers are served.

mod common;

use std::{io::Write, net::TcpStream, sync::Arc, thread, time::Duration};

use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    producer::{self, Producer},
    settings::Settings,
    sink::Sink,
    wire::{
        CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS,
        INITIAL_WINDOW_SIZE, PING, RST_STREAM, SETTINGS, Wire, export_head, frame,
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
        // The daemon may close before it has taken all.
        drop(attacker.write(&burst));
        // What is said may be lost with the connection, which is closed on unread bytes.
        let said = attacker.good_bye();
        assert!(
            said.is_none_or(|code| code == ENHANCE_YOUR_CALM),
            "{said:?}"
        );
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
    let floods = [("reason", "flood")];
    let closed = scene
        .daemon
        .metric("gophership_ingester_connections_closed_total", &floods);
    assert!(
        closed >= 1.0,
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
    for headers in [2, 40] {
        let more = vec![("x-much", value.as_str()); headers];
        let head = export_head(&more);
        let mut attacker = scene.http2(&[]);
        let mut taken = Ok(());
        for number in 0..100 {
            if taken.is_ok() {
                taken = attacker.write(&frame(HEADERS, END_HEADERS, 2 * number + 1, &head));
            }
        }
        scene.others_are_served();
    }
    scene.grew_by_at_most(GROWTH_MAX);
    assert_eq!(
        scene.daemon.metric(
            "gophership_ingester_requests_total",
            &[("outcome", "invalid")]
        ),
        0.0,
        "none of them became a request"
    );
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

#[test]
fn bombs_in_the_head_of_http_1_are_refused() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let start = "POST /v1/logs HTTP/1.1\r\nhost: a\r\n";
    let long = format!("{start}x: {}\r\n", "y".repeat(4 << 20));
    let many = format!("{start}{}\r\n", "x: y\r\n".repeat(10_000));
    for head in [long, many] {
        let mut attacker = scene.http1();
        drop(attacker.write(head.as_bytes()));
        let mut answer = Vec::new();
        let mut buffer = [0; 1024];
        while answer.len() < 12 {
            match attacker.read(&mut buffer) {
                0 => break,
                read => answer.extend(&buffer[..read]),
            }
        }
        // The answer may be lost with the connection, which is closed on unread bytes.
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
        scene.others_are_served();
    }
    scene.grew_by_at_most(GROWTH_MAX);
}

/// One test, because each of them ends by the same half minute.
#[test]
fn slow_and_stuck_peers_lose_their_streams_and_connections() {
    let (home, sink) = (Home::new(), Sink::up());
    let mut scene = Scene::start(&home, &sink);
    let connected = scene.daemon.figure("/ingest/connections");
    let (calm, _) = scene.ingest_budget();
    let head = frame(HEADERS, END_HEADERS, 1, &export_head(&[]));

    // No window for answers: a hundred of them are on their way.
    let mut takes_nothing = scene.http2(&[(INITIAL_WINDOW_SIZE, 0)]);
    for number in 0..100 {
        let stream = 2 * number + 1;
        let request = [
            frame(HEADERS, END_HEADERS, stream, &export_head(&[])),
            frame(DATA, END_STREAM, stream, &[0; 5]),
        ];
        takes_nothing
            .write(&request.concat())
            .expect("requests are taken");
    }
    // TLS, and then nothing.
    let mut silent = Wire::connect(scene.daemon.grpc(), &scene.tls);
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

    assert_eq!(silent.good_bye(), None);
    takes_nothing.good_bye();
    for slow in [&mut stops, &mut unknown] {
        let answer = std::iter::from_fn(|| slow.frame()).find(|f| f.kind == HEADERS);
        assert_eq!(answer.expect("an answer").stream, 1);
    }
    eventually("no request holds bytes", PATIENCE, || {
        scene.reserved("requests") == 0
    });
    let closed = scene.daemon.metric(
        "gophership_ingester_connections_closed_total",
        &[("reason", "stuck")],
    );
    assert_eq!(closed, 2.0);
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
    // The beginning of a ClientHello of 16 KiB.
    let hello = [&[0x16, 3, 1, 0x40, 0][..], &[1; 1000]].concat();
    let attackers: Vec<_> = (0..300)
        .map(|_| {
            let mut socket = TcpStream::connect(scene.daemon.grpc()).expect("the backlog has room");
            drop(socket.write_all(&hello));
            socket
        })
        .collect();
    scene.bystander.export_all(&scene.messages.take(3));
    // These are local: none is refused, but the budget bounds how many are served at once.
    let (used, limit) = scene.ingest_budget();
    assert!(used <= limit / 4 * 3, "{used} of {limit}");
    // Behind all of them, one that means it.
    scene.others_are_served();
    drop(attackers);
    scene.grew_by_at_most(64 * MIB);
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
    assert!(each <= 96 * 1024, "{each} bytes");
    scene.others_are_served();
    drop(attackers);
    eventually("they are gone", PATIENCE, || {
        scene.daemon.figure("/ingest/connections") <= 2
    });
}

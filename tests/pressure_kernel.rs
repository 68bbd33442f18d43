//! The kernel half in the running kernel: real sockets, real probes, a real tick.
//!
//! Needs root and a build with `GOPHERSHIP_EBPF_OBJ`. Otherwise each test says why it did nothing
//! and passes, unless `GOPHERSHIP_REQUIRE_KERNEL=1`.

#[path = "common/pressure.rs"]
mod judged;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, Map, MapData, MapInfo, loaded_maps},
    programs::{ProgramInfo, loaded_programs},
};
use gophership::pressure::{
    Cause, Config, Error, IngestScope, KernelMode, Occurrence, OverrideUntil, Pressure, Signal,
    Snapshot, Source, TICK_DEAD_MIN, Transition, WatchHandle, Zone, monotonic_ns,
};
use gophership_common::{
    EVENTS_BYTES, Event, MAP_SOCKETS, MAP_VERDICT, PROGRAM_SOCKET_END, PROGRAM_SOCKET_STATE,
    PROGRAM_TCP_PROBE, VerdictPage,
};
use nix::sys::socket::{setsockopt, sockopt};

const TICK: Duration = Duration::from_millis(10);
const HOLD: Duration = Duration::from_millis(200);
/// Far beyond anything that should take milliseconds, for machines with other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

fn config() -> Config {
    judged::config(KernelMode::Required)
}

/// The kernel half judging one listener's sockets.
struct Fixture {
    pressure: Arc<Pressure>,
    listener: TcpListener,
    seen: Arc<Mutex<Vec<Transition>>>,
    _watch: WatchHandle,
}

impl Fixture {
    /// `None` where the kernel half can't run and needn't.
    fn start(config: &Config) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        Self::judging(config, listener, port, 0)
    }

    fn judging(
        config: &Config,
        listener: TcpListener,
        port: u16,
        h2_window_bytes: u32,
    ) -> Option<Self> {
        let scope = IngestScope {
            ports: vec![port],
            h2_window_bytes,
            vault_dir: None,
        };
        let pressure = start(config, &scope)?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let watch = pressure
            .spawn_watch(move |occurrence| {
                if let Occurrence::Transition(transition) = occurrence {
                    sink.lock().unwrap().push(*transition);
                }
            })
            .unwrap();
        Some(Self {
            pressure,
            listener,
            seen,
            _watch: watch,
        })
    }

    fn connection(&self) -> (TcpStream, TcpStream) {
        connection(&self.listener)
    }

    fn zone_and_cause(&self) -> (Zone, Cause) {
        let word = self.pressure.verdict().load();
        (word.zone(), word.cause())
    }

    fn wait_for(&self, zone: Zone, cause: Cause) {
        wait(
            &format!("{zone:?} by {cause:?}"),
            || self.zone_and_cause() == (zone, cause),
            || {
                format!(
                    "{:#?}\n{:#?}",
                    self.pressure.snapshot(),
                    self.seen.lock().unwrap()
                )
            },
        );
    }

    /// Waits until the tick has judged `times` more, so that what happened before was seen.
    fn wait_for_ticks(&self, times: u32) {
        for _ in 0..times {
            let judged_at = || Instant::now().checked_sub(self.pressure.snapshot().judged_age);
            let last = judged_at();
            wait(
                "a tick",
                || judged_at() > last.map(|at| at + TICK / 2),
                String::new,
            );
        }
    }

    fn signal(&self, name: &str) -> f64 {
        signal(&self.pressure.snapshot(), name)
    }
}

/// `None` where the kernel half can't run and needn't.
fn start(config: &Config, scope: &IngestScope) -> Option<Arc<Pressure>> {
    match Pressure::start(config, scope, 2) {
        Ok(pressure) => Some(Arc::new(pressure)),
        Err(error @ Error::KernelRequired(_)) => {
            assert!(
                std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL").is_none_or(|value| value != "1"),
                "GOPHERSHIP_REQUIRE_KERNEL=1, but: {error}"
            );
            eprintln!("nothing tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn signal(snapshot: &Snapshot, name: &str) -> f64 {
    let reading = snapshot
        .signals
        .iter()
        .find(|reading| reading.signal.as_str() == name);
    let reading = reading.unwrap_or_else(|| panic!("no signal {name}"));
    assert!(reading.available, "{name} is unavailable");
    reading.value
}

fn wait(what: &str, mut holds: impl FnMut() -> bool, state: impl FnOnce() -> String) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < PATIENCE,
            "no {what} within {PATIENCE:?}\n{}",
            state()
        );
        thread::sleep(Duration::from_millis(1));
    }
}

fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    (client, server)
}

/// Writes until the socket takes no more; bytes written.
fn write_until_full(client: &mut TcpStream) -> usize {
    let block = vec![0_u8; 64 * 1024];
    let mut written = 0;
    loop {
        match client.write(&block) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return written,
            Err(error) => panic!("write: {error}"),
        }
    }
}

/// Closes with a reset instead of a FIN.
fn reset(client: TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&client, sockopt::Linger, &linger).unwrap();
    drop(client);
}

/// Reads until `expected` bytes have come.
fn read_all(server: &mut TcpStream, expected: usize) {
    let mut block = vec![0_u8; 64 * 1024];
    let mut got = 0;
    let start = Instant::now();
    while got < expected {
        assert!(start.elapsed() < PATIENCE, "{got} of {expected} bytes");
        match server.read(&mut block) {
            Ok(0) => panic!("closed after {got} of {expected} bytes"),
            Ok(bytes) => got += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("read: {error}"),
        }
    }
}

#[test]
fn the_first_zone_begins_with_the_daemon_not_with_the_machine() {
    let before_ns = monotonic_ns();
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let age = fixture.pressure.snapshot().age;
    assert!(
        age <= Duration::from_nanos(monotonic_ns() - before_ns),
        "{age:?}"
    );
}

#[test]
fn a_full_socket_turns_red_and_reading_it_empty_turns_green() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    assert_eq!(fixture.zone_and_cause(), (Zone::Green, Cause::None));
    let (mut client, mut server) = fixture.connection();
    let written = write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    // It stays Red though the socket sends no more events.
    fixture.wait_for_ticks(3);
    assert_eq!(fixture.zone_and_cause(), (Zone::Red, Cause::ReceiveQueue));
    wait(
        "reading",
        || fixture.signal("sockets_above_red") >= 1.0,
        String::new,
    );
    assert!(fixture.signal("receive_queue") >= 0.8);
    assert!(fixture.signal("receive_queue_stalled") >= 0.005);

    let emptied = Instant::now();
    read_all(&mut server, written);
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(
        emptied.elapsed() >= HOLD,
        "lowered before the hold was over"
    );
    assert!(fixture.signal("sockets_above_yellow") < 1.0);

    let seen = fixture.seen.lock().unwrap();
    let steps: Vec<_> = seen
        .iter()
        .map(|t| (t.from.zone(), t.to.zone(), t.to.cause()))
        .collect();
    assert_eq!(
        steps.first().map(|step| step.0),
        Some(Zone::Green),
        "{steps:?}"
    );
    assert_eq!(
        steps.iter().map(|step| step.1).max(),
        Some(Zone::Red),
        "{steps:?}"
    );
    assert!(
        steps.windows(2).all(|pair| pair[0].1 == pair[1].0),
        "each transition starts where the last ended: {steps:?}"
    );
    let red = seen.iter().find(|t| t.to.zone() == Zone::Red).unwrap();
    assert!(red.values.get(Signal::ReceiveQueue) >= Some(800), "{red:?}");
    assert!(
        red.values.get(Signal::ReceiveQueueStalled) >= Some(5_000),
        "{red:?}"
    );
}

#[test]
fn a_reader_that_keeps_reading_never_turns_red() {
    let config = Config {
        // Longer than a busy machine keeps a runnable reader waiting.
        receive_queue_for: Duration::from_millis(500),
        ..config()
    };
    let Some(fixture) = Fixture::start(&config) else {
        return;
    };
    let (mut client, mut server) = fixture.connection();
    server.set_nonblocking(false).unwrap();
    let reader = thread::spawn(move || {
        let mut block = vec![0_u8; 16 * 1024];
        let mut got = 0;
        while let Ok(bytes) = server.read(&mut block)
            && bytes > 0
        {
            got += bytes;
        }
        got
    });
    // Bursts as fast as the socket takes them, for well over the time that would turn Red.
    let mut written = 0;
    let start = Instant::now();
    while start.elapsed() < 3 * config.receive_queue_for {
        written += write_until_full(&mut client);
    }
    fixture.wait_for_ticks(2);
    drop(client);
    assert_eq!(reader.join().unwrap(), written);
    let seen = fixture.seen.lock().unwrap();
    assert!(
        seen.iter()
            .all(|transition| transition.to.zone() != Zone::Red),
        "{seen:#?}"
    );
    // Otherwise this proves nothing: the bursts did fill the queue.
    assert!(
        seen.iter()
            .any(|transition| transition.to.zone() == Zone::Yellow),
        "{seen:#?}"
    );
}

#[test]
fn a_slow_reader_of_a_full_socket_does_not_turn_red() {
    let config = Config {
        receive_queue_for: Duration::from_millis(500),
        ..config()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // So small a capacity that what TCP holds keeps the depth above Red throughout.
    let Some(fixture) = Fixture::judging(&config, listener, port, 4096) else {
        return;
    };
    let (mut client, mut server) = fixture.connection();
    write_until_full(&mut client);
    fixture.wait_for_ticks(2);
    let start = Instant::now();
    let mut sip = [0; 64];
    let mut stalled = 0.0_f64;
    while start.elapsed() < 3 * config.receive_queue_for {
        server.read_exact(&mut sip).unwrap();
        thread::sleep(Duration::from_millis(20));
        stalled = stalled.max(fixture.signal("receive_queue_stalled"));
        assert_eq!(fixture.signal("sockets_above_red"), 1.0);
    }
    assert!(stalled > 0.0, "the time without a dequeue was measured");
    assert_eq!(
        fixture.zone_and_cause(),
        (Zone::Yellow, Cause::ReceiveQueue)
    );
    // The same depth, without the sips.
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
}

#[test]
fn a_probe_raises_without_waiting_for_the_tick() {
    const WINDOW: usize = 16 * 1024;
    let config = Config {
        tick: Duration::from_secs(1),
        ..config()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let window = u32::try_from(WINDOW).unwrap();
    let Some(fixture) = Fixture::judging(&config, listener, port, window) else {
        return;
    };
    let (mut client, _server) = fixture.connection();
    client.write_all(&[0; WINDOW * 3 / 4]).unwrap();
    fixture.wait_for(Zone::Yellow, Cause::ReceiveQueue);
    wait(
        "transition",
        || !fixture.seen.lock().unwrap().is_empty(),
        String::new,
    );
    // A probe knows its own socket only; the tick would have read everything there is.
    let raised = fixture.seen.lock().unwrap()[0];
    let own = Signal::ReceiveQueue.bit() | Signal::ReceiveQueueStalled.bit();
    assert_eq!(raised.values.available, own, "{raised:?}");
    let depth = raised.values.get(Signal::ReceiveQueue).unwrap();
    assert!(depth >= 500, "{raised:?}");
    let rule = raised.rules[Signal::ReceiveQueue as usize];
    assert_eq!(rule.entries().0, Some(500), "and what it was judged by");
}

#[test]
fn closing_a_full_socket_undoes_its_aggregate() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    drop(server);
    fixture.wait_for(Zone::Green, Cause::None);
    let snapshot = fixture.pressure.snapshot();
    for name in [
        "sockets_above_yellow",
        "sockets_above_red",
        "receive_queue",
        "receive_queue_stalled",
    ] {
        assert_eq!(signal(&snapshot, name), 0.0, "{name}");
    }
    // A new socket at what may be the same address starts from nothing.
    let (mut client, mut server) = fixture.connection();
    client.write_all(b"hello").unwrap();
    read_all(&mut server, 5);
    fixture.wait_for_ticks(2);
    assert_eq!(fixture.zone_and_cause(), (Zone::Green, Cause::None));
}

#[test]
fn a_close_that_no_probe_saw_is_found() {
    let config = Config {
        // A round over the watch slots takes 256 of these.
        tick: Duration::from_millis(2),
        ..config()
    };
    let Some(fixture) = Fixture::start(&config) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    fixture.detach(&[PROGRAM_SOCKET_STATE, PROGRAM_SOCKET_END]);
    drop(server);
    fixture.wait_for(Zone::Green, Cause::None);
    for name in ["sockets_above_yellow", "sockets_above_red"] {
        assert_eq!(fixture.signal(name), 0.0, "{name}");
    }
}

#[test]
fn a_close_that_one_probe_missed_is_seen_by_the_other() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    // Too little for a watch slot, which would be looked after.
    client.write_all(b"hello").unwrap();
    let followed = || fixture.pressure.snapshot().followed.sockets;
    wait("followed socket", || followed() == 1, String::new);
    fixture.detach(&[PROGRAM_SOCKET_STATE]);
    drop(server);
    wait("end of it", || followed() == 0, String::new);
}

#[test]
fn a_full_socket_outlasts_the_search_for_missed_closes() {
    let config = Config {
        tick: Duration::from_millis(1),
        ..config()
    };
    let Some(fixture) = Fixture::start(&config) else {
        return;
    };
    let (mut client, _server) = fixture.connection();
    write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    // Three rounds and more.
    wait(
        "a long stall",
        || fixture.signal("receive_queue_stalled") > 1.0,
        String::new,
    );
    assert_eq!(fixture.signal("sockets_above_red"), 1.0);
    assert_eq!(fixture.zone_and_cause(), (Zone::Red, Cause::ReceiveQueue));
}

#[test]
fn a_reset_by_the_peer_undoes_its_aggregate() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    reset(client);
    // The engine hasn't closed its end, nor read anything.
    fixture.wait_for(Zone::Green, Cause::None);
    assert_eq!(fixture.signal("sockets_above_yellow"), 0.0);
    drop(server);
}

#[test]
fn ipv6_and_mapped_ipv4_sockets_count() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(fixture) = Fixture::judging(&config(), listener, port, 0) else {
        return;
    };
    for address in [
        IpAddr::from(Ipv6Addr::LOCALHOST),
        Ipv4Addr::LOCALHOST.into(),
    ] {
        let mut client = TcpStream::connect((address, port)).unwrap();
        client.set_nonblocking(true).unwrap();
        let (mut server, _) = fixture.listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let written = write_until_full(&mut client);
        fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
        read_all(&mut server, written);
        fixture.wait_for(Zone::Green, Cause::None);
    }
}

#[test]
fn a_full_socket_counts_whatever_the_size_of_its_segments() {
    let config = Config {
        // Of some sizes the kernel takes three quarters of its capacity, then closes the window.
        receive_queue: judged::levels(900, 950),
        ..config()
    };
    let Some(fixture) = Fixture::start(&config) else {
        return;
    };
    for bytes in [100, 1200, 1448, 4000, 30_000] {
        let (mut client, mut server) = fixture.connection();
        client.set_nodelay(true).unwrap();
        let segment = vec![0; bytes];
        let mut written = 0;
        wait(
            &format!("Red by segments of {bytes} bytes"),
            || {
                while let Ok(bytes) = client.write(&segment) {
                    written += bytes;
                }
                fixture.zone_and_cause() == (Zone::Red, Cause::ReceiveQueue)
            },
            || format!("{:#?}", fixture.pressure.snapshot()),
        );
        read_all(&mut server, written);
        fixture.wait_for(Zone::Green, Cause::None);
    }
}

#[test]
fn a_connection_not_yet_accepted_counts() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let mut client = TcpStream::connect(fixture.listener.local_addr().unwrap()).unwrap();
    client.set_nonblocking(true).unwrap();
    write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
}

#[test]
fn an_http2_window_is_the_capacity_where_it_is_smaller() {
    const WINDOW: u32 = 16 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(fixture) = Fixture::judging(&config(), listener, port, WINDOW) else {
        return;
    };
    let (mut client, mut server) = fixture.connection();
    client.write_all(&[0; WINDOW as usize]).unwrap();
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    read_all(&mut server, WINDOW as usize);
    fixture.wait_for(Zone::Green, Cause::None);
}

#[test]
fn a_stale_heartbeat_turns_red() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let line = fixture.pressure.engine(1);
    // A worker that has never beaten is no cause, however long that lasts.
    fixture.wait_for_ticks(2);
    assert_eq!(fixture.zone_and_cause(), (Zone::Green, Cause::None));
    line.beat();
    fixture.wait_for(Zone::Red, Cause::Heartbeat);
    let beating = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while beating.load(Ordering::Relaxed) {
                line.beat();
                thread::sleep(Duration::from_millis(10));
            }
        });
        fixture.wait_for(Zone::Green, Cause::None);
        beating.store(false, Ordering::Relaxed);
    });
}

#[test]
fn an_override_holds_expires_and_clears() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let red = |until_ns| {
        Some(OverrideUntil {
            zone: Zone::Red,
            until_ns,
        })
    };
    fixture.pressure.set_override(red(None));
    fixture.wait_for(Zone::Red, Cause::Override);
    assert!(fixture.pressure.snapshot().override_active);
    fixture.wait_for_ticks(3);
    assert_eq!(fixture.zone_and_cause(), (Zone::Red, Cause::Override));
    // Clearing doesn't wait for the hold: the signals never said Red.
    fixture.pressure.set_override(None);
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(!fixture.pressure.snapshot().override_active);

    let until_ns = monotonic_ns() + 300_000_000;
    fixture.pressure.set_override(red(Some(until_ns)));
    fixture.wait_for(Zone::Red, Cause::Override);
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(monotonic_ns() >= until_ns, "ended early");

    // The operator's Green outranks a full socket, and gives way to it.
    fixture.pressure.set_override(Some(OverrideUntil {
        zone: Zone::Green,
        until_ns: None,
    }));
    fixture.wait_for(Zone::Green, Cause::Override);
    let (mut client, _server) = fixture.connection();
    write_until_full(&mut client);
    wait(
        "depth",
        || fixture.signal("receive_queue_stalled") > 0.02,
        String::new,
    );
    assert_eq!(fixture.zone_and_cause(), (Zone::Green, Cause::Override));
    fixture.pressure.set_override(None);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
}

#[test]
fn events_without_room_in_the_ring_are_counted_and_told_of() {
    let config = Config {
        tick: Duration::from_millis(1),
        ..config()
    };
    let scope = IngestScope {
        ports: vec![],
        h2_window_bytes: 0,
        vault_dir: None,
    };
    let Some(pressure) = start(&config, &scope) else {
        return;
    };
    // Nobody drains the ring: each change of the word takes some of it.
    let verdict = pressure.verdict();
    let zones = [Zone::Red, Zone::Yellow].into_iter().cycle();
    for zone in zones.take(4 * EVENTS_BYTES as usize / size_of::<Event>()) {
        let until_ns = None;
        pressure.set_override(Some(OverrideUntil { zone, until_ns }));
        wait("the zone", || verdict.load().zone() == zone, String::new);
        if pressure.snapshot().events_lost > 0 {
            break;
        }
    }
    let (lost, transitions) = {
        let snapshot = pressure.snapshot();
        (snapshot.events_lost, snapshot.transitions)
    };
    assert!(lost > 0, "{transitions} events fit the ring");

    let (sender, told) = mpsc::channel();
    let watch = pressure.spawn_watch(move |occurrence| drop(sender.send(occurrence.clone())));
    let watch = watch.unwrap();
    let mut seen = 0;
    let events = loop {
        match told
            .recv_timeout(PATIENCE)
            .expect("what was lost is told of")
        {
            Occurrence::EventsLost { events, .. } => break events,
            Occurrence::Transition(_) => seen += 1,
            Occurrence::OomKill { .. } | Occurrence::Source { .. } => {}
        }
    };
    assert_eq!(events, pressure.snapshot().events_lost);
    assert_eq!(seen + events, pressure.snapshot().transitions);
    drop(watch);
}

#[test]
fn sockets_on_other_ports_do_not_count() {
    let ours = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = ours.local_addr().unwrap().port();
    let Some(fixture) = Fixture::judging(&config(), ours, port, 0) else {
        return;
    };
    let (mut client, _server) = connection(&other);
    assert_ignored(&fixture, &mut client);
}

#[test]
fn sockets_in_another_network_namespace_do_not_count() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let port = fixture.listener.local_addr().unwrap().port();
    let (full, filled) = mpsc::channel();
    let (done, release) = mpsc::channel::<()>();
    let elsewhere = thread::spawn(move || {
        // Namespaces are per thread: the socket lives where its thread was when it was made.
        enter_new_netns();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (mut client, _server) = connection(&listener);
        full.send(write_until_full(&mut client)).unwrap();
        let _ = release.recv();
    });
    let written = filled.recv_timeout(PATIENCE).unwrap();
    assert!(written > 0);
    fixture.wait_for_ticks(5);
    assert_eq!(fixture.zone_and_cause(), (Zone::Green, Cause::None));
    assert_eq!(fixture.signal("receive_queue"), 0.0);
    drop(done);
    elsewhere.join().unwrap();
}

/// Fills a socket that isn't ours, and checks that the kernel half takes no notice.
fn assert_ignored(fixture: &Fixture, client: &mut TcpStream) {
    write_until_full(client);
    fixture.wait_for_ticks(5);
    assert_eq!(fixture.zone_and_cause(), (Zone::Green, Cause::None));
    assert_eq!(fixture.signal("receive_queue"), 0.0);
}

/// Moves this thread into a network namespace of its own, with its loopback up.
fn enter_new_netns() {
    // SAFETY: no memory is involved.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives through the call.
    let raised = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    assert_eq!(raised, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn an_idle_tick_keeps_its_age_bounded() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let mut ages: Vec<Duration> = (0..60)
        .map(|_| {
            thread::sleep(Duration::from_millis(37));
            fixture.pressure.snapshot().judged_age
        })
        .collect();
    ages.sort();
    eprintln!(
        "tick age over 60 looks: median {:?}, greatest {:?}",
        ages[30], ages[59]
    );
    assert!(ages[59] < Duration::from_millis(500), "{ages:?}");
    assert_eq!(fixture.pressure.snapshot().source, Source::Kernel);
}

#[test]
fn a_dead_tick_is_replaced_and_comes_back() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let (_, mut verdict) = fixture.verdict_map();
    // A next period that never comes: no CPU claims it.
    set_next_tick(&mut verdict, u64::MAX);
    wait(
        "takeover",
        || fixture.pressure.snapshot().source == Source::Stochastic,
        String::new,
    );
    let snapshot = fixture.pressure.snapshot();
    assert!(snapshot.why_not_kernel.is_some());
    wait(
        "judgement of user space's own",
        || fixture.pressure.snapshot().judged_age < TICK_DEAD_MIN,
        String::new,
    );
    // What user space can measure it does; the rest is away with the tick.
    let known = |signal| fixture.pressure.snapshot().signal(signal).clone();
    wait(
        "signals of user space's own",
        || {
            let backlog = known(Signal::ListenBacklog);
            // A small kernel may be without TCP's diagnostics.
            backlog.available || backlog.reason.contains("NETLINK_SOCK_DIAG")
        },
        || format!("{:#?}", fixture.pressure.snapshot()),
    );
    let lost = known(Signal::KswapdWakeups);
    assert!(
        !lost.available && lost.reason.contains("no tick"),
        "{lost:?}"
    );
    fixture.pressure.set_override(None);
    fixture.wait_for(Zone::Green, Cause::None);
    // The probes still count, and user space judges by them.
    let (mut client, mut server) = fixture.connection();
    let written = write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    read_all(&mut server, written);
    fixture.wait_for(Zone::Green, Cause::None);

    set_next_tick(&mut verdict, 0);
    wait(
        "return of the tick",
        || fixture.pressure.snapshot().source == Source::Kernel,
        String::new,
    );
}

#[test]
fn what_was_not_measured_yet_is_no_worst_value() {
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let reading = |signal| fixture.pressure.snapshot().signal(signal).clone();
    // Low is bad, and the watch thread posts it only after the tick has begun to judge.
    wait(
        "available memory",
        || reading(Signal::MemoryAvailable).available,
        String::new,
    );
    let memory = reading(Signal::MemoryAvailable);
    assert!(memory.worst.is_some_and(|worst| worst > 0.0), "{memory:?}");
    let heartbeat = reading(Signal::HeartbeatAge);
    assert!(
        !heartbeat.available && heartbeat.worst.is_none(),
        "{heartbeat:?}"
    );
}

/// As if many tasks had ended their reclaim at once, and one of them found no chance to be counted.
#[test]
fn a_reclaim_whose_end_was_lost_does_not_stall_for_ever() {
    /// Of `Measures` in the kernel half, whose fourth number is the host's stall.
    const BYTES: usize = 41_408;
    const STALL: usize = 3 * size_of::<u64>();
    let Some(fixture) = Fixture::start(&config()) else {
        return;
    };
    let (verdict, _) = fixture.verdict_map();
    let measures = maps_of(&program(PROGRAM_TCP_PROBE, verdict))
        .into_iter()
        .find(|&id| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str() == Some("MEASURES")))
        .expect("the arrival probe has the measures");
    let data = Map::Array(MapData::from_id(measures).unwrap());
    let mut map: Array<MapData, [u8; BYTES]> = Array::try_from(data).unwrap();
    let stall = |map: &Array<MapData, [u8; BYTES]>| {
        let page = map.get(&0, 0).unwrap();
        u64::from_ne_bytes(page[STALL..STALL + 8].try_into().unwrap())
    };
    let write = |map: &mut Array<MapData, [u8; BYTES]>, since_us: u64| {
        let mut page = map.get(&0, 0).unwrap();
        page[STALL..STALL + 8].copy_from_slice(&(since_us << 16 | 1).to_ne_bytes());
        map.set(0, page, 0).unwrap();
    };
    let now_us = monotonic_ns() / 1000;
    write(&mut map, now_us - 59_000_000);
    wait(
        "a stall that is under way",
        || fixture.signal("memory_stall") > 0.5,
        || format!("{:#?}", fixture.pressure.snapshot()),
    );
    wait("its end", || stall(&map) == 0, || stall(&map).to_string());
    wait(
        "calm",
        || fixture.signal("memory_stall") < 0.5,
        || format!("{:#?}", fixture.pressure.snapshot()),
    );
}

type VerdictMap = Array<MapData, VerdictPage>;

impl Fixture {
    /// The kernel half's own map and its id, found from outside. Leaves the zone overridden, Yellow.
    fn verdict_map(&self) -> (u32, VerdictMap) {
        // Other VERDICT maps may be loaded on this machine: ours is told by when it last changed.
        self.pressure.set_override(Some(OverrideUntil {
            zone: Zone::Yellow,
            until_ns: None,
        }));
        self.wait_for(Zone::Yellow, Cause::Override);
        // The word changes first; what is seen last may still be the transition before.
        let ktime_ns = || {
            let seen = self.seen.lock().unwrap();
            let last = seen
                .last()
                .filter(|last| last.to.cause() == Cause::Override);
            last.map(|last| last.ktime_ns)
        };
        wait("transition", || ktime_ns().is_some(), String::new);
        let since_ns = ktime_ns().unwrap();
        loaded_maps()
            .filter_map(Result::ok)
            .filter(|info| info.name_as_str() == Some(MAP_VERDICT))
            .filter_map(|info| {
                let data = MapData::from_id(info.id()).ok()?;
                Some((info.id(), VerdictMap::try_from(Map::Array(data)).ok()?))
            })
            .find(|(_, map)| map.get(&0, 0).is_ok_and(|page| page.since_ns == since_ns))
            .expect("the VERDICT map can be found from outside")
    }

    /// Takes probes that see a socket close off their tracepoints, behind the kernel half's back.
    fn detach(&self, probes: &[&str]) {
        let (verdict, _) = self.verdict_map();
        self.pressure.set_override(None);
        let arrival = program(PROGRAM_TCP_PROBE, verdict);
        let sockets = maps_of(&arrival)
            .into_iter()
            .find(|&id| {
                MapInfo::from_id(id).is_ok_and(|map| map.name_as_str() == Some(MAP_SOCKETS))
            })
            .expect("the arrival probe has the sockets");
        for name in probes {
            detach(program(name, sockets).id());
        }
    }
}

/// Closes the link of this program, if its owner doesn't look.
fn detach(program: u32) {
    let link = std::fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .flatten()
        .find(|fd| {
            std::fs::read_to_string(fd.path()).is_ok_and(|info| {
                let has = |key: &str| info.lines().any(|line| line.starts_with(key));
                has("link_id:") && info.contains(&format!("prog_id:\t{program}\n"))
            })
        })
        .expect("this process holds the probe's link");
    let link: i32 = link.file_name().to_str().unwrap().parse().unwrap();
    let nothing = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: `link` stays open, so that its owner can close it; it is just no link any more.
    let replaced = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&nothing), link) };
    assert_eq!(replaced, link, "{}", std::io::Error::last_os_error());
}

/// The program of this name that uses this map.
fn program(name: &str, map: u32) -> ProgramInfo {
    loaded_programs()
        .filter_map(Result::ok)
        // The kernel keeps 15 characters of a name.
        .filter(|program| program.name_as_str().is_some_and(|n| name.starts_with(n)))
        .find(|program| maps_of(program).contains(&map))
        .expect("the program can be found from outside")
}

fn maps_of(program: &ProgramInfo) -> Vec<u32> {
    program.map_ids().unwrap().unwrap_or_default()
}

fn set_next_tick(verdict: &mut Array<MapData, VerdictPage>, next_tick_ns: u64) {
    let page = verdict.get(&0, 0).unwrap();
    verdict
        .set(
            0,
            VerdictPage {
                next_tick_ns,
                ..page
            },
            0,
        )
        .unwrap();
}

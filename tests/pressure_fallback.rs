//! The fallback: the same verdicts from user space alone.

#[path = "common/pressure.rs"]
mod judged;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use gophership::pressure::{
    Budget, Cause, Config, IngestScope, KernelMode, Occurrence, OverrideUntil, Pressure, Signal,
    Source, Transition, WatchHandle, Zone, memory_limit_bytes, monotonic_ns,
};

const HOLD: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);

fn config() -> Config {
    Config {
        sample_every: 64,
        ..judged::config(KernelMode::Off)
    }
}

struct Fixture {
    pressure: Arc<Pressure>,
    listener: TcpListener,
    seen: Arc<Mutex<Vec<Transition>>>,
    _watch: WatchHandle,
}

impl Fixture {
    fn start(config: &Config) -> Self {
        Self::judging(config, TcpListener::bind("127.0.0.1:0").unwrap(), 0)
    }

    fn judging(config: &Config, listener: TcpListener, h2_window_bytes: u32) -> Self {
        let scope = IngestScope {
            ports: vec![listener.local_addr().unwrap().port()],
            h2_window_bytes,
            vault_dir: Some(std::env::current_dir().unwrap()),
        };
        let pressure = Arc::new(Pressure::start(config, &scope, 2).unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let watch = pressure
            .spawn_watch(move |occurrence| {
                if let Occurrence::Transition(transition) = occurrence {
                    sink.lock().unwrap().push(*transition);
                }
            })
            .unwrap();
        Self {
            pressure,
            listener,
            seen,
            _watch: watch,
        }
    }

    fn connection(&self) -> (TcpStream, TcpStream) {
        connection(&self.listener)
    }

    fn signal(&self, signal: Signal) -> Option<f64> {
        let snapshot = self.pressure.snapshot();
        let reading = snapshot.signal(signal);
        reading.available.then_some(reading.value)
    }

    /// Waits until the signal's value is one that `is`.
    fn wait_for_signal(&self, signal: Signal, is: impl Fn(f64) -> bool) {
        let start = Instant::now();
        while !self.signal(signal).is_some_and(&is) {
            assert!(
                start.elapsed() < PATIENCE,
                "{signal:?}: {:#?}",
                self.pressure.snapshot()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until user space has judged `times` more.
    fn wait_for_judgements(&self, times: u32) {
        for _ in 0..times {
            let judged_at = || Instant::now().checked_sub(self.pressure.snapshot().judged_age);
            let last = judged_at().map(|at| at + Duration::from_millis(5));
            let start = Instant::now();
            while judged_at() <= last {
                assert!(start.elapsed() < PATIENCE, "no judgement");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn wait_for(&self, zone: Zone, cause: Cause) {
        let start = Instant::now();
        loop {
            let word = self.pressure.verdict().load();
            if (word.zone(), word.cause()) == (zone, cause) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no {zone:?} by {cause:?}: {:#?}",
                self.pressure.snapshot()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn available(&self, name: &str) -> bool {
        let snapshot = self.pressure.snapshot();
        let found = snapshot
            .signals
            .iter()
            .find(|reading| reading.signal.as_str() == name);
        found
            .unwrap_or_else(|| panic!("no signal {name}"))
            .available
    }
}

#[test]
fn budgets_of_all_workers_add_up() {
    let fixture = Fixture::start(&config());
    let [first, second] = [0, 1].map(|worker| fixture.pressure.engine(worker));
    first.set_used(Budget::Ingest, 1000, 1000);
    second.set_used(Budget::Ingest, 0, 1000);
    second.set_used(Budget::Export, 10, 1000);
    // Half in use: Green. Waits until the posted values have been judged.
    let start = Instant::now();
    while !fixture.available("budget_ingest") {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(!fixture.available("budget_vault"));

    second.set_used(Budget::Ingest, 700, 1000);
    fixture.wait_for(Zone::Yellow, Cause::Budget);
    second.set_used(Budget::Ingest, 950, 1000);
    fixture.wait_for(Zone::Red, Cause::Budget);
    first.set_used(Budget::Ingest, 0, 1000);
    second.set_used(Budget::Ingest, 0, 1000);
    let freed = Instant::now();
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(freed.elapsed() >= HOLD, "lowered before the hold was over");

    let seen = fixture.seen.lock().unwrap();
    let steps: Vec<_> = seen.iter().map(|t| (t.from.zone(), t.to.zone())).collect();
    assert_eq!(
        steps,
        [
            (Zone::Green, Zone::Yellow),
            (Zone::Yellow, Zone::Red),
            (Zone::Red, Zone::Green)
        ]
    );
}

#[test]
fn a_stale_heartbeat_turns_red_and_a_retired_worker_is_not_late() {
    let fixture = Fixture::start(&config());
    let line = fixture.pressure.engine(1);
    line.beat();
    fixture.wait_for(Zone::Red, Cause::Heartbeat);
    line.retire();
    fixture.wait_for(Zone::Green, Cause::None);
}

#[test]
fn an_override_holds_expires_and_clears() {
    let fixture = Fixture::start(&config());
    let until_ns = monotonic_ns() + 300_000_000;
    fixture.pressure.set_override(Some(OverrideUntil {
        zone: Zone::Red,
        until_ns: Some(until_ns),
    }));
    fixture.wait_for(Zone::Red, Cause::Override);
    assert!(fixture.pressure.snapshot().override_active);
    fixture.wait_for(Zone::Green, Cause::None);
    assert!(monotonic_ns() >= until_ns, "ended early");

    fixture.pressure.engine(0).set_used(Budget::Vault, 99, 100);
    fixture.wait_for(Zone::Red, Cause::Budget);
    fixture.pressure.set_override(Some(OverrideUntil {
        zone: Zone::Yellow,
        until_ns: None,
    }));
    fixture.wait_for(Zone::Yellow, Cause::Override);
    // Falls back to what the signals say, not to where it was before.
    fixture.pressure.set_override(None);
    fixture.wait_for(Zone::Red, Cause::Budget);
}

#[test]
fn operations_bring_a_sample_forward() {
    let fixture = Fixture::start(&config());
    let line = fixture.pressure.engine(0);
    // Far more samples than the 100 ms period alone would take: each sees a fresh judgement.
    let start = Instant::now();
    let mut samples = 0;
    let mut last_age = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(1) {
        for _ in 0..64 {
            line.operation();
        }
        thread::sleep(Duration::from_millis(2));
        let age = fixture.pressure.snapshot().judged_age;
        samples += u32::from(age < last_age);
        last_age = age;
    }
    assert!(samples > 15, "{samples} samples in a second");
}

#[test]
fn says_who_judges_and_what_it_cannot_see() {
    let fixture = Fixture::start(&config());
    let snapshot = fixture.pressure.snapshot();
    assert_eq!(snapshot.source, Source::Stochastic);
    assert!(snapshot.why_not_kernel.is_some());
    let start = Instant::now();
    while !fixture.available("memory_available") {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    let unavailable = |signal: Signal, why: &str| {
        let snapshot = fixture.pressure.snapshot();
        let reading = snapshot.signal(signal);
        assert!(!reading.available, "{signal:?}");
        assert!(
            reading.reason.contains(why),
            "{signal:?}: {}",
            reading.reason
        );
    };
    for signal in [
        Signal::MemoryStall,
        Signal::MemoryStallCgroup,
        Signal::KswapdWakeups,
    ] {
        unavailable(signal, "off in the configuration");
    }
    unavailable(Signal::CpuWait, "no worker is enlisted yet");
    unavailable(
        Signal::TimeToFull,
        "no worker has reported the ingest budget",
    );
    for name in ["heartbeat_age", "budget_export"] {
        assert!(!fixture.available(name), "{name}");
    }
    assert!(memory_limit_bytes() > 1 << 20);
}

#[test]
fn a_full_socket_turns_red_and_reading_it_empty_turns_green() {
    let fixture = Fixture::start(&config());
    let (mut client, mut server) = fixture.connection();
    fixture.wait_for_signal(Signal::SocketsAboveYellow, |sockets| sockets == 0.0);
    assert_eq!(fixture.signal(Signal::ReceiveQueue), Some(0.0));
    let written = write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    // It stays Red though nothing happens any more.
    fixture.wait_for_judgements(3);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    assert_eq!(fixture.signal(Signal::SocketsAboveRed), Some(1.0));
    assert!(fixture.signal(Signal::ReceiveQueueStalled) >= Some(0.005));
    assert!(fixture.signal(Signal::ReceiveQueueBytes) >= Some(1000.0));

    read_all(&mut server, written);
    fixture.wait_for(Zone::Green, Cause::None);
    assert_eq!(fixture.signal(Signal::ReceiveQueueBytes), Some(0.0));
    let seen = fixture.seen.lock().unwrap();
    let red = seen.iter().find(|t| t.to.zone() == Zone::Red).unwrap();
    assert!(
        red.values.get(Signal::ReceiveQueueStalled) >= Some(5_000),
        "{red:?}"
    );
}

#[test]
fn a_slow_reader_of_a_full_socket_does_not_turn_red() {
    // So small a capacity that what TCP holds keeps the depth above Red throughout.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config {
        receive_queue_for: Duration::from_millis(500),
        ..config()
    };
    let fixture = Fixture::judging(&config, listener, 4096);
    let (mut client, mut server) = fixture.connection();
    write_until_full(&mut client);
    fixture.wait_for(Zone::Yellow, Cause::ReceiveQueue);
    let start = Instant::now();
    while start.elapsed() < 3 * config.receive_queue_for {
        server.read_exact(&mut [0; 64]).unwrap();
        thread::sleep(Duration::from_millis(20));
        let word = fixture.pressure.verdict().load();
        assert_eq!(
            (word.zone(), word.cause()),
            (Zone::Yellow, Cause::ReceiveQueue)
        );
    }
    assert_eq!(fixture.signal(Signal::SocketsAboveRed), Some(1.0));
    // The same depth, without the sips.
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
}

#[test]
fn closing_a_full_socket_leaves_no_trace() {
    let fixture = Fixture::start(&config());
    let (mut client, server) = fixture.connection();
    write_until_full(&mut client);
    fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
    assert_eq!(fixture.pressure.snapshot().followed.sockets, 1);
    drop(server);
    fixture.wait_for(Zone::Green, Cause::None);
    for signal in [
        Signal::ReceiveQueue,
        Signal::ReceiveQueueStalled,
        Signal::SocketsAboveYellow,
        Signal::SocketsAboveRed,
        Signal::ReceiveQueueBytes,
    ] {
        assert_eq!(fixture.signal(signal), Some(0.0), "{signal:?}");
    }
    assert_eq!(fixture.pressure.snapshot().followed.sockets, 0);
}

#[test]
fn ipv6_mapped_ipv4_and_connections_not_yet_accepted_count() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fixture = Fixture::judging(&config(), listener, 0);
    for address in [
        IpAddr::from(Ipv6Addr::LOCALHOST),
        Ipv4Addr::LOCALHOST.into(),
    ] {
        let mut client = TcpStream::connect((address, port)).unwrap();
        client.set_nonblocking(true).unwrap();
        let written = write_until_full(&mut client);
        fixture.wait_for(Zone::Red, Cause::ReceiveQueue);
        let (mut server, _) = fixture.listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        read_all(&mut server, written);
        fixture.wait_for(Zone::Green, Cause::None);
    }
}

#[test]
fn sockets_on_other_ports_do_not_count() {
    let fixture = Fixture::start(&config());
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut client, _server) = connection(&other);
    write_until_full(&mut client);
    // Our own producers' ends are on other ports, too.
    let (mut client, _server) = fixture.connection();
    client.write_all(b"hello").unwrap();
    fixture.wait_for_signal(Signal::ReceiveQueueBytes, |bytes| bytes == 5.0);
    fixture.wait_for_judgements(3);
    assert_eq!(fixture.signal(Signal::ReceiveQueueBytes), Some(5.0));
    fixture.wait_for(Zone::Green, Cause::None);
}

#[test]
fn a_full_accept_queue_is_a_cause() {
    let config = Config {
        listen_backlog: judged::levels(500, 900),
        ..config()
    };
    let fixture = Fixture::start(&config);
    fixture.wait_for_signal(Signal::ListenBacklog, |share| share == 0.0);
    // The standard library's backlog is 128, or what the machine allows.
    let waiting: Vec<_> = (0..128)
        .map(|_| TcpStream::connect(fixture.listener.local_addr().unwrap()).unwrap())
        .collect();
    fixture.wait_for(Zone::Red, Cause::ListenBacklog);
    for _ in &waiting {
        fixture.listener.accept().unwrap();
    }
    fixture.wait_for(Zone::Green, Cause::None);
}

#[test]
fn the_ingress_is_measured_and_predicts() {
    let config = Config {
        ingress_horizon: Some(Duration::from_secs(60)),
        ..config()
    };
    let fixture = Fixture::start(&config);
    let line = fixture.pressure.engine(0);
    line.set_used(Budget::Ingest, 0, 1000);
    fixture.wait_for_signal(Signal::TimeToFull, |seconds| seconds >= 3600.0);
    let (mut client, _server) = fixture.connection();
    fixture.wait_for_signal(Signal::IngressRate, |rate| rate == 0.0);
    client.write_all(&[0; 600]).unwrap();
    // 600 B within a second, and unread: 400 B more would be a full budget.
    fixture.wait_for_signal(Signal::IngressRate, |rate| rate > 0.0);
    fixture.wait_for(Zone::Yellow, Cause::Ingress);
    let seen = fixture.seen.lock().unwrap();
    let rate = seen[0].values.get(Signal::IngressRate);
    assert!(rate >= Some(300) && rate <= Some(600), "{rate:?}");
}

#[test]
fn the_workers_waits_and_the_vaults_disk_are_measured() {
    let fixture = Fixture::start(&config());
    fixture.pressure.engine(0).enlist().unwrap();
    fixture.wait_for_signal(Signal::CpuWait, |share| (0.0..=1.0).contains(&share));
    fixture.wait_for_signal(Signal::OomKills, |kills| kills >= 0.0);
    let snapshot = fixture.pressure.snapshot();
    let disk = snapshot.signal(Signal::DiskLatency);
    // In a container the directory may be on no disk.
    assert!(
        disk.available || disk.reason.contains("block device"),
        "{disk:?}"
    );
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
    let fixture = Fixture::start(&config());
    let age = fixture.pressure.snapshot().age;
    assert!(
        age <= Duration::from_nanos(monotonic_ns() - before_ns),
        "{age:?}"
    );
}

#[test]
fn too_many_ports_or_workers_are_errors() {
    let scope = |ports| IngestScope {
        ports,
        h2_window_bytes: 0,
        vault_dir: None,
    };
    assert!(Pressure::start(&config(), &scope(vec![1; 9]), 1).is_err());
    assert!(Pressure::start(&config(), &scope(vec![1]), 129).is_err());
}

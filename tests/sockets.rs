//! `gs-ctl sockets` and `gs-ctl top` against the real daemon and the running kernel, and the
//! iterators behind them.
//!
//! A draining daemon answers its operator but accepts nobody: what producers send stays in the
//! kernel, where it can be looked at for as long as it takes.

mod common;
#[path = "common/pressure.rs"]
mod judged;

use std::{
    collections::HashSet,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
};

use common::{
    PATIENCE, await_some,
    daemon::{Daemon, Home},
    eventually, judging,
    messages::{Messages, Shape},
    process,
    settings::Settings,
    sink::Sink,
};
use gophership::pressure::{
    Config, IngestScope, KernelMode, Listing, Pressure, SocketOrder, sockets::ListSource,
};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;

/// Fits any receive buffer and any HTTP/2 window.
const SENT_BYTES: usize = 20_000;

/// A process of its own that sends and then holds the connection.
struct Stranger(Child);

impl Stranger {
    /// Connects to `address` and sends [`SENT_BYTES`] zeros; returns when they are in the kernel.
    #[track_caller]
    fn sends_to(address: SocketAddr) -> Self {
        const SCRIPT: &str = "exec 3<>/dev/tcp/$0/$1 && head -c $2 /dev/zero >&3 && echo sent && \
                              exec cat";
        let child = Command::new("bash")
            .args(["-c", SCRIPT])
            .args([address.ip().to_string(), address.port().to_string()])
            .arg(SENT_BYTES.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let mut stranger = Self(child);
        let mut sent = [0; 5];
        let stdout = stranger.0.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut sent).expect("the bytes are sent");
        stranger
    }

    fn pid(&self) -> u64 {
        self.0.id().into()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn listen_everywhere() -> [(&'static str, &'static str); 1] {
    [("GOPHERSHIP_INGEST__GRPC__LISTEN", "[::]:0")]
}

#[track_caller]
fn sockets(daemon: &Daemon<'_>, arguments: &[&str]) -> Value {
    let finished = daemon.ctl(&[&["sockets"], arguments].concat());
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("not JSON ({error}): {finished}"))
}

/// Whether the kernel half runs; where it can't and needn't, the test says so.
#[track_caller]
fn kernel_lists(daemon: &Daemon<'_>) -> bool {
    let listed = sockets(daemon, &[]);
    if listed["source"] == "kernel" && listed["processes_reason"] == "" {
        return true;
    }
    let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|v| v == "1");
    assert!(!required, "GOPHERSHIP_REQUIRE_KERNEL=1, but: {listed:#}");
    eprintln!("not tested: the kernel half doesn't list sockets here: {listed:#}");
    false
}

/// The row of the process's socket.
fn row_of(listed: &Value, pid: u64) -> Option<&Value> {
    let rows = listed["sockets"].as_array()?;
    rows.iter().find(|row| row["process"]["pid"] == pid)
}

fn drain(daemon: &Daemon<'_>) {
    daemon.ctl(&["drain"]);
}

#[test]
fn a_waiting_socket_is_listed_with_depth_peer_and_process_over_both_protocols() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "10s"));
    let daemon = Daemon::start_with_env(&home, &settings, &listen_everywhere());
    if !kernel_lists(&daemon) {
        return;
    }
    drain(&daemon);
    let port = daemon.grpc().port();
    let strangers = ["127.0.0.1", "::1"].map(|host| {
        let host: std::net::IpAddr = host.parse().expect("an address");
        let stranger = Stranger::sends_to(SocketAddr::new(host, port));
        (host, stranger)
    });
    for (host, stranger) in &strangers {
        let row = await_some("the stranger's bytes in the list", PATIENCE, || {
            let listed = sockets(&daemon, &[]);
            let row = row_of(&listed, stranger.pid())?;
            (row["depth"] == SENT_BYTES).then(|| row.clone())
        });
        assert_eq!(row["process"]["name"], "cat", "{row:#}");
        let peer: SocketAddr = row["peer"].as_str().unwrap().parse().unwrap();
        assert_eq!(peer.ip(), *host, "{row:#}");
        assert_eq!(row["local"], SocketAddr::new(*host, port).to_string());
        assert_eq!(row["state"], "established");
        assert_eq!(row["high_water"], SENT_BYTES, "{row:#}");
        assert!(row["since_dequeue"].is_null(), "nobody has read: {row:#}");
        assert_eq!(row["level"], "green", "{row:#}");
        assert!(row["cookie"].as_u64() > Some(0), "{row:#}");
        let capacity = row["capacity"].as_f64().unwrap();
        let fill = row["fill"].as_f64().unwrap();
        assert!(
            (fill - SENT_BYTES as f64 / capacity).abs() < 0.001,
            "{row:#}"
        );
    }
    let listed = sockets(&daemon, &["--limit", "1"]);
    assert_eq!(listed["total"], 2, "{listed:#}");
    assert_eq!(listed["sockets"].as_array().unwrap().len(), 1);
    let [one, other] = listed["listeners"].as_array().unwrap().as_slice() else {
        panic!("OTLP/gRPC's and OTLP/HTTP's: {listed:#}");
    };
    let is_grpcs = |listener: &Value| listener["local"] == daemon.grpc().to_string();
    let listener = if is_grpcs(one) { one } else { other };
    assert!(is_grpcs(listener), "{listed:#}");
    assert_eq!(listener["waiting"], 2, "nobody accepts: {listed:#}");
    assert!(listener["backlog"].as_u64() >= Some(2), "{listed:#}");

    let [(_, first), (_, second)] = strangers;
    drop(second);
    eventually("the end of the second connection", PATIENCE, || {
        let listed = sockets(&daemon, &[]);
        let rows = listed["sockets"].as_array().unwrap();
        let open = rows.iter().filter(|row| row["state"] == "established");
        open.count() == 1 && row_of(&listed, first.pid()).is_some()
    });
}

#[test]
fn a_served_connection_shows_when_it_was_read_and_how_full_it_was() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    if !kernel_lists(&daemon) {
        return;
    }
    let shape = Shape {
        records: 2,
        body_bytes: 100,
    };
    let producer = daemon.producer();
    let message = Messages::new(50, shape).message();
    producer.export_all(std::slice::from_ref(&message));
    let row = await_some("the producer's socket, read empty", PATIENCE, || {
        let listed = sockets(&daemon, &["--sort", "high-water"]);
        let row = row_of(&listed, std::process::id().into())?;
        (row["depth"] == 0).then(|| row.clone())
    });
    assert!(row["high_water"].as_u64() > Some(0), "{row:#}");
    assert!(row["since_dequeue"].as_f64() > Some(0.0), "{row:#}");
    assert_eq!(row["level"], "green");
}

#[test]
fn without_the_kernel_half_proc_tells_what_it_knows() {
    let home = Home::new();
    let sink = Sink::up();
    let mut settings = Settings::to(sink.destination("main", "10s"));
    settings.kernel = "off";
    let daemon = Daemon::start_with_env(&home, &settings, &listen_everywhere());
    drain(&daemon);
    let port = daemon.grpc().port();
    for host in ["127.0.0.1", "::1"] {
        let host: std::net::IpAddr = host.parse().unwrap();
        let _stranger = Stranger::sends_to(SocketAddr::new(host, port));
        let row = await_some("the stranger's bytes in the list", PATIENCE, || {
            let listed = sockets(&daemon, &[]);
            assert_eq!(listed["source"], "proc");
            assert_eq!(listed["source_reason"], "off in the configuration");
            let from_host = |row: &&Value| {
                let peer = row["peer"].as_str().and_then(|peer| peer.parse().ok());
                peer.is_some_and(|peer: SocketAddr| peer.ip() == host)
            };
            let row = listed["sockets"].as_array()?.iter().find(from_host)?;
            (row["depth"] == SENT_BYTES).then(|| row.clone())
        });
        // Without capabilities the daemon can't look into other processes.
        for unknown in [
            "process",
            "capacity",
            "fill",
            "high_water",
            "level",
            "cookie",
        ] {
            assert!(row[unknown].is_null(), "{unknown}: {row:#}");
        }
    }
    let listed = sockets(&daemon, &[]);
    // One of them is OTLP/HTTP's, where nobody waits.
    let listeners = listed["listeners"].as_array().unwrap();
    let has_both = |listener: &Value| listener["waiting"] == 2;
    assert!(listeners.iter().any(has_both), "{listed:#}");
    let table = process::run(&mut ctl(&home, &["sockets"]), PATIENCE).expect_success();
    assert!(table.stdout.contains("off in the configuration"), "{table}");
}

/// `gs-ctl` for people.
fn ctl(home: &Home, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gs-ctl"));
    command
        .arg("--endpoint")
        .arg(format!("unix:{}", home.control_socket().display()))
        .args(arguments);
    command
}

#[test]
fn top_shows_every_signal_twice_and_ends() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let top = ["top", "--interval", "100ms", "--count", "2"];
    let shown = process::run(&mut ctl(&home, &top), PATIENCE).expect_success();
    let status = daemon.status();
    let signals = status["signals"].as_object().unwrap();
    for name in signals.keys() {
        let lines = shown.stdout.lines();
        let lines = lines.filter(|line| line.split(' ').next() == Some(name));
        assert_eq!(lines.count(), 2, "{name}: {shown}");
    }
    assert!(
        !shown.stdout.contains('\x1b'),
        "no terminal, no codes: {shown}"
    );
    assert_eq!(shown.stdout.matches("judged by").count(), 2, "{shown}");
}

#[test]
fn top_outlives_the_daemon_and_ends_on_a_signal() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "10s"));
    let daemon = Daemon::start(&home, &settings);
    let mut command = ctl(&home, &["--output", "json", "top", "--interval", "100ms"]);
    process::without_own_variables(&mut command);
    let mut top = command.stdout(Stdio::piped()).spawn().expect("top starts");
    let lines = lines_of(top.stdout.take().expect("a pipe"));
    let await_line = |what: &str, holds: &dyn Fn(&Value) -> bool| {
        await_some(what, PATIENCE, || {
            let line = lines.recv_timeout(PATIENCE).expect("top goes on");
            let value: Value = serde_json::from_str(&line).expect("JSON on each line");
            holds(&value).then_some(value)
        })
    };
    let shown = await_line("a status", &|value| value["status"]["zone"] == "green");
    assert!(shown["sockets"]["sockets"].is_array(), "{shown:#}");
    daemon.kill9();
    await_line("no daemon", &|value| value["reconnecting"].is_string());
    let daemon = Daemon::start(&home, &settings);
    await_line("its successor", &|value| value["status"].is_object());

    let pid = Pid::from_raw(i32::try_from(top.id()).expect("a process id"));
    kill(pid, Signal::SIGTERM).expect("top can be signalled");
    let status = process::wait(&mut top, PATIENCE).expect("top ends");
    assert_eq!(status.code(), Some(0), "{status}");
    drop(daemon);
}

fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn top_gives_the_terminal_back() {
    let home = Home::new();
    let sink = Sink::up();
    let _daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let nix::pty::OpenptyResult { master, slave } =
        nix::pty::openpty(None, None).expect("a terminal");
    let mut command = ctl(&home, &["top", "--interval", "100ms"]);
    process::without_own_variables(&mut command);
    let mut top = command.stdout(slave).spawn().expect("top starts");
    // The command holds the terminal open in this process, too.
    drop(command);
    let (sender, frames) = mpsc::channel();
    thread::spawn(move || {
        let mut master = std::fs::File::from(master);
        let mut bytes = [0; 4096];
        // It ends in an error when the last one has closed the terminal.
        while let Ok(read) = master.read(&mut bytes) {
            if read == 0 || sender.send(bytes[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    eventually("two frames", PATIENCE, || {
        seen.extend(frames.recv_timeout(PATIENCE).expect("top goes on"));
        String::from_utf8_lossy(&seen).matches("\x1b[H").count() >= 2
    });
    let pid = Pid::from_raw(i32::try_from(top.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("top can be signalled");
    let status = process::wait(&mut top, PATIENCE).expect("top ends");
    assert_eq!(status.code(), Some(0), "{status}");
    seen.extend(frames.iter().flatten());
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.starts_with("\x1b[?1049h"), "{seen:?}");
    assert!(seen.ends_with("\x1b[?1049l"), "{seen:?}");
}

/// The judge over one listener that nobody accepts from; `None` where the kernel half can't run and
/// needn't.
fn judging(listener: &TcpListener) -> Option<Arc<Pressure>> {
    let config = Config {
        heartbeat_limit: PATIENCE,
        ..judged::config(KernelMode::Required)
    };
    let scope = IngestScope {
        ports: vec![listener.local_addr().unwrap().port()],
        h2_window_bytes: 0,
        vault_dir: None,
    };
    judging::start(&config, &scope)
}

#[track_caller]
fn by_kernel(pressure: &Pressure) -> Listing {
    let listing = pressure.sockets(SocketOrder::Depth, 10).unwrap();
    assert_eq!(listing.source, ListSource::Kernel, "{listing:#?}");
    assert_eq!(listing.processes_reason, None, "{listing:#?}");
    listing
}

#[test]
fn connections_from_before_the_kernel_half_are_listed_but_not_followed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(&[0; 1000]).unwrap();
    let Some(pressure) = judging(&listener) else {
        return;
    };
    let listing = by_kernel(&pressure);
    let [socket] = listing.sockets.as_slice() else {
        panic!("one socket: {listing:#?}");
    };
    assert_eq!(socket.peer, client.local_addr().unwrap());
    assert_eq!(socket.depth_bytes, 1000);
    assert_eq!(socket.followed, None);
    let process = socket.process.as_ref().unwrap();
    assert_eq!(process.pid, std::process::id());
    assert_eq!(listing.listeners[0].waiting, 1);

    client.write_all(&[0; 1000]).unwrap();
    eventually("the next segment", PATIENCE, || {
        let followed = by_kernel(&pressure).sockets[0].followed;
        followed.is_some_and(|followed| followed.high_water_bytes == 2000)
    });
}

#[test]
fn more_sockets_than_fit_one_read_are_each_listed_once_and_the_deepest_kept() {
    const CONNECTIONS: usize = 1000;
    const DEEP: [usize; 3] = [300, 700, 999];
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let Some(pressure) = judging(&listener) else {
        return;
    };
    let mut connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap())
        })
        .collect();
    for index in DEEP {
        connections[index].0.write_all(&vec![0; index]).unwrap();
    }
    let all = pressure
        .sockets(SocketOrder::Depth, 2 * CONNECTIONS)
        .unwrap();
    let peers: HashSet<_> = all.sockets.iter().map(|socket| socket.peer).collect();
    assert_eq!((all.total, all.sockets.len()), (CONNECTIONS, CONNECTIONS));
    assert_eq!(peers.len(), CONNECTIONS);
    assert!(all.sockets.iter().all(|socket| socket.process.is_some()));

    let expected = DEEP.map(|index| (index as u64, connections[index].0.local_addr().unwrap()));
    eventually("the deepest ones", PATIENCE, || {
        let listing = pressure.sockets(SocketOrder::Depth, DEEP.len()).unwrap();
        assert_eq!(listing.total, CONNECTIONS);
        let deepest = listing.sockets.iter().rev();
        deepest
            .map(|socket| (socket.depth_bytes, socket.peer))
            .eq(expected)
    });
}

#[test]
fn the_iterators_are_read_without_any_privilege() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let Some(pressure) = judging(&listener) else {
        return;
    };
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let listing = thread::scope(|scope| {
        let unprivileged = scope.spawn(|| {
            drop_privileges();
            by_kernel(&pressure)
        });
        unprivileged.join().expect("the list is read")
    });
    assert_eq!(listing.sockets[0].peer, client.local_addr().unwrap());
    // The process is root's: its descriptors in /proc are closed to the thread.
    let process = listing.sockets[0].process.as_ref().unwrap();
    assert_eq!(process.pid, std::process::id());
}

/// This thread becomes nobody, without capabilities; the others keep theirs.
fn drop_privileges() {
    const NOBODY: libc::c_long = 65_534;
    // SAFETY: plain numbers. The system call by itself changes this thread only.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(changed, 0, "{}", io::Error::last_os_error());
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let none = |set| status.contains(&format!("{set}:\t0000000000000000"));
    assert!(none("CapEff") && none("CapPrm"), "{status}");
}

#[test]
fn another_network_namespace_is_not_listed_from_within_or_without() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let Some(pressure) = judging(&listener) else {
        return;
    };
    let address = listener.local_addr().unwrap();
    let (made, is_made) = mpsc::channel();
    let (done, is_done) = mpsc::channel::<()>();
    let without = thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            let (made, is_done) = (made, is_done);
            enter_new_netns();
            // The same address, but another namespace's.
            let listener = TcpListener::bind(address).unwrap();
            let _client = TcpStream::connect(address).unwrap();
            let _server = listener.accept().unwrap();
            // Here the kernel offers those sockets, and we must pass them over.
            let within = by_kernel(&pressure);
            made.send(()).unwrap();
            let _ = is_done.recv();
            within
        });
        is_made.recv_timeout(PATIENCE).expect("sockets elsewhere");
        let without = by_kernel(&pressure);
        drop(done);
        let within = elsewhere.join().expect("the list is read");
        assert_eq!(
            (within.total, within.listeners.len()),
            (0, 0),
            "{within:#?}"
        );
        without
    });
    assert_eq!(
        (without.total, without.listeners.len()),
        (0, 1),
        "{without:#?}"
    );
}

/// Moves this thread into a network namespace of its own, with its loopback up.
fn enter_new_netns() {
    // SAFETY: no memory is involved.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "{}", io::Error::last_os_error());
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(up.is_ok_and(|up| up.success()), "the loopback comes up");
}

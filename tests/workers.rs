//! How connections spread over the workers, also when one of them is stuck, and where the workers run.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually, holds_within,
    messages::{Messages, Shape},
    producer::Producer,
    settings::Settings,
    sink::Sink,
};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::wait::{WaitPidFlag, waitpid},
    unistd::Pid,
};

const SHAPE: Shape = Shape {
    records: 3,
    body_bytes: 100,
};

/// Connections of each worker, by the status.
#[track_caller]
fn connections(daemon: &Daemon<'_>) -> Vec<u64> {
    let status = daemon.status();
    let workers = status["ingest"]["workers"].as_array().expect("a list");
    let of = |worker: &serde_json::Value| worker["connections"].as_u64().expect("a number");
    workers.iter().map(of).collect()
}

#[track_caller]
fn is_stuck(daemon: &Daemon<'_>, worker: usize) -> bool {
    let status = daemon.status();
    status["ingest"]["workers"][worker]["stuck"]
        .as_bool()
        .expect("yes or no")
}

/// Producers that have been served.
#[track_caller]
fn connect(daemon: &Daemon<'_>, seed: u64, count: usize) -> Vec<Producer> {
    let mut messages = Messages::new(seed, SHAPE);
    let mut producers = Vec::new();
    for _ in 0..count {
        let producer = daemon.producer();
        producer.export_all(&messages.take(1));
        producers.push(producer);
    }
    producers
}

#[test]
fn connections_go_to_the_worker_that_has_the_fewest() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let mut producers = connect(&daemon, 80, 9);
    let mut counts = connections(&daemon);
    counts.sort_unstable();
    assert_eq!(counts, [4, 5]);
    for worker in ["0", "1"] {
        let open = daemon.metric("gophership_worker_connections", &[("worker", worker)]);
        assert!((4.0..=5.0).contains(&open), "{open}");
    }

    // All of one worker's close: taking turns would give each as many of the next.
    let mut kept = Vec::new();
    for (number, producer) in producers.drain(..).enumerate() {
        if number % 2 == 0 {
            kept.push(producer);
        }
    }
    eventually("the others are closed", PATIENCE, || {
        connections(&daemon).iter().sum::<u64>() == 5
    });
    let mut counts = connections(&daemon);
    counts.sort_unstable();
    assert_eq!(counts, [0, 5], "they took turns while all stayed");
    kept.extend(connect(&daemon, 81, 5));
    assert_eq!(connections(&daemon), [5, 5]);
}

#[test]
fn who_comes_goes_to_the_worker_that_has_less_to_do_also_if_it_has_more_connections() {
    let (home, sink) = (Home::new(), Sink::up());
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let mut producers = connect(&daemon, 87, 4);
    assert_eq!(connections(&daemon), [2, 2]);
    // Of one worker's two, one goes, and the other one is at work.
    let heavy = producers.remove(2);
    drop(producers.remove(0));
    eventually("the other is closed", PATIENCE, || {
        connections(&daemon).iter().sum::<u64>() == 3
    });
    let of_heavy = connections(&daemon).iter().position(|open| *open == 1);
    let other = 1 - of_heavy.expect("it is alone");

    let large = Shape {
        records: 100,
        body_bytes: 1000,
    };
    let message = Messages::new(88, large).message();
    let (message, is_enough) = (std::slice::from_ref(&message), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_enough.load(Relaxed) {
                heavy.export_all(message);
            }
        });
        let lands_apart = holds_within(PATIENCE / 4, || {
            let _second = connect(&daemon, 89, 1);
            connections(&daemon)[other] == 3
        });
        is_enough.store(true, Relaxed);
        assert!(lands_apart, "the fewest connections, and all the work");
    });
}

/// No address and no data.
const NOTHING: *const libc::c_void = std::ptr::null();

/// One thread of another process, stopped by a tracer while the others run on.
struct Frozen(Pid);

impl Frozen {
    fn new(thread: Pid) -> Self {
        let refused = || std::io::Error::last_os_error();
        // SAFETY: neither request reads or writes memory of this process.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread.as_raw(), NOTHING, NOTHING) };
        assert_eq!(seized, 0, "seize: {}", refused());
        let frozen = Self(thread);
        // SAFETY: as above.
        let stopped =
            unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread.as_raw(), NOTHING, NOTHING) };
        assert_eq!(stopped, 0, "interrupt: {}", refused());
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: as above. Where it fails, the thread has gone.
        let _ = unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0.as_raw(), NOTHING, NOTHING) };
    }
}

/// The daemon's threads by name, with one line of their status.
fn threads(daemon: &Daemon<'_>, line: &str) -> BTreeMap<String, (Pid, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("its threads");
    let mut threads = BTreeMap::new();
    for task in tasks.flatten() {
        // A thread for one blocking call may have ended meanwhile.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name));
            found.unwrap_or_default().trim().to_owned()
        };
        let id = field("Pid:").parse().expect("a number");
        threads.insert(field("Name:"), (Pid::from_raw(id), field(line)));
    }
    threads
}

#[test]
fn a_stuck_worker_is_told_of_and_gets_no_more_connections() {
    let (home, sink) = (Home::new(), Sink::up());
    let settings = Settings {
        memory_total: "1GiB",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let first = connect(&daemon, 82, 4);
    assert_eq!(connections(&daemon), [2, 2]);

    let stuck = threads(&daemon, "State:")["worker-0"].0;
    let frozen = Frozen::new(stuck);
    eventually("the worker is seen to be stuck", PATIENCE, || {
        is_stuck(&daemon, 0)
    });
    assert!(!is_stuck(&daemon, 1));
    assert_eq!(
        daemon.metric("gophership_worker_stuck", &[("worker", "0")]),
        1.0
    );
    daemon.await_zone("red");
    assert_eq!(daemon.text("/cause"), "heartbeat");
    // Each of them is served, which half of them would wait for in vain.
    let later = connect(&daemon, 83, 6);
    assert_eq!(connections(&daemon), [2, 8]);
    // Nor when they come faster than the other one takes them.
    let burst: Vec<_> = (0..600)
        .map(|_| TcpStream::connect(daemon.grpc()).expect("the backlog has room"))
        .collect();
    let behind = connect(&daemon, 86, 2);
    assert_eq!(connections(&daemon)[0], 2);
    drop((burst, behind));
    eventually("they are gone", PATIENCE, || connections(&daemon) == [2, 8]);
    eventually("that is told", PATIENCE, || {
        daemon.log_lines("a worker is stuck").len() == 1
    });

    drop(frozen);
    eventually("the worker runs again", PATIENCE, || !is_stuck(&daemon, 0));
    let last = connect(&daemon, 84, 6);
    assert_eq!(connections(&daemon), [8, 8]);
    for producer in first.iter().chain(&later).chain(&last) {
        producer.export_all(&Messages::new(85, SHAPE).take(1));
    }
    eventually("that is told", PATIENCE, || {
        daemon.log_lines("the worker runs again").len() == 1
    });
}

/// The CPUs that this process, and so the daemon, may use.
fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("the CPUs");
    let is_allowed = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    (0..CpuSet::count()).filter(is_allowed).collect()
}

#[test]
fn workers_are_pinned_to_the_allowed_cpus_in_turn_if_so_configured_and_nothing_else_is() {
    let (home, sink) = (Home::new(), Sink::up());
    let settings = Settings {
        workers: 3,
        ..Settings::to(sink.destination("main", "10s"))
    };
    let cpus = allowed();
    let cpus_of = |daemon: &Daemon<'_>| {
        let all = threads(daemon, "Cpus_allowed_list:").into_iter();
        all.map(|(name, (_, cpus))| (name, cpus))
            .collect::<BTreeMap<_, _>>()
    };
    let daemon = Daemon::start(&home, &settings);
    let free = cpus_of(&daemon);
    assert_eq!(free["worker-0"], free["gophership"]);
    drop(daemon);

    let pinned = [("GOPHERSHIP_INGEST__PIN_WORKERS", "true")];
    let daemon = Daemon::start_with_env(&home, &settings, &pinned);
    let found = cpus_of(&daemon);
    for worker in 0..3 {
        let cpu = cpus[worker % cpus.len()].to_string();
        assert_eq!(found[&format!("worker-{worker}")], cpu, "{found:?}");
    }
    for other in ["gophership", "replay", "pressure-watch", "vault-segments"] {
        assert_eq!(found[other], free["gophership"], "{other}");
    }
    connect(&daemon, 86, 3);
}

//! Each signal of the kernel half under real pressure: memory that is short, CPUs that are busy,
//! listeners that nobody serves. Only the signal in question is judged.
//!
//! What needs a limited control group runs in a process of its own inside one: the tests marked
//! `ignored` are those processes, and do nothing when they are run by hand.
//!
//! Needs root and a build with `GOPHERSHIP_EBPF_OBJ`. Otherwise each test says why it did nothing
//! and passes, unless `GOPHERSHIP_REQUIRE_KERNEL=1`.

mod common;
#[path = "common/pressure.rs"]
mod judged;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Command},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    cgroup::Cgroup,
    judging::{Judging, PATIENCE},
    process,
};
use gophership::pressure::{
    Budget, Cause, Config, IngestScope, KernelMode, Occurrence, Signal, Zone,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
    },
    unistd::{Pid, gettid},
};

const MIB: u64 = 1 << 20;
/// Room for the test's process and the kernel half's maps, but not for [`FILE_BYTES`].
const LIMIT_BYTES: u64 = 128 * MIB;
/// A file of nothing but holes: reading it fills the page cache and no disk.
const FILE_BYTES: u64 = 1 << 30;

/// One at a time: each wants the machine's CPUs or memory for itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config() -> Config {
    judged::config(KernelMode::Required)
}

fn scope(ports: Vec<u16>) -> IngestScope {
    IngestScope {
        ports,
        h2_window_bytes: 0,
        vault_dir: None,
    }
}

/// Judging by the default levels of `pressure.memory_stall`.
fn memory_config() -> Config {
    Config {
        memory_stall: judged::levels(50, 200),
        ..config()
    }
}

/// Runs one of the ignored tests inside the group, to its successful end.
#[track_caller]
fn run_inside(cgroup: &Cgroup, test: &str) {
    let mut command = cgroup.inside(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    let finished = process::run(&mut command, 2 * PATIENCE).expect_success();
    eprintln!("{finished}");
    assert!(finished.stdout.contains("1 passed"), "{finished}");
}

/// A child that ends with its guard.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A file of holes beside the test's binary, where the page cache is a disk's.
fn holes() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().set_len(FILE_BYTES).unwrap();
    file
}

fn read_over_and_over(file: &std::path::Path, until: &AtomicBool) {
    let mut block = vec![0; 256 * 1024];
    while !until.load(Relaxed) {
        let mut file = File::open(file).unwrap();
        while !until.load(Relaxed) && file.read(&mut block).unwrap() > 0 {}
    }
}

#[test]
fn reclaim_under_our_own_limit_turns_the_zone() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::new("memory") else {
        return;
    };
    cgroup.limit_memory(LIMIT_BYTES);
    run_inside(&cgroup, "inside_an_engine_that_reclaims");
}

#[test]
#[ignore = "run by reclaim_under_our_own_limit_turns_the_zone"]
fn inside_an_engine_that_reclaims() {
    let (Some(cgroup), Some(judging)) = (
        Cgroup::joined(),
        Judging::start(&memory_config(), &scope(vec![])),
    ) else {
        return;
    };
    judging.wait("a first sample", || {
        judging.signal(Signal::MemoryStallCgroup).is_some()
    });
    let file = holes();
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| read_over_and_over(file.path(), &enough));
        }
        judging.wait_for_at_least(Zone::Yellow, Cause::MemoryStall);
        judging.wait("the limit", || cgroup.memory_limited() > 0);
        enough.store(true, Relaxed);
    });
    let turned = judging.first_transition();
    let stalled = turned.values.get(Signal::MemoryStallCgroup);
    eprintln!("{:?} at a stall of {stalled:?} permille", turned.to);
    assert!(stalled >= Some(50), "{turned:?}");
    judging.wait_for_green();
    assert!(judging.signal(Signal::MemoryStallCgroup) < Some(0.05));
}

#[test]
fn reclaim_under_a_foreign_limit_turns_nothing() {
    let _alone = alone();
    let (Some(cgroup), Some(judging)) = (
        Cgroup::new("memory"),
        Judging::start(&memory_config(), &scope(vec![])),
    ) else {
        return;
    };
    cgroup.limit_memory(16 * MIB);
    let file = holes();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let mut reader = cgroup.inside("sh");
            reader.args(["-c", "while cat \"$0\" > /dev/null; do :; done"]);
            Killed(reader.arg(file.path()).spawn().unwrap())
        })
        .collect();
    judging.wait("the foreign limit", || cgroup.memory_limited() > 1000);
    // Over the whole of the second that the signals look back to.
    let start = Instant::now();
    let mut greatest = 0.0_f64;
    judging.wait("two seconds", || {
        greatest = greatest.max(judging.signal(Signal::MemoryPressure).unwrap_or(0.0));
        start.elapsed() > Duration::from_secs(2)
    });
    drop(readers);
    eprintln!("host pressure up to {greatest}");
    assert_eq!(judging.signal(Signal::MemoryStallCgroup), Some(0.0));
    judging.assert_untouched();
}

/// Bytes of a line of `/proc/meminfo`.
fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// Huge pages set aside for nobody; given back when dropped.
struct HugePages {
    before: u64,
}

impl HugePages {
    const POOL: &'static str = "/proc/sys/vm/nr_hugepages";

    fn now() -> u64 {
        let text = fs::read_to_string(Self::POOL).unwrap();
        text.trim().parse().unwrap()
    }

    /// Asks for so many in all; the kernel makes what it can.
    fn want(number: u64) {
        fs::write(Self::POOL, number.to_string()).unwrap();
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        Self::want(self.before);
    }
}

/// Sets huge pages aside until the kernel has to reclaim for them: that takes what is free, but no
/// more of what is available than half. Neighbours would notice, so only on demand, and only where
/// most of what is available is page cache.
#[test]
#[ignore = "takes all free memory of the machine, from everybody else's cache"]
fn reclaim_for_the_host_turns_the_zone() {
    const STEP: u64 = 64;
    let _alone = alone();
    let Some(judging) = Judging::start(&memory_config(), &scope(vec![])) else {
        return;
    };
    let available = meminfo("MemAvailable");
    let pages = HugePages {
        before: HugePages::now(),
    };
    while judging.word().zone() == Zone::Green {
        let left = meminfo("MemAvailable");
        assert!(left > available / 2, "{left}: {}", judging.explained());
        HugePages::want(HugePages::now() + STEP);
    }
    eprintln!("{} huge pages", HugePages::now());
    drop(pages);
    let turned = judging.first_transition();
    assert_eq!(turned.to.cause(), Cause::MemoryStall, "{turned:?}");
    eprintln!(
        "{:?} at {:?} permille",
        turned.to,
        turned.values.get(Signal::MemoryStall)
    );
    assert!(
        turned.values.get(Signal::MemoryStall) >= Some(50),
        "{turned:?}"
    );
    judging.wait_for_green();
    assert!(judging.signal(Signal::MemoryStall) < Some(0.05));
}

/// A shell command that takes so much memory and uses it; the kernel kills it before any other.
fn taking(bytes: u64) -> String {
    format!(
        "echo 1000 > /proc/self/oom_score_adj && \
         exec dd if=/dev/zero of=/dev/null bs={bytes} count=1000 status=none"
    )
}

fn oom_kills(judging: &Judging) -> Vec<bool> {
    let ours = |occurrence: &Occurrence| match occurrence {
        Occurrence::OomKill { ours, .. } => Some(*ours),
        Occurrence::Transition(_) | Occurrence::Source { .. } | Occurrence::EventsLost { .. } => {
            None
        }
    };
    judging.seen().iter().filter_map(ours).collect()
}

#[test]
fn an_oom_kill_in_our_own_group_turns_red_for_its_window() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::new("memory") else {
        return;
    };
    cgroup.limit_memory(LIMIT_BYTES);
    run_inside(&cgroup, "inside_an_engine_with_a_greedy_neighbour");
}

#[test]
#[ignore = "run by an_oom_kill_in_our_own_group_turns_red_for_its_window"]
fn inside_an_engine_with_a_greedy_neighbour() {
    let (Some(_), Some(judging)) = (Cgroup::joined(), Judging::start(&config(), &scope(vec![])))
    else {
        return;
    };
    let began = Instant::now();
    let mut neighbour = Killed(
        Command::new("sh")
            .args(["-c", &taking(FILE_BYTES)])
            .spawn()
            .unwrap(),
    );
    judging.wait_for_at_least(Zone::Red, Cause::OomKill);
    let ended = neighbour.0.wait().unwrap();
    assert!(!ended.success(), "the neighbour was killed: {ended:?}");
    judging.wait("the event", || oom_kills(&judging).contains(&true));
    let red = judging.first_transition();
    assert_eq!(red.to.zone(), Zone::Red, "{red:?}");
    assert!(red.values.get(Signal::OomKills) >= Some(1), "{red:?}");
    judging.wait_for_green();
    assert!(
        began.elapsed() >= Duration::from_secs(9),
        "Red for {:?}",
        began.elapsed()
    );
    assert_eq!(judging.signal(Signal::OomKills), Some(0.0));
}

#[test]
fn an_oom_kill_in_a_foreign_group_is_told_but_turns_nothing() {
    let _alone = alone();
    let (Some(cgroup), Some(judging)) = (
        Cgroup::new("memory"),
        Judging::start(&config(), &scope(vec![])),
    ) else {
        return;
    };
    cgroup.limit_memory(16 * MIB);
    let mut greedy = Killed(
        cgroup
            .inside("sh")
            .args(["-c", &taking(FILE_BYTES)])
            .spawn()
            .unwrap(),
    );
    judging.wait("the event", || !oom_kills(&judging).is_empty());
    let ended = greedy.0.wait().unwrap();
    assert!(!ended.success(), "it was killed: {ended:?}");
    assert!(oom_kills(&judging).iter().all(|ours| !ours));
    // As often as the kills of a second are counted.
    let start = Instant::now();
    judging.wait("a second", || start.elapsed() > Duration::from_secs(1));
    assert_eq!(judging.signal(Signal::OomKills), Some(0.0));
    judging.assert_untouched();
}

fn cpu_config() -> Config {
    Config {
        cpu_wait: judged::levels(300, 700),
        ..config()
    }
}

/// Keeps the calling thread on one CPU.
fn pin() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpu = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(cpu.unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

/// A worker that computes while it is `busy` and otherwise wakes up ten times a second.
fn work(judging: &Judging, busy: &AtomicBool, ended: &AtomicBool) {
    judging.pressure.engine(0).enlist().unwrap();
    while !ended.load(Relaxed) {
        if busy.load(Relaxed) {
            std::hint::spin_loop();
        } else {
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Time a thread has waited for a CPU so far, as the scheduler accounts for it.
fn run_delay(thread: Pid) -> Duration {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    let nanos = text.split(' ').nth(1).unwrap().parse().unwrap();
    Duration::from_nanos(nanos)
}

#[test]
fn a_worker_that_waits_for_a_cpu_turns_the_zone() {
    let _alone = alone();
    let Some(judging) = Judging::start(&cpu_config(), &scope(vec![])) else {
        return;
    };
    assert_eq!(judging.signal(Signal::CpuWait), None, "nobody is enlisted");
    let (busy, crowded, ended) = (
        AtomicBool::new(false),
        AtomicBool::new(true),
        AtomicBool::new(false),
    );
    thread::scope(|scope| {
        let _ended = Ended(&ended);
        let (started, worker) = mpsc::channel();
        let (judging, busy, crowded, ended) = (&judging, &busy, &crowded, &ended);
        scope.spawn(move || {
            pin();
            started.send(gettid()).unwrap();
            work(judging, busy, ended);
        });
        let worker = worker.recv().unwrap();
        judging.wait("a worker", || judging.signal(Signal::CpuWait).is_some());
        for _ in 0..4 {
            scope.spawn(|| {
                pin();
                while crowded.load(Relaxed) && !ended.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        busy.store(true, Relaxed);
        judging.wait_for_at_least(Zone::Yellow, Cause::CpuWait);
        let turned = judging.first_transition();
        assert!(
            turned.values.get(Signal::CpuWait) >= Some(300),
            "{turned:?}"
        );
        compare_with_the_scheduler(judging, worker);
        crowded.store(false, Relaxed);
        busy.store(false, Relaxed);
        judging.wait_for_green();
    });
}

/// Lets threads end though the test panics.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Compares the share with what the scheduler itself says of the same second; once may be off,
/// since the two are not read at the same time.
#[track_caller]
fn compare_with_the_scheduler(judging: &Judging, worker: Pid) {
    let mut seen = Vec::new();
    for _ in 0..5 {
        let (start, before) = (Instant::now(), run_delay(worker));
        judging.wait("a second", || {
            start.elapsed() >= Duration::from_millis(1050)
        });
        let measured = judging.signal(Signal::CpuWait).unwrap();
        let waited = run_delay(worker) - before;
        let expected = waited.as_secs_f64() / start.elapsed().as_secs_f64();
        seen.push((measured, expected));
        if (measured - expected).abs() < 0.1 {
            eprintln!("cpu_wait {measured:.3}, by the scheduler {expected:.3}");
            return;
        }
    }
    panic!("cpu_wait and the scheduler's share: {seen:?}");
}

#[test]
fn a_cpu_quota_counts_as_waiting() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::new("cpu") else {
        return;
    };
    run_inside(&cgroup, "inside_an_engine_with_a_cpu_quota");
}

#[test]
#[ignore = "run by a_cpu_quota_counts_as_waiting"]
fn inside_an_engine_with_a_cpu_quota() {
    let (Some(cgroup), Some(judging)) = (
        Cgroup::joined(),
        Judging::start(&cpu_config(), &scope(vec![])),
    ) else {
        return;
    };
    let (busy, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let _ended = Ended(&ended);
        scope.spawn(|| work(&judging, &busy, &ended));
        judging.wait("a worker", || judging.signal(Signal::CpuWait).is_some());
        cgroup.limit_cpu(Some(Duration::from_millis(20)));
        busy.store(true, Relaxed);
        judging.wait_for_at_least(Zone::Yellow, Cause::CpuWait);
        judging.wait("most of the time", || {
            judging.signal(Signal::CpuWait) > Some(0.6)
        });
        cgroup.limit_cpu(None);
        busy.store(false, Relaxed);
        judging.wait_for_green();
    });
}

/// A socket with a port that doesn't listen yet.
fn bound() -> (OwnedFd, u16) {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address: SockaddrIn = getsockname(socket.as_raw_fd()).unwrap();
    (socket, address.port())
}

/// With room for nine connections.
fn listening(socket: OwnedFd) -> TcpListener {
    listen(&socket, Backlog::new(8).unwrap()).unwrap();
    TcpListener::from(socket)
}

#[test]
fn connections_that_nobody_accepts_turn_the_zone() {
    let _alone = alone();
    let config = Config {
        listen_backlog: judged::levels(500, 900),
        ..config()
    };
    let (socket, port) = bound();
    let Some(judging) = Judging::start(&config, &scope(vec![port])) else {
        return;
    };
    assert_eq!(
        judging.signal(Signal::ListenBacklog),
        None,
        "nobody listens yet"
    );
    let foreign = listening(bound().0);
    let listener = listening(socket);
    judging.wait("a listener", || {
        judging.signal(Signal::ListenBacklog) == Some(0.0)
    });
    let connect = |to: &TcpListener| TcpStream::connect(to.local_addr().unwrap()).unwrap();
    let elsewhere: Vec<_> = (0..9).map(|_| connect(&foreign)).collect();
    let mut waiting: Vec<_> = (0..6).map(|_| connect(&listener)).collect();
    judging.wait_for_at_least(Zone::Yellow, Cause::ListenBacklog);
    assert_eq!(judging.signal(Signal::ListenBacklog), Some(0.666));
    assert_eq!(judging.word().zone(), Zone::Yellow);
    waiting.extend((0..3).map(|_| connect(&listener)));
    judging.wait_for_at_least(Zone::Red, Cause::ListenBacklog);
    let accepted: Vec<_> = (0..waiting.len())
        .map(|_| listener.accept().unwrap())
        .collect();
    judging.wait_for_green();
    drop((accepted, elsewhere, waiting));

    // A listener that is closed while it is full leaves nothing behind.
    let again: Vec<_> = (0..9).map(|_| connect(&listener)).collect();
    judging.wait_for_at_least(Zone::Red, Cause::ListenBacklog);
    drop(listener);
    judging.wait_for_green();
    assert_eq!(judging.signal(Signal::ListenBacklog), None);
    drop((again, foreign));
}

/// Connections whose unread bytes count against an ingest budget of [`BUDGET_BYTES`].
struct Ingress {
    judging: Judging,
    pairs: Vec<(TcpStream, TcpStream)>,
}

/// Well below what the connections' windows take together.
const BUDGET_BYTES: u64 = 256 * 1024;
const CONNECTIONS: usize = 16;
const SENT_BYTES: usize = 4096;

impl Ingress {
    fn start() -> Option<Self> {
        const OFF: gophership::pressure::Levels = judged::levels(
            gophership::pressure::Levels::OFF,
            gophership::pressure::Levels::OFF,
        );
        let config = Config {
            receive_queue: OFF,
            ingress_horizon: Some(Duration::from_secs(2)),
            ..config()
        };
        let (socket, port) = bound();
        let judging = Judging::start(&config, &scope(vec![port]))?;
        let listener = listening(socket);
        let pairs = (0..CONNECTIONS)
            .map(|_| {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (server, _) = listener.accept().unwrap();
                server.set_nonblocking(true).unwrap();
                client.set_nodelay(true).unwrap();
                (client, server)
            })
            .collect();
        judging
            .pressure
            .engine(0)
            .set_used(Budget::Ingest, 0, BUDGET_BYTES);
        judging.wait("a first sample", || {
            judging.signal(Signal::TimeToFull).is_some()
        });
        Some(Self { judging, pairs })
    }

    /// Sends at about 100 kB/s until `enough`, which is told the turn; reads it at once if `reading`.
    fn send(&mut self, reading: bool, mut enough: impl FnMut(&Judging, usize) -> bool) {
        let block = [0; SENT_BYTES];
        let mut turn = 0;
        while !enough(&self.judging, turn) {
            let (client, _) = &mut self.pairs[turn % CONNECTIONS];
            client.write_all(&block).unwrap();
            if reading {
                self.read_all();
            }
            thread::sleep(Duration::from_millis(40));
            turn += 1;
        }
    }

    fn read_all(&mut self) {
        let mut block = [0; 16 * 1024];
        for (_, server) in &mut self.pairs {
            while server.read(&mut block).is_ok_and(|bytes| bytes > 0) {}
        }
    }
}

#[test]
fn a_backlog_that_grows_turns_yellow_before_the_budget_is_short() {
    let _alone = alone();
    let Some(mut ingress) = Ingress::start() else {
        return;
    };
    ingress.send(false, |judging, turn| {
        assert!(
            turn as u64 * (SENT_BYTES as u64) < BUDGET_BYTES,
            "{}",
            judging.explained()
        );
        judging.word().zone() > Zone::Green
    });
    let turned = ingress.judging.first_transition();
    assert_eq!(
        (turned.to.zone(), turned.to.cause()),
        (Zone::Yellow, Cause::Ingress)
    );
    let unread = turned.values.get(Signal::ReceiveQueueBytes).unwrap();
    eprintln!("Yellow with {unread} of {BUDGET_BYTES} bytes");
    assert!(unread >= BUDGET_BYTES / 4, "{turned:?}");
    assert!(unread < BUDGET_BYTES * 8 / 10, "{turned:?}");
    // It doesn't grow any more: nothing says that it will ever be full.
    ingress.judging.wait_for_green();
    ingress.read_all();
    let judging = &ingress.judging;
    judging.wait("empty queues", || {
        judging.signal(Signal::ReceiveQueueBytes) == Some(0.0)
    });
}

#[test]
fn a_steady_flow_fills_nothing() {
    let _alone = alone();
    let Some(mut ingress) = Ingress::start() else {
        return;
    };
    ingress.send(true, |_, turn| turn == 60);
    let rate = ingress.judging.signal(Signal::IngressRate).unwrap();
    assert!(rate > 10_000.0, "it did flow: {rate}");
    // From the first sample on, not since the machine's start.
    let long = ingress.judging.signal(Signal::IngressRateLong).unwrap();
    assert!(long > rate / 4.0, "{long} of {rate}");
    ingress.judging.assert_untouched();
}

//! The hot path reads the verdict without a system call, as the kernel itself counts them.
//!
//! Needs root and a build with `GOPHERSHIP_EBPF_OBJ`. Otherwise each test says why it did nothing
//! and passes, unless `GOPHERSHIP_REQUIRE_KERNEL=1`.

mod common;
#[path = "common/pressure.rs"]
mod judged;
mod syscall_counter;

use std::hint::black_box;

use common::{
    daemon::{Daemon, Home},
    judging,
    messages::{Messages, Shape},
    settings::Settings,
    sink::Sink,
};
use gophership::pressure::{IngestScope, KernelMode, Zone};
use syscall_counter::{SyscallCounter, Which, tasks_named};

/// Verdicts in a burst.
const BURST: u32 = 1_000_000;
/// Requests, one after the other.
const REQUESTS: usize = 200;
/// `pressure.kernel` of a daemon that says why it can't.
const KERNEL: &str = "auto";

/// What moves bytes and waits for them.
const TRANSPORT: &[libc::c_long] = &[
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
];

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 400,
};

/// Whether a test that lacks something may pass; says what it lacks.
fn may_skip(reason: &dyn std::fmt::Display) {
    assert!(
        std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL").is_none_or(|value| value != "1"),
        "GOPHERSHIP_REQUIRE_KERNEL=1, but: {reason}"
    );
    eprintln!("nothing tested: {reason}");
}

#[test]
fn a_million_verdicts_take_no_system_call() {
    let scope = IngestScope {
        ports: vec![4317],
        h2_window_bytes: 0,
        vault_dir: None,
    };
    let Some(pressure) = judging::start(&judged::config(KernelMode::Required), &scope) else {
        return;
    };
    let counter = match SyscallCounter::of_this_thread(Which::All) {
        Ok(counter) => counter,
        Err(error) => return may_skip(&error),
    };
    let (verdict, engine) = (pressure.verdict(), pressure.engine(0));
    engine.enlist().expect("the worker becomes known");

    // Stopping the counter is a system call itself.
    let nothing = counter.during(|| {});
    let ten = counter.during(|| {
        for _ in 0..10 {
            black_box(nix::unistd::getppid());
        }
    });
    assert_eq!(ten, nothing + 10, "the counter counts");

    let mut reds = 0_u32;
    let burst = counter.during(|| {
        for _ in 0..BURST {
            reds += u32::from(black_box(verdict.load()).zone() == Zone::Red);
            engine.operation();
        }
    });
    assert_eq!(burst, nothing, "system calls for {BURST} verdicts");
    assert!(reds <= BURST);
}

#[test]
fn a_request_takes_no_other_system_calls_with_the_kernel_half_than_without() {
    let with = match calls(KERNEL) {
        Ok(calls) => calls,
        Err(reason) => return may_skip(&reason),
    };
    let without = calls("off").expect("counted once already");
    eprintln!("{with:?} with the kernel half, {without:?} without");
    assert_eq!(with.bpf, 0, "a worker asks the kernel half by bpf()");
    // Whatever else a worker asked for at each request would show as hundreds.
    assert!(
        with.others < without.others + REQUESTS as u64 / 2,
        "{with:?} with the kernel half, {without:?} without"
    );
}

/// The only worker's system calls for requests that came one by one.
#[derive(Debug)]
#[expect(dead_code, reason = "all of it is shown, not all of it compared")]
struct Calls {
    /// A request's median: how often a worker waits for bytes depends on what else the machine does.
    median: u64,
    /// Over all requests, `bpf()`.
    bpf: u64,
    /// Over all requests, what neither moves bytes nor waits for them.
    others: u64,
}

fn calls(kernel: &'static str) -> Result<Calls, String> {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(
        &home,
        &Settings {
            kernel,
            workers: 1,
            ack_within: "10s",
            ..Settings::to(sink.destination("main", "10s"))
        },
    );
    let source = daemon.text("/source");
    if kernel == KERNEL && source != "kernel" {
        return Err(format!("{source} judges"));
    }
    let workers = tasks_named(daemon.pid(), "worker");
    let [worker] = workers[..] else {
        panic!("one worker was asked for, not {workers:?}");
    };
    let counter = |which| SyscallCounter::of_task(worker, which).map_err(|e| e.to_string());
    let all = counter(Which::All)?;
    let bpf = counter(Which::Only(libc::SYS_bpf))?;
    let others = counter(Which::AllBut(TRANSPORT))?;
    let producer = daemon.producer();
    // The first ones connect to the destination and fill caches.
    let messages = Messages::new(71, SHAPE).take(REQUESTS + 50);
    producer.export_all(&messages[..50]);
    bpf.start();
    others.start();
    let mut counts: Vec<u64> = messages[50..]
        .iter()
        .map(|message| {
            all.during(|| {
                producer.export(message.clone()).expect("acknowledged");
            })
        })
        .collect();
    counts.sort_unstable();
    Ok(Calls {
        median: counts[counts.len() / 2],
        bpf: bpf.stop(),
        others: others.stop(),
    })
}

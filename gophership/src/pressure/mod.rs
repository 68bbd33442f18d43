//! Who judges the zone: the kernel half, or the same `judge()` in user space.
//!
//! [`Pressure::start`] loads the kernel half, or takes the fallback and says why. The hot path
//! holds two `Copy` handles: [`Verdict`], one atomic load, and [`EngineLine`], a worker's own cache
//! line. [`Pressure::spawn_watch`] starts the one thread that posts samples, passes on transitions
//! and judges where the kernel doesn't.
//!
//! Invariants: the word is written only when the verdict changes, by compare-and-swap, by whichever
//! half; a signal that can't be measured is unavailable, never zero; a dead tick is noticed within
//! [`TICK_DEAD_MIN`] plus 100 ms and replaced loudly.
//!
//! # What was measured
//! Linux 6.18 in a virtual machine with 2 CPUs that others use too, `tick` 10 ms, times by
//! `kernel.bpf_stats_enabled`, whose own 70 ns a run (an empty program's) are subtracted from the
//! probes'.
//!
//! - Tick, both CPUs saturated: 199 runs a second on the two, 2.3 to 3.4 µs each; half of the runs
//!   judge. Of 3,000 looks at the tick's age over 291 s none found more than 10 ms.
//! - Tick, both CPUs 95 to 99 % idle (three windows of 2 to 7 s): 101 to 106 runs a second on the two,
//!   4.4 to 5.8 µs each, nearly all of which judge. Of 206 looks over 20 s two found more than 12 ms,
//!   the worst 15.4 ms. So an idle CPU keeps about half of its periods; together they miss hardly
//!   any. [`TICK_DEAD_MIN`] allows fifty.
//! - Probes, for each segment or read of a socket on another port: 11 to 20 ns. On an ingest port:
//!   250 to 300 ns.
//! - The verifier walks 144,000 instructions for `tcp_probe`, 74,000 for the tick and 49,000 for the
//!   dequeue probe, of a million allowed.
//!
//! # The HTTP/2 window
//! [`IngestScope::h2_window_bytes`] is the smallest number of unread bytes that can stop a peer that
//! pipelines: half of the connection window, since window updates are sent only when half of it has
//! been used up. A receive queue counts as full at that depth, however large the socket's buffer.

mod clock;
mod engine;
mod kernel;
mod memory;
mod pages;
mod release;
mod snapshot;
mod stochastic;
mod watch;

use std::{
    fs, io,
    mem::offset_of,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gophership_common::{
    OVERRIDE_FOREVER, OVERRIDE_NONE, PORTS_MAX, Policy, VerdictPage, WORKERS_MAX, available,
};

pub use clock::monotonic_ns;
pub use engine::{Budget, EngineLine, Verdict};
pub use gophership_common::{Cause, Signals, Word, Zone};
pub use kernel::{
    Error as KernelError, Feature, Lockdown, ProgramTrial, check_fields, features,
    missing_capabilities, try_programs,
};
pub use memory::memory_limit_bytes;
pub use release::Release;
pub use snapshot::{SignalReading, Snapshot, Source};
pub use watch::{TICK_DEAD_MIN, Transition, WatchHandle};

use kernel::{Events, Kernel, Wake, explained};
use pages::Pages;

/// Whether the kernel half must judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelMode {
    /// Use it where it loads; fall back loudly otherwise.
    Auto,
    /// Refuse to start without it.
    Required,
    /// Never load it.
    Off,
}

/// Entry thresholds of one signal, in permille of its full scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// Yellow at or beyond this.
    pub yellow_permille: u32,
    /// Red at or beyond this.
    pub red_permille: u32,
}

/// Thresholds and sources of the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whether the kernel half must judge.
    pub kernel: KernelMode,
    /// Period of the kernel's full judgement.
    pub tick: Duration,
    /// Fallback only: sample after this many operations (and at least every 100 ms).
    pub sample_every: u64,
    /// De-escalate only after every signal stayed below its exit threshold for this long.
    pub hold: Duration,
    /// Receive-queue depth of an ingest socket over its real capacity.
    pub receive_queue: Levels,
    /// Red by the receive queue needs this long without a dequeue on that socket.
    pub receive_queue_for: Duration,
    /// Available memory over the limit: low is bad, so red is the smaller value.
    pub memory_available: Levels,
    /// Bytes in use over budget, the fullest budget counting.
    pub budget: Levels,
    /// A worker whose heartbeat is older than this is a cause of Red.
    pub heartbeat_limit: Duration,
}

/// What of the machine's sockets is ours: the listeners' ports, in this process's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestScope {
    /// Local ports of the ingest listeners; at most [`PORTS_MAX`].
    pub ports: Vec<u16>,
    /// The smallest number of unread bytes that can stop an HTTP/2 peer; 0: not HTTP/2.
    pub h2_window_bytes: u32,
}

/// An operator's choice of zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideUntil {
    /// The zone to publish, whatever the signals say.
    pub zone: Zone,
    /// When it ends, `CLOCK_MONOTONIC` nanoseconds ([`monotonic_ns`]); `None`: when it is cleared.
    pub until_ns: Option<u64>,
}

/// Why pressure can't be judged as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `pressure.kernel: required`, and the kernel half doesn't run.
    #[error("pressure.kernel is required, but the kernel half doesn't run: {0}")]
    KernelRequired(#[source] KernelError),
    /// More workers than the shared page has lines.
    #[error("{workers} workers, at most {WORKERS_MAX} are supported")]
    TooManyWorkers {
        /// Workers asked for.
        workers: usize,
    },
    /// More ingest ports than the policy holds.
    #[error("{ports} ingest ports, at most {PORTS_MAX} are supported")]
    TooManyPorts {
        /// Ports asked for.
        ports: usize,
    },
    /// The operating system refused something every source needs.
    #[error("{what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// The failure.
        source: io::Error,
    },
}

/// The running judge, whichever half it is.
pub struct Pressure {
    pages: Pages,
    policy: Mutex<Policy>,
    /// The loaded kernel half: dropping it detaches the probes.
    kernel: Option<Kernel>,
    /// The kernel half's events, until the watch thread takes them.
    events: Mutex<Option<Events>>,
    source: snapshot::Judging,
    wake: &'static Wake,
    sample_every: u64,
    /// The least time between two of the fallback's samples.
    tick: Duration,
}

impl Pressure {
    /// Starts judging for `workers` workers.
    ///
    /// # Errors
    /// [`Error::KernelRequired`] if `config.kernel` is [`KernelMode::Required`] and the kernel half
    /// doesn't run; the others if what was asked for exceeds a limit or the system refuses memory.
    pub fn start(config: &Config, scope: &IngestScope, workers: usize) -> Result<Self, Error> {
        let policy = policy(config, scope, workers)?;
        let loaded = match config.kernel {
            KernelMode::Off => Err(None),
            KernelMode::Auto | KernelMode::Required => start_kernel(config, &policy)
                .map_err(|error| Some(explained(error, Lockdown::current()))),
        };
        match loaded {
            Ok((kernel, pages, events, policy)) => {
                for reason in &kernel.unattached {
                    tracing::warn!(reason, "the receive queue can't be measured");
                }
                tracing::info!(ports = ?scope.ports, "the kernel half judges");
                Self::assemble(config, pages, policy, Some((kernel, events)), None)
            }
            Err(Some(error)) if config.kernel == KernelMode::Required => {
                Err(Error::KernelRequired(error))
            }
            Err(error) => {
                let reason = error.map_or_else(
                    || "off in the configuration".to_owned(),
                    |error| error.to_string(),
                );
                if config.kernel == KernelMode::Auto {
                    tracing::warn!(
                        reason,
                        "THE KERNEL HALF DOES NOT RUN: user space judges, without receive queues, \
                         and not while it is stalled"
                    );
                }
                let pages = Pages::anonymous().map_err(|source| Error::System {
                    what: "mmap",
                    source,
                })?;
                pages.publish(&policy);
                Self::assemble(config, pages, policy, None, Some(reason))
            }
        }
    }

    fn assemble(
        config: &Config,
        pages: Pages,
        policy: Policy,
        kernel: Option<(Kernel, Events)>,
        why_not: Option<String>,
    ) -> Result<Self, Error> {
        pages.begin(monotonic_ns());
        let wake = Wake::new().map_err(|source| Error::System {
            what: "eventfd",
            source,
        })?;
        let (kernel, events) = kernel.unzip();
        Ok(Self {
            pages,
            policy: Mutex::new(policy),
            kernel,
            events: Mutex::new(events),
            source: snapshot::Judging::new(why_not),
            // Lives as long as the mappings: workers' handles point to both.
            wake: Box::leak(Box::new(wake)),
            sample_every: config.sample_every,
            tick: config.tick,
        })
    }

    /// The verdict's handle.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::of(self.pages.word())
    }

    /// One worker's handle. Panics if `worker` isn't below the number of workers started with.
    #[must_use]
    pub fn engine(&self, worker: usize) -> EngineLine {
        let workers = lock(&self.policy).workers as usize;
        assert!(worker < workers, "worker {worker} of {workers}");
        // With the kernel half, nothing samples by count.
        let sampling = match self.kernel {
            Some(_) => None,
            None => Some((self.sample_every.max(1), self.wake)),
        };
        EngineLine::of(self.pages.line(worker), sampling)
    }

    /// Whether `CAP_BPF` must outlive the drop of privileges: before 5.19 an unprivileged `bpf(2)` is
    /// refused altogether, also on descriptors held.
    #[must_use]
    pub fn needs_bpf_after_the_drop(&self) -> bool {
        let lenient = Release {
            major: 5,
            minor: 19,
        };
        self.kernel.is_some() && Release::running().is_none_or(|running| running < lenient)
    }

    /// Sets the operator's override, or clears it. In force from the next judgement on: one tick,
    /// or at once in the fallback.
    pub fn set_override(&self, chosen: Option<OverrideUntil>) {
        let mut policy = lock(&self.policy);
        (policy.override_zone, policy.override_until_ns) = match chosen {
            Some(OverrideUntil { zone, until_ns }) => {
                (zone as u32, until_ns.unwrap_or(OVERRIDE_FOREVER))
            }
            None => (OVERRIDE_NONE, 0),
        };
        self.pages.publish(&policy);
        self.wake.ring();
    }

    /// Everything there is to show, at one moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.pages, &self.source)
    }

    /// Starts the watch thread: it posts samples every 100 ms, drains the kernel half's events into
    /// `on_transition`, and judges where the kernel doesn't. Only the first call gets the events.
    ///
    /// # Errors
    /// If the thread can't be spawned.
    pub fn spawn_watch(
        self: &Arc<Self>,
        on_transition: impl Fn(&Transition) + Send + 'static,
    ) -> io::Result<WatchHandle> {
        watch::spawn(Arc::clone(self), on_transition)
    }
}

fn start_kernel(
    config: &Config,
    policy: &Policy,
) -> Result<(Kernel, Pages, Events, Policy), KernelError> {
    /// An attached tick comes within a few periods; slow machines get more.
    const FIRST_TICK_MIN: Duration = Duration::from_secs(2);

    let (mut kernel, pages, events) = Kernel::load()?;
    kernel.attach(config.tick)?;
    let mut policy = *policy;
    if kernel.measures_queues {
        policy.measured |= available::RECEIVE_QUEUE;
    } else {
        // No port is ours to the probes that did attach: what isn't measured must not raise.
        policy.port_count = 0;
    }
    pages.publish(&policy);
    let limit = FIRST_TICK_MIN.max(config.tick * 10);
    let start = Instant::now();
    while pages.verdict_at(offset_of!(VerdictPage, judged_at_ns)) == 0 {
        if start.elapsed() > limit {
            return Err(KernelError::Silent(limit));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok((kernel, pages, events, policy))
}

fn policy(config: &Config, scope: &IngestScope, workers: usize) -> Result<Policy, Error> {
    let mut ports = [0; PORTS_MAX];
    ports
        .get_mut(..scope.ports.len())
        .ok_or(Error::TooManyPorts {
            ports: scope.ports.len(),
        })?
        .copy_from_slice(&scope.ports);
    if workers > WORKERS_MAX {
        return Err(Error::TooManyWorkers { workers });
    }
    let netns = fs::metadata("/proc/self/ns/net").map_err(|source| Error::System {
        what: "/proc/self/ns/net",
        source,
    })?;
    // The judge adds to and subtracts from these: a century is forever.
    const FOREVER_NS: u64 = 100 * 365 * 86_400 * 1_000_000_000;
    let nanos = |duration: Duration| {
        u64::try_from(duration.as_nanos()).map_or(FOREVER_NS, |ns| ns.min(FOREVER_NS))
    };
    let levels = |levels: Levels| gophership_common::Levels {
        yellow_permille: levels.yellow_permille,
        red_permille: levels.red_permille,
    };
    Ok(Policy {
        tick_ns: nanos(config.tick),
        hold_ns: nanos(config.hold),
        receive_queue_for_ns: nanos(config.receive_queue_for),
        heartbeat_limit_ns: nanos(config.heartbeat_limit),
        override_until_ns: 0,
        receive_queue: levels(config.receive_queue),
        memory_available: levels(config.memory_available),
        budget: levels(config.budget),
        override_zone: OVERRIDE_NONE,
        h2_window_bytes: scope.h2_window_bytes,
        // The kernel's namespace numbers are 32 bits wide.
        netns_inum: u32::try_from(netns.ino()).unwrap_or(0),
        workers: u32::try_from(workers).unwrap_or(0),
        measured: 0,
        port_count: u32::try_from(scope.ports.len()).unwrap_or(0),
        ports,
    })
}

/// The lock, whoever panicked while holding it: what it guards is replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

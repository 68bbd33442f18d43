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
//! `kernel.bpf_stats_enabled`, for a tick that judged receive queues, budgets and heartbeats alone.
//!
//! - Tick, both CPUs saturated: 199 runs a second on the two, 2.3 to 3.4 µs each; half of the runs
//!   judge. Of 3,000 looks at the tick's age over 291 s none found more than 10 ms.
//! - Tick, both CPUs 95 to 99 % idle (three windows of 2 to 7 s): 101 to 106 runs a second on the two,
//!   4.4 to 5.8 µs each, nearly all of which judge. Of 206 looks over 20 s two found more than 12 ms,
//!   the worst 15.4 ms. So an idle CPU keeps about half of its periods; together they miss hardly
//!   any. [`TICK_DEAD_MIN`] allows fifty.
//! - What the probes and today's tick cost is in docs/bench.md, what the verifiers of several kernels
//!   walk in docs/kernels.md.
//!
//! # The HTTP/2 window
//! [`IngestScope::h2_window_bytes`] is the smallest number of unread bytes that can stop a peer that
//! pipelines: half of the connection window, since window updates are sent only when half of it has
//! been used up. A receive queue counts as full at that depth, however large the socket's buffer.

mod clock;
mod disks;
mod engine;
mod explain;
mod kernel;
mod memory;
mod pages;
mod policy;
mod psi;
mod release;
mod snapshot;
pub mod sockets;
mod stochastic;
mod unavailable;
mod waits;
mod watch;
mod xdp;

use std::{
    io,
    mem::offset_of,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gophership_common::{
    OVERRIDE_FOREVER, OVERRIDE_NONE, PORTS_MAX, Policy, VerdictPage, WORKERS_MAX,
};
use nix::net::if_::if_nametoindex;

pub use clock::monotonic_ns;
pub use engine::{Budget, CpuWait, EngineLine, Verdict};
pub use explain::Explained;
pub use gophership_common::{Cause, Levels, Rule, SIGNALS, Signal, Signals, Unit, Word, Zone};
pub use kernel::{
    Error as KernelError, Feature, Lockdown, ProgramTrial, check_fields, features,
    missing_capabilities, missing_network_capability, try_programs,
};
pub use memory::memory_limit_bytes;
pub use release::Release;
pub use snapshot::{Followed, SignalReading, Snapshot, Source, shown, unit};
pub use sockets::{Listing, SocketOrder};
pub use watch::{Occurrence, TICK_DEAD_MIN, Transition, WatchHandle};
pub use xdp::{
    GuardConfig, INTERFACES_MAX, InterfaceCounts, InterfaceReading, PREFIXES_MAX, Prefix,
    PrefixError, SYN_PER_SECOND_MAX, XdpConfig, XdpMode,
};

use kernel::{Enlist, Events, Kernel, Wake};
use pages::Pages;
use stochastic::Own;
use unavailable::Unavailable;
use waits::Waits;

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
    /// Accept queue of an ingest listener over its limit.
    pub listen_backlog: Levels,
    /// Share of a second lost to reclaiming memory.
    pub memory_stall: Levels,
    /// Available memory over the limit: low is bad, so red is the smaller value.
    pub memory_available: Levels,
    /// Share of a second that a worker waits for a CPU.
    pub cpu_wait: Levels,
    /// Time the vault's disk may take for a request before it counts as slow; `None`: never.
    pub disk_latency: Option<Duration>,
    /// Yellow when the ingest budget would be spent within this; `None`: never.
    pub ingress_horizon: Option<Duration>,
    /// Bytes in use over budget, the fullest budget counting.
    pub budget: Levels,
    /// A worker whose heartbeat is older than this is a cause of Red.
    pub heartbeat_limit: Duration,
    /// Interfaces to meter and guard; needs the kernel half.
    pub xdp: XdpConfig,
}

/// What of the machine is ours: the listeners' ports, in this process's network namespace, and the
/// vault's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestScope {
    /// Local ports of the ingest listeners; at most [`PORTS_MAX`].
    pub ports: Vec<u16>,
    /// The smallest number of unread bytes that can stop an HTTP/2 peer; 0: not HTTP/2.
    pub h2_window_bytes: u32,
    /// The vault's directory, whose block devices count; `None`: there is no vault.
    pub vault_dir: Option<PathBuf>,
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
    /// An interface to meter doesn't exist.
    #[error("xdp.interface: there is no interface {name:?} here: {source}")]
    NoInterface {
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
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
    /// Why signals aren't available.
    unavailable: &'static Unavailable,
    /// The kernel half's way to learn who a worker is.
    enlist: Option<Enlist>,
    wake: &'static Wake,
    /// How long the workers wait for a CPU, without the kernel half.
    waits: &'static Waits,
    /// The ingest listeners' ports.
    ports: Vec<u16>,
    sample_every: u64,
    /// The least time between two of the fallback's samples.
    tick: Duration,
    /// Names of the interfaces to meter.
    interfaces: Vec<String>,
}

impl Pressure {
    /// Starts judging for `workers` workers.
    ///
    /// # Errors
    /// [`Error::KernelRequired`] if `config.kernel` is [`KernelMode::Required`] and the kernel half
    /// doesn't run; the others if what was asked for exceeds a limit or the system refuses memory.
    pub fn start(config: &Config, scope: &IngestScope, workers: usize) -> Result<Self, Error> {
        let policy = policy::of(config, scope, workers)?;
        for name in &config.xdp.interfaces {
            if_nametoindex(name.as_str()).map_err(|source| Error::NoInterface {
                name: name.clone(),
                source: source.into(),
            })?;
        }
        let unavailable = Unavailable::default();
        let loaded = match config.kernel {
            KernelMode::Off => Err(None),
            KernelMode::Auto | KernelMode::Required => {
                start_kernel(config, scope, &policy, &unavailable)
                    .map_err(KernelError::explained)
                    .map_err(Some)
            }
        };
        match loaded {
            Ok((kernel, pages, events, policy)) => {
                for (signal, reason) in unavailable.all() {
                    tracing::warn!(signal = signal.as_str(), reason, "a signal is unavailable");
                }
                for reason in kernel.iterators.missing() {
                    tracing::info!(reason, "`gs-ctl sockets` will show less");
                }
                tracing::info!(ports = ?scope.ports, "the kernel half judges");
                let kernel = Ok((kernel, events));
                Self::assemble(config, scope, pages, policy, kernel, unavailable)
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
                        "THE KERNEL HALF DOES NOT RUN: user space judges, by what it samples, and \
                         not while it is stalled"
                    );
                }
                if !config.xdp.interfaces.is_empty() {
                    tracing::error!(
                        interfaces = ?config.xdp.interfaces,
                        "xdp: THE INTERFACES ARE NEITHER METERED NOR GUARDED, which takes the kernel half"
                    );
                }
                let pages = Pages::anonymous().map_err(|source| Error::System {
                    what: "mmap",
                    source,
                })?;
                let unavailable = Unavailable::without_kernel(&reason);
                let mut policy = policy;
                policy::follow_disks(&mut policy, scope, &unavailable);
                policy.measured = Own::measures(&policy);
                pages.publish(&policy);
                Self::assemble(config, scope, pages, policy, Err(reason), unavailable)
            }
        }
    }

    fn assemble(
        config: &Config,
        scope: &IngestScope,
        pages: Pages,
        policy: Policy,
        kernel: Result<(Kernel, Events), String>,
        unavailable: Unavailable,
    ) -> Result<Self, Error> {
        pages.begin(monotonic_ns());
        let wake = Wake::new().map_err(|source| Error::System {
            what: "eventfd",
            source,
        })?;
        let (kernel, why_not) = match kernel {
            Ok(kernel) => (Some(kernel), None),
            Err(reason) => (None, Some(reason)),
        };
        let (kernel, events) = kernel.unzip();
        let enlist = kernel.as_ref().and_then(Kernel::enlist);
        Ok(Self {
            pages,
            policy: Mutex::new(policy),
            kernel,
            events: Mutex::new(events),
            source: snapshot::Judging::new(why_not),
            unavailable: Box::leak(Box::new(unavailable)),
            enlist,
            // Lives as long as the mappings: workers' handles point to both.
            wake: Box::leak(Box::new(wake)),
            waits: Box::leak(Box::default()),
            ports: scope.ports.clone(),
            sample_every: config.sample_every,
            tick: config.tick,
            interfaces: config.xdp.interfaces.clone(),
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
        let line = self.pages.line(worker);
        EngineLine::of(
            line,
            sampling,
            worker,
            self.enlist,
            self.waits,
            self.unavailable,
        )
    }

    /// Reads how much of the time the workers wait for a CPU.
    #[must_use]
    pub fn cpu_wait(&self) -> CpuWait {
        CpuWait::of(self.pages)
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
        let policy = *lock(&self.policy);
        Snapshot::of(&self.pages, &self.source, &policy, self.unavailable)
    }

    /// Lists the ingest sockets. Takes time in proportion to the sockets, and the descriptors, of the
    /// machine: not for a worker's thread.
    ///
    /// # Errors
    /// If neither the kernel half nor `/proc` can tell.
    pub fn sockets(&self, order: SocketOrder, limit: usize) -> io::Result<Listing> {
        let policy = *lock(&self.policy);
        let measures_queues = policy.measured & Signal::ReceiveQueue.bit() != 0;
        let kernel = match (&self.kernel, self.source.why_not_kernel()) {
            (Some(kernel), _) if measures_queues => Ok(&kernel.iterators),
            (Some(_), _) => Err(self.unavailable.reason(Signal::ReceiveQueue)),
            (None, reason) => Err(reason.unwrap_or_default()),
        };
        sockets::list(&kernel, &self.ports, policy.netns_inum, order, limit)
    }

    /// Every interface of the configuration, in its order.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceReading> {
        if let Some(xdp) = self.kernel.as_ref().and_then(|kernel| kernel.xdp.as_ref()) {
            return xdp.readings();
        }
        let why = self.source.why_not_kernel().unwrap_or_default();
        let reading = |name: &String| InterfaceReading {
            name: name.clone(),
            attached: Err(format!("the kernel half doesn't run: {why}")),
            counts: InterfaceCounts::default(),
            guard_suspended: None,
        };
        self.interfaces.iter().map(reading).collect()
    }

    /// Starts the watch thread: it posts samples every 100 ms, drains the kernel half's events into
    /// `on_occurrence`, and judges where the kernel doesn't. Only the first call gets the events.
    ///
    /// # Errors
    /// If the thread can't be spawned.
    pub fn spawn_watch(
        self: &Arc<Self>,
        on_occurrence: impl Fn(&Occurrence) + Send + 'static,
    ) -> io::Result<WatchHandle> {
        watch::spawn(Arc::clone(self), on_occurrence)
    }
}

fn start_kernel(
    config: &Config,
    scope: &IngestScope,
    policy: &Policy,
    unavailable: &Unavailable,
) -> Result<(Kernel, Pages, Events, Policy), KernelError> {
    /// An attached tick comes within a few periods; slow machines get more.
    const FIRST_TICK_MIN: Duration = Duration::from_secs(2);

    let (mut kernel, pages, events) = Kernel::load(&config.xdp)?;
    let mut policy = *policy;
    policy::follow_disks(&mut policy, scope, unavailable);
    policy.measured = kernel.attach(config.tick, unavailable)?;
    if policy.measured & Signal::ReceiveQueue.bit() == 0 {
        // No port is ours to the probes that did attach: what isn't measured must not raise.
        policy.port_count = 0;
    }
    if policy.disk_count == 0 {
        policy.measured &= !(Signal::DiskLatency.bit() | Signal::DiskDepth.bit());
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
    kernel.attach_xdp(&config.xdp, &scope.ports);
    Ok((kernel, pages, events, policy))
}

/// The lock, whoever panicked while holding it: what it guards is replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

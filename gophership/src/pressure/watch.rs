//! The watch thread: posts samples, passes on transitions, minds the tick, stands in for it.

use std::{
    fs::File,
    io,
    mem::offset_of,
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gophership_common::{
    EVENT_OOM, EVENT_OOM_ELSEWHERE, EVENT_TRANSITION, Event, POSTED, Posted, Rule, SIGNALS, Signal,
    Signals, VerdictPage, Word,
};

use super::{
    Pressure,
    clock::monotonic_ns,
    kernel::Events,
    lock,
    memory::MemorySources,
    psi::{self, Psi},
    stochastic::{self, Own},
};

/// How often samples are posted and the tick's age is checked.
const PERIOD: Duration = Duration::from_millis(100);
/// A tick is dead when it is older than this and than [`TICK_DEAD_PERIODS`] of its periods: on idle
/// CPUs it comes late, and a stolen virtual CPU may hold it up.
pub const TICK_DEAD_MIN: Duration = Duration::from_millis(500);
const TICK_DEAD_PERIODS: u32 = 20;

/// What the judge has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "passed by reference, a handful a minute"
)]
pub enum Occurrence {
    /// The verdict has changed.
    Transition(Transition),
    /// A process was killed for lack of memory.
    OomKill {
        /// Whether the host or the engine's cgroup lacked it, rather than another cgroup.
        ours: bool,
        /// When, `CLOCK_MONOTONIC` nanoseconds.
        ktime_ns: u64,
    },
    /// Another half judges.
    Source {
        /// Why the kernel doesn't; `None`: it does again.
        why_not_kernel: Option<String>,
        /// When, `CLOCK_MONOTONIC` nanoseconds.
        ktime_ns: u64,
    },
    /// The kernel's ring buffer was full.
    EventsLost {
        /// How many events it had no room for since this was last told.
        events: u64,
        /// When that was noticed, `CLOCK_MONOTONIC` nanoseconds.
        ktime_ns: u64,
    },
}

/// A change of the verdict. `from` and `to` are the same zone when only the cause or a flag changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Word before.
    pub from: Word,
    /// Word after.
    pub to: Word,
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub ktime_ns: u64,
    /// What it was decided on; when a probe raised, only its own socket's readings are available.
    pub values: Signals,
    /// The thresholds in force when user space heard of it, by the signal's number.
    pub rules: [Rule; SIGNALS],
}

impl Occurrence {
    /// `None` for what a later kernel half might tell.
    fn of(event: &Event, rules: [Rule; SIGNALS]) -> Option<Self> {
        Some(match event.kind {
            EVENT_TRANSITION => Self::Transition(Transition {
                from: event.from,
                to: event.to,
                ktime_ns: event.ktime_ns,
                values: event.values,
                rules,
            }),
            EVENT_OOM | EVENT_OOM_ELSEWHERE => Self::OomKill {
                ours: event.kind == EVENT_OOM,
                ktime_ns: event.ktime_ns,
            },
            _ => return None,
        })
    }
}

/// The running watch thread; stops it when dropped.
#[must_use = "dropping the handle stops the thread"]
pub struct WatchHandle {
    pressure: Arc<Pressure>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WatchHandle {
    /// Stops the thread and waits for it.
    pub fn stop(self) {}
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.pressure.wake.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the pressure watch thread had panicked");
        }
    }
}

pub(super) fn spawn(
    pressure: Arc<Pressure>,
    on_occurrence: impl Fn(&Occurrence) + Send + 'static,
) -> io::Result<WatchHandle> {
    let stop = Arc::new(AtomicBool::new(false));
    let memory = MemorySources::discover(Path::new("/"));
    if memory.cgroup().is_none() {
        let reason = "the engine's memory cgroup isn't of version 2, which alone has PSI";
        pressure
            .unavailable
            .set(Signal::MemoryPressureCgroup, reason);
    }
    let policy = *lock(&pressure.policy);
    let own = Own::new(&policy, &pressure.ports, &memory, pressure.waits);
    let mut watch = Watch {
        events: lock(&pressure.events).take(),
        own,
        psi: Psi::discover(Path::new("/"), memory.cgroup()),
        memory,
        trigger: trigger(&pressure),
        pressure: Arc::clone(&pressure),
        on_occurrence,
        early: false,
        sampled_at: None,
        lost: 0,
    };
    let stopped = Arc::clone(&stop);
    let thread = thread::Builder::new()
        .name("pressure-watch".to_owned())
        .spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                watch.turn();
            }
            watch.drain();
            watch.tell_lost();
        })?;
    Ok(WatchHandle {
        pressure,
        stop,
        thread: Some(thread),
    })
}

/// Wakes the thread when memory is short; where that isn't allowed, the next sample tells.
fn trigger(pressure: &Pressure) -> Option<File> {
    let (yellow, _) = lock(&pressure.policy).rules[Signal::MemoryPressure as usize].entries();
    let permille = u32::try_from(yellow?).ok()?;
    psi::memory_trigger(permille)
        .inspect_err(|error| tracing::debug!(%error, "no trigger on memory pressure"))
        .ok()
}

struct Watch<F> {
    pressure: Arc<Pressure>,
    events: Option<Events>,
    /// What user space measures by itself, where it judges.
    own: Own,
    memory: MemorySources,
    psi: Psi,
    /// Ready when memory pressure has crossed its Yellow level.
    trigger: Option<File>,
    on_occurrence: F,
    /// Whether there is a reason not to wait for the next period.
    early: bool,
    /// When samples were last taken.
    sampled_at: Option<Instant>,
    /// Events lost by the kernel half that were told of.
    lost: u64,
}

impl<F: Fn(&Occurrence)> Watch<F> {
    /// One look at everything, then a wait for the next reason to look.
    fn turn(&mut self) {
        self.drain();
        // A wake-up is a reason to sample early, but not more often than a tick would judge.
        let pace = if self.early {
            PERIOD.min(self.pressure.tick)
        } else {
            PERIOD
        };
        if self.sampled_at.is_none_or(|at| at.elapsed() >= pace) {
            self.early = false;
            self.sample();
            return;
        }
        let elapsed = self.sampled_at.map_or(pace, |at| at.elapsed());
        let ring = self.events.as_ref().map(AsFd::as_fd);
        let trigger = self.trigger.as_ref().map(AsFd::as_fd);
        let wait = pace.saturating_sub(elapsed);
        let woken = self.pressure.wake.wait(ring, trigger, wait);
        let judging = self.pressure.source.why_not_kernel().is_some();
        self.early |= woken.triggered || woken.called && judging;
    }

    fn drain(&mut self) {
        if let Some(events) = &mut self.events {
            let rules = lock(&self.pressure.policy).rules;
            while let Some(event) = events.next() {
                if let Some(occurrence) = Occurrence::of(&event, rules) {
                    (self.on_occurrence)(&occurrence);
                }
            }
            events.flush_log();
        }
    }

    fn sample(&mut self) {
        self.sampled_at = Some(Instant::now());
        self.post();
        self.tell_lost();
        if let Some(kernel) = &self.pressure.kernel {
            self.mind_the_tick();
            kernel.mind_the_cpus();
            if let Some(xdp) = &kernel.xdp {
                xdp.follow_local_addresses();
            }
        }
        if self.pressure.source.why_not_kernel().is_some() {
            self.judge();
        }
    }

    /// Tells of events that the kernel half had no room for.
    fn tell_lost(&mut self) {
        let lost = self
            .pressure
            .pages
            .verdict_at(offset_of!(VerdictPage, events_lost));
        if lost > self.lost {
            (self.on_occurrence)(&Occurrence::EventsLost {
                events: lost - self.lost,
                ktime_ns: monotonic_ns(),
            });
            self.lost = lost;
        }
    }

    /// Posts what can be read; what can't grows unavailable, with its reason.
    fn post(&mut self) {
        let mut posted = Posted::default();
        let pressure = &self.pressure;
        let mut post = |signal: Signal, value: io::Result<u64>| {
            let index = POSTED.iter().position(|posted| *posted == signal);
            match (value, index) {
                (Ok(value), Some(index)) => {
                    pressure.unavailable.succeed(&[signal]);
                    posted.values[index] = value;
                    posted.available |= signal.bit();
                }
                (Err(error), _) => pressure.unavailable.fail(&[signal], &error.to_string()),
                (Ok(_), None) => {}
            }
        };
        post(
            Signal::MemoryAvailable,
            self.memory
                .available_permille()
                .map(u64::from)
                .ok_or_else(|| io::Error::other("/proc/meminfo can't be read")),
        );
        let plenty = self.memory.host_has_plenty();
        self.psi
            .sample(Instant::now(), |signal, share| match signal {
                // Stalls under the limits of cgroups: ours has a signal of its own.
                Signal::MemoryPressure if plenty => post(signal, share.map(|_| 0)),
                signal => post(signal, share),
            });
        posted.at_ns = monotonic_ns();
        pressure.pages.post(&posted);
    }

    fn judge(&mut self) {
        let pressure = &self.pressure;
        let policy = *lock(&pressure.policy);
        let pages = &pressure.pages;
        let tally = stochastic::tally(pages, &policy);
        let sampled_ns = monotonic_ns();
        let own = self
            .own
            .sample(&policy, &tally, sampled_ns, pressure.unavailable);
        if pressure.kernel.is_none() {
            pages.count_followed(self.own.followed());
        }
        let probed = pressure.kernel.is_some() && policy.measured & Signal::ReceiveQueue.bit() != 0;
        let now_ns = monotonic_ns();
        let reading = stochastic::reading(pages, own, &tally, probed, now_ns);
        let event = stochastic::judge_once(pages, &policy, &reading, now_ns);
        if let Some(occurrence) = event.and_then(|event| Occurrence::of(&event, policy.rules)) {
            (self.on_occurrence)(&occurrence);
        }
        self.pressure.source.judged(now_ns);
    }

    /// Compares the tick's age with the limit and switches, either way, loudly.
    fn mind_the_tick(&self) {
        let judged_at_ns = self
            .pressure
            .pages
            .verdict_at(offset_of!(VerdictPage, judged_at_ns));
        let age = Duration::from_nanos(monotonic_ns().saturating_sub(judged_at_ns));
        let dead = age > TICK_DEAD_MIN.max(self.pressure.tick * TICK_DEAD_PERIODS);
        match (dead, self.pressure.source.why_not_kernel().is_some()) {
            (true, false) => {
                let reason = format!("no tick for {} ms", age.as_millis());
                tracing::error!(
                    reason,
                    "THE KERNEL'S TICK IS DEAD: user space judges in its place"
                );
                self.switch(Some(reason));
            }
            (false, true) => {
                tracing::warn!("the kernel's tick is back and judges again");
                self.switch(None);
                self.own.rest(self.pressure.unavailable);
            }
            (true, true) | (false, false) => {}
        }
    }

    fn switch(&self, why_not_kernel: Option<String>) {
        self.pressure.source.set(why_not_kernel.clone());
        (self.on_occurrence)(&Occurrence::Source {
            why_not_kernel,
            ktime_ns: monotonic_ns(),
        });
    }
}

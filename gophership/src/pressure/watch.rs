//! The watch thread: posts samples, passes on transitions, minds the tick, stands in for it.

use std::{
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

use gophership_common::{Cause, Event, Posted, Signals, VerdictPage, Zone};

use super::{
    Pressure, clock::monotonic_ns, kernel::Events, lock, memory::MemorySources, stochastic,
};

/// How often samples are posted and the tick's age is checked.
const PERIOD: Duration = Duration::from_millis(100);
/// A tick is dead when it is older than this and than [`TICK_DEAD_PERIODS`] of its periods: on idle
/// CPUs it comes late, and a stolen virtual CPU may hold it up.
pub const TICK_DEAD_MIN: Duration = Duration::from_millis(500);
const TICK_DEAD_PERIODS: u32 = 20;

/// A change of the verdict. `from` and `to` are the same zone when only the cause rose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Zone before.
    pub from: Zone,
    /// Zone after.
    pub to: Zone,
    /// What it is due to.
    pub cause: Cause,
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub ktime_ns: u64,
    /// What it was decided on; when a probe raised, only its own socket's readings are available.
    pub values: Signals,
}

impl From<Event> for Transition {
    fn from(event: Event) -> Self {
        Self {
            from: event.from.zone(),
            to: event.to.zone(),
            cause: event.to.cause(),
            ktime_ns: event.ktime_ns,
            values: event.values,
        }
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
    on_transition: impl Fn(&Transition) + Send + 'static,
) -> io::Result<WatchHandle> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut watch = Watch {
        events: lock(&pressure.events).take(),
        memory: MemorySources::discover(Path::new("/")),
        pressure: Arc::clone(&pressure),
        on_transition,
        sampled_at: None,
    };
    let stopped = Arc::clone(&stop);
    let thread = thread::Builder::new()
        .name("pressure-watch".to_owned())
        .spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                watch.turn();
            }
            watch.drain();
        })?;
    Ok(WatchHandle {
        pressure,
        stop,
        thread: Some(thread),
    })
}

struct Watch<F> {
    pressure: Arc<Pressure>,
    events: Option<Events>,
    memory: MemorySources,
    on_transition: F,
    /// When samples were last taken.
    sampled_at: Option<Instant>,
}

impl<F: Fn(&Transition)> Watch<F> {
    /// One look at everything, then a wait for the next reason to look.
    fn turn(&mut self) {
        self.drain();
        let since = self.sampled_at.map(|at| at.elapsed());
        let judging = self.pressure.source.why_not_kernel().is_some();
        // A wake-up is a reason to sample early, but not more often than a tick would judge.
        if since.is_none_or(|since| since >= PERIOD || judging && since >= self.pressure.tick) {
            self.sample();
        }
        let elapsed = self.sampled_at.map_or(PERIOD, |at| at.elapsed());
        let ring: Vec<_> = self.events.iter().map(AsFd::as_fd).collect();
        self.pressure
            .wake
            .wait(&ring, PERIOD.saturating_sub(elapsed));
    }

    fn drain(&mut self) {
        if let Some(events) = &mut self.events {
            while let Some(event) = events.next() {
                (self.on_transition)(&event.into());
            }
            events.flush_log();
        }
    }

    fn sample(&mut self) {
        self.sampled_at = Some(Instant::now());
        // What can't be read isn't posted: the last sample grows stale, then unavailable.
        if let Some(permille) = self.memory.available_permille() {
            self.pressure.pages.post(&Posted {
                at_ns: monotonic_ns(),
                memory_available_permille: u64::from(permille),
                padding: [0; 6],
            });
        }
        if let Some(kernel) = &self.pressure.kernel {
            self.mind_the_tick();
            if let Some(xdp) = &kernel.xdp {
                xdp.follow_local_addresses();
            }
        }
        if self.pressure.source.why_not_kernel().is_some() {
            self.judge();
        }
    }

    fn judge(&self) {
        let policy = *lock(&self.pressure.policy);
        let now_ns = monotonic_ns();
        if let Some(event) = stochastic::judge_once(&self.pressure.pages, &policy, now_ns) {
            (self.on_transition)(&event.into());
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
                self.pressure.source.set(Some(reason));
            }
            (false, true) => {
                tracing::warn!("the kernel's tick is back and judges again");
                self.pressure.source.set(None);
            }
            (true, true) | (false, false) => {}
        }
    }
}

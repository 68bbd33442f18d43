//! The judge's state for people and metrics.

use std::{
    mem::offset_of,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use gophership_common::{Cause, Signals, VerdictPage, Zone, available};

use super::{clock::monotonic_ns, pages::Pages};

/// Who judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The kernel half.
    Kernel,
    /// `judge()` in user space.
    Stochastic,
}

impl Source {
    /// The lower-case name used by commands.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Stochastic => "stochastic",
        }
    }
}

/// One signal as last judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SignalReading {
    /// Snake-case name.
    pub name: &'static str,
    /// Value in `unit`; meaningless unless `available`.
    pub value: f64,
    /// `ratio`, `seconds` or `sockets`.
    pub unit: &'static str,
    /// Whether it could be measured.
    pub available: bool,
}

/// Everything there is to show, at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Who judges.
    pub source: Source,
    /// Why the kernel doesn't, if it doesn't.
    pub why_not_kernel: Option<String>,
    /// The zone in force.
    pub zone: Zone,
    /// What it is due to.
    pub cause: Cause,
    /// How long the word has been what it is.
    pub age: Duration,
    /// When it became that, by the wall clock now.
    pub since: SystemTime,
    /// Whether the zone is the operator's.
    pub override_active: bool,
    /// Counts the changes of the word; wraps.
    pub epoch: u32,
    /// Changes of the word since the start.
    pub transitions: u64,
    /// Age of the last judgement, in the kernel or here.
    pub judged_age: Duration,
    /// Every signal.
    pub signals: Vec<SignalReading>,
    /// Transitions that found the kernel's ring buffer full.
    pub events_lost: u64,
}

/// Who judges right now, and why not the kernel.
pub(super) struct Judging {
    why_not_kernel: Mutex<Option<String>>,
    /// When user space last judged; the tick keeps its own time, by which it is known to be alive.
    judged_at_ns: AtomicU64,
}

impl Judging {
    pub(super) const fn new(why_not_kernel: Option<String>) -> Self {
        Self {
            why_not_kernel: Mutex::new(why_not_kernel),
            judged_at_ns: AtomicU64::new(0),
        }
    }

    pub(super) fn why_not_kernel(&self) -> Option<String> {
        super::lock(&self.why_not_kernel).clone()
    }

    pub(super) fn set(&self, why_not_kernel: Option<String>) {
        *super::lock(&self.why_not_kernel) = why_not_kernel;
    }

    pub(super) fn judged(&self, now_ns: u64) {
        self.judged_at_ns.store(now_ns, Ordering::Release);
    }
}

impl Snapshot {
    pub(super) fn of(pages: &Pages, judging: &Judging) -> Self {
        let (word, since_ns) = pages.word_and_since();
        let now_ns = monotonic_ns();
        let judged_at_ns = pages
            .verdict_at(offset_of!(VerdictPage, judged_at_ns))
            .max(judging.judged_at_ns.load(Ordering::Acquire));
        let age = Duration::from_nanos(now_ns.saturating_sub(since_ns));
        let why_not_kernel = judging.why_not_kernel();
        Self {
            source: match why_not_kernel {
                None => Source::Kernel,
                Some(_) => Source::Stochastic,
            },
            why_not_kernel,
            zone: word.zone(),
            cause: word.cause(),
            age,
            since: SystemTime::now()
                .checked_sub(age)
                .unwrap_or(SystemTime::UNIX_EPOCH),
            override_active: word.overridden(),
            epoch: word.epoch(),
            transitions: pages.verdict_at(offset_of!(VerdictPage, transitions)),
            judged_age: Duration::from_nanos(now_ns.saturating_sub(judged_at_ns)),
            signals: readings(&pages.last_signals()),
            events_lost: pages.verdict_at(offset_of!(VerdictPage, events_lost)),
        }
    }
}

fn readings(signals: &Signals) -> Vec<SignalReading> {
    let known = |bit: u32| signals.available & bit != 0;
    let ratio = |name, permille: u32, bit| SignalReading {
        name,
        value: f64::from(permille) / 1000.0,
        unit: "ratio",
        available: known(bit),
    };
    let seconds = |name, ns: u64, bit| SignalReading {
        name,
        value: Duration::from_nanos(ns).as_secs_f64(),
        unit: "seconds",
        available: known(bit),
    };
    let sockets = |name, count: u32| SignalReading {
        name,
        value: f64::from(count),
        unit: "sockets",
        available: known(available::RECEIVE_QUEUE),
    };
    let [ingest, export, vault] = signals.budget_permille;
    vec![
        ratio(
            "receive_queue",
            signals.receive_queue_permille,
            available::RECEIVE_QUEUE,
        ),
        seconds(
            "receive_queue_stalled",
            signals.receive_queue_stalled_ns,
            available::RECEIVE_QUEUE,
        ),
        sockets("sockets_above_yellow", signals.sockets_above_yellow),
        sockets("sockets_above_red", signals.sockets_above_red),
        seconds(
            "heartbeat_age",
            signals.heartbeat_age_ns,
            available::HEARTBEAT,
        ),
        ratio("budget_ingest", ingest, available::BUDGET_INGEST),
        ratio("budget_export", export, available::BUDGET_EXPORT),
        ratio("budget_vault", vault, available::BUDGET_VAULT),
        ratio(
            "memory_available",
            signals.memory_available_permille,
            available::MEMORY_AVAILABLE,
        ),
    ]
}

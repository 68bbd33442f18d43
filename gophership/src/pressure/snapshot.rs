//! The judge's state for people and metrics.

use std::{
    mem::offset_of,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use gophership_common::{Cause, Policy, SIGNALS, Signal, Signals, Unit, VerdictPage, Zone};

use super::{
    clock::monotonic_ns,
    pages::Pages,
    unavailable::{KERNEL_ONLY, Unavailable},
};

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
#[derive(Debug, Clone, PartialEq)]
pub struct SignalReading {
    /// Which.
    pub signal: Signal,
    /// In `unit`; meaningless unless `available`.
    pub value: f64,
    /// The worst value of the last one to two seconds, in `unit`; where the kernel judges, if it is
    /// available.
    pub worst: Option<f64>,
    /// `ratio`, `seconds`, `bytes`, `bytes_per_second` or `count`.
    pub unit: &'static str,
    /// Where it enters Yellow, in `unit`; `None`: never.
    pub yellow: Option<f64>,
    /// Where it enters Red, in `unit`; `None`: never.
    pub red: Option<f64>,
    /// Whether it could be measured.
    pub available: bool,
    /// Why it couldn't be; if it could, what the value leaves out, mostly nothing.
    pub reason: String,
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
    /// Whether the vault's disk is slow.
    pub slow_disk: bool,
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
    /// How the ingest sockets are followed.
    pub followed: Followed,
}

/// How the ingest sockets are followed, by the probes or by looking at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// Sockets followed now.
    pub sockets: u64,
    /// Sockets that found the table full, counted once a segment or look: their queues don't count.
    pub untracked: u64,
    /// Sockets above a level that found no watch slot, counted once an event: they don't count while
    /// they are silent.
    pub unwatched: u64,
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
    pub(super) fn of(
        pages: &Pages,
        judging: &Judging,
        policy: &Policy,
        unavailable: &Unavailable,
    ) -> Self {
        let (word, since_ns) = pages.word_and_since();
        let now_ns = monotonic_ns();
        let judged_at_ns = pages
            .verdict_at(offset_of!(VerdictPage, judged_at_ns))
            .max(judging.judged_at_ns.load(Ordering::Acquire));
        let age = Duration::from_nanos(now_ns.saturating_sub(since_ns));
        let why_not_kernel = judging.why_not_kernel();
        let counts = pages.aggregates();
        let worst = why_not_kernel.is_none().then(|| pages.worst());
        let signals = readings(&pages.last_signals(), worst, policy, |signal, available| {
            if available {
                return unavailable.noted(signal);
            }
            // What the kernel half alone could measure is away with its tick.
            match (unavailable.known(signal), &why_not_kernel) {
                (None, Some(why)) if KERNEL_ONLY.contains(&signal) => why.clone(),
                _ => unavailable.reason(signal),
            }
        });
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
            slow_disk: word.slow_disk(),
            epoch: word.epoch(),
            transitions: pages.verdict_at(offset_of!(VerdictPage, transitions)),
            judged_age: Duration::from_nanos(now_ns.saturating_sub(judged_at_ns)),
            signals,
            events_lost: pages.verdict_at(offset_of!(VerdictPage, events_lost)),
            followed: Followed {
                sockets: counts.tracked,
                untracked: counts.untracked,
                unwatched: counts.unwatched,
            },
        }
    }

    /// The reading of one signal.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> &SignalReading {
        &self.signals[signal as usize]
    }
}

fn readings(
    signals: &Signals,
    worst: Option<[u64; SIGNALS]>,
    policy: &Policy,
    reason: impl Fn(Signal, bool) -> String,
) -> Vec<SignalReading> {
    Signal::ALL
        .into_iter()
        .map(|signal| {
            let index = signal as usize;
            let known = signals.get(signal);
            let (yellow, red) = policy.rules[index].entries();
            SignalReading {
                signal,
                value: shown(signal, known.unwrap_or(0)),
                worst: worst
                    .filter(|_| known.is_some())
                    .map(|worst| shown(signal, worst[index])),
                unit: unit(signal),
                yellow: yellow.map(|at| shown(signal, at)),
                red: red.map(|at| shown(signal, at)),
                available: known.is_some(),
                reason: reason(signal, known.is_some()),
            }
        })
        .collect()
}

/// A value in the unit that people and metrics see.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "for people and metrics")]
pub fn shown(signal: Signal, value: u64) -> f64 {
    let value = value as f64;
    match signal.unit() {
        Unit::Permille => value / 1e3,
        Unit::Microseconds => value / 1e6,
        Unit::Bytes | Unit::BytesPerSecond | Unit::Count => value,
    }
}

/// The name of the unit that people and metrics see.
#[must_use]
pub const fn unit(signal: Signal) -> &'static str {
    match signal.unit() {
        Unit::Permille => "ratio",
        Unit::Microseconds => "seconds",
        Unit::Bytes => "bytes",
        Unit::BytesPerSecond => "bytes_per_second",
        Unit::Count => "count",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cells of the first table's rows, without the header.
    fn rows(page: &str) -> Vec<Vec<String>> {
        page.lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect())
            .collect()
    }

    #[test]
    fn the_page_of_signals_names_each_with_its_unit_and_cause() {
        let rows = rows(include_str!("../../../docs/signals.md"));
        for signal in Signal::ALL {
            let name = format!("`{}`", signal.as_str());
            let row = rows
                .iter()
                .find(|row| row[1].split(", ").any(|named| named == name))
                .unwrap_or_else(|| panic!("docs/signals.md has no {name}"));
            assert_eq!(row[2], unit(signal), "{name}");
            let cause = match signal.cause() {
                Cause::None => String::new(),
                cause => format!("`{}`", cause.as_str()),
            };
            assert_eq!(row[5], cause, "{name}");
        }
    }

    #[test]
    fn the_page_of_signals_orders_the_causes_by_precedence() {
        let causes: Vec<String> = rows(include_str!("../../../docs/signals.md"))
            .into_iter()
            .map(|row| row[5].trim_matches('`').to_owned())
            .filter(|cause| !cause.is_empty())
            .collect();
        let number = |name: &String| Cause::ALL.iter().position(|cause| cause.as_str() == name);
        assert!(
            causes.is_sorted_by_key(|name| std::cmp::Reverse(number(name))),
            "{causes:?}"
        );
    }
}

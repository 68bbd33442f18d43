//! The state of one destination as all workers and the replay share it: whether to try it, and
//! what it has been given. Written once a batch, or once an entry of the vault, never once a request
//! that a destination acknowledges.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::export::Retry;

/// One batch changes the smoothed delivery time by one part in so many of the difference.
const SMOOTHING: u64 = 8;

/// Whether one destination is worth a try, and its counters.
#[derive(Debug)]
pub struct Circuit {
    name: String,
    retry: Retry,
    started: Instant,
    /// Milliseconds since `started`; attempts wait until then. 0: closed.
    open_until_ms: AtomicU64,
    failures_in_row: AtomicU32,
    /// Smoothed time from handing a batch over to its acceptance, in nanoseconds.
    delivery_ns: AtomicU64,
    last_error: Mutex<Option<String>>,
    /// What it has been given.
    pub counters: Counters,
}

/// What a destination has been given, in batches and records. On lines of their own: every request looks at whether the
/// circuit is closed, and every batch writes these.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Batches accepted.
    pub requests: AtomicU64,
    /// Records in accepted batches, less those it rejected.
    pub records: AtomicU64,
    /// Batches it did not take for now.
    pub failures: AtomicU64,
    /// Batches tried after a failure.
    pub retries: AtomicU64,
    /// Records that it will never take.
    pub rejected_records: AtomicU64,
    /// Ledger: records of the vault that it has; counted before the vault settles them.
    pub delivered: AtomicU64,
    /// Ledger: records of the vault that it refused for good in a partial success.
    pub rejected: AtomicU64,
    /// Ledger: records of the vault put aside as dead letters.
    pub dead_lettered: AtomicU64,
}

impl Circuit {
    /// A closed circuit of the destination `name`.
    #[must_use]
    pub fn new(name: &str, retry: Retry) -> Self {
        Self {
            name: name.to_owned(),
            retry,
            started: Instant::now(),
            open_until_ms: AtomicU64::new(0),
            failures_in_row: AtomicU32::new(0),
            delivery_ns: AtomicU64::new(0),
            last_error: Mutex::new(None),
            counters: Counters::default(),
        }
    }

    /// Name of the destination.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether an attempt is due now: it never failed, or its backoff has passed.
    #[must_use]
    pub fn allows(&self) -> bool {
        let until = self.open_until_ms.load(Relaxed);
        until == 0 || self.now_ms() >= until
    }

    /// Whether the last attempt succeeded (or there was none).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.open_until_ms.load(Relaxed) == 0
    }

    /// The last failure, if the circuit isn't closed.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How long batches take to be accepted of late; zero before the first.
    #[must_use]
    pub fn delivery_time(&self) -> Duration {
        Duration::from_nanos(self.delivery_ns.load(Relaxed))
    }

    /// A live batch was accepted `took` after it was handed over.
    pub fn delivered_within(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // Another worker's batch may be lost here: the next one tells as much.
        let smoothed = match self.delivery_ns.load(Relaxed) {
            0 => took,
            before => before - before / SMOOTHING + took / SMOOTHING,
        };
        self.delivery_ns.store(smoothed, Relaxed);
    }

    /// The destination has a batch of `records` records, of which it rejected some for good.
    pub fn accepted(&self, records: u64, rejected: u64) {
        self.counters.requests.fetch_add(1, Relaxed);
        self.counters
            .records
            .fetch_add(records.saturating_sub(rejected), Relaxed);
        self.counters.rejected_records.fetch_add(rejected, Relaxed);
        self.close();
    }

    /// The destination will never take `records` records, and said so.
    pub fn rejected(&self, records: u64) {
        self.counters.rejected_records.fetch_add(records, Relaxed);
        self.close();
    }

    /// The destination answered, so it is worth further tries, whatever it said.
    pub fn close(&self) {
        if self.open_until_ms.swap(0, Relaxed) != 0 {
            self.failures_in_row.store(0, Relaxed);
            *self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = None;
            tracing::info!(destination = self.name, "destination is back");
        }
    }

    /// An attempt failed; the next one waits for `after`, else for an exponential backoff, as
    /// [`Retry`] says. Attempts that fail while it waits change nothing.
    pub fn failed(&self, after: Option<Duration>, reason: &str) {
        self.counters.failures.fetch_add(1, Relaxed);
        if !self.is_closed() {
            self.counters.retries.fetch_add(1, Relaxed);
        }
        if !self.allows() {
            // Sent before the circuit opened, as others that failed with it: one outage, one step.
            return;
        }
        let failures = self.failures_in_row.fetch_add(1, Relaxed);
        // Another seed each time: as random as the keys of maps.
        let chance = RandomState::new().hash_one(failures);
        let wait = self.retry.wait(failures, after, chance);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.open_until_ms
            .store(self.now_ms().saturating_add(wait_ms).max(1), Relaxed);
        if failures == 0 {
            tracing::warn!(
                destination = self.name,
                reason,
                wait_ms,
                "destination failed; the vault takes over"
            );
        }
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_opens_and_an_acceptance_closes() {
        let circuit = Circuit::new("main", Retry::default());
        assert!(circuit.allows() && circuit.is_closed());
        circuit.failed(Some(Duration::from_secs(3600)), "connection refused");
        assert!(!circuit.allows() && !circuit.is_closed());
        assert_eq!(circuit.last_error().as_deref(), Some("connection refused"));
        circuit.accepted(10, 1);
        assert!(circuit.allows() && circuit.is_closed());
        assert_eq!(circuit.last_error(), None);
        assert_eq!(circuit.counters.records.load(Relaxed), 9);
    }

    #[test]
    fn the_delivery_time_follows_what_batches_take() {
        let circuit = Circuit::new("main", Retry::default());
        assert_eq!(circuit.delivery_time(), Duration::ZERO);
        let (far, near) = (Duration::from_millis(300), Duration::from_millis(1));
        circuit.delivered_within(far);
        assert_eq!(circuit.delivery_time(), far);
        circuit.delivered_within(near);
        assert!((near * 200..far).contains(&circuit.delivery_time()));
        for _ in 0..100 {
            circuit.delivered_within(near);
        }
        assert!((near..near * 2).contains(&circuit.delivery_time()));
    }

    #[test]
    fn what_fails_together_is_one_step_of_the_backoff() {
        let circuit = Circuit::new("main", Retry::default());
        for _ in 0..20 {
            circuit.failed(None, "reset");
        }
        let counters = &circuit.counters;
        assert_eq!(counters.failures.load(Relaxed), 20);
        assert_eq!(circuit.failures_in_row.load(Relaxed), 1);
    }

    #[test]
    fn a_bogus_delay_is_cut() {
        let circuit = Circuit::new("main", Retry::default());
        circuit.failed(Some(Duration::MAX), "busy");
        let until = circuit.open_until_ms.load(Relaxed);
        assert!(until <= circuit.now_ms() + 360_000, "{until}");
    }

    #[test]
    fn a_passed_backoff_allows_a_try_without_closing() {
        let circuit = Circuit::new("main", Retry::default());
        circuit.failed(Some(Duration::ZERO), "reset");
        while !circuit.allows() {
            std::hint::spin_loop();
        }
        assert!(!circuit.is_closed());
    }
}

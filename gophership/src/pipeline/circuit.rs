//! The state of one destination as all workers and the replay share it: whether to try it, and
//! what it has been given. Written once a batch, or once an entry of the vault, never once a request
//! that a destination acknowledges.
//!
//! A destination that fails is left alone for its backoff; then one batch is its trial, and what it says to that counts for
//! all. Whatever it accepts ends the backoff. A delay that it asked for is another matter: only time ends that.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{export::Retry, telemetry::throttle::Throttle};

/// One batch changes the smoothed delivery time by one part in so many of the difference.
const SMOOTHING: u64 = 8;

/// Batches refused for good in a row after which a destination is no longer shown as up: not one bad request, nor the
/// few that a search for it takes.
const REFUSALS_MAX: u32 = 10;

/// Whether one destination is worth a try, and its counters.
#[derive(Debug)]
pub struct Circuit {
    name: String,
    retry: Retry,
    started: Instant,
    /// Since it failed until it accepts something, and until what it asked for is over.
    is_down: AtomicBool,
    /// Milliseconds since `started`; nothing is sent until then, while it is down.
    out_until_ms: AtomicU64,
    /// A batch is on its way to find out whether it is back.
    on_trial: AtomicBool,
    refusals_in_row: AtomicU32,
    /// Smoothed time from handing a batch over to its acceptance, in nanoseconds.
    delivery_ns: AtomicU64,
    /// Every change between up and down holds this.
    waits: Mutex<Waits>,
    /// What it has been given.
    pub counters: Counters,
}

/// Times in milliseconds since the circuit's `started`.
#[derive(Debug)]
struct Waits {
    failures_in_row: u32,
    backoff_until_ms: u64,
    asked_until_ms: u64,
    last_error: Option<String>,
    told: Throttle,
    refusals_told: Throttle,
}

/// Leave to hand one batch over, to be kept until its outcome is noted.
#[derive(Debug)]
pub struct Leave {
    /// Of a trial: it ends with this.
    trial_of: Option<Arc<Circuit>>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(circuit) = &self.trial_of {
            circuit.on_trial.store(false, Relaxed);
        }
    }
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
    /// Batches tried after a failure, whatever came of it.
    pub retries: AtomicU64,
    /// Batches it will never take as they are; replay goes through their requests.
    pub refusals: AtomicU64,
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
        let started = Instant::now();
        Self {
            name: name.to_owned(),
            retry,
            started,
            is_down: AtomicBool::new(false),
            out_until_ms: AtomicU64::new(0),
            on_trial: AtomicBool::new(false),
            refusals_in_row: AtomicU32::new(0),
            delivery_ns: AtomicU64::new(0),
            waits: Mutex::new(Waits {
                failures_in_row: 0,
                backoff_until_ms: 0,
                asked_until_ms: 0,
                last_error: None,
                told: Throttle::new(started),
                refusals_told: Throttle::new(started),
            }),
            counters: Counters::default(),
        }
    }

    /// Name of the destination.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether an attempt is due now: it never failed, or its wait has passed and nobody else tries it.
    #[must_use]
    pub fn allows(&self) -> bool {
        !self.is_down.load(Relaxed) || !self.on_trial.load(Relaxed) && self.is_over()
    }

    /// Leave for an attempt, if one is due now.
    #[must_use]
    pub fn claim(self: &Arc<Self>) -> Option<Leave> {
        if !self.is_down.load(Relaxed) {
            return Some(Leave { trial_of: None });
        }
        if !self.is_over() || self.on_trial.swap(true, Relaxed) {
            return None;
        }
        self.counters.retries.fetch_add(1, Relaxed);
        let trial_of = Some(Arc::clone(self));
        Some(Leave { trial_of })
    }

    /// Whether the last attempt didn't fail (or there was none).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.is_down.load(Relaxed)
    }

    /// Whether it is of any use: attempts don't fail, and not all of late were refused for good.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_closed() && self.refusals_in_row.load(Relaxed) < REFUSALS_MAX
    }

    /// What it said when it last failed or refused a batch, unless it has accepted something since.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.waits().last_error.clone()
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
        if self.refusals_in_row.load(Relaxed) != 0 && self.refusals_in_row.swap(0, Relaxed) != 0 {
            let mut waits = self.waits();
            if self.is_closed() {
                waits.last_error = None;
            }
        }
        self.close();
    }

    /// The destination won't ever take a batch. One bad request condemns it: replay tells which.
    pub fn refused(&self, reason: &str) {
        self.close();
        self.counters.refusals.fetch_add(1, Relaxed);
        self.refusals_in_row.fetch_add(1, Relaxed);
        let mut waits = self.waits();
        waits.last_error = Some(reason.to_owned());
        if let Some(left_out) = waits.refusals_told.admit(Instant::now()) {
            tracing::warn!(
                destination = self.name,
                reason,
                left_out,
                "destination rejected a batch; replay goes through it"
            );
        }
    }

    /// The destination will never take `records` records, and said so.
    pub fn rejected(&self, records: u64) {
        self.counters.rejected_records.fetch_add(records, Relaxed);
        self.refusals_in_row.fetch_add(1, Relaxed);
        self.close();
    }

    /// The destination answered, so it is worth further tries, whatever it said. If it asked for a delay, not before.
    pub fn close(&self) {
        if self.is_closed() {
            return;
        }
        let mut waits = self.waits();
        waits.failures_in_row = 0;
        waits.backoff_until_ms = 0;
        if self.now_ms() < waits.asked_until_ms {
            self.out_until_ms.store(waits.asked_until_ms, Relaxed);
            return;
        }
        waits.last_error = None;
        if self.is_down.swap(false, Relaxed)
            && let Some(left_out) = waits.told.admit(Instant::now())
        {
            tracing::info!(destination = self.name, left_out, "destination is back");
        }
    }

    /// An attempt failed; the next one waits for an exponential backoff, as [`Retry`] says, and for `after` if it asked
    /// for that. Attempts that fail during the backoff don't lengthen it, but what they are asked for is heard.
    pub fn failed(&self, after: Option<Duration>, reason: &str) {
        self.counters.failures.fetch_add(1, Relaxed);
        let mut waits = self.waits();
        let now = self.now_ms();
        // Another seed each time: as random as the keys of maps.
        let chance = RandomState::new().hash_one(now);
        if let Some(asked) = after {
            let until = now.saturating_add(millis(self.retry.asked(asked, chance)));
            waits.asked_until_ms = waits.asked_until_ms.max(until);
        }
        // Else sent before the circuit opened, as others that failed with it: one outage, one step.
        if now >= waits.backoff_until_ms {
            let wait = self.retry.backoff(waits.failures_in_row, chance);
            waits.failures_in_row = waits.failures_in_row.saturating_add(1);
            waits.backoff_until_ms = now.saturating_add(millis(wait));
            waits.last_error = Some(reason.to_owned());
        }
        let until = waits.backoff_until_ms.max(waits.asked_until_ms);
        self.out_until_ms.store(until, Relaxed);
        if !self.is_down.swap(true, Relaxed)
            && let Some(left_out) = waits.told.admit(Instant::now())
        {
            tracing::warn!(
                destination = self.name,
                reason,
                wait_ms = until - now,
                left_out,
                "destination failed; the vault takes over"
            );
        }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.now_ms() >= self.out_until_ms.load(Relaxed)
    }

    fn now_ms(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    /// Its backoff is over at once.
    const QUICK: Retry = Retry {
        initial: Duration::ZERO,
        max: Duration::ZERO,
        multiplier_permille: 1000,
        jitter_permille: 0,
    };
    /// Its backoff isn't over before the test is.
    const SLOW: Retry = Retry {
        initial: MINUTE,
        max: MINUTE,
        ..QUICK
    };

    #[test]
    fn a_failure_opens_and_an_acceptance_closes() {
        let circuit = Circuit::new("main", SLOW);
        assert!(circuit.allows() && circuit.is_closed());
        circuit.failed(None, "connection refused");
        assert!(!circuit.allows() && !circuit.is_closed());
        assert_eq!(circuit.last_error().as_deref(), Some("connection refused"));
        circuit.accepted(10, 1);
        assert!(circuit.allows() && circuit.is_closed());
        assert_eq!(circuit.last_error(), None);
        assert_eq!(circuit.counters.records.load(Relaxed), 9);
    }

    #[test]
    fn a_destination_that_asks_for_no_delay_is_left_alone_for_its_backoff() {
        let circuit = Circuit::new("main", SLOW);
        circuit.failed(Some(Duration::ZERO), "busy");
        assert!(!circuit.allows());
    }

    #[test]
    fn what_was_asked_for_is_kept_whatever_is_accepted_meanwhile() {
        let circuit = Circuit::new("main", QUICK);
        circuit.failed(Some(MINUTE), "busy");
        circuit.accepted(10, 0);
        assert!(!circuit.allows());
        // And it shows.
        assert!(!circuit.is_closed());
        assert_eq!(circuit.last_error().as_deref(), Some("busy"));
    }

    #[test]
    fn a_delay_that_is_asked_for_while_the_circuit_is_open_is_heard_and_the_latest_wins() {
        let circuit = Circuit::new("main", SLOW);
        circuit.failed(None, "reset");
        circuit.failed(Some(MINUTE * 2), "busy");
        circuit.failed(Some(Duration::ZERO), "busy");
        // Ends the backoff, and that alone.
        circuit.accepted(10, 0);
        let until = circuit.out_until_ms.load(Relaxed);
        assert!(until >= millis(MINUTE * 2) && !circuit.allows(), "{until}");
    }

    #[test]
    fn one_attempt_is_the_trial_of_a_destination_that_failed() {
        let circuit = Arc::new(Circuit::new("main", QUICK));
        let [first, second] = [circuit.claim(), circuit.claim()];
        assert!(first.is_some() && second.is_some(), "it works");
        assert_eq!(circuit.counters.retries.load(Relaxed), 0);
        circuit.failed(None, "reset");
        let trial = circuit.claim();
        assert!(trial.is_some());
        assert!(!circuit.allows() && circuit.claim().is_none());
        // It fails: another one is next.
        circuit.failed(None, "reset");
        drop(trial);
        let trial = circuit.claim();
        assert!(trial.is_some());
        circuit.accepted(1, 0);
        assert!(circuit.claim().is_some() && circuit.claim().is_some());
        drop(trial);
        assert!(circuit.claim().is_some());
        // Successful or not.
        assert_eq!(circuit.counters.retries.load(Relaxed), 2);
    }

    #[test]
    fn a_destination_that_refuses_everything_is_not_up() {
        let circuit = Circuit::new("main", QUICK);
        circuit.refused("bad");
        assert!(circuit.is_up(), "one bad batch says little");
        assert_eq!(circuit.last_error().as_deref(), Some("bad"));
        for _ in 0..REFUSALS_MAX {
            circuit.refused("bad");
        }
        assert!(!circuit.is_up());
        // It answers, after all: its requests are tried.
        assert!(circuit.allows());
        circuit.accepted(1, 0);
        assert!(circuit.is_up());
        assert_eq!(circuit.last_error(), None);
        assert_eq!(circuit.counters.refusals.load(Relaxed), 11);
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
        let circuit = Circuit::new("main", SLOW);
        for _ in 0..20 {
            circuit.failed(None, "reset");
        }
        let counters = &circuit.counters;
        assert_eq!(counters.failures.load(Relaxed), 20);
        assert_eq!(circuit.waits().failures_in_row, 1);
    }

    #[test]
    fn a_bogus_delay_is_cut() {
        let circuit = Circuit::new("main", Retry::default());
        circuit.failed(Some(Duration::MAX), "busy");
        let until = circuit.out_until_ms.load(Relaxed);
        assert!(until <= circuit.now_ms() + 360_000, "{until}");
    }

    #[test]
    fn a_passed_backoff_allows_a_try_without_closing() {
        let circuit = Circuit::new("main", QUICK);
        circuit.failed(None, "reset");
        assert!(circuit.allows() && !circuit.is_closed());
    }
}

//! What operators ask of the replay, and what they see of it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::dead_letter::Held;

/// What the replay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is owed.
    Idle,
    /// Something is owed, and the zone, its hold or the destinations say not yet.
    Waiting,
    /// Entries are being sent.
    Running,
    /// An operator has paused it, or the daemon drains.
    Paused,
}

impl State {
    /// Name in status and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// What operators have asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// Don't send, whatever the zone.
    pub paused: bool,
    /// The daemon drains: as paused, but not the operator's doing.
    pub draining: bool,
    /// The thread is to end.
    pub stop: bool,
    /// Don't wait for Green to hold: until the vault is replayed.
    pub now: bool,
    /// Bytes a second instead of the configured rate, until the vault is replayed.
    pub rate: Option<u64>,
}

/// Orders and progress.
#[derive(Debug)]
pub struct Control {
    orders: Mutex<Orders>,
    state: Mutex<State>,
    changed: Notify,
    records: AtomicU64,
    bytes: AtomicU64,
    rate: AtomicU64,
    dead_letters: Mutex<Held>,
    letters_refused: Mutex<Option<String>>,
    meter: Mutex<Meter>,
}

/// Progress since the daemon's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub state: State,
    /// Records accepted by a destination.
    pub records: u64,
    /// Message bytes accepted by a destination.
    pub bytes: u64,
    /// The rate it keeps below, in bytes a second.
    pub rate: u64,
    /// Bytes a second over the last second or so.
    pub rate_now: u64,
    /// Dead letters in the directory.
    pub dead_letters: u64,
    /// Bytes of their files.
    pub dead_letter_bytes: u64,
}

/// Measures a rate over windows of a second.
#[derive(Debug)]
struct Meter {
    since: Instant,
    bytes: u64,
    last: u64,
}

impl Meter {
    const WINDOW: Duration = Duration::from_secs(1);

    fn add(&mut self, bytes: u64, now: Instant) {
        self.roll(now);
        self.bytes += bytes;
    }

    fn roll(&mut self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.since);
        if passed >= Self::WINDOW {
            let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
            (self.last, self.bytes, self.since) =
                (self.bytes.saturating_mul(1000) / millis, 0, now);
        }
        self.last
    }
}

impl Control {
    pub(super) fn new(rate: u64, dead_letters: Held) -> Self {
        let orders = Orders {
            paused: false,
            draining: false,
            stop: false,
            now: false,
            rate: None,
        };
        Self {
            orders: Mutex::new(orders),
            state: Mutex::new(State::Idle),
            changed: Notify::new(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            rate: AtomicU64::new(rate),
            dead_letters: Mutex::new(dead_letters),
            letters_refused: Mutex::new(None),
            meter: Mutex::new(Meter {
                since: Instant::now(),
                bytes: 0,
                last: 0,
            }),
        }
    }

    /// Changes the orders.
    pub fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut lock(&self.orders));
        self.changed.notify_one();
    }

    /// The orders in force.
    pub fn orders(&self) -> Orders {
        *lock(&self.orders)
    }

    /// Progress so far.
    pub fn progress(&self) -> Progress {
        let held = *lock(&self.dead_letters);
        Progress {
            state: *lock(&self.state),
            records: self.records.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            rate: self.rate.load(Relaxed),
            rate_now: lock(&self.meter).roll(Instant::now()),
            dead_letters: held.letters,
            dead_letter_bytes: held.bytes,
        }
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn set_state(&self, state: State) {
        let before = std::mem::replace(&mut *lock(&self.state), state);
        if before != state {
            tracing::info!(from = before.as_str(), to = state.as_str(), "replay");
        }
    }

    /// The vault is replayed: what was ordered until then is over. Wakes nobody, since the replay
    /// itself says so, each time it looks.
    pub(super) fn nothing_is_owed(&self) {
        self.set_state(State::Idle);
        let mut orders = lock(&self.orders);
        (orders.now, orders.rate) = (false, None);
    }

    pub(super) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Relaxed);
    }

    pub(super) fn sent(&self, records: u64, bytes: u64) {
        self.records.fetch_add(records, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        lock(&self.meter).add(bytes, Instant::now());
    }

    /// Why dead letters can't be written now, and entries stay owed for it; `None` if there was no need
    /// to, or they can.
    pub fn letters_refused(&self) -> Option<String> {
        lock(&self.letters_refused).clone()
    }

    pub(super) fn dead_letters(&self, held: Held) {
        *lock(&self.dead_letters) = held;
    }

    pub(super) fn refuse_letters(&self, reason: Option<String>) {
        *lock(&self.letters_refused) = reason;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What operators ask of the replay, and what they see of it, destination by destination.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{dead_letter::Held, meter::Meter};
use crate::vault::Selection;

/// What the replay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is owed.
    Idle,
    /// Something is owed, and the zone, its hold or the destination say not yet.
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

    /// Of two destinations, what there is to say of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Running, _) | (_, Self::Running) => Self::Running,
            (Self::Waiting, _) | (_, Self::Waiting) => Self::Waiting,
            (Self::Paused, _) | (_, Self::Paused) => Self::Paused,
            (Self::Idle, Self::Idle) => Self::Idle,
        }
    }
}

/// Where the limit of the rate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedBy {
    /// `replay.max_bytes_per_second`.
    Configured,
    /// An operator.
    Ordered,
    /// The zone, or that it has become worse lately.
    Zone,
    /// The destination has throttled or failed lately.
    Destination,
}

impl LimitedBy {
    /// Name in status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Ordered => "ordered",
            Self::Zone => "zone",
            Self::Destination => "destination",
        }
    }
}

/// What operators have asked for, for one destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Orders {
    /// Don't send, whatever the zone.
    pub paused: bool,
    /// The daemon drains: as paused, but not the operator's doing.
    pub draining: bool,
    /// The thread is to end.
    pub stop: bool,
    /// Don't wait for Green to hold: until nothing is left.
    pub now: bool,
    /// Bytes a second instead of the configured rate, until nothing is left.
    pub rate: Option<u64>,
    /// What to send, until nothing of it is left.
    pub selection: Selection,
}

/// Orders and progress.
#[derive(Debug)]
pub struct Control {
    courses: Box<[Course]>,
    changed: Notify,
    dead_letters: Mutex<Held>,
    letters_refused: Mutex<Option<String>>,
}

/// One destination's.
#[derive(Debug)]
struct Course {
    name: String,
    orders: Mutex<Orders>,
    state: Mutex<State>,
    records: AtomicU64,
    bytes: AtomicU64,
    limit: Mutex<(u64, LimitedBy)>,
    meter: Mutex<Meter>,
}

/// Progress since the daemon's start, to one destination or to all.
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
    /// Where that comes from; of several destinations, the one that is limited most.
    pub limited_by: LimitedBy,
    /// Bytes a second over the last second or so.
    pub rate_now: u64,
    /// Records a second, over some seconds.
    pub records_per_second: u64,
    /// An operator has started it, and something of what that asked for is left.
    pub ordered: bool,
}

impl Progress {
    /// Of two destinations.
    #[must_use]
    fn and(self, other: Self) -> Self {
        let least = if self.rate <= other.rate { self } else { other };
        Self {
            state: self.state.and(other.state),
            records: self.records + other.records,
            bytes: self.bytes + other.bytes,
            rate: self.rate.saturating_add(other.rate),
            limited_by: least.limited_by,
            rate_now: self.rate_now + other.rate_now,
            records_per_second: self.records_per_second + other.records_per_second,
            ordered: self.ordered || other.ordered,
        }
    }

    /// How long `records` more take at the present rate; `None` if that isn't known.
    #[must_use]
    pub fn time_for(&self, records: u64) -> Option<Duration> {
        let millis = records.checked_mul(1000)?;
        let millis = millis.checked_div(self.records_per_second)?;
        (self.state == State::Running).then(|| Duration::from_millis(millis))
    }
}

impl Control {
    pub(super) fn new(names: &[String], rate: u64, dead_letters: Held) -> Self {
        let course = |name: &String| Course {
            name: name.clone(),
            orders: Mutex::default(),
            state: Mutex::new(State::Idle),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            limit: Mutex::new((rate, LimitedBy::Configured)),
            meter: Mutex::new(Meter::new(Instant::now())),
        };
        Self {
            courses: names.iter().map(course).collect(),
            changed: Notify::new(),
            dead_letters: Mutex::new(dead_letters),
            letters_refused: Mutex::default(),
        }
    }

    /// Changes the orders for every destination.
    pub fn order(&self, change: impl Fn(&mut Orders)) {
        for course in &self.courses {
            change(&mut lock(&course.orders));
        }
        self.changed.notify_waiters();
    }

    /// Changes the orders for one destination; false if there is none of that name.
    pub fn order_for(&self, name: &str, change: impl FnOnce(&mut Orders)) -> bool {
        let Some(course) = self.courses.iter().find(|course| course.name == name) else {
            return false;
        };
        change(&mut lock(&course.orders));
        self.changed.notify_waiters();
        true
    }

    /// Progress so far, of all destinations together; without destinations there is never any.
    pub fn progress(&self) -> Progress {
        let all = self.courses.iter().map(Course::progress);
        all.reduce(Progress::and).unwrap_or(Progress {
            state: State::Idle,
            records: 0,
            bytes: 0,
            rate: 0,
            limited_by: LimitedBy::Configured,
            rate_now: 0,
            records_per_second: 0,
            ordered: false,
        })
    }

    /// Progress so far, destination by destination.
    pub fn by_destination(&self) -> impl Iterator<Item = (&str, Progress)> {
        let courses = self.courses.iter();
        courses.map(|course| (&*course.name, course.progress()))
    }

    /// Dead letters in the directory.
    pub fn held_letters(&self) -> Held {
        *lock(&self.dead_letters)
    }

    /// Why dead letters can't be written now, and entries stay owed for it; `None` if there was no need
    /// to, or they can.
    pub fn letters_refused(&self) -> Option<String> {
        lock(&self.letters_refused).clone()
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn dead_letters(&self, held: Held) {
        *lock(&self.dead_letters) = held;
    }

    pub(super) fn refuse_letters(&self, reason: Option<String>) {
        *lock(&self.letters_refused) = reason;
    }

    pub(super) fn orders(&self, index: usize) -> Orders {
        *lock(&self.courses[index].orders)
    }

    pub(super) fn set_state(&self, index: usize, state: State) {
        let course = &self.courses[index];
        let before = std::mem::replace(&mut *lock(&course.state), state);
        if before != state {
            let (from, to) = (before.as_str(), state.as_str());
            tracing::info!(destination = course.name, from, to, "replay");
        }
    }

    /// What was ordered until nothing is left is over, unless it has been ordered anew. Wakes nobody,
    /// since the replay itself says so, each time it looks.
    pub(super) fn is_over(&self, index: usize, seen: Orders) {
        let mut orders = lock(&self.courses[index].orders);
        if *orders == seen {
            (orders.now, orders.rate, orders.selection) = (false, None, Selection::default());
        }
    }

    pub(super) fn set_limit(&self, index: usize, rate: u64, by: LimitedBy) {
        *lock(&self.courses[index].limit) = (rate, by);
    }

    pub(super) fn sent(&self, index: usize, records: u64, bytes: u64) {
        let course = &self.courses[index];
        course.records.fetch_add(records, Relaxed);
        course.bytes.fetch_add(bytes, Relaxed);
        lock(&course.meter).add(records, bytes, Instant::now());
    }
}

impl Course {
    fn progress(&self) -> Progress {
        let (rate, limited_by) = *lock(&self.limit);
        let (records_per_second, rate_now) = lock(&self.meter).rates(Instant::now());
        Progress {
            state: *lock(&self.state),
            records: self.records.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            rate,
            limited_by,
            rate_now,
            records_per_second,
            ordered: lock(&self.orders).now,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

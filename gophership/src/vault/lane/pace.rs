//! How long durable writes take now, for the judge.

use std::time::{Duration, Instant};

use super::{
    core::Core,
    ops::{Op, State},
};

const WINDOW: Duration = Duration::from_secs(1);

/// Writes that ended in a window.
#[derive(Debug, Clone, Copy, Default)]
struct Ended {
    count: u32,
    took: Duration,
}

/// Writes that ended within the last one to two seconds: this window's and the one's before.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    now: Ended,
    before: Ended,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            now: Ended::default(),
            before: Ended::default(),
        }
    }

    /// Notes a write that ended at `now`.
    pub(super) fn took(&mut self, took: Duration, now: Instant) {
        self.turn(now);
        self.now.count = self.now.count.saturating_add(1);
        self.now.took = self.now.took.saturating_add(took);
    }

    /// Mean of what has ended lately; `None` if nothing has.
    fn mean(&mut self, now: Instant) -> Option<Duration> {
        self.turn(now);
        let took = self.now.took.saturating_add(self.before.took);
        took.checked_div(self.now.count.saturating_add(self.before.count))
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age < WINDOW {
            return;
        }
        let ended = std::mem::take(&mut self.now);
        self.before = if age < 2 * WINDOW {
            ended
        } else {
            Ended::default()
        };
        self.began = now;
    }
}

impl Core {
    /// How long a durable write takes now: the mean of those that ended within the last one to two
    /// seconds, or the age of the oldest one under way, or how long an append has been waiting for
    /// the next segment to be made, whichever is most. `None` if there was nothing to write.
    pub(super) fn write_latency(&mut self, now: Instant) -> Option<Duration> {
        let oldest = self.ops.iter().find(|op| op.state == State::Writing);
        let age = |since: Instant| now.saturating_duration_since(since);
        let starved = self.starved_since.filter(|_| self.port().is_wanted());
        self.pace
            .mean(now)
            .max(oldest.map(|op: &Op| age(op.started)))
            .max(starved.map(age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_forgets_after_two_windows() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::new(start);
        assert_eq!(pace.mean(at(10)), None);
        pace.took(Duration::from_millis(10), at(100));
        pace.took(Duration::from_millis(30), at(900));
        assert_eq!(pace.mean(at(950)), Some(Duration::from_millis(20)));
        // The next window still knows the one before.
        pace.took(Duration::from_millis(80), at(1_100));
        assert_eq!(pace.mean(at(1_500)), Some(Duration::from_millis(40)));
        assert_eq!(pace.mean(at(2_200)), Some(Duration::from_millis(80)));
        assert_eq!(pace.mean(at(3_300)), None);
        // After a long silence, nothing old counts as the window before.
        pace.took(Duration::from_millis(5), at(3_400));
        assert_eq!(pace.mean(at(9_000)), None);
    }
}

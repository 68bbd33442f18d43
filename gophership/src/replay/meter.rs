//! Rates as people read them: of the last second, and smoothed for estimates.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// Measures over windows of a second.
#[derive(Debug)]
pub(super) struct Meter {
    since: Instant,
    records: u64,
    bytes: u64,
    bytes_last: u64,
    /// Of records; each window counts a quarter.
    smoothed: Option<u64>,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            records: 0,
            bytes: 0,
            bytes_last: 0,
            smoothed: None,
        }
    }

    pub(super) fn add(&mut self, records: u64, bytes: u64, now: Instant) {
        self.roll(now);
        self.records += records;
        self.bytes += bytes;
    }

    /// Records a second, smoothed, and bytes a second in the last window.
    pub(super) fn rates(&mut self, now: Instant) -> (u64, u64) {
        self.roll(now);
        (self.smoothed.unwrap_or(0), self.bytes_last)
    }

    fn roll(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return;
        }
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
        let a_second = |sum: u64| sum.saturating_mul(1000) / millis;
        self.bytes_last = a_second(self.bytes);
        let records = a_second(self.records);
        self.smoothed = match (self.smoothed, records) {
            // What comes after a pause says nothing about before it.
            (None | Some(_), 0) => None,
            (None, records) => Some(records),
            (Some(before), records) => Some((before.saturating_mul(3) + records) / 4),
        };
        (self.records, self.bytes, self.since) = (0, 0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_second_and_an_estimate_smooth() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.add(100, 5000, start);
        assert_eq!(meter.rates(start + WINDOW / 2), (0, 0), "not known yet");
        assert_eq!(meter.rates(start + WINDOW), (100, 5000));
        meter.add(500, 100, start + WINDOW);
        assert_eq!(meter.rates(start + WINDOW * 2), (200, 100));
        assert_eq!(meter.rates(start + WINDOW * 4), (0, 0), "it has paused");
        meter.add(30, 30, start + WINDOW * 4);
        assert_eq!(meter.rates(start + WINDOW * 6), (15, 15));
    }
}

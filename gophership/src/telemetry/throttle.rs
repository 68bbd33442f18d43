//! Lines of the log that anybody can cause: so many a period, and how many were left out.

use std::time::{Duration, Instant};

/// Lines in one period.
const LINES_MAX: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Keeps one kind of line from flooding the log.
#[derive(Debug)]
pub struct Throttle {
    period_began: Instant,
    lines: u32,
    left_out: u64,
}

impl Throttle {
    /// Nothing was said yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            period_began: now,
            lines: 0,
            left_out: 0,
        }
    }

    /// Whether one more line may be written: with how many were left out since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.period_began) >= PERIOD {
            (self.period_began, self.lines) = (now, 0);
        }
        if self.lines == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_some_lines_a_period_and_what_was_left_out_is_told() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let said = |throttle: &mut Throttle, at| {
            (0..1000)
                .filter_map(|_| throttle.admit(at))
                .collect::<Vec<_>>()
        };
        assert_eq!(said(&mut throttle, start), [0; 10]);
        assert!(said(&mut throttle, start + PERIOD / 2).is_empty());
        let next = said(&mut throttle, start + PERIOD);
        assert_eq!(next.len(), 10);
        assert_eq!((next[0], next[1]), (1990, 0));
    }
}

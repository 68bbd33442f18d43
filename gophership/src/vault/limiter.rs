//! Keeping to a rate that may change, or become 0, at any time.

use std::time::{Duration, Instant};

/// What may be caught up with after a pause, as a time at the rate.
const BURST: Duration = Duration::from_millis(100);
/// Longest wait that is told; the rate may have changed by then.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Work is done first and paid for by waiting. A change of the rate counts at once for what is still
/// to be paid.
#[derive(Debug, Clone, Copy)]
pub struct Limiter {
    /// Bytes not yet paid for; negative: credit.
    debt: i128,
    paid_until: Instant,
}

impl Limiter {
    /// Nothing is to be paid for yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            debt: 0,
            paid_until: now,
        }
    }

    /// `bytes` of work have been done.
    pub fn spent(&mut self, bytes: u64) {
        self.debt = self.debt.saturating_add(i128::from(bytes));
    }

    /// `bytes` of what was [`Self::spent`] were in vain.
    pub fn returned(&mut self, bytes: u64) {
        self.debt = self.debt.saturating_sub(bytes.into());
    }

    /// How long to wait, as far as is known now, before more work is done at `rate` bytes a second,
    /// which has been the rate since the last call; `None` if none may be done at all.
    pub fn wait(&mut self, rate: u64, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.paid_until);
        self.paid_until = self.paid_until.max(now);
        self.debt = (self.debt - bytes_in(rate, passed)).max(-bytes_in(rate, BURST));
        if rate == 0 {
            return None;
        }
        let owed = u128::try_from(self.debt).unwrap_or(0);
        let nanos = owed.saturating_mul(1_000_000_000) / u128::from(rate);
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Some(wait.min(WAIT_MAX))
    }
}

fn bytes_in(rate: u64, time: Duration) -> i128 {
    let bytes = u128::from(rate).saturating_mul(time.as_nanos()) / 1_000_000_000;
    i128::try_from(bytes).unwrap_or(i128::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_is_kept_with_a_small_burst() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert_eq!(limiter.wait(1000, start), Some(Duration::ZERO));
        limiter.spent(1000);
        assert_eq!(limiter.wait(1000, start), Some(SECOND));
        assert_eq!(limiter.wait(1000, start + SECOND / 4), Some(SECOND * 3 / 4));
        let late = start + SECOND * 60;
        assert_eq!(limiter.wait(1000, late), Some(Duration::ZERO));
        limiter.spent(1000);
        assert_eq!(limiter.wait(1000, late), Some(SECOND - BURST));
    }

    #[test]
    fn what_was_in_vain_is_not_paid_for() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        for _ in 0..1000 {
            limiter.spent(1000);
            limiter.returned(1000);
        }
        assert_eq!(limiter.wait(1000, start), Some(Duration::ZERO));
        limiter.spent(1000);
        assert_eq!(limiter.wait(1000, start), Some(SECOND));
    }

    #[test]
    fn a_change_of_the_rate_counts_at_once() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        limiter.spent(1000);
        assert_eq!(
            limiter.wait(10, start),
            Some(WAIT_MAX),
            "100 s at this rate"
        );
        assert_eq!(limiter.wait(0, start), None);
        assert_eq!(limiter.wait(0, start + SECOND), None, "nothing is paid off");
        assert_eq!(limiter.wait(2000, start + SECOND), Some(SECOND / 2));
        limiter.spent(u64::MAX);
        assert_eq!(limiter.wait(1, start + SECOND), Some(WAIT_MAX));
    }
}

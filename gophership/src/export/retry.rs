//! How long to wait after a failure.

use std::time::Duration;

/// The waits between attempts at one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// After the first failure.
    pub initial: Duration,
    /// At most, before the jitter.
    pub max: Duration,
    /// From one failure to the next, in thousandths.
    pub multiplier_permille: u32,
    /// Give or take this share of the wait, in thousandths.
    pub jitter_permille: u32,
}

/// What a destination may ask for at most: a bogus delay must not shut it out for good.
const ASKED_MAX: Duration = Duration::from_secs(300);

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(10),
            multiplier_permille: 2000,
            jitter_permille: 200,
        }
    }
}

impl Retry {
    /// The wait after `failures` failures in a row and one more. `chance` decides where in the jitter's range it is.
    #[must_use]
    pub fn backoff(&self, failures: u32, chance: u64) -> Duration {
        let factor = f64::from(self.multiplier_permille) / 1000.0;
        let grown = factor.powf(f64::from(failures.min(1000)));
        let grown = (self.initial.as_secs_f64() * grown).min(self.max.as_secs_f64());
        Duration::from_secs_f64(grown * (1.0 + self.jitter() * (2.0 * share(chance) - 1.0)))
    }

    /// How long one that asked for `asked` isn't tried; never less. It comes beside the backoff, not in its place: a
    /// server that asks for nothing, or for a time that has passed, must not be called in a loop.
    #[must_use]
    pub fn asked(&self, asked: Duration, chance: u64) -> Duration {
        asked
            .min(ASKED_MAX)
            .mul_f64(1.0 + self.jitter() * share(chance))
    }

    fn jitter(&self) -> f64 {
        f64::from(self.jitter_permille) / 1000.0
    }
}

/// From 0 to below 1.
fn share(chance: u64) -> f64 {
    // 20 bits are enough to spread the waits, and exact in what follows.
    f64::from(u32::try_from(chance >> 44).unwrap_or(0)) / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: u64 = 1 << 63;

    #[test]
    fn waits_grow_by_the_multiplier_up_to_the_longest() {
        let waits = |retry: Retry, failures| {
            let wait = |failures| retry.backoff(failures, MIDDLE).as_millis();
            Vec::from_iter(failures)
                .into_iter()
                .map(wait)
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(Retry::default(), 0..4), [100, 200, 400, 800]);
        assert_eq!(waits(Retry::default(), 7..8), [10_000]);
        let slower = Retry {
            multiplier_permille: 1500,
            ..Retry::default()
        };
        assert_eq!(waits(slower, 0..3), [100, 150, 225]);
        assert_eq!(waits(slower, u32::MAX - 1..u32::MAX), [10_000]);
    }

    #[test]
    fn jitter_spreads_the_waits_and_never_comes_before_what_was_asked() {
        let retry = Retry::default();
        let seconds = |chance| retry.backoff(20, chance).as_secs_f64();
        assert!((seconds(0) - 8.0).abs() < 0.01 && (seconds(u64::MAX) - 12.0).abs() < 0.01);
        let asked = Duration::from_secs(7);
        assert_eq!(retry.asked(asked, 0), asked);
        let latest = retry.asked(asked, u64::MAX);
        assert!(latest > asked && latest < asked.mul_f64(1.21));
        let bogus = retry.asked(Duration::MAX, u64::MAX);
        assert!(bogus <= ASKED_MAX.mul_f64(1.2));
    }
}

//! Rates, and what they lead to: when the ingest budget will be spent.

use crate::signal::TIME_TO_FULL_MAX_US;

/// `amount` a second, if it came within `elapsed_ns`; 0 within no time.
#[must_use]
#[inline(always)]
pub const fn rate_per_second(amount: u64, elapsed_ns: u64) -> u64 {
    // To the microsecond: the product stays below 2^64 for 16 TiB.
    match (amount * 1_000_000).checked_div(elapsed_ns / 1000) {
        Some(rate) => rate,
        None => 0,
    }
}

/// `part_us` microseconds as a share of `elapsed_ns`, at most 1000 permille.
#[must_use]
#[inline(always)]
pub const fn share_permille(part_us: u64, elapsed_ns: u64) -> u64 {
    match (part_us * 1000).checked_div(elapsed_ns / 1000) {
        Some(share) if share < 1000 => share,
        Some(_) => 1000,
        None => 0,
    }
}

/// What arrives, what of it is still unread or unanswered, and what room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ingress {
    /// Bytes unread in receive queues and in use of the ingest budget.
    pub backlog_bytes: u64,
    /// The same, `elapsed_ns` ago.
    pub backlog_before_bytes: u64,
    /// Between the two.
    pub elapsed_ns: u64,
    /// The ingest budget.
    pub limit_bytes: u64,
    /// Bytes a second over the last second.
    pub rate: u64,
    /// Bytes a second over the last 10 s.
    pub rate_long: u64,
}

impl Ingress {
    /// How much the rate grows, bytes a second for each second; 0 while it falls.
    #[must_use]
    #[inline(always)]
    pub const fn slope(&self) -> u64 {
        // The middles of the two windows are 4.5 s apart.
        self.rate.saturating_sub(self.rate_long) * 2 / 9
    }

    /// Microseconds until the backlog is as large as the budget, at most [`TIME_TO_FULL_MAX_US`].
    ///
    /// Only a backlog that is both growing and a quarter of the budget already counts: below that, a
    /// burst that is being worked off looks the same. A growing backlog means that the engine works
    /// as fast as it can, so that the rate's own growth, over half of the horizon, comes on top.
    #[must_use]
    #[inline(always)]
    pub const fn time_to_full_us(&self, horizon_ns: u64) -> u64 {
        let growth = self.backlog_bytes.saturating_sub(self.backlog_before_bytes);
        if growth == 0 || self.backlog_bytes < self.limit_bytes / 4 {
            return TIME_TO_FULL_MAX_US;
        }
        // An hour ahead at a TiB a second each second, at most: the product stays below 2^64.
        let horizon_ms = at_most(horizon_ns / 1_000_000, TIME_TO_FULL_MAX_US / 1000);
        let to_come = at_most(self.slope(), 1 << 40) * horizon_ms / 2000;
        let growth = rate_per_second(growth, self.elapsed_ns) + to_come;
        let room = self.limit_bytes.saturating_sub(self.backlog_bytes);
        match (room * 1_000_000).checked_div(growth) {
            Some(us) if us < TIME_TO_FULL_MAX_US => us,
            Some(_) | None => TIME_TO_FULL_MAX_US,
        }
    }
}

const fn at_most(value: u64, limit: u64) -> u64 {
    if value < limit { value } else { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    fn growing() -> Ingress {
        Ingress {
            backlog_bytes: 40 * MIB,
            backlog_before_bytes: 20 * MIB,
            elapsed_ns: SECOND_NS,
            limit_bytes: 100 * MIB,
            rate: 50 * MIB,
            rate_long: 50 * MIB,
        }
    }

    #[test]
    fn a_steady_growth_fills_the_rest_in_proportion() {
        assert_eq!(growing().time_to_full_us(SECOND_NS), 3_000_000);
        let full = Ingress {
            backlog_bytes: 200 * MIB,
            ..growing()
        };
        assert_eq!(full.time_to_full_us(SECOND_NS), 0);
    }

    #[test]
    fn a_rising_rate_brings_it_forward() {
        // 45 MiB/s more in 4.5 s: 10 MiB/s each second; half a horizon of 2 s ahead.
        let rising = Ingress {
            rate: 95 * MIB,
            ..growing()
        };
        assert_eq!(rising.slope(), 10 * MIB);
        assert_eq!(rising.time_to_full_us(2 * SECOND_NS), 2_000_000);
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let absurd = Ingress {
            rate: u64::MAX >> 1,
            rate_long: 0,
            ..growing()
        };
        assert_eq!(absurd.time_to_full_us(u64::MAX), 0);
    }

    #[test]
    fn what_shrinks_or_is_small_never_fills() {
        let shrinking = Ingress {
            backlog_before_bytes: 41 * MIB,
            rate: 1000 * MIB,
            ..growing()
        };
        let small = Ingress {
            backlog_bytes: 24 * MIB,
            ..growing()
        };
        for ingress in [shrinking, small] {
            assert_eq!(ingress.time_to_full_us(SECOND_NS), TIME_TO_FULL_MAX_US);
        }
    }

    #[test]
    fn shares_and_rates_of_no_time_are_nothing() {
        assert_eq!(share_permille(5, 0), 0);
        assert_eq!(rate_per_second(5, 999), 0);
        assert_eq!(share_permille(250_000, SECOND_NS), 250);
        assert_eq!(share_permille(2_000_000, SECOND_NS), 1000);
        assert_eq!(rate_per_second(3 * MIB, SECOND_NS / 2), 6 * MIB);
    }
}

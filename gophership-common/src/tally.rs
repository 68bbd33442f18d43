//! Sums the engine's report into [`Signals`]; both halves feed it one worker line at a time.

use crate::branchless::{Earliest, greatest};
use crate::pages::{BUDGETS, Levels, Posted, WorkerLine};
use crate::signal::{SIGNALS, Signal};

/// A posted sample older than this reads as unavailable.
pub const POSTED_MAX_AGE_NS: u64 = 2_000_000_000;

/// What user space samples, in the order of [`Posted::values`].
pub const POSTED: [Signal; 5] = [
    Signal::MemoryAvailable,
    Signal::MemoryPressure,
    Signal::MemoryPressureCgroup,
    Signal::CpuPressure,
    Signal::IoPressure,
];

/// [`Signal::bit`]s of [`POSTED`].
const POSTED_BITS: u64 = {
    let (mut bits, mut index) = (0, 0);
    while index < POSTED.len() {
        bits |= POSTED[index].bit();
        index += 1;
    }
    bits
};

/// `part` in permille of `whole`, below [`Levels::OFF`]; 0 of 0 is 0, and anything else of 0 is the
/// most.
#[must_use]
pub const fn permille(part: u64, whole: u64) -> u32 {
    const MOST: u32 = Levels::OFF - 1;
    // No 128-bit product: the eBPF target has none. Beyond 2^52 the low bits don't matter.
    let (part, whole) = if part >> 52 == 0 {
        (part, whole)
    } else {
        (part >> 12, whole >> 12)
    };
    if whole == 0 {
        return if part == 0 { 0 } else { MOST };
    }
    let share = part * 1000 / whole;
    if share > MOST as u64 {
        MOST
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "compared with the limit above"
        )]
        {
            share as u32
        }
    }
}

/// The engine's report, being added up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    oldest_heartbeat: Earliest,
    used: [u64; BUDGETS],
    limit: [u64; BUDGETS],
    vault_write_us: u64,
    vault_written: u64,
}

impl Tally {
    /// Adds one worker; a line nobody has written adds nothing, and a worker that hasn't started
    /// has no heartbeat to be late with.
    #[inline(always)]
    pub fn add(&mut self, line: &WorkerLine) {
        self.oldest_heartbeat.add(line.heartbeat_ns);
        let mut budget = 0;
        while budget < BUDGETS {
            self.used[budget] = self.used[budget].wrapping_add(line.used[budget]);
            self.limit[budget] = self.limit[budget].wrapping_add(line.limit[budget]);
            budget += 1;
        }
        self.vault_write_us = greatest(self.vault_write_us, line.vault_write_us);
        self.vault_written |= line.vault_write_at_ns;
    }

    /// Writes the engine's part of the reading; returns the [`Signal::bit`]s of what is available
    /// of it. What isn't reported is left as it is.
    #[must_use]
    #[inline(always)]
    pub const fn report(&self, posted: &Posted, now_ns: u64, values: &mut [u64; SIGNALS]) -> u64 {
        const BUDGET_SIGNALS: [Signal; BUDGETS] = [
            Signal::BudgetIngest,
            Signal::BudgetExport,
            Signal::BudgetVault,
        ];
        let mut available = 0;
        if let Some(age_ns) = self.oldest_heartbeat.age_ns(now_ns) {
            values[Signal::HeartbeatAge as usize] = age_ns / 1000;
            available |= Signal::HeartbeatAge.bit();
        }
        let mut budget = 0;
        while budget < BUDGETS {
            if self.limit[budget] != 0 {
                let signal = BUDGET_SIGNALS[budget];
                values[signal as usize] = permille(self.used[budget], self.limit[budget]) as u64;
                available |= signal.bit();
            }
            budget += 1;
        }
        if self.vault_written != 0 {
            values[Signal::VaultWrite as usize] = self.vault_write_us;
            available |= Signal::VaultWrite.bit();
        }
        if posted.at_ns != 0 && now_ns.saturating_sub(posted.at_ns) <= POSTED_MAX_AGE_NS {
            available |= posted.available & POSTED_BITS;
            let mut index = 0;
            while index < POSTED.len() {
                // A value beyond what the judge compares would wrap around there.
                values[POSTED[index] as usize] = posted.values[index] & ((1 << 32) - 1);
                index += 1;
            }
        }
        available
    }

    /// Bytes in use and allowed of the ingest budget.
    #[must_use]
    #[inline(always)]
    pub const fn ingest_budget(&self) -> (u64, u64) {
        (self.used[0], self.limit[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permille_is_exact_small_and_close_when_huge() {
        assert_eq!(permille(0, 0), 0);
        assert_eq!(permille(1, 3), 333);
        assert_eq!(permille(3, 2), 1500);
        assert_eq!(permille(u64::MAX, u64::MAX), 1000);
        for most in [permille(u64::MAX, 1), permille(1, 0)] {
            assert!(most < Levels::OFF, "what is off is never reached");
        }
    }

    #[test]
    fn what_was_posted_long_ago_is_not_available() {
        let posted = Posted {
            at_ns: 1,
            available: Signal::MemoryAvailable.bit(),
            values: [700, 0, 0, 0, 0],
            padding: [0; 1],
        };
        let mut values = [0; SIGNALS];
        let fresh = Tally::default().report(&posted, 1 + POSTED_MAX_AGE_NS, &mut values);
        assert_eq!(fresh, Signal::MemoryAvailable.bit());
        assert_eq!(values[Signal::MemoryAvailable as usize], 700);
        let stale = Tally::default().report(&posted, 2 + POSTED_MAX_AGE_NS, &mut values);
        assert_eq!(stale, 0);
    }
}

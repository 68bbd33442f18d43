//! Sums the engine's report into [`Signals`]; both halves feed it one worker line at a time.

use crate::branchless::Earliest;
use crate::pages::{BUDGETS, Policy, Posted, Signals, WorkerLine, available};

/// A posted sample older than this reads as unavailable.
pub const POSTED_MAX_AGE_NS: u64 = 2_000_000_000;

/// `part` in permille of `whole`, at most `u32::MAX`; 0 of 0 is 0, and anything else of 0 is the most.
#[must_use]
pub const fn permille(part: u64, whole: u64) -> u32 {
    // No 128-bit product: the eBPF target has none. Beyond 2^52 the low bits don't matter.
    let (part, whole) = if part >> 52 == 0 {
        (part, whole)
    } else {
        (part >> 12, whole >> 12)
    };
    if whole == 0 {
        return if part == 0 { 0 } else { u32::MAX };
    }
    let share = part * 1000 / whole;
    if share > u32::MAX as u64 {
        u32::MAX
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
}

impl Tally {
    /// Adds one worker; a line nobody has written adds nothing, and a worker that hasn't started
    /// has no heartbeat to be late with.
    #[inline(always)]
    pub fn add(&mut self, line: &WorkerLine) {
        self.oldest_heartbeat.add(line.heartbeat_ns);
        for budget in 0..BUDGETS {
            self.used[budget] = self.used[budget].wrapping_add(line.used[budget]);
            self.limit[budget] = self.limit[budget].wrapping_add(line.limit[budget]);
        }
    }

    /// The engine's part of the reading, with what `policy` says the probes measure marked
    /// available; the caller fills in the receive queue.
    #[must_use]
    #[inline(always)]
    pub const fn signals(&self, policy: &Policy, posted: &Posted, now_ns: u64) -> Signals {
        let mut available = policy.measured;
        let mut heartbeat_age_ns = 0;
        if let Some(age_ns) = self.oldest_heartbeat.age_ns(now_ns) {
            available |= available::HEARTBEAT;
            heartbeat_age_ns = age_ns;
        }
        let mut budget_permille = [0; BUDGETS];
        let mut budget = 0;
        while budget < BUDGETS {
            if self.limit[budget] != 0 {
                available |= available::BUDGET_INGEST << budget;
                budget_permille[budget] = permille(self.used[budget], self.limit[budget]);
            }
            budget += 1;
        }
        let mut memory_available_permille = 0;
        if posted.at_ns != 0 && now_ns.saturating_sub(posted.at_ns) <= POSTED_MAX_AGE_NS {
            available |= available::MEMORY_AVAILABLE;
            memory_available_permille = permille(posted.memory_available_permille, 1000);
        }
        Signals {
            available,
            receive_queue_permille: 0,
            receive_queue_stalled_ns: 0,
            sockets_above_yellow: 0,
            sockets_above_red: 0,
            heartbeat_age_ns,
            budget_permille,
            memory_available_permille,
        }
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
        assert_eq!(permille(u64::MAX, 1), u32::MAX);
    }
}

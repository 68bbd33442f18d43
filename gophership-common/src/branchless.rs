//! Arithmetic without branches, for the judge and the tick's loops.
//!
//! The verifier walks every path: a branch in the body of a loop of 256 rounds, or one for every
//! threshold, multiplies them beyond its limit of a million instructions.

/// The same value, of which the compiler knows nothing: it can neither turn arithmetic back into a
/// branch nor leave a mask away. Free: no instruction is emitted.
#[inline(always)]
#[must_use]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: empty; the value passes through unchanged.
        unsafe { core::arch::asm!("/* {0} */", inlateout(reg) value) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// The smaller of two numbers below 2^63.
#[inline(always)]
pub(crate) fn least(a: u64, b: u64) -> u64 {
    let difference = b.wrapping_sub(a);
    let borrow = opaque(difference.cast_signed().wrapping_shr(63).cast_unsigned());
    a.wrapping_add(difference & borrow)
}

/// The greater of two numbers below 2^63.
#[inline(always)]
#[must_use]
pub fn greatest(a: u64, b: u64) -> u64 {
    a.wrapping_add(b).wrapping_sub(least(a, b))
}

/// 1 if `value` is at least `threshold`, else 0; both below 2^63.
#[inline(always)]
#[must_use]
pub fn reached(value: u64, threshold: u64) -> u64 {
    opaque(value.wrapping_sub(threshold) >> 63) ^ 1
}

/// 1 if `value` is 0, else 0.
#[inline(always)]
#[must_use]
pub fn is_zero(value: u64) -> u64 {
    opaque(value | value.wrapping_neg()) >> 63 ^ 1
}

/// Finds the earliest of several times, of which 0 means "never".
#[derive(Debug, Clone, Copy)]
pub struct Earliest(u64);

impl Default for Earliest {
    fn default() -> Self {
        Self(Self::NEVER)
    }
}

impl Earliest {
    /// 0 wraps around to the latest: one less, within 63 bits.
    const NEVER: u64 = u64::MAX >> 1;

    /// Takes one more time into account.
    #[inline(always)]
    pub fn add(&mut self, time_ns: u64) {
        self.0 = least(self.0, time_ns.wrapping_sub(1) & Self::NEVER);
    }

    /// How long before `now_ns` the earliest was; `None` if there was none.
    #[inline(always)]
    #[must_use]
    pub const fn age_ns(self, now_ns: u64) -> Option<u64> {
        if self.0 == Self::NEVER {
            return None;
        }
        Some(now_ns.saturating_sub(self.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_and_greatest_agree_with_min_and_max() {
        let numbers = [0, 1, 2, 999, 1 << 40, (u64::MAX >> 1) - 1, u64::MAX >> 1];
        for a in numbers {
            for b in numbers {
                assert_eq!((least(a, b), greatest(a, b)), (a.min(b), a.max(b)));
                assert_eq!(reached(a, b), u64::from(a >= b));
            }
        }
    }

    #[test]
    fn only_zero_is_zero() {
        assert_eq!(is_zero(0), 1);
        for value in [1, 2, 1 << 62, 1 << 63, u64::MAX] {
            assert_eq!(is_zero(value), 0, "{value}");
        }
    }

    #[test]
    fn the_earliest_time_ignores_never() {
        let mut earliest = Earliest::default();
        assert_eq!(earliest.age_ns(1000), None);
        for time_ns in [0, 700, 300, 0] {
            earliest.add(time_ns);
        }
        assert_eq!(earliest.age_ns(1000), Some(700));
        assert_eq!(
            earliest.age_ns(200),
            Some(0),
            "a time of the future is just now"
        );
    }
}

//! Delays that are told to many at once, spread so that not all come again together.

use std::time::Duration;

/// Give or take, in thousandths.
const JITTER: u64 = 200;

/// About as long: where in the range, `chance` decides, which may be any number that differs from one refusal to the next.
pub(crate) fn jittered(delay: Duration, chance: u64) -> Duration {
    // The finalizer of SplitMix64: neighbours come out far apart.
    let mut mixed = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let thousandths = 1000 - JITTER + (mixed ^ (mixed >> 31)) % (2 * JITTER + 1);
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis.saturating_mul(thousandths) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_chances_spread_over_a_fifth_either_way() {
        let delay = Duration::from_secs(10);
        let all: Vec<_> = (0..10_000).map(|chance| jittered(delay, chance)).collect();
        let (least, most) = (Duration::from_secs(8), Duration::from_secs(12));
        assert!(all.iter().all(|after| (least..=most).contains(after)));
        for second in 8..12 {
            let range = Duration::from_secs(second)..Duration::from_secs(second + 1);
            let inside = all.iter().filter(|after| range.contains(*after)).count();
            assert!((2_000..3_000).contains(&inside), "{inside} in {range:?}");
        }
        assert_eq!(jittered(delay, 7), jittered(delay, 7));
    }
}

//! When those whom a full vault refuses should come again: when replay will have made room, as far as can be told, and
//! not all at once.

use std::time::Duration;

/// Also where nobody can tell.
pub(super) const EARLIEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_mins(5);
/// Give or take, in thousandths.
const JITTER: u64 = 200;

/// How long `owed` records take at `rate` records a second: with the last of them goes the oldest segment. By records,
/// because replay and the segments count those alike: the files are compressed, what replay sends isn't.
pub(super) fn time_to_room(owed: u64, rate: u64) -> Duration {
    let millis = owed.saturating_mul(1000).checked_div(rate);
    millis.map_or(EARLIEST, |millis| {
        Duration::from_millis(millis).clamp(EARLIEST, LATEST)
    })
}

/// About as long: where in the range, `chance` decides, which may be any number that differs from one refusal to the next.
pub(super) fn jittered(delay: Duration, chance: u64) -> Duration {
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
    fn the_time_to_room_is_what_is_owed_over_the_rate_within_bounds() {
        let table = [
            // (owed, rate, milliseconds)
            (0, 0, 1_000),
            (1_000_000, 0, 1_000),
            (0, 500, 1_000),
            (10, 500, 1_000),
            (500, 500, 1_000),
            (501, 500, 1_002),
            (60_000, 500, 120_000),
            (150_000, 500, 300_000),
            (150_001, 500, 300_000),
            (1, u64::MAX, 1_000),
            (u64::MAX, 1, 300_000),
            (u64::MAX, u64::MAX, 1_000),
        ];
        for (owed, rate, millis) in table {
            let expected = Duration::from_millis(millis);
            assert_eq!(time_to_room(owed, rate), expected, "{owed} at {rate}/s");
        }
    }

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

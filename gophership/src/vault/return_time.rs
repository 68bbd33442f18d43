//! When those whom a full vault refuses should come again: when replay will have made room, as far as can be told, and
//! not all at once.

use std::time::Duration;

/// Also where nobody can tell.
pub(super) const EARLIEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_mins(5);

/// How long `owed` records take at `rate` records a second: with the last of them goes the oldest segment. By records,
/// because replay and the segments count those alike: the files are compressed, what replay sends isn't.
pub(super) fn time_to_room(owed: u64, rate: u64) -> Duration {
    let millis = owed.saturating_mul(1000).checked_div(rate);
    millis.map_or(EARLIEST, |millis| {
        Duration::from_millis(millis).clamp(EARLIEST, LATEST)
    })
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
}

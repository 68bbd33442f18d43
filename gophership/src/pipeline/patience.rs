//! How long a request waits for its destinations before the vault acknowledges it.
//!
//! Who sends one request at a time pays for every wait, and one for a destination that is further away than `ack_within`
//! is in vain. It isn't made, then; but what others will have by a little later should not be owed to them.

use std::time::Duration;

/// The wait for destinations of which each takes as long as `times` has it, zero if that isn't known: `limit`, unless one
/// takes longer than that; then twice what the slowest of the others does.
pub(super) fn patience(times: impl Iterator<Item = Duration>, limit: Duration) -> Duration {
    let mut slowest_near = Duration::ZERO;
    let mut is_one_far = false;
    for time in times {
        if time > limit {
            is_one_far = true;
        } else {
            slowest_near = slowest_near.max(time);
        }
    }
    if is_one_far {
        limit.min(slowest_near * 2)
    } else {
        limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_what_is_too_far_away() {
        let limit = Duration::from_millis(20);
        let cases: &[(&[u64], u64)] = &[
            (&[], 20),
            (&[0], 20),
            (&[20], 20),
            (&[21], 0),
            (&[300, 400], 0),
            (&[3, 19], 20),
            (&[3, 300], 6),
            (&[300, 15], 20),
            (&[0, 300], 0),
        ];
        for (times, expected) in cases {
            let times = times.iter().map(|ms| Duration::from_millis(*ms));
            let wait = patience(times.clone(), limit);
            assert_eq!(wait.as_millis(), u128::from(*expected), "{times:?}");
        }
    }
}

//! When those who are refused for want of memory should come again: when what is held and waited for will have been given
//! back, at the rate at which requests gave bytes back lately, and not all at once.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::jitter::jittered;

/// Where nobody can tell.
const USUAL: Duration = Duration::from_secs(1);
const EARLIEST: Duration = Duration::from_millis(500);
const LATEST: Duration = Duration::from_secs(30);
/// Over about so long the rate is a mean.
const OVER: Duration = Duration::from_secs(2);

/// What requests give back.
#[derive(Debug, Default)]
pub(super) struct Releases {
    /// Bytes a second; 0: not known.
    rate: AtomicU64,
    last: Mutex<Option<(Instant, usize)>>,
    /// Tells one refusal from the next.
    refusals: AtomicU64,
}

impl Releases {
    /// `released` bytes were given back ever, and `held` are held now. While nothing is held nothing can be given back,
    /// which says nothing of the rate.
    pub(super) fn measure(&self, released: usize, held: usize, now: Instant) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((at, before)) = last.replace((now, released)) else {
            return;
        };
        let given = released.wrapping_sub(before) as u64;
        if given == 0 && held == 0 {
            return;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (over, elapsed) = (millis(OVER), millis(now.saturating_duration_since(at)));
        let rate = self.rate.load(Relaxed);
        let weighed = rate.saturating_mul(over);
        let sum = weighed.saturating_add(given.saturating_mul(1000));
        let next = sum / over.saturating_add(elapsed);
        // Once it is known it stays so, however low it is.
        self.rate.store(next.max(rate.min(1)), Relaxed);
    }

    /// How long until as much as is `outstanding` has been given back, give or take.
    pub(super) fn return_time(&self, outstanding: usize) -> Duration {
        let millis = (outstanding as u64).saturating_mul(1000);
        let time = millis.checked_div(self.rate.load(Relaxed));
        let time = time.map_or(USUAL, Duration::from_millis);
        let chance = self.refusals.fetch_add(1, Relaxed);
        jittered(time.clamp(EARLIEST, LATEST), chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    /// About so many seconds.
    #[track_caller]
    fn about(seconds: f64, time: Duration) {
        let (least, most) = (seconds * 0.75, seconds * 1.25);
        assert!((least..most).contains(&time.as_secs_f64()), "{time:?}");
    }

    #[test]
    fn it_is_what_is_outstanding_over_the_rate_within_bounds() {
        let releases = Releases::default();
        about(1.0, releases.return_time(1 << 30));
        let (mut now, mut released) = (Instant::now(), 0);
        for _ in 0..200 {
            releases.measure(released, 1, now);
            (now, released) = (now + STEP, released + 100_000);
        }
        for (outstanding, seconds) in [
            (0, 0.5),
            (1_000_000, 1.0),
            (7_000_000, 7.0),
            (1 << 40, 30.0),
            (usize::MAX, 30.0),
        ] {
            about(seconds, releases.return_time(outstanding));
        }
        // Nothing was asked for meanwhile.
        for _ in 0..1000 {
            releases.measure(released - 100_000, 0, now);
            now += STEP;
        }
        about(7.0, releases.return_time(7_000_000));
        // Nothing is given back.
        for _ in 0..1000 {
            releases.measure(released - 100_000, 1, now);
            now += STEP;
        }
        about(30.0, releases.return_time(7_000_000));
    }

    #[test]
    fn not_all_come_at_once() {
        let releases = Releases::default();
        let mut times: Vec<_> = (0..100).map(|_| releases.return_time(1)).collect();
        times.sort_unstable();
        times.dedup();
        assert!(times.len() > 50, "{} different times", times.len());
        assert!(times[0] >= USUAL * 4 / 5 && times[times.len() - 1] <= USUAL * 6 / 5);
    }
}

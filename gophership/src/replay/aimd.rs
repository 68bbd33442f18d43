//! How much of its rate a destination's replay uses: less at once when somebody suffers, more bit by bit.
//!
//! Additive increase, multiplicative decrease, as TCP finds a rate that nobody tells it (Chiu and Jain 1989): the share
//! halves when the destination throttles or fails and when the zone worsens, and grows by a tenth of the full rate
//! for each second in which deliveries succeed. It never falls below a 64th: enough to find out that the trouble is over.

use std::time::{Duration, Instant};

use gophership_common::Zone;

use super::pacer::FULL;

/// Least share, in thousandths.
const LEAST: u32 = FULL / 64;
/// Growth in a second of deliveries, in thousandths.
const GROWTH_PER_SECOND: u128 = FULL as u128 / 10;
/// What a pause between two deliveries counts for at most.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Who made the share smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Culprit {
    /// The destination throttled or failed.
    Destination,
    /// The zone went up.
    Zone,
}

/// The share of one destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aimd {
    share: u32,
    culprit: Culprit,
    zone: Zone,
    /// Of the destination, at the last look.
    failures: u64,
    /// Growth is counted from here.
    counted_to: Instant,
}

impl Aimd {
    /// All of the rate, of a destination that has failed so often.
    pub(super) fn new(zone: Zone, failures: u64, now: Instant) -> Self {
        Self {
            share: FULL,
            culprit: Culprit::Destination,
            zone,
            failures,
            counted_to: now,
        }
    }

    /// The share, in thousandths.
    pub(super) fn share(&self) -> u32 {
        self.share
    }

    /// Who made it smaller, last; `None` if it is all of the rate.
    pub(super) fn culprit(&self) -> Option<Culprit> {
        (self.share < FULL).then_some(self.culprit)
    }

    /// Looks whether the zone is worse than at the last look, and whether the destination has failed or throttled
    /// since, be it the replay or live traffic that was refused. What is refused at once is one reason to halve.
    pub(super) fn look(&mut self, zone: Zone, failures: u64, now: Instant) {
        if failures > self.failures {
            self.halve(Culprit::Destination, now);
        }
        if zone > self.zone {
            self.halve(Culprit::Zone, now);
        }
        (self.zone, self.failures) = (zone, failures);
    }

    /// One failure more, which tells nothing of the rate.
    pub(super) fn excuse(&mut self) {
        self.failures += 1;
    }

    /// The destination took a batch.
    pub(super) fn accepted(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_to);
        let grown = GROWTH_PER_SECOND * passed.min(PAUSE_MAX).as_millis() / 1000;
        // What is too short to count for anything yet is kept.
        if grown > 0 {
            self.counted_to = now;
            let grown = u32::try_from(grown).unwrap_or(FULL);
            self.share = (self.share + grown).min(FULL);
        }
    }

    fn halve(&mut self, culprit: Culprit, now: Instant) {
        self.share = (self.share / 2).max(LEAST);
        self.culprit = culprit;
        self.counted_to = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// One more failure.
    fn fail(aimd: &mut Aimd, now: Instant) {
        aimd.look(aimd.zone, aimd.failures + 1, now);
    }

    /// Deliveries that succeed, ten a second.
    fn deliver(aimd: &mut Aimd, from: Instant, seconds: u32) -> Instant {
        for tick in 1..=seconds * 10 {
            aimd.accepted(from + SECOND / 10 * tick);
        }
        from + SECOND * seconds
    }

    #[test]
    fn throttling_halves_and_success_adds() {
        let start = Instant::now();
        let mut aimd = Aimd::new(Zone::Green, 7, start);
        assert_eq!((aimd.share(), aimd.culprit()), (1000, None));
        fail(&mut aimd, start);
        assert_eq!(
            (aimd.share(), aimd.culprit()),
            (500, Some(Culprit::Destination))
        );
        fail(&mut aimd, start);
        assert_eq!(aimd.share(), 250);
        // By the same step, however small it has become.
        let mut now = start;
        for share in [350, 450, 550] {
            now = deliver(&mut aimd, now, 1);
            assert_eq!(aimd.share(), share);
        }
        deliver(&mut aimd, now, 60);
        assert_eq!((aimd.share(), aimd.culprit()), (1000, None));
    }

    #[test]
    fn what_fails_between_two_looks_is_one_reason() {
        let start = Instant::now();
        let mut aimd = Aimd::new(Zone::Green, 7, start);
        aimd.look(Zone::Green, 7, start);
        assert_eq!(aimd.share(), 1000, "it had failed before");
        aimd.look(Zone::Green, 39, start);
        aimd.look(Zone::Green, 39, start);
        assert_eq!(aimd.share(), 500);
    }

    #[test]
    fn only_a_worse_zone_halves() {
        let start = Instant::now();
        let mut aimd = Aimd::new(Zone::Green, 7, start);
        for (zone, share) in [
            (Zone::Green, 1000),
            (Zone::Yellow, 500),
            (Zone::Yellow, 500),
            (Zone::Red, 250),
            (Zone::Yellow, 250),
            (Zone::Green, 250),
            (Zone::Red, 125),
        ] {
            aimd.look(zone, 7, start);
            assert_eq!(aimd.share(), share, "{zone:?}");
        }
        assert_eq!(aimd.culprit(), Some(Culprit::Zone));
    }

    #[test]
    fn however_much_it_fails_something_is_left_to_find_out_that_it_is_over() {
        let start = Instant::now();
        let mut aimd = Aimd::new(Zone::Green, 7, start);
        for _ in 0..1000 {
            fail(&mut aimd, start);
        }
        assert_eq!(aimd.share(), LEAST);
        assert_eq!(deliver(&mut aimd, start, 9), start + SECOND * 9);
        assert_eq!(aimd.share(), LEAST + 900);
    }

    #[test]
    fn time_without_deliveries_adds_next_to_nothing() {
        let start = Instant::now();
        let mut aimd = Aimd::new(Zone::Green, 7, start);
        fail(&mut aimd, start);
        let hour = start + SECOND * 3600;
        aimd.accepted(hour);
        assert_eq!(aimd.share(), 600);
        // Nor is what comes quicker than a step lost: a thousandth takes 10 ms.
        for millis in 1..=100 {
            aimd.accepted(hour + Duration::from_millis(millis));
        }
        assert_eq!(aimd.share(), 610);
    }

    #[test]
    fn a_destination_that_throttles_above_a_rate_is_kept_near_it() {
        let start = Instant::now();
        let mut aimd = Aimd::new(Zone::Green, 7, start);
        let (mut sum, mut throttles) = (0, 0);
        // Ten batches a second for five minutes; it takes 30 % of the full rate.
        for tick in 1..=3000 {
            let now = start + SECOND / 10 * tick;
            if aimd.share() > 300 {
                fail(&mut aimd, now);
                throttles += 1;
            } else {
                aimd.accepted(now);
            }
            sum += aimd.share();
        }
        assert!(
            (200..300).contains(&(sum / 3000)),
            "{} on average",
            sum / 3000
        );
        assert!(throttles < 300, "{throttles} of 3000 batches in vain");
    }
}

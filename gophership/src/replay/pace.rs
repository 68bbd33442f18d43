//! How fast the replay may go, by zone and orders. Pure, and exhaustive.

use std::time::{Duration, Instant};

use gophership_common::Zone;

use super::control::Orders;

/// Whether and how fast to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// An operator or a drain says no.
    Paused,
    /// Not yet.
    Wait,
    /// Up to this many bytes a second.
    Send(u64),
}

/// `green_for` is how long Green has held, if it is Green; `running` whether the last pace was
/// [`Pace::Send`]. Red: nothing. Yellow: a quarter, and only what has begun or is ordered.
pub(super) fn pace(
    orders: Orders,
    zone: Zone,
    green_for: Option<Duration>,
    running: bool,
    config: &super::Config,
) -> Pace {
    if orders.paused || orders.draining {
        return Pace::Paused;
    }
    let rate = orders.rate.unwrap_or(config.max_bytes_per_second);
    let has_held = config.auto && green_for.is_some_and(|held| held >= config.after);
    match zone {
        Zone::Red => Pace::Wait,
        Zone::Yellow if orders.now || (running && config.auto) => Pace::Send((rate / 4).max(1)),
        Zone::Green if orders.now || has_held => Pace::Send(rate.max(1)),
        Zone::Yellow | Zone::Green => Pace::Wait,
    }
}

/// Keeps a rate: each sending pushes the time of the next one back.
#[derive(Debug)]
pub(super) struct Limiter {
    next: Instant,
}

/// What may be caught up with after a pause.
const BURST: Duration = Duration::from_millis(100);

impl Limiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now }
    }

    /// `bytes` have been sent at `now`; gives the time of the next sending.
    pub(super) fn sent(&mut self, bytes: usize, rate: u64, now: Instant) -> Instant {
        let nanos = (bytes as u128 * 1_000_000_000) / u128::from(rate.max(1));
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.next = self.next.max(earliest)
            + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Config;

    const HELD: Duration = Duration::from_secs(10);
    const CONFIG: Config = Config {
        auto: true,
        after: HELD,
        max_bytes_per_second: 1000,
    };
    const NONE: Orders = Orders {
        paused: false,
        draining: false,
        stop: false,
        now: false,
        rate: None,
    };

    #[test]
    fn red_sends_nothing_whatever_is_ordered() {
        let now = Orders {
            now: true,
            rate: Some(5),
            ..NONE
        };
        assert_eq!(pace(now, Zone::Red, None, true, &CONFIG), Pace::Wait);
    }

    #[test]
    fn green_has_to_hold_unless_ordered() {
        assert_eq!(
            pace(NONE, Zone::Green, Some(HELD / 2), false, &CONFIG),
            Pace::Wait
        );
        assert_eq!(
            pace(NONE, Zone::Green, Some(HELD), false, &CONFIG),
            Pace::Send(1000)
        );
        let now = Orders {
            now: true,
            rate: Some(80),
            ..NONE
        };
        assert_eq!(
            pace(now, Zone::Green, Some(Duration::ZERO), false, &CONFIG),
            Pace::Send(80)
        );
        let manual = Config {
            auto: false,
            ..CONFIG
        };
        assert_eq!(
            pace(NONE, Zone::Green, Some(HELD * 9), false, &manual),
            Pace::Wait
        );
    }

    #[test]
    fn yellow_slows_what_has_begun_to_a_quarter() {
        assert_eq!(
            pace(NONE, Zone::Yellow, None, true, &CONFIG),
            Pace::Send(250)
        );
        assert_eq!(pace(NONE, Zone::Yellow, None, false, &CONFIG), Pace::Wait);
    }

    #[test]
    fn a_pause_and_a_drain_come_first() {
        let paused = Orders {
            paused: true,
            now: true,
            ..NONE
        };
        let draining = Orders {
            draining: true,
            ..NONE
        };
        for orders in [paused, draining] {
            assert_eq!(
                pace(orders, Zone::Green, Some(HELD), true, &CONFIG),
                Pace::Paused
            );
        }
    }

    #[test]
    fn the_limiter_keeps_the_rate_with_a_small_burst() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert_eq!(
            limiter.sent(1000, 1000, start),
            start + Duration::from_secs(1)
        );
        let late = start + Duration::from_secs(60);
        assert_eq!(
            limiter.sent(1000, 1000, late),
            late - BURST + Duration::from_secs(1)
        );
    }
}

//! How fast the replay may go, by zone and orders. Pure, and exhaustive.

use std::time::Duration;

use gophership_common::Zone;

use super::{control::Orders, pacer};

/// Whether and how fast to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// An operator or a drain says no.
    Paused,
    /// Not yet.
    Wait,
    /// Up to this many bytes a second; 0 where the weight of background work is 0 for now.
    Send(u64),
}

/// `green_for` is how long Green has held, if it is Green; `weight` that of background work, in
/// thousandths (see [`pacer`]); `running` whether the last pace was [`Pace::Send`]. Red: nothing.
/// Yellow: only what has begun or is ordered.
pub(super) fn pace(
    orders: Orders,
    zone: Zone,
    weight: u32,
    green_for: Option<Duration>,
    running: bool,
    config: &super::Config,
) -> Pace {
    if orders.paused || orders.draining {
        return Pace::Paused;
    }
    let rate = orders.rate.unwrap_or(config.max_bytes_per_second);
    let send = Pace::Send(pacer::weighted(rate.max(1), weight));
    let has_held = config.auto && green_for.is_some_and(|held| held >= config.after);
    match zone {
        Zone::Red => Pace::Wait,
        Zone::Yellow if orders.now || (running && config.auto) => send,
        Zone::Green if orders.now || has_held => send,
        Zone::Yellow | Zone::Green => Pace::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{replay::Config, vault::Selection};

    const HELD: Duration = Duration::from_secs(10);
    const CONFIG: Config = Config {
        auto: true,
        after: HELD,
        max_bytes_per_second: 1000,
        identity: false,
        dead_letters_max_bytes: 0,
    };
    const NONE: Orders = Orders {
        paused: false,
        draining: false,
        stop: false,
        now: false,
        rate: None,
        selection: Selection {
            from_unix_ns: None,
            to_unix_ns: None,
            lane: None,
            newest_first: false,
        },
    };

    #[test]
    fn red_sends_nothing_whatever_is_ordered() {
        let now = Orders {
            now: true,
            rate: Some(5),
            ..NONE
        };
        assert_eq!(pace(now, Zone::Red, 0, None, true, &CONFIG), Pace::Wait);
    }

    #[test]
    fn green_has_to_hold_unless_ordered() {
        assert_eq!(
            pace(
                NONE,
                Zone::Green,
                pacer::FULL,
                Some(HELD / 2),
                false,
                &CONFIG
            ),
            Pace::Wait
        );
        assert_eq!(
            pace(NONE, Zone::Green, pacer::FULL, Some(HELD), false, &CONFIG),
            Pace::Send(1000)
        );
        let now = Orders {
            now: true,
            rate: Some(80),
            ..NONE
        };
        assert_eq!(
            pace(
                now,
                Zone::Green,
                pacer::FULL,
                Some(Duration::ZERO),
                false,
                &CONFIG
            ),
            Pace::Send(80)
        );
        let manual = Config {
            auto: false,
            ..CONFIG
        };
        assert_eq!(
            pace(
                NONE,
                Zone::Green,
                pacer::FULL,
                Some(HELD * 9),
                false,
                &manual
            ),
            Pace::Wait
        );
    }

    #[test]
    fn yellow_slows_what_has_begun() {
        assert_eq!(
            pace(NONE, Zone::Yellow, pacer::YELLOW_MAX, None, true, &CONFIG),
            Pace::Send(250)
        );
        assert_eq!(
            pace(NONE, Zone::Yellow, 31, None, true, &CONFIG),
            Pace::Send(31)
        );
        assert_eq!(
            pace(NONE, Zone::Yellow, 0, None, true, &CONFIG),
            Pace::Send(0)
        );
        assert_eq!(
            pace(NONE, Zone::Yellow, pacer::YELLOW_MAX, None, false, &CONFIG),
            Pace::Wait
        );
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
                pace(orders, Zone::Green, pacer::FULL, Some(HELD), true, &CONFIG),
                Pace::Paused
            );
        }
    }
}

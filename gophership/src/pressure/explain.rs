//! Why the verdict changed: each signal's value beside the thresholds it was compared with.

use gophership_common::{Cause, Levels, Rule, Signal, Zone};

use super::{
    snapshot::{shown, unit},
    watch::Transition,
};

/// One signal when the verdict changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Explained {
    /// Which.
    pub signal: Signal,
    /// In `unit`.
    pub value: f64,
    /// `ratio`, `seconds`, `bytes`, `bytes_per_second` or `count`.
    pub unit: &'static str,
    /// Where it enters Yellow, in `unit`; `None`: never.
    pub yellow: Option<f64>,
    /// Where it enters Red, in `unit`; `None`: never.
    pub red: Option<f64>,
    /// The zone that the value enters.
    pub reaches: Zone,
    /// The zone that it doesn't let the verdict leave.
    pub holds: Zone,
}

impl Transition {
    /// Every signal that was available. `receive_queue` are the levels of that signal, of which the
    /// judge's table has Yellow alone: Red is the level above which a stalled reader counts.
    #[must_use]
    pub fn explained(&self, receive_queue: Levels) -> Vec<Explained> {
        let stalled = zones(
            &self.rules[Signal::ReceiveQueueStalled as usize],
            self.values.get(Signal::ReceiveQueueStalled).unwrap_or(0),
        );
        let explained = |signal: Signal| {
            let value = self.values.get(signal)?;
            let rule = &self.rules[signal as usize];
            let (yellow, mut red) = rule.entries();
            let (mut reaches, mut holds) = match signal.cause() {
                Cause::None => (Zone::Green, Zone::Green),
                _ => zones(rule, value),
            };
            if signal == Signal::ReceiveQueue && receive_queue.red_permille != Levels::OFF {
                let level = u64::from(receive_queue.red_permille);
                red = Some(level);
                // It is Red together with the time that it has been so.
                if value >= level {
                    (reaches, holds) = (reaches.max(stalled.0), holds.max(stalled.1));
                }
            }
            Some(Explained {
                signal,
                value: shown(signal, value),
                unit: unit(signal),
                yellow: yellow.map(|at| shown(signal, at)),
                red: red.map(|at| shown(signal, at)),
                reaches,
                holds,
            })
        };
        Signal::ALL.into_iter().filter_map(explained).collect()
    }
}

/// What a value enters, and what it holds.
fn zones(rule: &Rule, value: u64) -> (Zone, Zone) {
    let value = value ^ rule.flip;
    let zone = |yellow: u64, red: u64| match (value >= yellow, value >= red) {
        (_, true) => Zone::Red,
        (true, false) => Zone::Yellow,
        (false, false) => Zone::Green,
    };
    (
        zone(rule.yellow, rule.red),
        zone(rule.yellow_exit, rule.red_exit),
    )
}

#[cfg(test)]
mod tests {
    use gophership_common::{SIGNALS, Signals, Word};

    use super::*;

    const QUEUE: Levels = Levels {
        yellow_permille: 500,
        red_permille: 800,
    };

    fn transition(values: &[(Signal, u64)]) -> Transition {
        let mut rules = [Rule::SHOWN; SIGNALS];
        for (signal, yellow, red) in [
            (Signal::ReceiveQueue, Some(500), None),
            (Signal::ReceiveQueueStalled, Some(1), Some(5_000)),
            (Signal::MemoryAvailable, Some(150), Some(70)),
        ] {
            rules[signal as usize] = Rule::entering(signal, yellow, red);
        }
        let mut signals = Signals::NONE;
        for &(signal, value) in values {
            signals.set(signal, value);
        }
        Transition {
            from: Word::default(),
            to: Word::default(),
            ktime_ns: 1,
            values: signals,
            rules,
        }
    }

    fn levels(values: &[(Signal, u64)]) -> Vec<(Signal, Zone, Zone)> {
        let explained = transition(values).explained(QUEUE);
        let levels = explained.iter().map(|e| (e.signal, e.reaches, e.holds));
        levels.collect()
    }

    #[test]
    fn a_full_queue_is_red_only_with_the_time_that_nobody_read() {
        let (queue, stalled) = (Signal::ReceiveQueue, Signal::ReceiveQueueStalled);
        let red = [
            (queue, Zone::Red, Zone::Red),
            (stalled, Zone::Red, Zone::Red),
        ];
        assert_eq!(levels(&[(queue, 931), (stalled, 6_200)]), red);
        let yellow = [
            (queue, Zone::Yellow, Zone::Red),
            (stalled, Zone::Yellow, Zone::Red),
        ];
        assert_eq!(levels(&[(queue, 931), (stalled, 4_500)]), yellow);
        let alone = [(queue, Zone::Yellow, Zone::Yellow)];
        assert_eq!(levels(&[(queue, 931)]), alone);
        let explained = transition(&[(queue, 931)]).explained(QUEUE)[0];
        assert_eq!(
            (explained.value, explained.yellow, explained.red),
            (0.931, Some(0.5), Some(0.8))
        );
    }

    #[test]
    fn low_memory_is_bad_and_what_is_only_shown_says_nothing() {
        let (memory, rate) = (Signal::MemoryAvailable, Signal::IngressRate);
        for (value, reaches, holds) in [
            (70, Zone::Red, Zone::Red),
            (80, Zone::Yellow, Zone::Red),
            (150, Zone::Yellow, Zone::Yellow),
            (180, Zone::Green, Zone::Yellow),
            (200, Zone::Green, Zone::Green),
        ] {
            let expected = [(memory, reaches, holds), (rate, Zone::Green, Zone::Green)];
            assert_eq!(levels(&[(memory, value), (rate, 1 << 40)]), expected);
        }
    }
}

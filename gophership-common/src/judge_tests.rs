extern crate std;

use std::vec::Vec;

use super::*;
use crate::{
    pages::Levels,
    rules::Thresholds,
    signal::{Signal, TIME_TO_FULL_MAX_US},
};

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
const NOW: u64 = 100 * SECOND;

const fn levels(yellow_permille: u32, red_permille: u32) -> Levels {
    Levels {
        yellow_permille,
        red_permille,
    }
}

fn policy() -> Policy {
    let thresholds = Thresholds {
        receive_queue: levels(500, 800),
        receive_queue_for_us: 5_000,
        listen_backlog: levels(500, 900),
        memory_stall: levels(50, 200),
        memory_available: levels(150, 70),
        cpu_wait: levels(300, 700),
        disk_latency_us: Some(50_000),
        ingress_horizon_us: Some(1_000_000),
        budget: levels(800, 950),
        heartbeat_us: 1_000_000,
    };
    Policy {
        tick_ns: 10 * MS,
        hold_ns: 2 * SECOND,
        receive_queue_for_ns: 5 * MS,
        override_until_ns: 0,
        measured: u64::MAX,
        ingress_horizon_ns: SECOND,
        rules: thresholds.rules(),
        receive_queue: thresholds.receive_queue,
        disks: [0; 4],
        override_zone: OVERRIDE_NONE,
        h2_window_bytes: 0,
        netns_inum: 0,
        workers: 1,
        port_count: 0,
        disk_count: 0,
        ports: [0; 8],
    }
}

fn calm() -> Signals {
    let mut signals = Signals::NONE;
    for signal in Signal::ALL {
        signals.set(signal, 0);
    }
    signals.set(Signal::MemoryAvailable, 900);
    signals.set(Signal::TimeToFull, TIME_TO_FULL_MAX_US);
    signals
}

/// Calm but for one signal.
fn only(signal: Signal, value: u64) -> Signals {
    let mut signals = calm();
    signals.set(signal, value);
    signals
}

fn in_zone(zone: Zone, cause: Cause) -> State {
    State {
        zone,
        cause,
        ..State::START
    }
}

fn verdict(signals: &Signals, previous: State) -> (Zone, Cause) {
    let judgement = judge(&policy(), signals, &previous, NOW);
    (judgement.zone, judgement.cause)
}

#[test]
fn calm_signals_are_green() {
    assert_eq!(verdict(&calm(), State::START), (Zone::Green, Cause::None));
}

/// The next value that is worse, and the one that is better.
fn beside(signal: Signal, value: u64) -> (u64, u64) {
    if signal.falling() {
        (value - 1, value + 1)
    } else {
        (value + 1, value - 1)
    }
}

#[test]
fn each_signal_enters_at_its_thresholds_and_not_before() {
    let policy = policy();
    for signal in Signal::ALL {
        let (yellow, red) = policy.rules[signal as usize].entries();
        let at = |value| verdict(&only(signal, value), State::START);
        if let Some(value) = yellow {
            let (worse, better) = beside(signal, value);
            assert_eq!(at(value), (Zone::Yellow, signal.cause()), "{signal:?}");
            assert_eq!(at(worse), (Zone::Yellow, signal.cause()), "{signal:?}");
            assert_eq!(at(better), (Zone::Green, Cause::None), "{signal:?}");
        }
        if let Some(value) = red {
            let (worse, better) = beside(signal, value);
            assert_eq!(at(value), (Zone::Red, signal.cause()), "{signal:?}");
            assert_eq!(at(worse), (Zone::Red, signal.cause()), "{signal:?}");
            assert!(at(better).0 < Zone::Red, "{signal:?}");
        }
    }
}

#[test]
fn unavailable_signals_are_no_cause() {
    let worst = Signals {
        available: 0,
        values: Signal::ALL.map(|signal| if signal.falling() { 0 } else { 1 << 40 }),
    };
    assert_eq!(verdict(&worst, State::START), (Zone::Green, Cause::None));
}

#[test]
fn leaves_only_after_hold_below_every_exit() {
    let policy = policy();
    let red = in_zone(Zone::Red, Cause::Budget);
    // 760 is below Red's entry (950) and exactly its exit: still held.
    let held = only(Signal::BudgetIngest, 760);
    let first = judge(&policy, &held, &red, NOW);
    assert_eq!((first.zone, first.state.below_red_since_ns), (Zone::Red, 0));
    let later = judge(&policy, &held, &first.state, NOW + 10 * SECOND);
    assert_eq!(later.zone, Zone::Red);

    // 759 is below Red's exit, and holds Yellow (exit 640).
    let eased = only(Signal::BudgetIngest, 759);
    let start = judge(&policy, &eased, &later.state, NOW + 10 * SECOND);
    let early = judge(&policy, &eased, &start.state, NOW + 12 * SECOND - 1);
    assert_eq!(early.zone, Zone::Red);
    let due = judge(&policy, &eased, &early.state, NOW + 12 * SECOND);
    assert_eq!((due.zone, due.cause), (Zone::Yellow, Cause::Budget));
    let stays = judge(&policy, &eased, &due.state, NOW + 60 * SECOND);
    assert_eq!(stays.zone, Zone::Yellow);
}

#[test]
fn red_goes_straight_to_green_when_all_was_calm() {
    let policy = policy();
    let red = in_zone(Zone::Red, Cause::ReceiveQueue);
    let start = judge(&policy, &calm(), &red, NOW);
    assert_eq!(start.zone, Zone::Red);
    let due = judge(&policy, &calm(), &start.state, NOW + 2 * SECOND);
    assert_eq!((due.zone, due.cause), (Zone::Green, Cause::None));
}

#[test]
fn a_relapse_restarts_the_hold() {
    let policy = policy();
    let relapse = only(Signal::BudgetVault, 990);
    let red = in_zone(Zone::Red, Cause::Budget);
    let start = judge(&policy, &calm(), &red, NOW);
    let again = judge(&policy, &relapse, &start.state, NOW + SECOND);
    let calmer = judge(&policy, &calm(), &again.state, NOW + SECOND + MS);
    let early = judge(&policy, &calm(), &calmer.state, NOW + 2 * SECOND);
    assert_eq!(early.zone, Zone::Red);
}

#[test]
fn a_cause_only_rises_while_the_zone_lasts() {
    let beat_only = only(Signal::HeartbeatAge, 2_000_000);
    let mut both = beat_only;
    both.set(Signal::ReceiveQueueStalled, 1_000_000);
    let late = in_zone(Zone::Red, Cause::Heartbeat);
    assert_eq!(verdict(&both, late), (Zone::Red, Cause::ReceiveQueue));
    let full = in_zone(Zone::Red, Cause::ReceiveQueue);
    assert_eq!(verdict(&beat_only, full), (Zone::Red, Cause::ReceiveQueue));
}

#[test]
fn override_lies_on_top_of_the_natural_zone() {
    let mut overriding = policy();
    overriding.override_zone = 0;
    overriding.override_until_ns = NOW + SECOND;
    let full = only(Signal::BudgetIngest, 1000);
    let during = judge(&overriding, &full, &State::START, NOW);
    assert_eq!(
        (during.zone, during.cause, during.flags),
        (Zone::Green, Cause::Override, FLAG_OVERRIDE)
    );
    assert_eq!(during.state.zone, Zone::Red);
    let expired = judge(&overriding, &full, &during.state, NOW + SECOND);
    assert_eq!(
        (expired.zone, expired.cause, expired.flags),
        (Zone::Red, Cause::Budget, 0)
    );
    overriding.override_until_ns = OVERRIDE_FOREVER;
    let forever = judge(&overriding, &full, &during.state, u64::MAX >> 2);
    assert_eq!(forever.zone, Zone::Green);
}

#[test]
fn a_probe_s_raise_is_adopted_and_held() {
    let raised = Word::new(Zone::Yellow, Cause::ReceiveQueue, 0, 9);
    let calm_for_long = State {
        below_yellow_since_ns: 1,
        below_red_since_ns: 1,
        ..State::START
    };
    let adopted = calm_for_long.adopt(raised);
    assert_eq!(
        verdict(&calm(), adopted),
        (Zone::Yellow, Cause::ReceiveQueue)
    );
    let overridden = Word::new(Zone::Red, Cause::Override, FLAG_OVERRIDE, 9);
    assert_eq!(calm_for_long.adopt(overridden), calm_for_long);
}

#[test]
fn the_slow_disk_flag_goes_with_its_signal_whatever_the_zone() {
    let policy = policy();
    let mut slow = only(Signal::DiskLatency, 50_000);
    slow.set(Signal::BudgetIngest, 990);
    let both = judge(&policy, &slow, &State::START, NOW);
    assert_eq!(
        (both.zone, both.cause, both.flags),
        (Zone::Red, Cause::Budget, FLAG_SLOW_DISK)
    );
    // The disk has recovered, the budget hasn't.
    let budget = only(Signal::BudgetIngest, 990);
    let start = judge(&policy, &budget, &both.state, NOW + SECOND);
    assert_eq!(start.flags, FLAG_SLOW_DISK);
    let due = judge(&policy, &budget, &start.state, NOW + 3 * SECOND);
    assert_eq!((due.zone, due.flags), (Zone::Red, 0));
}

/// xorshift64*: enough to walk the table, and the seed is in the failure message.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.below(choices.len() as u64);
        choices[usize::try_from(index).unwrap()]
    }

    /// A value on either side of the signal's thresholds, or of one if it has none.
    fn value(&mut self, signal: Signal) -> u64 {
        let (yellow, red) = policy().rules[signal as usize].entries();
        let scale = yellow.max(red).unwrap_or(1);
        self.below(scale * 2)
    }

    fn signals(&mut self) -> Signals {
        let mut signals = calm();
        // Most readings calm, or random walks would never leave Red.
        for _ in 0..self.one_of(&[0, 0, 1, 3]) {
            let signal = self.one_of(&Signal::ALL);
            let value = self.value(signal);
            signals.set(signal, value);
        }
        if self.below(4) == 0 {
            signals.available &= self.below(1 << SIGNALS);
        }
        signals
    }
}

/// The zones that the signals enter and hold, worked out without the judge's arithmetic.
fn zone_at(signals: &Signals, policy: &Policy) -> (Zone, Zone) {
    let mut zones = (Zone::Green, Zone::Green);
    for signal in Signal::ALL {
        let Some(value) = signals.get(signal) else {
            continue;
        };
        let rule = &policy.rules[signal as usize];
        let value = value ^ rule.flip;
        let zone = |yellow, red| {
            if value >= red {
                Zone::Red
            } else if value >= yellow {
                Zone::Yellow
            } else {
                Zone::Green
            }
        };
        zones.0 = zones.0.max(zone(rule.yellow, rule.red));
        zones.1 = zones.1.max(zone(rule.yellow_exit, rule.red_exit));
    }
    zones
}

#[test]
fn random_walks_keep_the_rules() {
    for seed in 1..200_u64 {
        let mut rng = Rng::new(seed);
        let policy = policy();
        let mut state = State::START;
        let mut now = NOW;
        // When each exit line was last touched: what the hold is measured against.
        let (mut yellow_held_at, mut red_held_at) = (now, now);
        for _ in 0..500 {
            now += rng.below(1200) * MS + 1;
            let signals = rng.signals();
            let (enters, holds) = zone_at(&signals, &policy);
            assert!(enters <= holds, "seed {seed}: enters more than it holds");
            if holds >= Zone::Yellow {
                yellow_held_at = now;
            }
            if holds >= Zone::Red {
                red_held_at = now;
            }
            let judgement = judge(&policy, &signals, &state, now);
            assert!(
                judgement.zone >= enters,
                "seed {seed}: escalation is immediate"
            );
            assert!(
                judgement.zone <= state.zone || judgement.zone == enters,
                "seed {seed}: rises only as far as a signal enters"
            );
            if holds == Zone::Red && state.zone == Zone::Red {
                assert_eq!(judgement.zone, Zone::Red, "seed {seed}: left a held Red");
            }
            if judgement.zone < state.zone {
                let held_at = match judgement.zone {
                    Zone::Green => yellow_held_at,
                    Zone::Yellow | Zone::Red => red_held_at,
                };
                assert!(
                    now - held_at >= policy.hold_ns,
                    "seed {seed}: lowered early"
                );
            }
            assert_eq!(
                judgement.zone == Zone::Green,
                judgement.cause == Cause::None,
                "seed {seed}: a cause exactly when not Green"
            );
            if judgement.zone == state.zone {
                assert!(judgement.cause >= state.cause, "seed {seed}: cause fell");
            }
            assert_eq!(
                judge(&policy, &signals, &judgement.state, now).zone,
                judgement.zone
            );
            state = judgement.state;
        }
    }
}

#[test]
fn the_override_wins_until_it_expires() {
    for seed in 1..100_u64 {
        let mut rng = Rng::new(seed);
        let mut policy = policy();
        let chosen = rng.below(3);
        policy.override_zone = u32::try_from(chosen).unwrap();
        policy.override_until_ns = NOW + 60 * SECOND;
        let mut without = policy;
        without.override_zone = OVERRIDE_NONE;
        let (mut state, mut now) = (State::START, NOW);
        for _ in 0..300 {
            now += rng.below(500) * MS;
            let signals = rng.signals();
            let judgement = judge(&policy, &signals, &state, now);
            let natural = judge(&without, &signals, &state, now);
            assert_eq!(judgement.state, natural.state, "seed {seed}");
            if now < policy.override_until_ns {
                assert_eq!(judgement.zone as u64, chosen, "seed {seed}");
                assert_eq!(judgement.cause, Cause::Override, "seed {seed}");
            } else {
                assert_eq!(judgement, natural, "seed {seed}");
            }
            state = judgement.state;
        }
    }
}

#[test]
fn a_slow_disk_alone_never_makes_red() {
    let policy = policy();
    for seed in 1..100_u64 {
        let mut rng = Rng::new(seed);
        let (mut state, mut now) = (State::START, NOW);
        for _ in 0..300 {
            now += rng.below(500) * MS;
            let mut signals = calm();
            signals.set(Signal::DiskLatency, rng.below(1 << 40));
            signals.set(Signal::VaultWrite, rng.below(1 << 40));
            let judgement = judge(&policy, &signals, &state, now);
            assert!(judgement.zone <= Zone::Yellow, "seed {seed}");
            assert_eq!(
                judgement.zone == Zone::Yellow,
                judgement.flags == FLAG_SLOW_DISK,
                "seed {seed}: the flag goes with it"
            );
            state = judgement.state;
        }
    }
}

/// Judges a series of values of one signal, a tick apart, and returns the changes of the zone.
fn changes(signal: Signal, values: impl Iterator<Item = u64>) -> Vec<Zone> {
    let policy = policy();
    let (mut state, mut now) = (State::START, NOW);
    let mut changes = Vec::new();
    for value in values {
        now += policy.tick_ns;
        let judgement = judge(&policy, &only(signal, value), &state, now);
        if judgement.zone != state.zone {
            changes.push(judgement.zone);
        }
        state = judgement.state;
    }
    changes
}

#[test]
fn noise_around_a_threshold_changes_the_zone_once() {
    const TICKS_A_MINUTE: usize = 60 * 100;
    for (signal, entry) in [
        (Signal::CpuWait, 300),
        (Signal::BudgetIngest, 950),
        (Signal::MemoryAvailable, 150),
        (Signal::DiskLatency, 50_000),
    ] {
        let mut rng = Rng::new(entry);
        // A tenth to either side: within the hysteresis of a fifth.
        let noise = |_| entry - entry / 10 + rng.below(entry / 5);
        let changes = changes(signal, (0..TICKS_A_MINUTE).map(noise));
        assert!(changes.len() <= 2, "{signal:?}: {changes:?}");
    }
}

#[test]
fn no_series_changes_the_zone_more_often_than_the_hold_allows() {
    const TICKS_A_MINUTE: usize = 60 * 100;
    // The worst there is: calm for exactly the hold, then a spike.
    let hold_ticks = 2 * 100;
    let spikes = (0..TICKS_A_MINUTE).map(|tick| u64::from(tick % (hold_ticks + 2) == 0) * 1000);
    let changes = changes(Signal::BudgetIngest, spikes);
    let holds_a_minute = 60 / 2;
    assert!(
        changes.len() <= 2 * holds_a_minute,
        "{} changes a minute",
        changes.len()
    );
    assert!(changes.len() >= 2 * holds_a_minute - 4, "that was no test");
}

#[test]
fn a_worse_value_never_makes_a_lower_zone() {
    for seed in 1..300_u64 {
        let mut rng = Rng::new(seed);
        let policy = policy();
        let state = State {
            below_yellow_since_ns: rng.below(2) * (NOW - rng.below(4) * SECOND),
            below_red_since_ns: rng.below(2) * (NOW - rng.below(4) * SECOND),
            ..match rng.below(3) {
                0 => State::START,
                1 => in_zone(Zone::Yellow, Cause::Budget),
                _ => in_zone(Zone::Red, Cause::Budget),
            }
        };
        let signals = rng.signals();
        let before = judge(&policy, &signals, &state, NOW);
        for signal in Signal::ALL {
            let value = signals.values[signal as usize];
            let step = rng.below(value / 2 + 1000);
            let worse = if signal.falling() {
                value.saturating_sub(step)
            } else {
                value + step
            };
            let mut raised = signals;
            raised.values[signal as usize] = worse;
            let after = judge(&policy, &raised, &state, NOW);
            assert!(
                after.zone >= before.zone,
                "seed {seed}: {signal:?} from {value} to {worse}: {:?} to {:?}",
                before.zone,
                after.zone
            );
        }
    }
}

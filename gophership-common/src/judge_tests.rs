use super::*;
use crate::pages::BUDGETS;

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
const NOW: u64 = 100 * SECOND;

fn policy() -> Policy {
    Policy {
        tick_ns: 10 * MS,
        hold_ns: 2 * SECOND,
        receive_queue_for_ns: 5 * MS,
        heartbeat_limit_ns: SECOND,
        override_until_ns: 0,
        receive_queue: Levels {
            yellow_permille: 500,
            red_permille: 800,
        },
        memory_available: Levels {
            yellow_permille: 150,
            red_permille: 70,
        },
        budget: Levels {
            yellow_permille: 800,
            red_permille: 950,
        },
        override_zone: OVERRIDE_NONE,
        h2_window_bytes: 0,
        netns_inum: 0,
        workers: 1,
        measured: available::RECEIVE_QUEUE,
        port_count: 0,
        ports: [0; 8],
    }
}

fn calm() -> Signals {
    Signals {
        available: u32::MAX,
        memory_available_permille: 900,
        ..Signals::default()
    }
}

fn in_zone(zone: Zone, cause: Cause) -> State {
    State {
        zone,
        cause,
        ..State::START
    }
}

fn verdict(signals: Signals, previous: State) -> (Zone, Cause) {
    let judgement = judge(&policy(), &signals, &previous, NOW);
    (judgement.zone, judgement.cause)
}

#[test]
fn calm_signals_are_green() {
    assert_eq!(verdict(calm(), State::START), (Zone::Green, Cause::None));
}

#[test]
fn each_signal_enters_at_its_threshold() {
    let budget = |permille| Signals {
        budget_permille: [0, permille, 0],
        ..calm()
    };
    let memory = |permille| Signals {
        memory_available_permille: permille,
        ..calm()
    };
    let depth = |permille| Signals {
        receive_queue_permille: permille,
        ..calm()
    };
    let stalled = |ns| Signals {
        receive_queue_stalled_ns: ns,
        sockets_above_yellow: 1,
        sockets_above_red: 1,
        ..calm()
    };
    let beat = |ns| Signals {
        heartbeat_age_ns: ns,
        ..calm()
    };
    let green = (Zone::Green, Cause::None);
    let table = [
        (budget(799), green),
        (budget(800), (Zone::Yellow, Cause::Budget)),
        (budget(950), (Zone::Red, Cause::Budget)),
        (memory(151), green),
        (memory(150), (Zone::Yellow, Cause::MemoryAvailable)),
        (memory(70), (Zone::Red, Cause::MemoryAvailable)),
        (depth(499), green),
        (depth(500), (Zone::Yellow, Cause::ReceiveQueue)),
        (depth(1000), (Zone::Yellow, Cause::ReceiveQueue)),
        (stalled(0), (Zone::Yellow, Cause::ReceiveQueue)),
        (stalled(5 * MS - 1), (Zone::Yellow, Cause::ReceiveQueue)),
        (stalled(5 * MS), (Zone::Red, Cause::ReceiveQueue)),
        (beat(SECOND), green),
        (beat(SECOND + 1), (Zone::Red, Cause::Heartbeat)),
    ];
    for (signals, expected) in table {
        assert_eq!(verdict(signals, State::START), expected, "{signals:?}");
    }
}

#[test]
fn unavailable_signals_are_no_cause() {
    let signals = Signals {
        available: 0,
        receive_queue_permille: 1000,
        receive_queue_stalled_ns: SECOND,
        sockets_above_yellow: 1,
        heartbeat_age_ns: 10 * SECOND,
        ..Signals::default()
    };
    assert_eq!(verdict(signals, State::START), (Zone::Green, Cause::None));
}

#[test]
fn leaves_only_after_hold_below_every_exit() {
    let policy = policy();
    let red = in_zone(Zone::Red, Cause::Budget);
    // 760 is below Red's entry (950) and exactly its exit: still held.
    let held = Signals {
        budget_permille: [760, 0, 0],
        ..calm()
    };
    let first = judge(&policy, &held, &red, NOW);
    assert_eq!((first.zone, first.state.below_red_since_ns), (Zone::Red, 0));
    let later = judge(&policy, &held, &first.state, NOW + 10 * SECOND);
    assert_eq!(later.zone, Zone::Red);

    // 759 is below Red's exit, and holds Yellow (exit 640).
    let eased = Signals {
        budget_permille: [759, 0, 0],
        ..calm()
    };
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
    let relapse = Signals {
        budget_permille: [0, 0, 990],
        ..calm()
    };
    let red = in_zone(Zone::Red, Cause::Budget);
    let start = judge(&policy, &calm(), &red, NOW);
    let again = judge(&policy, &relapse, &start.state, NOW + SECOND);
    let calmer = judge(&policy, &calm(), &again.state, NOW + SECOND + MS);
    let early = judge(&policy, &calm(), &calmer.state, NOW + 2 * SECOND);
    assert_eq!(early.zone, Zone::Red);
}

#[test]
fn a_cause_only_rises_while_the_zone_lasts() {
    let both = Signals {
        heartbeat_age_ns: 2 * SECOND,
        receive_queue_stalled_ns: SECOND,
        sockets_above_yellow: 1,
        sockets_above_red: 1,
        ..calm()
    };
    let late = in_zone(Zone::Red, Cause::Heartbeat);
    assert_eq!(verdict(both, late), (Zone::Red, Cause::ReceiveQueue));
    let beat_only = Signals {
        heartbeat_age_ns: 2 * SECOND,
        ..calm()
    };
    let full = in_zone(Zone::Red, Cause::ReceiveQueue);
    assert_eq!(verdict(beat_only, full), (Zone::Red, Cause::ReceiveQueue));
}

#[test]
fn override_lies_on_top_of_the_natural_zone() {
    let mut overriding = policy();
    overriding.override_zone = 0;
    overriding.override_until_ns = NOW + SECOND;
    let full = Signals {
        budget_permille: [1000, 0, 0],
        ..calm()
    };
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
    let forever = judge(&overriding, &full, &during.state, u64::MAX);
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
        verdict(calm(), adopted),
        (Zone::Yellow, Cause::ReceiveQueue)
    );
    let overridden = Word::new(Zone::Red, Cause::Override, FLAG_OVERRIDE, 9);
    assert_eq!(calm_for_long.adopt(overridden), calm_for_long);
}

/// xorshift64*: enough to walk the table, and the seed is in the failure message.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        u32::try_from(high % u64::from(bound)).unwrap()
    }

    fn signals(&mut self) -> Signals {
        let mut budget_permille = [0; BUDGETS];
        for value in &mut budget_permille {
            *value = self.below(1100);
        }
        // Most readings calm, or random walks would never leave Red.
        if self.below(3) > 0 {
            return Signals {
                available: self.below(64),
                ..calm()
            };
        }
        Signals {
            available: self.below(64),
            receive_queue_permille: self.below(1100),
            receive_queue_stalled_ns: u64::from(self.below(8)) * MS,
            sockets_above_yellow: self.below(2),
            sockets_above_red: self.below(2),
            heartbeat_age_ns: u64::from(self.below(1500)) * MS,
            budget_permille,
            memory_available_permille: self.below(1000),
        }
    }
}

fn zone_at(signals: &Signals, policy: &Policy) -> (Zone, Zone) {
    let says = [
        receive_queue(policy, signals),
        heartbeat(policy, signals),
        budget(policy, signals),
        memory_available(policy, signals),
    ];
    for say in says {
        assert!(
            say.enters <= say.holds,
            "enters more than it holds: {say:?}"
        );
    }
    (
        says.iter().map(|say| say.enters.zone()).max().unwrap(),
        says.iter().map(|say| say.holds.zone()).max().unwrap(),
    )
}

#[test]
fn random_walks_keep_the_rules() {
    for seed in 1..200_u64 {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let policy = policy();
        let mut state = State::START;
        let mut now = NOW;
        // When each exit line was last touched: what the hold is measured against.
        let (mut yellow_held_at, mut red_held_at) = (now, now);
        for _ in 0..500 {
            now += u64::from(rng.below(1200)) * MS + 1;
            let signals = rng.signals();
            let (enters, holds) = zone_at(&signals, &policy);
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

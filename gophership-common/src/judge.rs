//! The decision table: what zone the signals, the policy and the past add up to.
//!
//! Escalation is immediate. De-escalation waits until *every* signal has stayed below its exit
//! threshold (entry × 0.8) for `hold`; two clocks, one below the Yellow exits and one below the Red
//! exits, let Red go straight to Green when everything has been calm for long enough. The override
//! lies on top of the natural zone, so that clearing it falls back at once to what the signals say.
//!
//! Within one stay in a zone the cause may only rise in precedence ([`Cause`]'s order): the word is
//! written at most a handful of times per stay, and can't flap between two causes.

use crate::pages::{BUDGETS, Levels, OVERRIDE_FOREVER, OVERRIDE_NONE, Policy, Signals, available};
use crate::zone::{Cause, FLAG_OVERRIDE, Word, Zone};

/// What the judge remembers: the natural verdict and the two calm clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Zone without the override.
    pub zone: Zone,
    /// Cause of `zone`.
    pub cause: Cause,
    /// Since when every signal has been below its Yellow exit; 0: it isn't.
    pub below_yellow_since_ns: u64,
    /// Since when every signal has been below its Red exit; 0: it isn't.
    pub below_red_since_ns: u64,
}

impl State {
    /// Before anything was judged.
    pub const START: Self = Self {
        zone: Zone::Green,
        cause: Cause::None,
        below_yellow_since_ns: 0,
        below_red_since_ns: 0,
    };

    /// Takes over what a probe has raised since the last judgement, with the clocks restarted.
    #[must_use]
    pub const fn adopt(self, word: Word) -> Self {
        if word.overridden() || word.zone() as u8 == self.zone as u8 {
            return self;
        }
        Self {
            zone: word.zone(),
            cause: word.cause(),
            ..Self::START
        }
    }
}

/// The outcome: what to remember, and what to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The natural verdict and the clocks.
    pub state: State,
    /// The zone to publish.
    pub zone: Zone,
    /// Its cause.
    pub cause: Cause,
    /// [`FLAG_OVERRIDE`] or 0.
    pub flags: u16,
}

impl Judgement {
    /// The word that publishes this, as the successor of `current`.
    #[must_use]
    pub const fn word_after(&self, current: Word) -> Word {
        Word::new(
            self.zone,
            self.cause,
            self.flags,
            current.epoch().wrapping_add(1),
        )
    }
}

/// One signal's say: the zone it enters by its entry thresholds, and the zone it holds by its exit
/// thresholds. A signal never enters more than it holds.
#[derive(Clone, Copy)]
struct Reading {
    cause: Cause,
    enters: Zone,
    holds: Zone,
}

/// The exit threshold that belongs to an entry threshold.
#[must_use]
pub const fn exit_permille(entry: u32) -> u32 {
    entry / 10 * 8 + entry % 10 * 8 / 10
}

const fn exit_ns(entry: u64) -> u64 {
    entry / 10 * 8 + entry % 10 * 8 / 10
}

#[inline(always)]
const fn zone_of(value: u32, yellow: u32, red: u32) -> Zone {
    if value >= red {
        Zone::Red
    } else if value >= yellow {
        Zone::Yellow
    } else {
        Zone::Green
    }
}

#[inline(always)]
const fn rising(cause: Cause, value: u32, levels: Levels) -> Reading {
    Reading {
        cause,
        enters: zone_of(value, levels.yellow_permille, levels.red_permille),
        holds: zone_of(
            value,
            exit_permille(levels.yellow_permille),
            exit_permille(levels.red_permille),
        ),
    }
}

#[inline(always)]
const fn receive_queue(policy: &Policy, signals: &Signals) -> Reading {
    let cause = Cause::ReceiveQueue;
    if signals.available & available::RECEIVE_QUEUE == 0 {
        return silent(cause);
    }
    // A level alone is never Red: bursts fill a healthy queue for an instant.
    let depth = rising(
        cause,
        signals.receive_queue_permille,
        Levels {
            yellow_permille: policy.receive_queue.yellow_permille,
            red_permille: u32::MAX,
        },
    );
    let stalled_ns = signals.receive_queue_stalled_ns;
    let above = signals.sockets_above_yellow > 0;
    Reading {
        cause,
        enters: if stalled_ns >= policy.receive_queue_for_ns && stalled_ns > 0 {
            Zone::Red
        } else if above {
            Zone::Yellow
        } else {
            depth.enters
        },
        holds: if stalled_ns >= exit_ns(policy.receive_queue_for_ns) && stalled_ns > 0 {
            Zone::Red
        } else if above {
            Zone::Yellow
        } else {
            depth.holds
        },
    }
}

#[inline(always)]
const fn heartbeat(policy: &Policy, signals: &Signals) -> Reading {
    let cause = Cause::Heartbeat;
    if signals.available & available::HEARTBEAT == 0 {
        return silent(cause);
    }
    let age_ns = signals.heartbeat_age_ns;
    Reading {
        cause,
        enters: if age_ns > policy.heartbeat_limit_ns {
            Zone::Red
        } else {
            Zone::Green
        },
        holds: if age_ns > exit_ns(policy.heartbeat_limit_ns) {
            Zone::Red
        } else {
            Zone::Green
        },
    }
}

#[inline(always)]
const fn budget(policy: &Policy, signals: &Signals) -> Reading {
    let mut fullest = 0;
    let mut i = 0;
    while i < BUDGETS {
        let known = signals.available & (available::BUDGET_INGEST << i) != 0;
        if known && signals.budget_permille[i] > fullest {
            fullest = signals.budget_permille[i];
        }
        i += 1;
    }
    rising(Cause::Budget, fullest, policy.budget)
}

#[inline(always)]
const fn memory_available(policy: &Policy, signals: &Signals) -> Reading {
    let cause = Cause::MemoryAvailable;
    if signals.available & available::MEMORY_AVAILABLE == 0 {
        return silent(cause);
    }
    // Low is bad here: turn the scale around, and leave when it is back above entry ÷ 0.8.
    let value = signals.memory_available_permille;
    let levels = policy.memory_available;
    Reading {
        cause,
        enters: falling(value, levels.yellow_permille, levels.red_permille),
        holds: falling(
            value.saturating_mul(8),
            levels.yellow_permille.saturating_mul(10),
            levels.red_permille.saturating_mul(10),
        ),
    }
}

#[inline(always)]
const fn falling(value: u32, yellow: u32, red: u32) -> Zone {
    if value <= red {
        Zone::Red
    } else if value <= yellow {
        Zone::Yellow
    } else {
        Zone::Green
    }
}

const fn silent(cause: Cause) -> Reading {
    Reading {
        cause,
        enters: Zone::Green,
        holds: Zone::Green,
    }
}

/// Decides. Pure; `now_ns` is the same clock as every time in `policy`, `signals` and `previous`.
#[must_use]
#[inline(always)]
pub const fn judge(policy: &Policy, signals: &Signals, previous: &State, now_ns: u64) -> Judgement {
    // Highest precedence first, so that the first of the strongest names the cause.
    let readings = [
        receive_queue(policy, signals),
        heartbeat(policy, signals),
        budget(policy, signals),
        memory_available(policy, signals),
    ];
    let (mut enters, mut entry_cause) = (Zone::Green, Cause::None);
    let (mut holds, mut hold_cause) = (Zone::Green, Cause::None);
    let mut i = 0;
    while i < readings.len() {
        let reading = readings[i];
        if reading.enters as u8 > enters as u8 {
            (enters, entry_cause) = (reading.enters, reading.cause);
        }
        if reading.holds as u8 > holds as u8 {
            (holds, hold_cause) = (reading.holds, reading.cause);
        }
        i += 1;
    }

    let below_yellow_since_ns = match holds {
        Zone::Green => since(previous.below_yellow_since_ns, now_ns),
        Zone::Yellow | Zone::Red => 0,
    };
    let below_red_since_ns = match holds {
        Zone::Green | Zone::Yellow => since(previous.below_red_since_ns, now_ns),
        Zone::Red => 0,
    };
    let below_yellow = held_for(below_yellow_since_ns, now_ns, policy.hold_ns);
    let below_red = held_for(below_red_since_ns, now_ns, policy.hold_ns);
    // Between the clocks: nothing holds Yellow now, but something did less than `hold` ago.
    let lowered_cause = match holds {
        Zone::Yellow | Zone::Red => hold_cause,
        Zone::Green => previous.cause,
    };

    let (zone, cause) = match (previous.zone, enters) {
        (Zone::Green, Zone::Green) => (Zone::Green, Cause::None),
        (Zone::Green, Zone::Yellow | Zone::Red) | (Zone::Yellow, Zone::Red) => {
            (enters, entry_cause)
        }
        (Zone::Yellow, Zone::Yellow) | (Zone::Red, Zone::Red) => {
            (enters, greater(previous.cause, entry_cause))
        }
        (Zone::Yellow, Zone::Green) if below_yellow => (Zone::Green, Cause::None),
        (Zone::Yellow, Zone::Green) => (Zone::Yellow, previous.cause),
        (Zone::Red, Zone::Green) if below_yellow => (Zone::Green, Cause::None),
        (Zone::Red, Zone::Green | Zone::Yellow) if below_red => (Zone::Yellow, lowered_cause),
        (Zone::Red, Zone::Green | Zone::Yellow) => (Zone::Red, previous.cause),
    };
    let state = State {
        zone,
        cause,
        below_yellow_since_ns,
        below_red_since_ns,
    };
    publish(policy, state, now_ns)
}

#[inline(always)]
const fn publish(policy: &Policy, state: State, now_ns: u64) -> Judgement {
    let until_ns = policy.override_until_ns;
    let (zone, cause, flags) = match policy.override_zone {
        OVERRIDE_NONE => (state.zone, state.cause, 0),
        chosen if until_ns == OVERRIDE_FOREVER || now_ns < until_ns => {
            let chosen = match chosen {
                0 => Zone::Green,
                1 => Zone::Yellow,
                2..=u32::MAX => Zone::Red,
            };
            (chosen, Cause::Override, FLAG_OVERRIDE)
        }
        0..=u32::MAX => (state.zone, state.cause, 0),
    };
    Judgement {
        state,
        zone,
        cause,
        flags,
    }
}

/// Starts a clock, or keeps it running.
const fn since(running_ns: u64, now_ns: u64) -> u64 {
    match (running_ns, now_ns) {
        (0, 0) => 1,
        (0, now_ns) => now_ns,
        (running_ns, _) => running_ns,
    }
}

const fn held_for(since_ns: u64, now_ns: u64, hold_ns: u64) -> bool {
    since_ns != 0 && now_ns.saturating_sub(since_ns) >= hold_ns
}

const fn greater(a: Cause, b: Cause) -> Cause {
    if a as u8 >= b as u8 { a } else { b }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;

//! The decision table: what zone the signals, the policy and the past add up to.
//!
//! Escalation is immediate. De-escalation waits until *every* signal has stayed below its exit
//! threshold (entry × 0.8) for `hold`; two clocks, one below the Yellow exits and one below the Red
//! exits, let Red go straight to Green when everything has been calm for long enough. The override
//! lies on top of the natural zone, so that clearing it falls back at once to what the signals say.
//!
//! Within one stay in a zone the cause may only rise in precedence ([`Cause`]'s order): the word is
//! written at most a handful of times per stay, and can't flap between two causes.

use crate::branchless::{greatest, reached};
use crate::pages::{Levels, OVERRIDE_FOREVER, OVERRIDE_NONE, Policy, Signals, available};
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

/// How strongly signals speak for a zone: `zone << 3 | cause`, 0 for Green. Of two, the greater
/// counts: the higher zone and, within a zone, the cause of higher precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score(u64);

impl Score {
    const CAUSE_BITS: u32 = 3;

    /// From what is reached of Yellow and of Red (0 or 1 each).
    #[inline(always)]
    const fn of(cause: Cause, yellow: u64, red: u64) -> Self {
        let zone = red * Zone::Red as u64 + (yellow & (red ^ 1)) * Zone::Yellow as u64;
        Self((zone << Self::CAUSE_BITS) + (yellow | red) * cause as u64)
    }

    #[inline(always)]
    fn stronger(self, other: Self) -> Self {
        Self(greatest(self.0, other.0))
    }

    #[inline(always)]
    const fn zone(self) -> Zone {
        Zone::from_bits((self.0 >> Self::CAUSE_BITS).to_le_bytes()[0])
    }

    #[inline(always)]
    const fn cause(self) -> Cause {
        Cause::from_bits((self.0 & ((1 << Self::CAUSE_BITS) - 1)).to_le_bytes()[0])
    }
}

/// The strongest say by the entry thresholds, and by the exit thresholds. A signal never enters
/// more than it holds.
#[derive(Debug, Clone, Copy)]
struct Say {
    enters: Score,
    holds: Score,
}

impl Say {
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self {
            enters: self.enters.stronger(other.enters),
            holds: self.holds.stronger(other.holds),
        }
    }

    /// Silences a signal that isn't available.
    #[inline(always)]
    const fn if_available(self, signals: &Signals, bit: u32) -> Self {
        let known = (signals.available >> bit.trailing_zeros() & 1) as u64;
        Self {
            enters: Score(self.enters.0 * known),
            holds: Score(self.holds.0 * known),
        }
    }
}

/// The exit threshold that belongs to an entry threshold.
#[must_use]
pub const fn exit_permille(entry: u32) -> u32 {
    entry / 10 * 8 + entry % 10 * 8 / 10
}

const fn exit_ns(entry: u64) -> u64 {
    entry / 10 * 8 + entry % 10 * 8 / 10
}

/// A signal of which much is bad.
#[inline(always)]
fn rising(cause: Cause, value: u32, levels: Levels) -> Say {
    let value = u64::from(value);
    let at = |yellow: u32, red: u32| {
        Score::of(
            cause,
            reached(value, u64::from(yellow)),
            reached(value, u64::from(red)),
        )
    };
    Say {
        enters: at(levels.yellow_permille, levels.red_permille),
        holds: at(
            exit_permille(levels.yellow_permille),
            exit_permille(levels.red_permille),
        ),
    }
}

#[inline(always)]
fn receive_queue(policy: &Policy, signals: &Signals) -> Say {
    let depth = u64::from(signals.receive_queue_permille);
    let stalled_ns = signals.receive_queue_stalled_ns;
    let stalled = reached(stalled_ns, 1);
    // The probes count with hysteresis, so a count holds Yellow as well as it enters it.
    let above = reached(u64::from(signals.sockets_above_yellow), 1);
    // A level alone is never Red: bursts fill a healthy queue for an instant.
    let at = |yellow: u32, for_ns: u64| {
        Score::of(
            Cause::ReceiveQueue,
            reached(depth, u64::from(yellow)) | above,
            reached(stalled_ns, for_ns) & stalled,
        )
    };
    let yellow = policy.receive_queue.yellow_permille;
    let say = Say {
        enters: at(yellow, policy.receive_queue_for_ns),
        holds: at(exit_permille(yellow), exit_ns(policy.receive_queue_for_ns)),
    };
    say.if_available(signals, available::RECEIVE_QUEUE)
}

#[inline(always)]
fn heartbeat(policy: &Policy, signals: &Signals) -> Say {
    let later_than = |limit_ns: u64| {
        let late = reached(signals.heartbeat_age_ns, limit_ns + 1);
        Score::of(Cause::Heartbeat, 0, late)
    };
    let say = Say {
        enters: later_than(policy.heartbeat_limit_ns),
        holds: later_than(exit_ns(policy.heartbeat_limit_ns)),
    };
    say.if_available(signals, available::HEARTBEAT)
}

#[inline(always)]
fn budget(policy: &Policy, signals: &Signals) -> Say {
    let [ingest, export, vault] = signals.budget_permille;
    let one =
        |permille, bit| rising(Cause::Budget, permille, policy.budget).if_available(signals, bit);
    one(ingest, available::BUDGET_INGEST)
        .and(one(export, available::BUDGET_EXPORT))
        .and(one(vault, available::BUDGET_VAULT))
}

/// Low is bad here: leaves when it is back above entry ÷ 0.8.
#[inline(always)]
fn memory_available(policy: &Policy, signals: &Signals) -> Say {
    let value = u64::from(signals.memory_available_permille);
    let levels = policy.memory_available;
    let at = |entry_factor: u64, value_factor: u64| {
        let at_most = |entry: u32| reached(u64::from(entry) * entry_factor, value * value_factor);
        Score::of(
            Cause::MemoryAvailable,
            at_most(levels.yellow_permille),
            at_most(levels.red_permille),
        )
    };
    let say = Say {
        enters: at(1, 1),
        holds: at(10, 8),
    };
    say.if_available(signals, available::MEMORY_AVAILABLE)
}

/// Decides. Pure; `now_ns` is the same clock as every time in `policy`, `signals` and `previous`,
/// all below 2^63.
#[must_use]
#[inline(always)]
pub fn judge(policy: &Policy, signals: &Signals, previous: &State, now_ns: u64) -> Judgement {
    let say = receive_queue(policy, signals)
        .and(heartbeat(policy, signals))
        .and(budget(policy, signals))
        .and(memory_available(policy, signals));
    let (enters, entry_cause) = (say.enters.zone(), say.enters.cause());
    let (holds, hold_cause) = (say.holds.zone(), say.holds.cause());

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

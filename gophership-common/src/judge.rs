//! The decision: what zone the signals, the policy and the past add up to.
//!
//! Which value of which signal speaks for which zone is in the table of [`crate::Thresholds`]; this
//! is what follows from it:
//!
//! - *Up* at once: the zone is at least the highest that any available signal enters.
//! - *Down* after `hold`: when every signal has stayed below its exit threshold for that long. Two
//!   clocks, one below the Yellow exits and one below the Red exits, let Red go straight to Green when
//!   everything has been calm for long enough.
//! - *Within one stay* in a zone the cause may only rise in precedence ([`Cause`]'s order): the word
//!   is written at most a handful of times per stay, and can't flap between two causes.
//! - *The override* lies on top of the natural zone until it expires, so that its end falls back at
//!   once to what the signals say.
//! - *The slow-disk flag* goes up with a disk signal's Yellow and down after `hold` below its exit,
//!   whatever the zone is due to.

use crate::branchless::{greatest, reached};
use crate::pages::{OVERRIDE_FOREVER, OVERRIDE_NONE, Policy};
use crate::rules::Rule;
use crate::signal::{SIGNALS, Signals};
use crate::zone::{Cause, FLAG_OVERRIDE, FLAG_SLOW_DISK, Word, Zone};

/// What the judge remembers: the natural verdict and the calm clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Zone without the override.
    pub zone: Zone,
    /// Cause of `zone`.
    pub cause: Cause,
    /// Flags of the word, but for [`FLAG_OVERRIDE`].
    pub flags: u16,
    /// Since when every signal has been below its Yellow exit; 0: it isn't.
    pub below_yellow_since_ns: u64,
    /// Since when every signal has been below its Red exit; 0: it isn't.
    pub below_red_since_ns: u64,
    /// Since when every disk signal has been below its exit; 0: it isn't.
    pub disk_calm_since_ns: u64,
}

impl State {
    /// Before anything was judged.
    pub const START: Self = Self {
        zone: Zone::Green,
        cause: Cause::None,
        flags: 0,
        below_yellow_since_ns: 0,
        below_red_since_ns: 0,
        disk_calm_since_ns: 0,
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
            below_yellow_since_ns: 0,
            below_red_since_ns: 0,
            ..self
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
    /// [`FLAG_OVERRIDE`] and [`FLAG_SLOW_DISK`].
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

/// How strongly signals speak for a zone: `zone << 8 | cause`, 0 for Green. Of two, the greater
/// counts: the higher zone and, within a zone, the cause of higher precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Score(u64);

impl Score {
    /// From what is reached of Yellow and of Red (0 or 1 each); what reaches Red has reached Yellow,
    /// or never speaks for it.
    #[inline(always)]
    const fn of(cause: u64, yellow: u64, red: u64) -> Self {
        let zone = red * Zone::Red as u64 + (yellow & (red ^ 1)) * Zone::Yellow as u64;
        Self((zone << 8) + (yellow | red) * cause)
    }

    #[inline(always)]
    fn stronger(self, other: Self) -> Self {
        Self(greatest(self.0, other.0))
    }

    #[inline(always)]
    const fn zone(self) -> Zone {
        Zone::from_bits(self.0.to_le_bytes()[1])
    }

    #[inline(always)]
    const fn cause(self) -> Cause {
        Cause::from_bits(self.0.to_le_bytes()[0])
    }
}

/// The strongest say by the entry thresholds, and by the exit thresholds; and the flags. A signal
/// never enters more than it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Say {
    enters: Score,
    holds: Score,
    raises: u64,
    keeps: u64,
}

impl Say {
    /// One signal's say; `known` is 1 if it is available, else 0.
    #[inline(always)]
    fn of(rule: &Rule, value: u64, known: u64) -> Self {
        let cause = rule.says & 0xff;
        let flags = rule.says >> 16;
        let value = value ^ rule.flip;
        let at = |threshold: u64| reached(value, threshold) & known;
        let (yellow, yellow_held) = (at(rule.yellow), at(rule.yellow_exit));
        Self {
            enters: Score::of(cause, yellow, at(rule.red)),
            holds: Score::of(cause, yellow_held, at(rule.red_exit)),
            raises: flags * yellow,
            keeps: flags * yellow_held,
        }
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self {
            enters: self.enters.stronger(other.enters),
            holds: self.holds.stronger(other.holds),
            raises: self.raises | other.raises,
            keeps: self.keeps | other.keeps,
        }
    }
}

#[inline(always)]
fn say(policy: &Policy, signals: &Signals) -> Say {
    let mut say = Say::default();
    let mut index = 0;
    while index < SIGNALS {
        let known = signals.available >> index & 1;
        say = say.and(Say::of(&policy.rules[index], signals.values[index], known));
        index += 1;
    }
    say
}

/// Decides. Pure; `now_ns` is the same clock as every time in `policy` and `previous`, all below
/// 2^62, as every value is.
#[must_use]
#[inline(always)]
pub fn judge(policy: &Policy, signals: &Signals, previous: &State, now_ns: u64) -> Judgement {
    let say = say(policy, signals);
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
    let (flags, disk_calm_since_ns) = slow_disk(policy, say, previous, now_ns);
    let state = State {
        zone,
        cause,
        flags,
        below_yellow_since_ns,
        below_red_since_ns,
        disk_calm_since_ns,
    };
    publish(policy, state, now_ns)
}

/// The flag of a slow disk, and the clock that lowers it.
#[inline(always)]
fn slow_disk(policy: &Policy, say: Say, previous: &State, now_ns: u64) -> (u16, u64) {
    const FLAG: u64 = FLAG_SLOW_DISK as u64;
    let since_ns = if say.keeps & FLAG == 0 {
        since(previous.disk_calm_since_ns, now_ns)
    } else {
        0
    };
    let flags = if say.raises & FLAG != 0 {
        FLAG_SLOW_DISK
    } else if held_for(since_ns, now_ns, policy.hold_ns) {
        0
    } else {
        previous.flags & FLAG_SLOW_DISK
    };
    (flags, since_ns)
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
        flags: flags | state.flags,
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

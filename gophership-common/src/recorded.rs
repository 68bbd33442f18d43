//! One recorded reading and what the kernel's copy of the judge made of it, for the parity test.

use crate::judge::{Judgement, State};
use crate::pages::Policy;
use crate::signal::Signals;
use crate::zone::{Cause, Word, Zone};

/// `RECORDED`: the test writes everything but `outcome` and `after`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RecordedPage {
    /// When it is judged.
    pub now_ns: u64,
    /// The natural verdict before.
    pub before: Word,
    /// [`State`]'s clocks before: below Yellow, below Red, disk calm.
    pub clocks_before_ns: [u64; 3],
    /// The word to publish.
    pub outcome: Word,
    /// The natural verdict after.
    pub after: Word,
    /// The clocks after.
    pub clocks_after_ns: [u64; 3],
    /// The reading.
    pub signals: Signals,
    /// What to judge it by.
    pub policy: Policy,
}

impl State {
    /// The zone, the cause and the flags, as [`VerdictPage::natural`](crate::VerdictPage) holds them.
    #[must_use]
    pub const fn word(&self) -> Word {
        Word::new(self.zone, self.cause, self.flags, 0)
    }

    /// What [`State::word`] and [`State::clocks_ns`] were taken from.
    #[must_use]
    pub const fn of(word: Word, clocks_ns: [u64; 3]) -> Self {
        let [
            below_yellow_since_ns,
            below_red_since_ns,
            disk_calm_since_ns,
        ] = clocks_ns;
        Self {
            zone: word.zone(),
            cause: word.cause(),
            flags: word.flags(),
            below_yellow_since_ns,
            below_red_since_ns,
            disk_calm_since_ns,
        }
    }

    /// Below Yellow, below Red, disk calm.
    #[must_use]
    pub const fn clocks_ns(&self) -> [u64; 3] {
        [
            self.below_yellow_since_ns,
            self.below_red_since_ns,
            self.disk_calm_since_ns,
        ]
    }
}

impl RecordedPage {
    /// Writes down what came out.
    #[inline(always)]
    pub const fn conclude(&mut self, judgement: &Judgement) {
        self.outcome = judgement.word_after(Word::new(Zone::Green, Cause::None, 0, 0));
        self.after = judgement.state.word();
        self.clocks_after_ns = judgement.state.clocks_ns();
    }
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integer fields only, no implicit padding, any bit pattern is valid.
unsafe impl aya::Pod for RecordedPage {}

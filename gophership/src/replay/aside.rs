//! Putting entries aside as dead letters, and what happens when that can't be done.
//!
//! Such an entry stays owed, and is parked: nobody sends it again until letters can be written. The others
//! are replayed meanwhile.

use std::time::{Duration, Instant};

use super::{
    Handle,
    dead_letter::{DeadLetters, Error, Held},
};
use crate::{
    telemetry::throttle::Throttle,
    vault::{Entry, Vault},
};

/// After this long it is tried again whether letters can be written.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// What lasts is logged again after this long.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The dead letters of one replay.
#[derive(Debug)]
pub(super) struct Aside {
    letters: DeadLetters,
    vault: Vault,
    control: Handle,
    refused: Option<Refused>,
    told: Option<Instant>,
    /// Lines about letters that were written: a destination may refuse everything.
    letters_told: Throttle,
    /// How often parked entries were taken back.
    unparked: u64,
}

/// Letters can't be written.
#[derive(Debug)]
struct Refused {
    /// When to try again.
    again_at: Instant,
    /// What filled the directory, if it is full.
    full: Option<Held>,
}

impl Aside {
    pub(super) fn new(letters: DeadLetters, vault: Vault, control: Handle) -> Self {
        Self {
            letters,
            vault,
            control,
            refused: None,
            told: None,
            letters_told: Throttle::new(Instant::now()),
            unparked: 0,
        }
    }

    /// Puts an entry aside durably; false if that can't be done now: it is parked, for `bit`.
    pub(super) fn put(&mut self, entry: &Entry, destination: &str, bit: u32, reason: &str) -> bool {
        match self.letters.put(entry, destination, reason) {
            Ok(()) => {
                if let Some(left_out) = self.letters_told.admit(Instant::now()) {
                    tracing::error!(destination, reason, entry = ?entry.id, records = entry.records, left_out, "replay: dead letter");
                }
                self.control.dead_letters(self.letters.held());
                true
            }
            Err(error) => {
                self.vault.park(entry.id, bit);
                self.refuse(&error, Instant::now());
                false
            }
        }
    }

    fn refuse(&mut self, error: &Error, now: Instant) {
        let full = matches!(error, Error::Full { .. }).then(|| self.letters.held());
        self.refused = Some(Refused {
            again_at: now + AGAIN_AFTER,
            full,
        });
        let lately = |told| now.saturating_duration_since(told) < TELL_EVERY;
        if !self.told.is_some_and(lately) {
            self.told = Some(now);
            tracing::error!(%error, "replay: a dead letter can't be written; its entry stays owed, and so do others like it");
        }
        self.control.refuse_letters(Some(error.to_string()));
    }

    /// Takes the parked entries back if it is time and there may be room for them. Gives how often that was
    /// done: after each time the vault has to be read from the start again.
    pub(super) fn unparked(&mut self, now: Instant) -> u64 {
        if self.is_time_again(now) {
            self.refused = None;
            self.control.refuse_letters(None);
            self.vault.unpark();
            self.unparked += 1;
        }
        self.unparked
    }

    fn is_time_again(&mut self, now: Instant) -> bool {
        let Some(refused) = self
            .refused
            .as_mut()
            .filter(|refused| now >= refused.again_at)
        else {
            return false;
        };
        refused.again_at = now + AGAIN_AFTER;
        if let Some(full) = refused.full {
            match self.letters.recount() {
                Ok(held) if held.bytes < full.bytes => self.control.dead_letters(held),
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }
}

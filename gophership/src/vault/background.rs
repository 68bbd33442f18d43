//! What a vault does beside appending and reading: on threads of its own, or step by step.

use std::{sync::Arc, time::Duration};

use super::{
    Vault,
    cursors::{CursorWriter, Cursors},
    directory::Found,
    error::Error,
    life::{self, Keeper},
    recovery,
    scrub::{self, Scrubber},
    shared::Shared,
    upkeep,
};

/// The background work of one vault. A daemon has threads for it; a simulation calls one step after
/// the other.
#[derive(Debug)]
pub struct Background {
    shared: Arc<Shared>,
    segments: Keeper,
    cursors: CursorWriter,
    scrubber: Scrubber,
    /// What an earlier run has left; `None` once it was read.
    left: Option<(Arc<Cursors>, Vec<Found>)>,
}

impl Background {
    pub(super) fn new(shared: Arc<Shared>, cursors: Cursors, found: Vec<Found>) -> Self {
        let cursors = Arc::new(cursors);
        Self {
            segments: Keeper::new(Arc::clone(&shared)),
            cursors: CursorWriter::new(shared.dir(), Arc::clone(&cursors)),
            scrubber: Scrubber::new(shared.platform.now()),
            left: Some((cursors, found)),
            shared,
        }
    }

    /// Makes the segments that lanes want, cuts sealed ones, and takes away what nobody needs any more.
    pub fn make_segments(&mut self) {
        self.segments.step();
    }

    /// Reads the segments of earlier runs, once.
    pub fn recover(&mut self) {
        if let Some((cursors, found)) = self.left.take() {
            recovery::recover(&self.shared, &cursors, found);
        }
    }

    /// Writes the cursors if something changed.
    ///
    /// # Errors
    /// The cursors can't be written; the next step tries again.
    pub fn keep_up(&mut self) -> Result<(), Error> {
        upkeep::pass(&self.shared, &mut self.cursors)
    }

    /// Does one piece of scrubbing; gives how long to wait before the next.
    pub fn scrub(&mut self) -> Duration {
        self.scrubber.step(&self.shared, self.shared.platform.now())
    }

    pub(super) fn start_threads(self, vault: &Vault) -> Result<(), Error> {
        let Self {
            segments,
            cursors,
            scrubber,
            left,
            ..
        } = self;
        vault.inner.start("vault-segments", |shared| {
            life::keep_segments(shared, segments);
            Ok(())
        })?;
        vault
            .inner
            .start("vault-cursors", |shared| upkeep::keep_up(shared, cursors))?;
        vault.inner.start("vault-scrub", |shared| {
            scrub::scrub(shared, scrubber);
            Ok(())
        })?;
        vault.inner.start("vault-recovery", |shared| {
            if let Some((cursors, found)) = left {
                recovery::recover(shared, &cursors, found);
            }
            Ok(())
        })
    }
}

//! A worker's lane into the vault: group commit, and acknowledgement in block order.
//!
//! An append copies its bytes into the open block and waits. The block is written when it is full,
//! when nothing else is being written, or when `linger` has passed. Blocks may be in flight together,
//! but they are acknowledged in order, so what is acknowledged is always a prefix.

mod acknowledge;
mod block;
mod codec;
mod core;
mod geometry;
mod ops;
mod pace;
mod place;
#[cfg(test)]
mod tests;
mod waiters;

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use self::{
    block::Span,
    core::{Core, Health, Placed},
    waiters::{Left, Outcome, Ticket},
};
use super::{
    DestMask, EntryId, EntryMeta, Error, Settlement, error::AppendError, port::Port, shared::Shared,
};
use crate::uring::Notifier;

pub(super) use self::geometry::Geometry;

/// A handle to a worker's lane, cheap to clone; it stays on its thread.
#[derive(Clone)]
pub struct Lane {
    inner: Rc<Inner>,
}

struct Inner {
    core: RefCell<Core>,
    /// Held by the append that is looking for a place; makes appends enter in the order they came.
    turn: tokio::sync::Mutex<()>,
    shared: Arc<Shared>,
    lane: u16,
}

/// What an append and its caller tell each other while it is under way.
#[derive(Debug, Default)]
pub struct Meanwhile {
    accepted: Cell<DestMask>,
    placed: Cell<bool>,
}

impl Meanwhile {
    /// Destinations that have the whole entry by now: if the append's future is dropped, what it stores isn't
    /// owed to them, and what it doesn't store counts as delivered to them without the vault.
    pub fn accepted(&self, accepted: DestMask) {
        self.accepted.set(accepted);
    }

    /// Whether the append was dropped when its entry had its place already. Then the vault counts it, also if
    /// it can't store it in the end.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.placed.get()
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("lane", &self.inner.lane)
            .finish_non_exhaustive()
    }
}

impl Lane {
    /// Makes the ring and starts the task that drives it, on the current `LocalSet`.
    pub(super) fn start(shared: Arc<Shared>, lane: u16) -> Result<Self, Error> {
        let (core, notifier) = Core::new(Arc::clone(&shared), lane)?;
        let inner = Rc::new(Inner {
            core: RefCell::new(core),
            turn: tokio::sync::Mutex::new(()),
            shared,
            lane,
        });
        tokio::task::spawn_local(drive(Rc::clone(&inner), notifier));
        Ok(Self { inner })
    }

    /// Stores an entry, whose bytes are those of `parts` one after the other. Resolves when it is on
    /// stable storage, and every entry placed before it in this lane too. Allocates nothing once the
    /// lane has warmed up. If the future is dropped, the entry is stored whole or not at all.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing is promised then.
    pub async fn append<P: AsRef<[u8]>>(
        &self,
        meta: EntryMeta,
        parts: &[P],
    ) -> Result<EntryId, AppendError> {
        self.append_while(meta, parts, &Meanwhile::default()).await
    }

    /// As [`Self::append`], for an entry that is also on its way to its destinations.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing is promised then.
    pub async fn append_while<P: AsRef<[u8]>>(
        &self,
        meta: EntryMeta,
        parts: &[P],
        meanwhile: &Meanwhile,
    ) -> Result<EntryId, AppendError> {
        let len: usize = parts.iter().map(|part| part.as_ref().len()).sum();
        let max = self.inner.shared.config.max_entry_bytes;
        if len > max {
            return Err(AppendError::TooLarge { bytes: len, max });
        }
        let piece_max = self.inner.core.borrow().geometry.piece_max();
        loop {
            let ticket = if len <= piece_max {
                self.place_whole(&meta, parts, len).await?
            } else {
                self.place_large(&meta, parts, len, piece_max).await?
            };
            let stored = Stored {
                inner: &self.inner,
                ticket: Some(ticket),
                held: meta.held,
                records: meta.records,
                meanwhile,
            };
            match stored.await {
                Outcome::Stored(id) => return Ok(id),
                Outcome::Refused(error) => return Err(error),
                Outcome::Again => {}
            }
        }
    }

    async fn place_whole<P: AsRef<[u8]>>(
        &self,
        meta: &EntryMeta,
        parts: &[P],
        len: usize,
    ) -> Result<Ticket, AppendError> {
        let _turn = self.inner.turn.lock().await;
        loop {
            let placed = self.inner.core.borrow_mut().place_whole(meta, parts, len)?;
            if let Placed::Here(ticket) = placed {
                return Ok(ticket);
            }
            self.inner.port().room.notified().await;
        }
    }

    async fn place_large<P: AsRef<[u8]>>(
        &self,
        meta: &EntryMeta,
        parts: &[P],
        len: usize,
        piece_max: usize,
    ) -> Result<Ticket, AppendError> {
        // Kept over all pieces, so that they lie in consecutive blocks, and over a new beginning in
        // another segment, so that nobody overtakes.
        let _turn = self.inner.turn.lock().await;
        loop {
            let epoch = self.begin_large(len).await?;
            let placed = self
                .place_pieces(epoch, meta, parts, len, piece_max)
                .await?;
            if let Some(ticket) = placed {
                return Ok(ticket);
            }
        }
    }

    async fn begin_large(&self, len: usize) -> Result<u64, AppendError> {
        loop {
            let placed = self.inner.core.borrow_mut().begin_large(len)?;
            if let Placed::Here(epoch) = placed {
                return Ok(epoch);
            }
            self.inner.port().room.notified().await;
        }
    }

    /// `None` when the segment was left meanwhile and all must be written again.
    async fn place_pieces<P: AsRef<[u8]>>(
        &self,
        epoch: u64,
        meta: &EntryMeta,
        parts: &[P],
        len: usize,
        piece_max: usize,
    ) -> Result<Option<Ticket>, AppendError> {
        let size =
            |bytes: usize| u32::try_from(bytes).expect("entries are below 4 GiB, checked at open");
        let mut offset = 0;
        loop {
            let piece = piece_max.min(len - offset);
            let span = Span {
                offset: size(offset),
                len: size(piece),
                total: size(len),
            };
            let placed = self
                .inner
                .core
                .borrow_mut()
                .place_piece(epoch, meta, span, parts)?;
            match placed {
                Placed::Here(Some(ticket)) => return Ok(Some(ticket)),
                Placed::Here(None) => offset += piece,
                Placed::Again => return Ok(None),
                Placed::Wait => self.inner.port().room.notified().await,
            }
        }
    }

    /// Writes the open block, waits for all writes, and seals the segment; the next append begins
    /// another one. A lane that the disk refuses stays as it is.
    pub async fn seal(&self) {
        let _turn = self.inner.turn.lock().await;
        self.write_seal().await;
    }

    /// Whether a seal was written.
    async fn write_seal(&self) -> bool {
        self.settle().await;
        if self.inner.core.borrow().health != Health::Good {
            return false;
        }
        self.inner.core.borrow_mut().write_seal();
        self.settle().await;
        true
    }

    /// Writes the open block, waits for all writes, and seals the segment. Appends that come later are
    /// refused as closed.
    ///
    /// # Errors
    /// The disk refused; the appends concerned were told so themselves.
    pub async fn shutdown(&self) -> Result<(), AppendError> {
        let _turn = self.inner.turn.lock().await;
        let sealed = self.write_seal().await;
        let mut core = self.inner.core.borrow_mut();
        let result = match &core.health {
            Health::Good | Health::Closed => Ok(()),
            Health::Refusing { reason, .. } | Health::Broken { reason } if !sealed => {
                Err(AppendError::Failed {
                    reason: reason.clone(),
                })
            }
            // Only the seal is missing; the next start walks the segment instead.
            Health::Refusing { .. } | Health::Broken { .. } => Ok(()),
            Health::Draining { .. } | Health::Moving { .. } => unreachable!("settled"),
        };
        core.health = Health::Closed;
        self.inner.port().driver.notify_one();
        result
    }

    /// Waits until everything appended is acknowledged or refused.
    async fn settle(&self) {
        loop {
            {
                let mut core = self.inner.core.borrow_mut();
                if core.health == Health::Good {
                    core.write_open();
                }
                if core.is_settled() {
                    return;
                }
            }
            self.inner.port().room.notified().await;
        }
    }

    /// Sets the zone and cause, as their numbers in the verdict word, that go into block headers.
    pub fn note_verdict(&self, zone: u8, cause: u8) {
        self.inner.core.borrow_mut().verdict = (zone, cause);
    }

    /// Sets how much of the time the workers wait for a CPU, permille, for `compression: auto`.
    pub fn note_cpu_wait(&self, permille: u64) {
        self.inner.core.borrow_mut().chooser.note_cpu_wait(permille);
    }

    /// How long a durable write takes now, in the eyes of those who wait for it; `None` if there was
    /// nothing to write within the last second.
    #[must_use]
    pub fn write_latency(&self) -> Option<Duration> {
        let mut core = self.inner.core.borrow_mut();
        // A worker that was held up hasn't heard yet of what is long done.
        core.advance();
        let now = core.now();
        core.write_latency(now)
    }

    /// Bytes of block buffers in use.
    #[must_use]
    pub fn bytes_in_use(&self) -> usize {
        let core = self.inner.core.borrow();
        (core.blocks.count() - core.blocks.available()) * core.blocks.buffer_bytes()
    }
}

impl Inner {
    fn port(&self) -> &Port {
        &self.shared.ports[usize::from(self.lane)]
    }
}

async fn drive(inner: Rc<Inner>, notifier: Notifier) {
    loop {
        tokio::select! {
            // In this order, and not by chance, so that a simulation can be repeated.
            biased;
            waited = notifier.wait() => {
                if let Err(error) = waited {
                    // Nobody would hear of finished writes any more.
                    inner.core.borrow_mut().break_down(&error.to_string());
                    return;
                }
            }
            () = inner.port().driver.notified() => {}
        }
        let mut core = inner.core.borrow_mut();
        core.advance();
        if core.health == Health::Closed && core.writer.writes() == 0 {
            return;
        }
    }
}

/// Waits for one append's outcome.
struct Stored<'a> {
    inner: &'a Inner,
    /// `None` once the outcome was taken.
    ticket: Option<Ticket>,
    held: bool,
    records: u32,
    meanwhile: &'a Meanwhile,
}

impl Future for Stored<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let ticket = self.ticket.expect("not polled after its end");
        let polled = self.inner.core.borrow_mut().waiters.poll(ticket, context);
        if polled.is_ready() {
            self.ticket = None;
        }
        polled
    }
}

impl Drop for Stored<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let accepted = self.meanwhile.accepted.get();
        self.meanwhile.placed.set(true);
        let left = Left {
            accepted,
            records: self.records,
            shared: Arc::clone(&self.inner.shared),
        };
        let stored = self.inner.core.borrow_mut().waiters.cancel(ticket, left);
        let Some(id) = stored else { return };
        if accepted != 0 {
            self.inner.shared.settle(id, accepted, Settlement::WHOLE);
        }
        if self.held {
            // Stored, but nobody knows: replay must take it.
            self.inner.shared.release(id);
        }
    }
}

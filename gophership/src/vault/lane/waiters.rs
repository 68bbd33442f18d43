//! Who waits for which append, in slots that are reused.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::vault::{DestMask, EntryId, error::AppendError, shared::Shared};

/// Slots made at once; more concurrent appends than that grow the table, once.
const SLOTS: usize = 4096;

/// How an append ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Durable.
    Stored(EntryId),
    /// Not stored.
    Refused(AppendError),
    /// Its segment was given up after a part of it was written: write it again from the start.
    Again,
}

/// What an append leaves behind whose request was cancelled: the entry is still written, and nobody else
/// will hear how that ends.
#[derive(Debug)]
pub(super) struct Left {
    /// Destinations that had the entry by then.
    pub(super) accepted: DestMask,
    pub(super) records: u32,
    pub(super) shared: Arc<Shared>,
}

impl Left {
    /// Keeps the books of an entry that isn't stored after all.
    fn end(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Stored(_) => {}
            // Nobody is left to write it again.
            Outcome::Refused(_) | Outcome::Again => {
                self.shared.note_unstored(self.accepted, self.records);
            }
        }
    }
}

#[derive(Debug)]
enum Slot {
    Free,
    Waiting(Option<Waker>),
    Done(Outcome),
    Cancelled(Left),
}

/// Number of a slot.
pub(super) type Ticket = u32;

#[derive(Debug)]
pub(super) struct Waiters {
    slots: Vec<Slot>,
    free: Vec<Ticket>,
}

impl Waiters {
    pub(super) fn new() -> Self {
        let mut waiters = Self {
            slots: Vec::with_capacity(SLOTS),
            free: Vec::with_capacity(SLOTS),
        };
        for ticket in 0..SLOTS {
            waiters.slots.push(Slot::Free);
            waiters.free.extend(Ticket::try_from(ticket));
        }
        waiters.free.reverse();
        waiters
    }

    pub(super) fn take(&mut self) -> Ticket {
        let ticket = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            // Bounded by the entries in block buffers, far below 2^32.
            Ticket::try_from(self.slots.len() - 1).unwrap_or(Ticket::MAX)
        });
        self.slots[ticket as usize] = Slot::Waiting(None);
        ticket
    }

    /// Who had the entry when its request was cancelled; `None` if it wasn't.
    pub(super) fn cancelled(&self, ticket: Ticket) -> Option<DestMask> {
        match &self.slots[ticket as usize] {
            Slot::Cancelled(left) => Some(left.accepted),
            Slot::Free | Slot::Waiting(_) | Slot::Done(_) => None,
        }
    }

    pub(super) fn finish(&mut self, ticket: Ticket, outcome: Outcome) {
        let slot = &mut self.slots[ticket as usize];
        match std::mem::replace(slot, Slot::Free) {
            Slot::Waiting(waker) => {
                *slot = Slot::Done(outcome);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Slot::Cancelled(left) => {
                left.end(&outcome);
                self.free.push(ticket);
            }
            Slot::Free | Slot::Done(_) => unreachable!("append {ticket} finished twice"),
        }
    }

    pub(super) fn poll(&mut self, ticket: Ticket, context: &Context<'_>) -> Poll<Outcome> {
        let slot = &mut self.slots[ticket as usize];
        match std::mem::replace(slot, Slot::Free) {
            Slot::Done(outcome) => {
                self.free.push(ticket);
                Poll::Ready(outcome)
            }
            Slot::Waiting(known) => {
                let waker = known
                    .filter(|waker| waker.will_wake(context.waker()))
                    .unwrap_or_else(|| context.waker().clone());
                *slot = Slot::Waiting(Some(waker));
                Poll::Pending
            }
            Slot::Free | Slot::Cancelled(_) => {
                unreachable!("append {ticket} polled after its end")
            }
        }
    }

    /// The request no longer waits; returns its entry if that was stored already.
    pub(super) fn cancel(&mut self, ticket: Ticket, left: Left) -> Option<EntryId> {
        let slot = &mut self.slots[ticket as usize];
        match std::mem::replace(slot, Slot::Free) {
            Slot::Waiting(_) => {
                *slot = Slot::Cancelled(left);
                None
            }
            Slot::Done(outcome) => {
                self.free.push(ticket);
                left.end(&outcome);
                match outcome {
                    Outcome::Stored(id) => Some(id),
                    Outcome::Refused(_) | Outcome::Again => None,
                }
            }
            Slot::Free | Slot::Cancelled(_) => {
                unreachable!("append {ticket} cancelled after its end")
            }
        }
    }
}

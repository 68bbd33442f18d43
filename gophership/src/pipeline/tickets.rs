//! Who waits for a batch: a preallocated table of requests between pipeline and acknowledgement.
//!
//! A ticket is taken when a request enters a batch and freed when the batch is settled *and* its
//! request has been answered, whichever is later. Taking and freeing allocate nothing.
//!
//! A destination that has the batch before the others is noted at once: what the vault holds of the request isn't owed
//! to it any more, whatever the others take their time for.

use std::task::{Context, Poll, Waker};

use super::DestMask;

/// What the destinations made of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Destinations that have it.
    pub accepted: DestMask,
    /// Destinations that must have it and don't.
    pub failed: DestMask,
}

#[derive(Debug)]
enum State<H> {
    Free,
    /// The request waits for its batch, which the destinations of `accepted` have.
    Waiting {
        waker: Option<Waker>,
        accepted: DestMask,
    },
    /// The batch is settled; the request hasn't looked yet.
    Settled(Settled),
    /// The vault has acknowledged the request; the export goes on.
    Held(H),
    /// The request went away; nobody looks.
    Abandoned,
}

/// The table of one worker; `H` names what the vault holds of an acknowledged request.
#[derive(Debug)]
pub struct Tickets<H> {
    states: Vec<State<H>>,
    free: Vec<u32>,
}

impl<H> Tickets<H> {
    /// A table of `capacity` tickets.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self {
            states: (0..capacity).map(|_| State::Free).collect(),
            free: (0..capacity).rev().collect(),
        }
    }

    /// Takes a ticket, if one is free.
    pub fn take(&mut self) -> Option<u32> {
        let index = self.free.pop()?;
        self.states[index as usize] = State::Waiting {
            waker: None,
            accepted: 0,
        };
        Some(index)
    }

    /// Tickets in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.states.len() - self.free.len()
    }

    /// The destinations of `accepted` have the batch of `ticket`, and others may yet. Gives the entry whose export
    /// this is, if the vault has acknowledged the request already.
    pub fn accept(&mut self, ticket: u32, accepted: DestMask) -> Option<H>
    where
        H: Copy,
    {
        match &mut self.states[ticket as usize] {
            State::Waiting {
                accepted: so_far, ..
            } => {
                *so_far |= accepted;
                None
            }
            State::Held(entry) => Some(*entry),
            State::Abandoned => None,
            State::Free | State::Settled(_) => {
                unreachable!("ticket {ticket} is taken, and not settled yet")
            }
        }
    }

    /// The destinations that have the batch by now, of those that [`Self::accept`] told of since the last call. From
    /// now on they are the caller's to remember.
    pub fn take_accepted(&mut self, ticket: u32) -> DestMask {
        match &mut self.states[ticket as usize] {
            State::Waiting { accepted, .. } => std::mem::take(accepted),
            State::Free | State::Settled(_) | State::Held(_) | State::Abandoned => 0,
        }
    }

    /// The batch of `ticket` is settled: `settled` has what [`Self::accept`] hasn't told. Gives the entry back whose export this was, if the
    /// vault had acknowledged the request already.
    pub fn settle(&mut self, ticket: u32, settled: Settled) -> Option<H> {
        let state = &mut self.states[ticket as usize];
        match std::mem::replace(state, State::Settled(settled)) {
            State::Waiting { waker, accepted } => {
                *state = State::Settled(Settled {
                    accepted: settled.accepted | accepted,
                    ..settled
                });
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            State::Held(entry) => {
                self.release(ticket);
                Some(entry)
            }
            State::Abandoned => {
                self.release(ticket);
                None
            }
            State::Free | State::Settled(_) => {
                unreachable!("ticket {ticket} is settled once, while taken")
            }
        }
    }

    /// Waits for [`Self::settle`]; the ticket is freed when this is ready.
    pub fn poll(&mut self, ticket: u32, context: &Context<'_>) -> Poll<Settled> {
        match &mut self.states[ticket as usize] {
            State::Settled(settled) => {
                let settled = *settled;
                self.release(ticket);
                Poll::Ready(settled)
            }
            State::Waiting { waker, .. } => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            State::Free | State::Held(_) | State::Abandoned => {
                unreachable!("ticket {ticket} is polled by the request that holds it")
            }
        }
    }

    /// The vault has acknowledged the request and holds it as `entry`. Gives back what there is of the outcome: all, if
    /// the batch was settled meanwhile; else the export settles the rest of the entry later.
    pub fn hold(&mut self, ticket: u32, entry: H) -> Option<Settled> {
        let state = &mut self.states[ticket as usize];
        match std::mem::replace(state, State::Held(entry)) {
            State::Waiting { accepted: 0, .. } => None,
            State::Waiting { accepted, .. } => Some(Settled {
                accepted,
                failed: 0,
            }),
            State::Settled(settled) => {
                self.release(ticket);
                Some(settled)
            }
            State::Free | State::Held(_) | State::Abandoned => {
                unreachable!("ticket {ticket} is held by the request that took it")
            }
        }
    }

    /// The request went away without an answer.
    pub fn abandon(&mut self, ticket: u32) {
        match self.states[ticket as usize] {
            State::Waiting { .. } => self.states[ticket as usize] = State::Abandoned,
            State::Settled(_) => self.release(ticket),
            State::Free | State::Held(_) | State::Abandoned => {
                unreachable!("ticket {ticket} is abandoned by the request that took it")
            }
        }
    }

    fn release(&mut self, ticket: u32) {
        self.states[ticket as usize] = State::Free;
        self.free.push(ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTCOME: Settled = Settled {
        accepted: 1,
        failed: 2,
    };
    const ENTRY: &str = "entry";

    fn poll(tickets: &mut Tickets<&'static str>, ticket: u32) -> Poll<Settled> {
        tickets.poll(ticket, &Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_waiting_request_gets_the_outcome_and_the_ticket_is_free_again() {
        let mut tickets = Tickets::<&'static str>::new(1);
        let ticket = tickets.take().expect("one is free");
        assert_eq!(tickets.take(), None);
        assert_eq!(poll(&mut tickets, ticket), Poll::Pending);
        assert_eq!(tickets.settle(ticket, OUTCOME), None);
        assert_eq!(poll(&mut tickets, ticket), Poll::Ready(OUTCOME));
        assert_eq!(tickets.in_use(), 0);
    }

    #[test]
    fn a_held_entry_comes_back_at_the_end_of_its_export() {
        let mut tickets = Tickets::<&'static str>::new(1);
        let ticket = tickets.take().expect("one is free");
        assert_eq!(tickets.hold(ticket, ENTRY), None);
        assert_eq!(tickets.settle(ticket, OUTCOME), Some(ENTRY));
        assert_eq!(tickets.in_use(), 0);
    }

    #[test]
    fn holding_after_the_end_gives_the_outcome() {
        let mut tickets = Tickets::<&'static str>::new(1);
        let ticket = tickets.take().expect("one is free");
        tickets.settle(ticket, OUTCOME);
        assert_eq!(tickets.hold(ticket, ENTRY), Some(OUTCOME));
        assert_eq!(tickets.in_use(), 0);
    }

    #[test]
    fn who_has_a_batch_early_is_told_of_once() {
        let (early, late) = (1, 2);
        let rest = Settled {
            accepted: 0,
            failed: late,
        };
        let mut tickets = Tickets::<&'static str>::new(1);
        // To the request that waits, with the rest.
        let ticket = tickets.take().expect("one is free");
        assert_eq!(tickets.accept(ticket, early), None);
        assert_eq!(tickets.settle(ticket, rest), None);
        assert_eq!(poll(&mut tickets, ticket), Poll::Ready(OUTCOME));
        // To the request that turns to the vault, before it does.
        let ticket = tickets.take().expect("one is free");
        tickets.accept(ticket, early);
        assert_eq!(tickets.take_accepted(ticket), early);
        assert_eq!(tickets.hold(ticket, ENTRY), None);
        assert_eq!(tickets.settle(ticket, rest), Some(ENTRY));
        // To the vault, at once.
        let ticket = tickets.take().expect("one is free");
        tickets.accept(ticket, early);
        let so_far = Settled {
            accepted: early,
            failed: 0,
        };
        assert_eq!(tickets.hold(ticket, ENTRY), Some(so_far));
        assert_eq!(tickets.accept(ticket, late), Some(ENTRY));
        assert_eq!(tickets.settle(ticket, rest), Some(ENTRY));
        assert_eq!(tickets.in_use(), 0);
    }

    #[test]
    fn an_abandoned_ticket_is_freed_whichever_comes_first() {
        let mut tickets = Tickets::<&'static str>::new(1);
        let first = tickets.take().expect("one is free");
        tickets.abandon(first);
        assert_eq!(tickets.in_use(), 1);
        assert_eq!(tickets.settle(first, OUTCOME), None);
        let second = tickets.take().expect("one is free");
        tickets.settle(second, OUTCOME);
        tickets.abandon(second);
        assert_eq!(tickets.in_use(), 0);
    }
}

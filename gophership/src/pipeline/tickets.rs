//! Who waits for a batch: a preallocated table of requests between pipeline and acknowledgement.
//!
//! A ticket is taken when a request enters a batch and freed when the batch is settled *and* its
//! request has been answered, whichever is later. Taking and freeing allocate nothing.
//!
//! A destination that has the batch before the others is noted at once: what the vault holds of the request isn't owed
//! to it any more, whatever the others take their time for.

use std::task::{Context, Poll, Waker};

use super::DestMask;

/// What the destinations made of one request, or of a batch of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Destinations that have it.
    pub accepted: DestMask,
    /// Destinations that must have it and don't.
    pub failed: DestMask,
    /// Of those that have it, any that rejected some of its records for good, each with how many. Empty as a rule, and
    /// then on no heap.
    pub rejected: Vec<(DestMask, u32)>,
}

impl Settled {
    /// Both together.
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        self.accepted |= other.accepted;
        self.failed |= other.failed;
        self.rejected.append(&mut other.rejected);
        self
    }

    /// What it means for the next request of the batch, which has `records`. Which records were rejected isn't said: for
    /// the books, the first ones.
    fn next_request(&mut self, records: u32) -> Self {
        let mut rejected = Vec::new();
        for (bit, left) in &mut self.rejected {
            let of_request = records.min(*left);
            if of_request != 0 {
                *left -= of_request;
                rejected.push((*bit, of_request));
            }
        }
        Self { rejected, ..*self }
    }

    /// By each of `requests`, which are a ticket and its records: what it means for it.
    pub(super) fn by_request(
        mut self,
        requests: &[(u32, u32)],
    ) -> impl Iterator<Item = (u32, Self)> {
        requests
            .iter()
            .map(move |&(ticket, records)| (ticket, self.next_request(records)))
    }
}

#[derive(Debug)]
enum State<H> {
    Free,
    /// The request waits for its batch; `early` is what some destinations have made of it already.
    Waiting {
        waker: Option<Waker>,
        early: Settled,
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
            early: Settled::default(),
        };
        Some(index)
    }

    /// Tickets in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.states.len() - self.free.len()
    }

    /// Some destinations have the batch of `ticket`, as `settled` says, and others may yet. Gives the entry whose export
    /// this is, if the vault has acknowledged the request already, with `settled`.
    pub fn accept(&mut self, ticket: u32, settled: Settled) -> Option<(H, Settled)>
    where
        H: Copy,
    {
        match &mut self.states[ticket as usize] {
            State::Waiting { early, .. } => {
                *early = std::mem::take(early).and(settled);
                None
            }
            State::Held(entry) => Some((*entry, settled)),
            State::Abandoned => None,
            State::Free | State::Settled(_) => {
                unreachable!("ticket {ticket} is taken, and not settled yet")
            }
        }
    }

    /// What [`Self::accept`] told of since the last call. From now on that is the caller's to remember.
    pub fn take_accepted(&mut self, ticket: u32) -> Settled {
        match &mut self.states[ticket as usize] {
            State::Waiting { early, .. } => std::mem::take(early),
            State::Free | State::Settled(_) | State::Held(_) | State::Abandoned => {
                Settled::default()
            }
        }
    }

    /// The batch of `ticket` is settled: `settled` has what [`Self::accept`] hasn't told. Gives the entry back whose export
    /// this was, with `settled`, if the vault had acknowledged the request already.
    pub fn settle(&mut self, ticket: u32, settled: Settled) -> Option<(H, Settled)> {
        let state = &mut self.states[ticket as usize];
        match std::mem::replace(state, State::Free) {
            State::Waiting { waker, early } => {
                *state = State::Settled(early.and(settled));
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            State::Held(entry) => {
                self.release(ticket);
                Some((entry, settled))
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
                let settled = std::mem::take(settled);
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
            State::Waiting { early, .. } => (early.accepted != 0).then_some(early),
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
        rejected: Vec::new(),
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
        assert_eq!(tickets.settle(ticket, OUTCOME), Some((ENTRY, OUTCOME)));
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
        let accepted = |accepted| Settled {
            accepted,
            ..Settled::default()
        };
        let (early, late) = (accepted(1), accepted(4));
        let rest = Settled {
            failed: 2,
            ..Settled::default()
        };
        let mut tickets = Tickets::<&'static str>::new(1);
        // To the request that waits, with the rest.
        let ticket = tickets.take().expect("one is free");
        assert_eq!(tickets.accept(ticket, early.clone()), None);
        assert_eq!(tickets.settle(ticket, rest.clone()), None);
        assert_eq!(poll(&mut tickets, ticket), Poll::Ready(OUTCOME));
        // To the request that turns to the vault, before it does.
        let ticket = tickets.take().expect("one is free");
        tickets.accept(ticket, early.clone());
        assert_eq!(tickets.take_accepted(ticket), early);
        assert_eq!(tickets.hold(ticket, ENTRY), None);
        assert_eq!(
            tickets.settle(ticket, rest.clone()),
            Some((ENTRY, rest.clone()))
        );
        // To the vault, at once.
        let ticket = tickets.take().expect("one is free");
        tickets.accept(ticket, early.clone());
        assert_eq!(tickets.hold(ticket, ENTRY), Some(early));
        assert_eq!(tickets.accept(ticket, late.clone()), Some((ENTRY, late)));
        assert_eq!(tickets.settle(ticket, rest.clone()), Some((ENTRY, rest)));
        assert_eq!(tickets.in_use(), 0);
    }

    #[test]
    fn the_first_requests_of_a_batch_account_for_what_was_rejected_of_it() {
        let batch = Settled {
            accepted: 0b111,
            failed: 0b1000,
            rejected: vec![(0b001, 15), (0b100, 25)],
        };
        let requests = [(7, 10), (8, 0), (9, 10), (5, 10)];
        let by_request: Vec<_> = batch.clone().by_request(&requests).collect();
        let expected = [
            (7, vec![(0b001, 10), (0b100, 10)]),
            (8, vec![]),
            (9, vec![(0b001, 5), (0b100, 10)]),
            (5, vec![(0b100, 5)]),
        ]
        .map(|(ticket, rejected)| {
            let settled = Settled {
                rejected,
                ..batch.clone()
            };
            (ticket, settled)
        });
        assert_eq!(by_request, expected);
        let [first, _, second, _] = expected;
        let both = first.1.and(second.1).rejected;
        assert_eq!(both.iter().map(|(_, records)| records).sum::<u32>(), 35);
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

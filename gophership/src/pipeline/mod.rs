//! The way of Green: requests are batched by concatenation and handed to the destinations.
//!
//! `ExportLogsServiceRequest` is one repeated field, so the concatenation of two messages is the
//! message of both. A worker owns one pipeline; entering it copies the message once, with what it is
//! enriched with, into a preallocated batch buffer and allocates nothing. A batch leaves at once when a destination
//! has nothing in flight, else when it is full, its linger has passed or the way to one is free again.
//!
//! One attempt a destination: what it doesn't take is the vault's, and replay's, to carry on. What it takes is settled
//! at once, whatever the others do; and one that is slow holds no more than its share of the buffers, so that there is
//! always one for what the others would take.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    export::{Batch, Destination, Destinations, Outcome},
    otel::Enrichment,
};

pub mod circuit;
pub mod enrich;
mod patience;
mod pool;
pub mod tickets;

use circuit::Circuit;
use patience::patience;
use pool::{Buffer, Pool};
pub use tickets::Settled;
use tickets::Tickets;

/// A set of destinations: one bit each, as the vault numbers them.
pub type DestMask = u32;

/// Batching and the wait for destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A request waits this long for its destinations, then the vault acknowledges it.
    pub ack_within: Duration,
    /// Most message bytes of one batch; a larger request goes by way of the vault.
    pub batch_max_bytes: usize,
    /// Longest a request waits for others while an export is in flight.
    pub batch_linger: Duration,
    /// Bytes of batch buffers over all workers.
    pub budget_bytes: usize,
}

/// Requests that may be in the pipeline of one worker at once.
const TICKETS: u32 = 8192;
/// Requests in one batch.
const BATCH_REQUESTS_MAX: usize = 1024;
/// One batch being filled while another is on its way.
const BUFFERS_MIN: usize = 2;

/// Why a request can't enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// Every batch buffer or ticket is in use.
    Full,
    /// The enriched request is larger than a batch.
    Oversize,
}

/// One destination of a pipeline.
#[derive(Debug, Clone)]
pub struct Member {
    /// The connection of this worker.
    pub destination: Rc<Destination>,
    /// Its bit.
    pub bit: DestMask,
    /// Its state, shared by all workers.
    pub circuit: Arc<Circuit>,
    /// Batches of this worker that are on their way to it.
    pub in_flight: Rc<Cell<usize>>,
}

impl Member {
    /// Connects the destinations for the current runtime, each with the circuit in its place and the
    /// bit that `bit_of` its name gives.
    ///
    /// # Panics
    /// A destination has no bit: what is owed to it would be owed to nobody.
    #[must_use]
    pub fn connect(
        destinations: &Destinations,
        circuits: &[Arc<Circuit>],
        bit_of: impl Fn(&str) -> Option<DestMask>,
    ) -> Vec<Self> {
        let connected = destinations.connect().into_iter().zip(circuits);
        let member = |(destination, circuit): (Destination, &Arc<Circuit>)| Self {
            bit: bit_of(circuit.name()).expect("the vault was opened with every destination"),
            circuit: Arc::clone(circuit),
            destination: Rc::new(destination),
            in_flight: Rc::default(),
        };
        connected.map(member).collect()
    }
}

/// A request in a batch: its ticket and its records.
type Entered = (u32, u32);

#[derive(Debug)]
struct Open {
    buffer: Buffer,
    requests: Vec<Entered>,
    records: u64,
    since: Instant,
}

#[derive(Debug)]
struct State<H> {
    tickets: Tickets<H>,
    open: Option<Open>,
    ready: VecDeque<Open>,
    spare_lists: Vec<Vec<Entered>>,
}

struct Inner<H> {
    ack_within: Duration,
    linger: Duration,
    members: Vec<Member>,
    all: DestMask,
    enrichment: Arc<Enrichment>,
    pool: Arc<Pool>,
    /// What each buffer takes: itself, and what it is compressed to for each destination that wants that.
    copies: usize,
    /// Batches that may be on their way to one destination.
    in_flight_max: usize,
    state: RefCell<State<H>>,
    changed: Notify,
    idle: Notify,
    in_flight: Cell<usize>,
    on_held_settled: Box<dyn Fn(H, Settled)>,
}

/// The pipeline of one worker. `H` names what the vault holds of a request that it acknowledged
/// while the export went on.
pub struct Pipeline<H: 'static>(Rc<Inner<H>>);

impl<H> Clone for Pipeline<H> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<H: Copy> Pipeline<H> {
    /// A pipeline with this worker's share of the buffers. `on_held_settled` hears of exports
    /// that ended after the vault had acknowledged their request.
    #[must_use]
    pub fn new(
        config: &Config,
        workers: usize,
        members: Vec<Member>,
        enrichment: Arc<Enrichment>,
        on_held_settled: Box<dyn Fn(H, Settled)>,
    ) -> Self {
        let compressing = members
            .iter()
            .filter(|member| member.destination.compresses());
        let copies = 1 + compressing.count();
        let share = config.budget_bytes / workers.max(1) / copies;
        let buffers_min = BUFFERS_MIN.max(members.len());
        let batch_bytes = config.batch_max_bytes.min(share / buffers_min);
        let buffers = share.checked_div(batch_bytes).unwrap_or(0).max(buffers_min);
        Self(Rc::new(Inner {
            ack_within: config.ack_within,
            linger: config.batch_linger,
            all: members.iter().fold(0, |all, member| all | member.bit),
            copies,
            in_flight_max: buffers / members.len().max(1),
            members,
            enrichment,
            pool: Pool::new(buffers, batch_bytes),
            state: RefCell::new(State {
                tickets: Tickets::new(TICKETS),
                open: None,
                ready: VecDeque::with_capacity(buffers),
                spare_lists: (0..buffers)
                    .map(|_| Vec::with_capacity(BATCH_REQUESTS_MAX))
                    .collect(),
            }),
            changed: Notify::new(),
            idle: Notify::new(),
            in_flight: Cell::new(0),
            on_held_settled,
        }))
    }

    /// The bits of all destinations.
    #[must_use]
    pub fn all(&self) -> DestMask {
        self.0.all
    }

    /// The destinations.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.0.members
    }

    /// Whether any destination is worth an attempt now.
    #[must_use]
    pub fn any_allowed(&self) -> bool {
        self.0.members.iter().any(|member| member.circuit.allows())
    }

    /// How long to wait for the destinations' answers, `limit` at most; by what batches took of late.
    #[must_use]
    pub fn patience(&self, limit: Duration) -> Duration {
        let members = self.0.members.iter();
        patience(members.map(|member| member.circuit.delivery_time()), limit)
    }

    /// Bytes of batch buffers in use, and of all.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        let Inner { pool, copies, .. } = &*self.0;
        (pool.bytes_in_use() * copies, pool.bytes_total() * copies)
    }

    /// Settles what the vault holds of a request whose outcome was taken from its ticket already.
    pub fn settle_held(&self, held: H, settled: Settled) {
        (self.0.on_held_settled)(held, settled);
    }

    /// Requests that are not settled and answered yet.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.0.state.borrow().tickets.in_use()
    }

    /// Copies one whole, uncompressed message of `records` records, which the skim found well formed,
    /// into the open batch, and enriches it. Allocates nothing.
    ///
    /// # Errors
    /// [`NoRoom`]: nothing was copied.
    pub fn push<P: AsRef<[u8]>>(
        &self,
        parts: &[P],
        records: u32,
        arrival_unix_ns: u64,
    ) -> Result<Ticket<H>, NoRoom> {
        let inner = &*self.0;
        let splice = inner.enrichment.splice(parts);
        let len = splice.enriched_bytes();
        if len > inner.pool.buffer_bytes() {
            return Err(NoRoom::Oversize);
        }
        let mut state = inner.state.borrow_mut();
        let state = &mut *state;
        if state.open.as_ref().is_some_and(|open| {
            open.buffer.room() < len || open.requests.len() == BATCH_REQUESTS_MAX
        }) {
            state.ready.extend(state.open.take());
            inner.changed.notify_one();
        }
        // Whatever is missing, nothing is left half begun.
        let buffer = match &state.open {
            Some(_) => None,
            None => Some(inner.pool.acquire().ok_or(NoRoom::Full)?),
        };
        let index = state.tickets.take().ok_or(NoRoom::Full)?;
        if let Some(buffer) = buffer {
            state.open = Some(Open {
                buffer,
                requests: state.spare_lists.pop().unwrap_or_default(),
                records: 0,
                since: Instant::now(),
            });
            // Later requests change neither the batch's deadline nor that it is there.
            inner.changed.notify_one();
        }
        if let Some(open) = &mut state.open {
            let buffer = &mut open.buffer;
            splice.write(arrival_unix_ns, |bytes| buffer.append(bytes));
            open.requests.push((index, records));
            open.records += u64::from(records);
        }
        Ok(Ticket {
            pipeline: self.clone(),
            index: Some(index),
        })
    }

    /// Sends batches on their way for as long as it is polled; runs on the worker's `LocalSet`.
    pub async fn run(self) {
        loop {
            let open = self.next_batch().await;
            self.0.in_flight.set(self.0.in_flight.get() + 1);
            // From now on: the next batch may be there before this one's task runs.
            let takers = self.takers();
            tokio::task::spawn_local(self.clone().export(open, takers));
        }
    }

    /// Completes when everything that had entered has left.
    pub async fn flushed(&self) {
        while self.0.in_flight.get() > 0 || self.has_batch() {
            self.0.idle.notified().await;
        }
    }

    fn has_batch(&self) -> bool {
        let state = self.0.state.borrow();
        state.open.is_some() || !state.ready.is_empty()
    }

    async fn next_batch(&self) -> Open {
        loop {
            let changed = self.0.changed.notified();
            let deadline = {
                let mut state = self.0.state.borrow_mut();
                if let Some(ready) = state.ready.pop_front() {
                    return ready;
                }
                state.open.as_ref().map(|open| open.since + self.0.linger)
            };
            let Some(deadline) = deadline else {
                changed.await;
                // Let the requests that are already here join the batch.
                tokio::task::yield_now().await;
                continue;
            };
            if self.is_awaited() || Instant::now() >= deadline {
                let open = self.0.state.borrow_mut().open.take();
                if let Some(open) = open {
                    return open;
                }
            }
            // An expired linger is handled by the next round, as is a change.
            let _ = tokio::time::timeout_at(deadline.into(), changed).await;
        }
    }

    /// Whether a batch should leave at once: some destination has nothing in flight, and neither it nor the producers that
    /// wait for it should wait for what is on its way to another. But small batches must not use up the share of one that
    /// producers wait for as well; what one that is too far away for that can't take, the vault has anyway.
    fn is_awaited(&self) -> bool {
        let Inner {
            members,
            ack_within,
            in_flight_max,
            in_flight,
            ..
        } = &*self.0;
        if in_flight.get() == 0 {
            return true;
        }
        let mut is_one_free = false;
        for member in members.iter().filter(|member| member.circuit.allows()) {
            let in_flight = member.in_flight.get();
            is_one_free |= in_flight == 0;
            let is_far = member.circuit.delivery_time() > *ack_within;
            if !is_far && in_flight * 2 > *in_flight_max {
                return false;
            }
        }
        is_one_free
    }

    /// Who gets the next batch: not who has its share of them in flight. The last of several would otherwise wait for
    /// room that a slow one doesn't give back.
    fn takers(&self) -> Vec<Flight> {
        let Inner {
            members,
            in_flight_max,
            ..
        } = &*self.0;
        let takers = members
            .iter()
            .filter(|member| member.in_flight.get() < *in_flight_max);
        takers.cloned().map(Flight::of).collect()
    }

    async fn export(self, open: Open, takers: Vec<Flight>) {
        let Open {
            buffer,
            requests,
            records,
            ..
        } = open;
        let bytes = Bytes::from_owner(buffer);
        let batch = Batch {
            bytes: bytes.clone(),
            records,
        };
        let settled = self.deliver(batch, &requests, takers).await;
        // Until here: a connection lets go of what it has sent, but the batch is still on its way,
        // and what is on its way takes room.
        drop(bytes);
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.settle(requests, settled);
        self.0.changed.notify_one();
        self.0.idle.notify_waiters();
    }

    fn settle(&self, mut requests: Vec<Entered>, settled: Settled) {
        for (ticket, settled) in settled.by_request(&requests) {
            let held = self.0.state.borrow_mut().tickets.settle(ticket, settled);
            if let Some((held, settled)) = held {
                (self.0.on_held_settled)(held, settled);
            }
        }
        requests.clear();
        self.0.state.borrow_mut().spare_lists.push(requests);
    }

    /// Hands the batch to those who take it. Gives what hasn't been told of the `requests` meanwhile: who has the batch
    /// while others are still at it is.
    async fn deliver(
        &self,
        batch: Batch,
        requests: &[Entered],
        mut takers: Vec<Flight>,
    ) -> Settled {
        if self.0.members.len() == 1
            && let Some(flight) = takers.pop()
        {
            return attempt(&flight.0, batch).await;
        }
        let mut attempts = JoinSet::new();
        let mut left = self.0.all;
        for flight in takers {
            let batch = batch.clone();
            attempts.spawn_local(async move { attempt(&flight.0, batch).await });
        }
        drop(batch);
        let mut last = Settled::default();
        while let Some(attempt) = attempts.join_next().await {
            // It may take the next one, whatever the others do.
            self.0.changed.notify_one();
            // Who fails is told of last, with those that it wasn't handed to.
            let accepted = Settled {
                failed: 0,
                ..attempt.unwrap_or_default()
            };
            left &= !accepted.accepted;
            if attempts.is_empty() {
                last = accepted;
            } else if accepted.accepted != 0 {
                self.accept(requests, accepted);
            }
        }
        Settled {
            failed: left,
            ..last
        }
    }

    fn accept(&self, requests: &[Entered], accepted: Settled) {
        for (ticket, accepted) in accepted.by_request(requests) {
            let held = self.0.state.borrow_mut().tickets.accept(ticket, accepted);
            if let Some((held, accepted)) = held {
                (self.0.on_held_settled)(held, accepted);
            }
        }
    }
}

impl<H> std::fmt::Debug for Pipeline<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("members", &self.0.members)
            .finish_non_exhaustive()
    }
}

/// Hands one batch to one destination, unless its circuit is open.
async fn attempt(member: &Member, batch: Batch) -> Settled {
    let failed = Settled {
        failed: member.bit,
        ..Settled::default()
    };
    let Some(_leave) = member.circuit.claim() else {
        return failed;
    };
    let (records, handed_over) = (batch.records, Instant::now());
    match member.destination.deliver(batch).await {
        Outcome::Accepted { rejected_records } => {
            member.circuit.delivered_within(handed_over.elapsed());
            member.circuit.accepted(records, rejected_records);
            let rejected = u32::try_from(rejected_records).unwrap_or(u32::MAX);
            Settled {
                accepted: member.bit,
                rejected: Vec::from_iter((rejected != 0).then_some((member.bit, rejected))),
                ..Settled::default()
            }
        }
        Outcome::Retry { after, reason } => {
            member.circuit.failed(after, &reason);
            failed
        }
        Outcome::Rejected { reason } => {
            member.circuit.refused(&reason);
            failed
        }
    }
}

/// A batch on its way to a member.
struct Flight(Member);

impl Flight {
    fn of(member: Member) -> Self {
        member.in_flight.set(member.in_flight.get() + 1);
        Self(member)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

/// A request in the pipeline. Dropping it gives up the wait, not the export.
#[derive(Debug)]
pub struct Ticket<H: 'static> {
    pipeline: Pipeline<H>,
    index: Option<u32>,
}

impl<H> Ticket<H> {
    /// What the destinations made of the request, once they have all answered; without what
    /// [`Self::take_accepted`] gave.
    pub async fn settled(&mut self) -> Settled {
        poll_fn(|context| self.poll_settled(context)).await
    }

    fn poll_settled(&mut self, context: &Context<'_>) -> Poll<Settled> {
        let index = self
            .index
            .expect("a settled ticket is not waited for again");
        let settled = self
            .pipeline
            .0
            .state
            .borrow_mut()
            .tickets
            .poll(index, context);
        if settled.is_ready() {
            self.index = None;
        }
        settled
    }

    /// What destinations that have the request by now have made of it, without those that an earlier call told of. What
    /// this gives is no part of what the ticket settles as later.
    #[must_use]
    pub fn take_accepted(&mut self) -> Settled {
        let Some(index) = self.index else {
            return Settled::default();
        };
        let mut state = self.pipeline.0.state.borrow_mut();
        state.tickets.take_accepted(index)
    }

    /// The vault has acknowledged the request and holds it as `held`; the export settles that.
    pub fn hold(mut self, held: H)
    where
        H: Copy,
    {
        let Some(index) = self.index.take() else {
            return;
        };
        let settled = self.pipeline.0.state.borrow_mut().tickets.hold(index, held);
        if let Some(settled) = settled {
            (self.pipeline.0.on_held_settled)(held, settled);
        }
    }
}

impl<H> Drop for Ticket<H> {
    fn drop(&mut self) {
        if let Some(index) = self.index.take() {
            self.pipeline.0.state.borrow_mut().tickets.abandon(index);
        }
    }
}

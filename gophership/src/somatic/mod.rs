//! The reflex: one request, one atomic load, one copy — into a batch of the pipeline or a block of
//! the vault.
//!
//! From "the message bytes are here" to "they are in a pipeline slot or a vault block" nothing is
//! allocated. A request is answered only when every destination has accepted it or the vault has
//! its exact bytes on stable storage; there is no third way.

use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use gophership_common::Zone;
use tokio::sync::Notify;

use crate::{
    pipeline::{DestMask, Member, Pipeline, Settled, Ticket, circuit::Circuit},
    pressure::{Budget, EngineLine, Verdict},
    telemetry::counters::WorkerCounters,
    vault::{
        AppendError, ContentEncoding, EntryId, EntryMeta, Kind, Lane, Meanwhile, Settlement, Vault,
    },
};

pub mod overrides;
pub mod route;

use route::{Pivot, route};

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Every destination has it.
    Delivered,
    /// The vault has it on stable storage.
    Vaulted,
    /// Nobody has it; the producer may try again.
    Refused {
        /// After this long.
        retry_after: Duration,
        /// What stands in the way.
        reason: String,
    },
}

/// An entry of the vault whose export goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The entry.
    pub id: EntryId,
    /// Log records in it.
    pub records: u32,
}

/// One whole request, checked and counted.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What its bytes are.
    pub kind: Kind,
    /// How the producer compressed it.
    pub encoding: ContentEncoding,
    /// When its last byte arrived, in nanoseconds since the Unix epoch.
    pub arrival_unix_ns: u64,
    /// Log records in it.
    pub records: u32,
}

impl Request {
    /// The entry that it is in the vault.
    const fn entry(&self, owed: DestMask, held: bool) -> EntryMeta {
        EntryMeta {
            kind: self.kind,
            encoding: self.encoding,
            owed,
            arrival_unix_ns: self.arrival_unix_ns,
            records: self.records,
            held,
        }
    }
}

/// What was counted as diverted to the vault.
#[derive(Debug, Clone, Copy)]
struct Diversion {
    zone: Zone,
    records: u64,
    bytes: u64,
}

/// Where a request went in the first instant.
#[derive(Debug)]
pub enum Placed {
    /// Into a batch.
    Pipeline(Ticket<Held>),
    /// The vault is to have it.
    Vault(Pivot),
}

/// The reflex of one worker.
pub struct Reflex {
    verdict: Verdict,
    engine: EngineLine,
    pipeline: Pipeline<Held>,
    lane: Lane,
    counters: Arc<WorkerCounters>,
    ack_within: Duration,
    hurry: Rc<Hurry>,
}

/// A drain's call to stop waiting for destinations: the vault acknowledges at once.
#[derive(Debug, Default)]
pub struct Hurry {
    on: Cell<bool>,
    changed: Notify,
}

impl Hurry {
    /// Calls, or takes the call back.
    pub fn set(&self, on: bool) {
        self.on.set(on);
        self.changed.notify_waiters();
    }

    async fn called(&self) {
        while !self.on.get() {
            self.changed.notified().await;
        }
    }
}

impl Reflex {
    /// The reflex over one worker's pipeline and lane.
    #[must_use]
    pub fn new(
        verdict: Verdict,
        engine: EngineLine,
        pipeline: Pipeline<Held>,
        lane: Lane,
        counters: Arc<WorkerCounters>,
        ack_within: Duration,
        hurry: Rc<Hurry>,
    ) -> Self {
        Self {
            verdict,
            engine,
            pipeline,
            lane,
            counters,
            ack_within,
            hurry,
        }
    }

    /// Decides, and copies an uncompressed message into the pipeline if that is its way. Allocates
    /// nothing.
    pub fn place<P: AsRef<[u8]>>(&self, message: &[P], request: &Request) -> Placed {
        self.engine.operation();
        let word = self.verdict.load();
        self.lane
            .note_verdict(word.zone() as u8, word.cause() as u8);
        let placed = match route(word.zone(), word.cause(), self.pipeline.any_allowed()) {
            Ok(()) => self
                .pipeline
                .push(message, request.records, request.arrival_unix_ns)
                .map_err(Pivot::from),
            Err(pivot) => Err(pivot),
        };
        let (used, limit) = self.pipeline.usage();
        self.engine
            .set_used(Budget::Export, used as u64, limit as u64);
        match placed {
            Ok(ticket) => Placed::Pipeline(ticket),
            Err(pivot) => Placed::Vault(pivot),
        }
    }

    /// Brings a placed request to its answer. `stored` are its bytes as received.
    pub async fn answer<P: AsRef<[u8]>>(
        &self,
        placed: Placed,
        request: Request,
        stored: &[P],
    ) -> Answer {
        match placed {
            Placed::Vault(pivot) => {
                self.vault(pivot, request, stored, self.pipeline.all())
                    .await
            }
            Placed::Pipeline(ticket) => self.hedge(ticket, request, stored).await,
        }
    }

    /// Waits for the destinations, but not longer than `ack_within`: then the vault acknowledges
    /// while the export goes on. A client that sends one request at a time would pay for all of a wait that is in vain, so
    /// there is none for a destination that is known to take longer.
    async fn hedge<P: AsRef<[u8]>>(
        &self,
        mut ticket: Ticket<Held>,
        request: Request,
        stored: &[P],
    ) -> Answer {
        let patience = self.pipeline.patience(self.ack_within);
        // The shortest sleep is a millisecond.
        if !patience.is_zero() {
            let answered = tokio::select! {
                biased;
                settled = ticket.settled() => Some(settled),
                () = tokio::time::sleep(patience) => None,
                () = self.hurry.called() => None,
            };
            if let Some(settled) = answered {
                return self.settled(settled, request, stored).await;
            }
        }
        self.race(ticket, request, stored).await
    }

    /// Answers by whoever has the request first, the vault or all of its destinations: a disk that hangs
    /// holds up nobody whose destination has it.
    async fn race<P: AsRef<[u8]>>(
        &self,
        mut ticket: Ticket<Held>,
        request: Request,
        stored: &[P],
    ) -> Answer {
        let held = |id| Held {
            id,
            records: request.records,
        };
        let diversion = self.divert(request, stored);
        let meanwhile = Meanwhile::default();
        // Who has it already isn't owed it: a crash must not send it there again.
        let early = ticket.take_accepted();
        let settled = {
            let owed = self.pipeline.all() & !early.accepted;
            let entry = request.entry(owed, true);
            let mut append = pin!(self.lane.append_while(entry, stored, &meanwhile));
            let settled = tokio::select! {
                biased;
                appended = &mut append => {
                    self.diverted(Pivot::AckTimeout, diversion, appended.is_ok());
                    if let Ok(id) = appended {
                        self.count_delivered(&early, request);
                        ticket.hold(held(id));
                        return Answer::Vaulted;
                    }
                    // The vault can't, but a destination still may.
                    let settled = early.and(ticket.settled().await);
                    return self.settled(settled, request, stored).await;
                }
                settled = ticket.settled() => settled,
            };
            if settled.failed != 0 || !settled.rejected.is_empty() {
                // Only the vault can answer now. Nor does it settle in part what nobody waits for, and that is rare.
                let appended = append.await;
                self.diverted(Pivot::AckTimeout, diversion, appended.is_ok());
                if let Ok(id) = appended {
                    self.count_delivered(&early, request);
                    self.pipeline.settle_held(held(id), settled);
                    return Answer::Vaulted;
                }
                return self.settled(early.and(settled), request, stored).await;
            }
            meanwhile.accepted(settled.accepted);
            // Before the vault settles it, which is when the append is dropped.
            count_settled(self.pipeline.members(), request.records, &settled);
            settled
        };
        self.count_delivered(&early, request);
        self.diverted(Pivot::AckTimeout, diversion, meanwhile.is_placed());
        if !meanwhile.is_placed() {
            for circuit in settled_circuits(self.pipeline.members(), settled.accepted) {
                let delivered = &circuit.counters.delivered;
                delivered.fetch_sub(u64::from(request.records), Relaxed);
            }
            self.count_delivered(&settled, request);
        }
        Answer::Delivered
    }

    async fn settled<P: AsRef<[u8]>>(
        &self,
        settled: Settled,
        request: Request,
        stored: &[P],
    ) -> Answer {
        if settled.failed != 0 {
            let answer = self
                .vault(Pivot::DestinationFailed, request, stored, settled.failed)
                .await;
            if answer == Answer::Vaulted {
                self.count_delivered(&settled, request);
            }
            return answer;
        }
        self.count_delivered(&settled, request);
        Answer::Delivered
    }

    async fn vault<P: AsRef<[u8]>>(
        &self,
        pivot: Pivot,
        request: Request,
        stored: &[P],
        owed: DestMask,
    ) -> Answer {
        match self.append(pivot, request, stored, owed).await {
            Ok(_) => Answer::Vaulted,
            Err(error) => refusal(&error),
        }
    }

    async fn append<P: AsRef<[u8]>>(
        &self,
        pivot: Pivot,
        request: Request,
        stored: &[P],
        owed: DestMask,
    ) -> Result<EntryId, AppendError> {
        let diversion = self.divert(request, stored);
        let appended = self.lane.append(request.entry(owed, false), stored).await;
        self.diverted(pivot, diversion, appended.is_ok());
        appended
    }

    /// Counted where it is decided: the zone may change before the bytes are stable, and the handler may be
    /// gone by then, but not the bytes.
    fn divert<P: AsRef<[u8]>>(&self, request: Request, stored: &[P]) -> Diversion {
        let diversion = Diversion {
            zone: self.verdict.load().zone(),
            records: u64::from(request.records),
            bytes: stored.iter().map(|part| part.as_ref().len() as u64).sum(),
        };
        let Diversion {
            zone,
            records,
            bytes,
        } = diversion;
        self.counters.diverted(zone, records, bytes);
        diversion
    }

    /// What came of it.
    fn diverted(&self, pivot: Pivot, diversion: Diversion, is_stored: bool) {
        let Diversion {
            zone,
            records,
            bytes,
        } = diversion;
        if is_stored {
            self.counters.pivoted(pivot.index());
        } else {
            self.counters.not_diverted(zone, records, bytes);
        }
    }

    /// Ledger: an acknowledged request that some destinations have. What the vault holds of it, the
    /// vault counts itself, so that a request that goes away meanwhile is counted, too.
    fn count_delivered(&self, settled: &Settled, request: Request) {
        let mut whole = settled.accepted;
        for &(bit, rejected) in &settled.rejected {
            whole &= !bit;
            let delivered = request.records.saturating_sub(rejected);
            self.counters.delivered(bit, u64::from(delivered));
            self.counters.rejected(bit, u64::from(rejected));
        }
        self.counters.delivered(whole, u64::from(request.records));
    }
}

/// Tells the vault how the export of a held entry ended.
pub fn settle_held(vault: &Vault, members: &[Member], held: Held, settled: &Settled) {
    count_settled(members, held.records, settled);
    let mut whole = settled.accepted;
    for &(bit, rejected_records) in &settled.rejected {
        whole &= !bit;
        let how = Settlement::Delivered { rejected_records };
        vault.settle_as(held.id, bit, how);
    }
    if whole != 0 {
        vault.settle(held.id, whole);
    }
    if settled.failed != 0 {
        vault.release(held.id);
    }
}

/// Ledger: records of the vault that destinations have, or have rejected for good; counted before the vault hears of it.
fn count_settled(members: &[Member], records: u32, settled: &Settled) {
    for circuit in settled_circuits(members, settled.accepted) {
        let delivered = &circuit.counters.delivered;
        delivered.fetch_add(u64::from(records), Relaxed);
    }
    for &(bit, rejected) in &settled.rejected {
        for circuit in settled_circuits(members, bit) {
            let rejected = u64::from(rejected);
            circuit.counters.rejected.fetch_add(rejected, Relaxed);
            circuit.counters.delivered.fetch_sub(rejected, Relaxed);
        }
    }
}

fn settled_circuits(members: &[Member], accepted: DestMask) -> impl Iterator<Item = &Circuit> {
    members
        .iter()
        .filter(move |member| member.bit & accepted != 0)
        .map(|member| &*member.circuit)
}

fn refusal(error: &AppendError) -> Answer {
    const SOON: Duration = Duration::from_secs(1);
    let retry_after = match error {
        AppendError::Full { retry_after } => *retry_after,
        AppendError::Failed { .. } | AppendError::Closed | AppendError::TooLarge { .. } => SOON,
    };
    Answer::Refused {
        retry_after,
        reason: error.to_string(),
    }
}

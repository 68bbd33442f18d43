//! The replay to one destination: its own reader, its own rate, its own connection. What one destination does
//! holds up no other.

use std::{
    cell::RefCell,
    ops::ControlFlow,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use gophership_common::{Word, Zone};
use tokio::task::{JoinError, JoinSet};

use super::{
    Config, Handle,
    aimd::{Aimd, Culprit},
    aside::Aside,
    control::{LimitedBy, Orders, State},
    group::{Group, Unreadable},
    identity::Identity,
    pace::{Pace, pace},
    pacer,
    source::Source,
    suspects::Suspects,
};
use crate::{
    export::Outcome,
    otel::Enrichment,
    pipeline::Member,
    pressure::Verdict,
    telemetry::throttle::Throttle,
    vault::{self, Entry, EntryId, Limiter, Selection, Settlement, Vault},
};

/// Batches on their way to one destination: the next is there when it has worked one off, however far away it is.
pub(super) const ON_THE_WAY_MAX: usize = 4;
/// How often the zone and the vault are looked at while nothing is sent.
const LOOK: Duration = Duration::from_millis(50);

/// What the courses of one replay have in common.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) config: Config,
    pub(super) batch_max_bytes: usize,
    pub(super) max_entry_bytes: usize,
    pub(super) enrichment: Arc<Enrichment>,
    pub(super) identity: Option<Identity>,
    pub(super) vault: Vault,
    pub(super) verdict: Verdict,
    pub(super) aside: RefCell<Aside>,
    pub(super) control: Handle,
}

impl Common {
    fn group_of(&self, entry: Entry) -> Result<Group, Unreadable> {
        let (limit, identity) = (self.max_entry_bytes, self.identity.as_ref());
        Group::of(entry, limit, &self.enrichment, identity)
    }
}

/// The replay to one destination.
#[derive(Debug)]
pub(super) struct Course {
    common: Rc<Common>,
    /// Its place among the destinations.
    index: usize,
    member: Member,
    source: Source,
    selection: Selection,
    /// How often parked entries had been taken back when the reader last started anew.
    unparked: u64,
    on_the_way: JoinSet<Answered>,
    bytes_on_the_way: usize,
    /// Why a segment can't be read, as it was told last.
    unreadable: Option<String>,
    /// Something that was on its way wasn't taken for now.
    has_failed: bool,
    /// Entries that were rejected together, to be sent in halves before more is read.
    again: Vec<Vec<Entry>>,
    suspects: Suspects,
    /// Lines about entries that fail by themselves.
    told: Throttle,
    limiter: Limiter,
    aimd: Aimd,
    green: Option<(Word, Instant)>,
    running: bool,
}

/// What the destination says of a group.
#[derive(Debug)]
struct Answered {
    group: Group,
    /// While it was on its way.
    held_bytes: usize,
    outcome: Outcome,
}

impl Course {
    pub(super) fn new(common: Rc<Common>, index: usize, member: Member) -> Self {
        let now = Instant::now();
        let failures = member.circuit.counters.failures.load(Relaxed);
        Self {
            index,
            source: Source::new(common.vault.reader(), common.batch_max_bytes, member.bit),
            member,
            on_the_way: JoinSet::new(),
            bytes_on_the_way: 0,
            unreadable: None,
            has_failed: false,
            again: Vec::new(),
            suspects: Suspects::new(now),
            told: Throttle::new(now),
            selection: Selection::default(),
            unparked: 0,
            limiter: Limiter::new(now),
            aimd: Aimd::new(common.verdict.load().zone(), failures, now),
            green: None,
            running: false,
            common,
        }
    }

    /// Sends what is owed until ordered to stop.
    pub(super) async fn run(mut self) {
        let common = Rc::clone(&self.common);
        loop {
            let orders = self.orders();
            if orders.stop {
                self.start_over().await;
                return;
            }
            let pace = self.pace(orders);
            self.running = matches!(pace, Pace::Send(_));
            let progressed = match pace {
                Pace::Paused => {
                    self.set_state(State::Paused);
                    self.start_over().await
                }
                Pace::Wait | Pace::Send(0) => {
                    if self.is_owed_anything(orders) {
                        self.set_state(State::Waiting);
                    }
                    self.start_over().await
                }
                Pace::Send(_) => self.pass(orders).await,
            };
            if !progressed {
                let _ = tokio::time::timeout(LOOK, common.control.changed()).await;
            }
        }
    }

    /// Waits for the answers that are still to come, and lets the next reading begin at the first entry that is owed, which
    /// what is on its way is until then. Gives whether anything was settled.
    async fn start_over(&mut self) -> bool {
        let has_begun = self.source.is_ahead() || !self.on_the_way.is_empty();
        let settled = self.all_answered().await;
        if has_begun || !self.again.is_empty() {
            self.again.clear();
            self.source.rewind().await;
        }
        self.has_failed = false;
        settled
    }

    /// Waits for the answers that are still to come. Gives whether anything was settled.
    async fn all_answered(&mut self) -> bool {
        let mut settled = false;
        while let Some(answered) = self.on_the_way.join_next().await {
            settled |= self.answered(answered);
        }
        settled
    }

    fn orders(&self) -> Orders {
        self.common.control.orders(self.index)
    }

    fn set_state(&self, state: State) {
        self.common.control.set_state(self.index, state);
    }

    /// If not, what was ordered is done, unless the recovery may still find some of it.
    fn is_owed_anything(&mut self, seen: Orders) -> bool {
        // Before the other: what it finds is there first.
        let is_recovered = self.common.vault.is_recovered();
        if self.common.vault.owes(self.member.bit) {
            return true;
        }
        self.suspects.clear();
        self.set_state(State::Idle);
        if is_recovered {
            self.common.control.is_over(self.index, seen);
        }
        false
    }

    fn pace(&mut self, orders: Orders) -> Pace {
        let word = self.common.verdict.load();
        self.green = match (word.zone(), self.green) {
            (Zone::Green, Some((since, at))) if since == word => Some((since, at)),
            (Zone::Green, _) => Some((word, Instant::now())),
            (Zone::Yellow | Zone::Red, _) => None,
        };
        let failures = self.member.circuit.counters.failures.load(Relaxed);
        self.aimd.look(word.zone(), failures, Instant::now());
        let green_for = self.green.map(|(_, since)| since.elapsed());
        // What the zone allows at most is known at once, how much of it is left a little later.
        let most = pacer::weight(word.zone(), 0);
        let weight = self.common.vault.background_weight().min(most);
        let config = &self.common.config;
        let pace = pace(orders, word.zone(), weight, green_for, self.running, config);
        let Pace::Send(rate) = pace else {
            return pace;
        };
        let rate = pacer::weighted(rate, self.aimd.share());
        let by = match (self.aimd.culprit(), word.zone(), orders.rate) {
            (Some(Culprit::Destination), _, _) => LimitedBy::Destination,
            (Some(Culprit::Zone), _, _) | (None, Zone::Yellow | Zone::Red, _) => LimitedBy::Zone,
            (None, Zone::Green, Some(_)) => LimitedBy::Ordered,
            (None, Zone::Green, None) => LimitedBy::Configured,
        };
        self.common.control.set_limit(self.index, rate, by);
        Pace::Send(rate)
    }

    /// Reads and sends one portion. Gives whether anything was settled, so that a pass that finds
    /// the destination down is not repeated at once.
    async fn pass(&mut self, orders: Orders) -> bool {
        let common = Rc::clone(&self.common);
        if self.are_some_back() {
            self.start_over().await;
            self.source.rewind().await;
        }
        if orders.selection != self.selection {
            self.start_over().await;
            self.selection = orders.selection;
            self.source.select(self.selection).await;
        }
        if !self.is_owed_anything(orders) {
            return false;
        }
        // What can't be sent now isn't even read.
        if !self.member.circuit.allows() {
            self.set_state(State::Waiting);
            return self.start_over().await;
        }
        if let Some(entries) = self.again.pop() {
            return self.send(entries).await;
        }
        // Before it is read: what is recovered later may be selected, too.
        let is_recovered = common.vault.is_recovered();
        let entries = match self.source.next().await {
            Ok(entries) => entries,
            Err(error) => {
                self.cannot_read(&error);
                // The next portion is what lies behind it.
                return true;
            }
        };
        if entries.is_empty() {
            let is_open = !self.on_the_way.is_empty() || self.has_failed;
            let settled = self.all_answered().await;
            if !self.has_failed && !self.again.is_empty() {
                return true;
            }
            self.start_over().await;
            self.source.rewind().await;
            if !is_open {
                let doubted = self.suspects.take_doubted();
                self.take_back(&doubted);
                // Held, left out, unreadable, or not selected.
                self.set_state(State::Waiting);
                if is_recovered && self.selection != Selection::default() {
                    common.control.is_over(self.index, orders);
                }
            }
            return settled;
        }
        self.set_state(State::Running);
        self.send(entries).await
    }

    /// Tells of it, but not each time that it is met again.
    fn cannot_read(&mut self, error: &vault::Error) {
        let error = error.to_string();
        if self.unreadable.as_ref() != Some(&error) {
            tracing::error!(error, "replay: a part of the vault can't be read");
            self.unreadable = Some(error);
        }
    }

    /// Takes back what was left out and is to be tried again. Gives whether anything was: then the vault has to be read
    /// from the start again.
    fn are_some_back(&mut self) -> bool {
        let now = Instant::now();
        let accepted = self.member.circuit.counters.requests.load(Relaxed);
        let due = self.suspects.take_due(accepted, now);
        self.take_back(&due);
        let unparked = self.common.aside.borrow_mut().unparked(now);
        let before = std::mem::replace(&mut self.unparked, unparked);
        !due.is_empty() || unparked != before
    }

    fn take_back(&self, ids: &[EntryId]) {
        for &id in ids {
            self.common.vault.unpark_entry(id, self.member.bit);
        }
    }

    /// Sends a portion on its way. Gives whether to go on at once.
    async fn send(&mut self, entries: Vec<Entry>) -> bool {
        let mut entries = entries.into_iter();
        let mut next = None;
        while let Some(group) = self.next_group(&mut entries, &mut next) {
            if self.keep_the_rate(&group).await.is_break() {
                // It fails, or the zone or the orders have changed: what is left is read again.
                return self.start_over().await;
            }
            self.start(group);
        }
        true
    }

    fn start(&mut self, mut group: Group) {
        // Of a destination that has failed, one batch is the trial; what isn't sent is read again.
        let Some(leave) = self.member.circuit.claim() else {
            self.has_failed = true;
            return;
        };
        self.limiter.spent(group.stored_bytes() as u64);
        let held_bytes = group.held_bytes();
        self.bytes_on_the_way += held_bytes;
        let destination = Rc::clone(&self.member.destination);
        self.on_the_way.spawn_local(async move {
            let outcome = destination.deliver(group.take_batch()).await;
            drop(leave);
            Answered {
                group,
                held_bytes,
                outcome,
            }
        });
    }

    /// Waits until the rate and what is on its way allow for `next`; the rate may change meanwhile. Breaks off when nothing,
    /// or something else, is to be sent, and when something wasn't taken.
    async fn keep_the_rate(&mut self, next: &Group) -> ControlFlow<()> {
        loop {
            while let Some(answered) = self.on_the_way.try_join_next() {
                self.answered(answered);
            }
            let orders = self.orders();
            let Pace::Send(rate) = self.pace(orders) else {
                return ControlFlow::Break(());
            };
            if self.has_failed || orders.stop || orders.selection != self.selection {
                return ControlFlow::Break(());
            }
            let wait = match self.limiter.wait(rate, Instant::now()) {
                Some(Duration::ZERO) if self.has_room(next) => {
                    return ControlFlow::Continue(());
                }
                Some(Duration::ZERO) | None => LOOK,
                Some(wait) => wait.min(LOOK),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Some(answered) = self.on_the_way.join_next() => {
                    self.answered(answered);
                }
            }
        }
    }

    /// Whether `next` may be on its way with what is: a request that is larger than a batch only by itself.
    fn has_room(&self, next: &Group) -> bool {
        let bytes = self.bytes_on_the_way + next.held_bytes();
        // As they were stored, and as they are sent.
        let bytes_max = 2 * self.common.batch_max_bytes * ON_THE_WAY_MAX;
        self.on_the_way.is_empty() || (self.on_the_way.len() < ON_THE_WAY_MAX && bytes <= bytes_max)
    }

    /// Puts the next group together; `next` is what didn't fit into it. One at a time: decompressed,
    /// a portion of entries could be a thousand times as large.
    fn next_group(
        &mut self,
        entries: &mut impl Iterator<Item = Entry>,
        next: &mut Option<Group>,
    ) -> Option<Group> {
        let now = Instant::now();
        let mut group = next.take();
        for entry in entries {
            if self.suspects.is_left_out(entry.id, now) {
                // Taken back with others that were parked for want of room for letters.
                self.common.vault.park(entry.id, self.member.bit);
                continue;
            }
            let single = match self.common.group_of(entry) {
                Ok(single) => single,
                Err(Unreadable { entry, reason }) => {
                    self.dead_letter(&entry, &reason);
                    continue;
                }
            };
            *next = match &mut group {
                Some(group) if !self.go_together(group, &single) => Some(single),
                Some(group) => group.join(single, self.common.batch_max_bytes),
                None => {
                    group = Some(single);
                    None
                }
            };
            if next.is_some() {
                break;
            }
        }
        group
    }

    fn go_together(&self, group: &Group, single: &Group) -> bool {
        let (one, other) = (&group.entries[0], &single.entries[0]);
        self.suspects.go_together(one.id, other.id)
    }

    /// Takes note of an answer; gives whether anything was settled.
    fn answered(&mut self, answered: Result<Answered, JoinError>) -> bool {
        let Answered {
            group,
            held_bytes,
            outcome,
        } = match answered {
            Ok(answered) => answered,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.bytes_on_the_way -= held_bytes;
        match outcome {
            Outcome::Accepted { rejected_records } => {
                self.accepted(&group, rejected_records);
                true
            }
            Outcome::Retry { after, reason } => {
                // It is sent again, and must not have to wait for what was in vain.
                self.limiter.returned(group.stored_bytes() as u64);
                self.failed(&group, after, &reason);
                false
            }
            Outcome::Rejected { reason } => {
                self.member.circuit.close();
                self.rejected(group, &reason)
            }
        }
    }

    /// The group wasn't taken for now, which is the destination's failure, unless it is one entry's.
    fn failed(&mut self, group: &Group, after: Option<Duration>, reason: &str) {
        let circuit = &self.member.circuit;
        if let [entry] = &group.entries[..] {
            let (accepted, now) = (circuit.counters.requests.load(Relaxed), Instant::now());
            let wait = self.suspects.failed_alone(entry.id, accepted, now);
            if self.suspects.is_left_out(entry.id, now) {
                self.common.vault.park(entry.id, self.member.bit);
            }
            if let Some(wait) = wait {
                if let Some(left_out) = self.told.admit(now) {
                    tracing::warn!(
                        destination = circuit.name(),
                        reason,
                        entry = ?entry.id,
                        records = entry.records,
                        again_in = ?wait,
                        left_out,
                        "replay: an entry fails by itself while others are taken; it stays owed and is sent again later"
                    );
                }
                // Unless it asked for a delay.
                if after.is_none() {
                    circuit.counters.failures.fetch_add(1, Relaxed);
                    self.aimd.excuse();
                    return;
                }
            }
        } else {
            self.suspects.split(group.ids());
        }
        circuit.failed(after, reason);
        self.has_failed = true;
    }

    fn accepted(&mut self, group: &Group, rejected: u64) {
        let circuit = &self.member.circuit;
        circuit.accepted(group.records(), rejected);
        let counters = &circuit.counters;
        counters
            .delivered
            .fetch_add(group.records().saturating_sub(rejected), Relaxed);
        counters.rejected.fetch_add(rejected, Relaxed);
        let bytes = group.stored_bytes() as u64;
        self.common.control.sent(self.index, group.records(), bytes);
        self.aimd.accepted(Instant::now());
        // Which records it rejected isn't said: for the books, the first ones.
        let mut left = rejected;
        for entry in &group.entries {
            let rejected_records = u32::try_from(left).unwrap_or(u32::MAX).min(entry.records);
            left -= u64::from(rejected_records);
            let how = Settlement::Replayed { rejected_records };
            self.common.vault.settle_as(entry.id, self.member.bit, how);
            self.suspects.settled(entry.id);
        }
    }

    /// Halves it, to find the entry that the destination will never take. Gives whether anything was settled.
    fn rejected(&mut self, group: Group, reason: &str) -> bool {
        if let [entry] = &group.entries[..] {
            self.member.circuit.rejected(u64::from(entry.records));
            self.suspects.settled(entry.id);
            return self.dead_letter(entry, reason);
        }
        self.suspects.split(group.ids());
        self.again.push(group.entries);
        false
    }

    fn dead_letter(&self, entry: &Entry, reason: &str) -> bool {
        let circuit = &self.member.circuit;
        let bit = self.member.bit;
        let mut aside = self.common.aside.borrow_mut();
        if !aside.put(entry, circuit.name(), bit, reason) {
            return false;
        }
        circuit
            .counters
            .dead_lettered
            .fetch_add(u64::from(entry.records), Relaxed);
        self.common
            .vault
            .settle_as(entry.id, bit, Settlement::DeadLettered);
        true
    }
}

//! The replay thread.

use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use gophership_common::{Word, Zone};

use super::{
    Config, Error, Handle,
    aside::Aside,
    control::{Control, State},
    dead_letter::DeadLetters,
    group::{Group, Unreadable},
    pace::{Pace, pace},
    pacer,
};
use crate::{
    export::{Destinations, Outcome},
    otel::Enrichment,
    pipeline::{Member, circuit::Circuit},
    pressure::Verdict,
    vault::{DestMask, Entry, Limiter, Reader, Settlement, Vault},
};

/// How often the zone and the vault are looked at while nothing is sent.
const LOOK: Duration = Duration::from_millis(50);

/// What the replay works with.
#[derive(Debug)]
pub struct Parts {
    /// When and how fast.
    pub config: Config,
    /// Most message bytes of one batch.
    pub batch_max_bytes: usize,
    /// Most message bytes of one entry, decompressed.
    pub max_entry_bytes: usize,
    /// What is owed.
    pub vault: Vault,
    /// The zone.
    pub verdict: Verdict,
    /// Where it goes; the thread has connections of its own.
    pub destinations: Destinations,
    /// What the entries' requests are enriched with.
    pub enrichment: Arc<Enrichment>,
    /// The destinations' states, in their order.
    pub circuits: Vec<Arc<Circuit>>,
    /// Where dead letters go.
    pub dead_letters: DeadLetters,
}

/// Starts the thread. It ends when ordered to stop.
///
/// # Errors
/// If the thread can't be made.
pub fn spawn(parts: Parts) -> Result<(Handle, JoinHandle<()>), Error> {
    let control = Arc::new(Control::new(
        parts.config.max_bytes_per_second,
        parts.dead_letters.held(),
    ));
    let handle = Arc::clone(&control);
    let thread = std::thread::Builder::new()
        .name("replay".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    tokio::task::LocalSet::new().block_on(&runtime, Replay::start(parts, control));
                }
                Err(error) => {
                    tracing::error!(%error, "replay: no runtime; the vault is not replayed");
                }
            }
        })?;
    Ok((handle, thread))
}

struct Replay {
    config: Config,
    batch_max_bytes: usize,
    max_entry_bytes: usize,
    vault: Vault,
    reader: Reader,
    verdict: Verdict,
    members: Vec<Member>,
    enrichment: Arc<Enrichment>,
    aside: Aside,
    control: Handle,
    limiter: Limiter,
    green: Option<(Word, Instant)>,
    running: bool,
}

impl Replay {
    async fn start(parts: Parts, control: Handle) {
        let bit_of = |name: &str| parts.vault.mask_of(name);
        let members = Member::connect(&parts.destinations, &parts.circuits, bit_of);
        let replay = Self {
            reader: parts.vault.reader(),
            config: parts.config,
            batch_max_bytes: parts.batch_max_bytes,
            max_entry_bytes: parts.max_entry_bytes,
            aside: Aside::new(
                parts.dead_letters,
                parts.vault.clone(),
                Arc::clone(&control),
            ),
            vault: parts.vault,
            verdict: parts.verdict,
            members,
            enrichment: parts.enrichment,
            control,
            limiter: Limiter::new(Instant::now()),
            green: None,
            running: false,
        };
        replay.run().await;
    }

    async fn run(mut self) {
        while !self.control.orders().stop {
            let pace = self.pace();
            self.running = matches!(pace, Pace::Send(_));
            let progressed = match pace {
                Pace::Paused => {
                    self.control.set_state(State::Paused);
                    false
                }
                Pace::Wait | Pace::Send(0) => {
                    let owed = self.vault.stats().entries_pending > 0;
                    if owed {
                        self.control.set_state(State::Waiting);
                    } else {
                        self.control.nothing_is_owed();
                    }
                    false
                }
                Pace::Send(rate) => self.pass(rate).await,
            };
            if !progressed {
                let _ = tokio::time::timeout(LOOK, self.control.changed()).await;
            }
        }
    }

    fn pace(&mut self) -> Pace {
        let word = self.verdict.load();
        self.green = match (word.zone(), self.green) {
            (Zone::Green, Some((since, at))) if since == word => Some((since, at)),
            (Zone::Green, _) => Some((word, Instant::now())),
            (Zone::Yellow | Zone::Red, _) => None,
        };
        let green_for = self.green.map(|(_, since)| since.elapsed());
        // What the zone allows at most is known at once, how much of it is left a little later.
        let most = pacer::weight(word.zone(), 0);
        pace(
            self.control.orders(),
            word.zone(),
            self.vault.background_weight().min(most),
            green_for,
            self.running,
            &self.config,
        )
    }

    /// Reads and sends one portion. Gives whether anything was settled, so that a pass that finds
    /// every destination down is not repeated at once.
    async fn pass(&mut self, rate: u64) -> bool {
        self.control.set_rate(rate);
        if self.aside.is_time_again(Instant::now()) {
            self.reader.rewind();
        }
        if self.vault.stats().entries_pending == 0 {
            self.control.nothing_is_owed();
            return false;
        }
        let wanted = self.worth_a_try();
        let entries = match self.reader.next(self.batch_max_bytes, wanted) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(%error, "replay: the vault can't be read");
                self.reader.rewind();
                return false;
            }
        };
        if entries.is_empty() {
            // Held, or owed to destinations that are down.
            self.control.set_state(State::Waiting);
            self.reader.rewind();
            return false;
        }
        self.control.set_state(State::Running);
        self.send(entries).await
    }

    /// The destinations whose circuits allow an attempt: what only others are owed isn't even read.
    fn worth_a_try(&self) -> DestMask {
        let allowed = self.members.iter().filter(|member| member.circuit.allows());
        allowed.fold(0, |mask, member| mask | member.bit)
    }

    async fn send(&mut self, entries: Vec<Entry>) -> bool {
        let mut settled = false;
        let mut entries = entries.into_iter();
        let mut next = None;
        while let Some(mut group) = self.next_group(&mut entries, &mut next) {
            let bytes = group.stored_bytes();
            settled |= self.deliver(&mut group).await;
            self.limiter.spent(bytes as u64);
            if self.keep_the_rate().await.is_break() {
                // The zone or the orders have changed: what is left is read again.
                self.reader.rewind();
                return true;
            }
        }
        settled
    }

    /// Sleeps to keep the rate, which may change meanwhile; breaks off when nothing may be sent.
    async fn keep_the_rate(&mut self) -> ControlFlow<()> {
        loop {
            let Pace::Send(rate) = self.pace() else {
                return ControlFlow::Break(());
            };
            if self.control.orders().stop {
                return ControlFlow::Break(());
            }
            self.control.set_rate(rate);
            match self.limiter.wait(rate, Instant::now()) {
                Some(Duration::ZERO) => return ControlFlow::Continue(()),
                wait => tokio::time::sleep(wait.unwrap_or(LOOK).min(LOOK)).await,
            }
        }
    }

    /// Puts the next group together; `next` is what didn't fit into it. One at a time: decompressed,
    /// a portion of entries could be a thousand times as large.
    fn next_group(
        &mut self,
        entries: &mut impl Iterator<Item = Entry>,
        next: &mut Option<Group>,
    ) -> Option<Group> {
        let mut group = next.take();
        for entry in entries {
            let single = match Group::of(entry, self.max_entry_bytes, &self.enrichment) {
                Ok(single) => single,
                Err(unreadable) => {
                    self.bury(&unreadable);
                    continue;
                }
            };
            *next = match &mut group {
                Some(group) => group.join(single, self.batch_max_bytes),
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

    /// One attempt of one group at each destination it is owed to.
    async fn deliver(&mut self, group: &mut Group) -> bool {
        let batch = group.take_batch();
        let mut settled = false;
        for member in self.members.clone() {
            if group.owed & member.bit == 0 || !member.circuit.allows() {
                continue;
            }
            match member.destination.deliver(batch.clone()).await {
                Outcome::Accepted { rejected_records } => {
                    self.accepted(group, &member, rejected_records);
                    settled = true;
                }
                Outcome::Retry { after, reason } => member.circuit.failed(after, &reason),
                Outcome::Rejected { reason } => {
                    member.circuit.close();
                    settled |= self.rejected(group, &member, &reason).await;
                }
            }
        }
        settled
    }

    fn accepted(&self, group: &Group, member: &Member, rejected: u64) {
        member.circuit.accepted(group.records(), rejected);
        let counters = &member.circuit.counters;
        counters
            .delivered
            .fetch_add(group.records().saturating_sub(rejected), Relaxed);
        counters.rejected.fetch_add(rejected, Relaxed);
        self.control
            .sent(group.records(), group.stored_bytes() as u64);
        // Which records it rejected isn't said: for the books, the first ones.
        let mut left = rejected;
        for entry in &group.entries {
            let rejected_records = u32::try_from(left).unwrap_or(u32::MAX).min(entry.records);
            left -= u64::from(rejected_records);
            let how = Settlement::Replayed { rejected_records };
            self.vault.settle_as(entry.id, member.bit, how);
        }
    }

    /// Each entry by itself, to find the one that the destination will never take.
    async fn rejected(&mut self, group: &Group, member: &Member, reason: &str) -> bool {
        if let [entry] = &group.entries[..] {
            member.circuit.rejected(u64::from(entry.records));
            return self.dead_letter(entry, member, reason);
        }
        let mut settled = false;
        for entry in group.entries.clone() {
            let Ok(mut single) = Group::of(entry, self.max_entry_bytes, &self.enrichment) else {
                continue;
            };
            let batch = single.take_batch();
            match member.destination.deliver(batch).await {
                Outcome::Accepted { rejected_records } => {
                    self.accepted(&single, member, rejected_records);
                    settled = true;
                }
                Outcome::Rejected { reason } => {
                    member.circuit.rejected(single.records());
                    settled |= self.dead_letter(&single.entries[0], member, &reason);
                }
                Outcome::Retry { after, reason } => {
                    member.circuit.failed(after, &reason);
                    break;
                }
            }
        }
        settled
    }

    fn bury(&mut self, unreadable: &Unreadable) {
        for member in self.members.clone() {
            if unreadable.entry.owed & member.bit != 0 {
                self.dead_letter(&unreadable.entry, &member, &unreadable.reason);
            }
        }
    }

    fn dead_letter(&mut self, entry: &Entry, member: &Member, reason: &str) -> bool {
        let name = member.circuit.name();
        if !self.aside.put(entry, name, member.bit, reason) {
            return false;
        }
        member
            .circuit
            .counters
            .dead_lettered
            .fetch_add(u64::from(entry.records), Relaxed);
        self.vault
            .settle_as(entry.id, member.bit, Settlement::DeadLettered);
        true
    }
}

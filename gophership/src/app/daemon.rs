//! The running daemon as control, metrics and health see it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use gophership_common::{Cause, Zone};
use tokio::sync::{Notify, watch};

use super::{
    Config,
    chronicle::Chronicle,
    drain::{Drain, Phase},
    pacing, worker,
};
use crate::{
    ingest::{Mode, budget::Budget, room::Room, tls::reload},
    pipeline::circuit::Circuit,
    pressure::{Occurrence, Pressure, Transition, monotonic_ns},
    replay,
    somatic::overrides::Override,
    telemetry::counters::Totals,
    vault::Vault,
};

/// Transitions counted by where from, where to and why.
pub(super) type Transitions = BTreeMap<(Zone, Zone, Cause), u64>;

/// Everything that is shared between the main thread and those that ask.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) vault: Vault,
    pub(super) pressure: Arc<Pressure>,
    pub(super) circuits: Vec<Arc<Circuit>>,
    pub(super) replay: replay::Handle,
    pub(super) workers: Vec<Arc<worker::Status>>,
    pub(super) budget: Arc<Budget>,
    pub(super) room: Arc<Room>,
    /// `None`: plaintext.
    pub(super) tls: Option<reload::Handle>,
    pub(super) mode: watch::Sender<Mode>,
    pub(super) drain: Mutex<Drain>,
    pub(super) overridden: Mutex<Option<Override>>,
    /// Held while an override is kept, on a disk that may hang, and put in force: one after the other.
    pub(super) override_turn: Mutex<()>,
    pub(super) transitions: Mutex<Transitions>,
    pub(super) chronicle: Chronicle,
    pub(super) ready: AtomicBool,
    pub(super) exit: Notify,
}

impl Daemon {
    pub(super) fn totals(&self) -> Totals {
        Totals::of(self.workers.iter().map(|worker| &*worker.counters))
    }

    /// Takes note of what the judge has to tell.
    pub(super) fn occurrence(&self, occurrence: &Occurrence) {
        match occurrence {
            Occurrence::Transition(transition) => {
                pacing::adjust(self);
                self.transition(transition);
            }
            Occurrence::OomKill { ours: true, .. } => {
                tracing::warn!("a process was killed: memory has run out");
            }
            Occurrence::OomKill { ours: false, .. } => {
                tracing::info!("a process was killed in a cgroup that has run out of memory");
            }
            // The judge says so itself, loudly.
            Occurrence::Source { .. } => {}
            Occurrence::EventsLost { events, .. } => {
                tracing::warn!(events, "the kernel's ring buffer was full: events are lost");
            }
        }
        self.tell(occurrence);
    }

    fn transition(&self, transition: &Transition) {
        let (from, to, cause) = (
            transition.from.zone(),
            transition.to.zone(),
            transition.to.cause(),
        );
        tracing::info!(
            from = from.as_str(),
            to = to.as_str(),
            cause = cause.as_str(),
            slow_disk = transition.to.slow_disk(),
            "zone"
        );
        // The cause may rise within a zone; that is no change of zone.
        if from == to {
            return;
        }
        *lock(&self.transitions)
            .entry((from, to, cause))
            .or_default() += 1;
    }

    /// The override in force, if its time isn't over.
    pub(super) fn current_override(&self) -> Option<Override> {
        lock(&self.overridden)
            .clone()
            .filter(|kept| !kept.is_expired())
    }

    /// Tells the judge, when everyone else knows already: by what is known then, its answer is told
    /// from an override that ends by itself.
    pub(super) fn apply_override(&self, kept: Option<&Override>) {
        *lock(&self.overridden) = kept.cloned();
        self.pressure
            .set_override(kept.map(|kept| kept.on_monotonic_clock(monotonic_ns())));
    }

    /// Bytes of the budgets in use, by component: ingest, export, vault.
    pub(super) fn memory(&self) -> [(&'static str, u64, u64); 3] {
        let sum = |of: fn(&worker::Status) -> &AtomicU64| {
            self.workers
                .iter()
                .map(|worker| of(worker).load(Relaxed))
                .sum()
        };
        [
            (
                "ingest",
                self.budget.used() as u64,
                self.budget.limit() as u64,
            ),
            (
                "export",
                sum(|worker| &worker.export_bytes),
                self.config.pipeline.budget_bytes as u64,
            ),
            (
                "vault",
                sum(|worker| &worker.vault_bytes),
                self.config.vault.budget_bytes as u64,
            ),
        ]
    }

    /// Why the daemon isn't ready; `None` if it is.
    pub(super) fn not_ready(&self) -> Option<String> {
        let phase = lock(&self.drain).phase;
        if !self.ready.load(Relaxed) {
            return Some("starting".to_owned());
        }
        if phase != Phase::Serving {
            return Some(format!("draining: {}", phase.as_str()));
        }
        let refusal = self.vault.refusal();
        refusal.map(|reason| format!("the vault refuses requests: {reason}"))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The books of each destination, over all runs: every acknowledged record is in one place.
//!
//! The vault keeps what it has, what became of that, and what earlier runs have left in its cursors.
//! The workers count what destinations had without it, which the vault is told of now and then.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::daemon::Daemon;
use crate::{
    control::pb,
    pipeline::circuit::Circuit,
    vault::{Books, DestinationStats},
};

/// How often the vault is told. By itself that makes one small write to its disk, at most; what was
/// delivered straight since then is missing in the books after a crash.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Tells the vault as long as the daemon runs.
pub(super) async fn keep(daemon: Arc<Daemon>) {
    let mut turns = tokio::time::interval(TELL_EVERY);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        daemon.note_direct();
    }
}

impl Daemon {
    /// Tells the vault what destinations had without it.
    pub(super) fn note_direct(&self) {
        let totals = self.totals();
        self.vault
            .note_direct(&totals.delivered_records, &totals.rejected_records);
    }

    /// One ledger a destination.
    pub(super) fn ledgers(&self) -> Vec<pb::Ledger> {
        // In this order: what left the vault's books is then counted as delivered already.
        let stats = self.vault.stats();
        let totals = self.totals();
        let ledger = |circuit: &Arc<Circuit>| {
            let name = circuit.name();
            let of_vault = stats
                .by_destination
                .iter()
                .find(|destination| destination.name == name)
                .cloned()
                .unwrap_or_default();
            let bit = self.vault.mask_of(name).map_or(0, u32::trailing_zeros) as usize;
            let direct = Books {
                direct: totals.delivered_records[bit] + of_vault.unstored_records,
                direct_rejected: totals.rejected_records[bit],
                ..Books::default()
            };
            ledger(circuit, &of_vault, direct)
        };
        self.circuits.iter().map(ledger).collect()
    }
}

/// The books of one destination: the records of `direct` were in this run, and never to be in the vault.
fn ledger(circuit: &Circuit, vault: &DestinationStats, direct: Books) -> pb::Ledger {
    let before = vault.earlier.plus(direct);
    let all = before.plus(explained(circuit, vault));
    let delivered = all.delivered();
    let rejected = all.rejected + all.direct_rejected;
    let vaulted = vault.earlier.vaulted() + vault.stored_records;
    let accepted = vaulted + before.unvaulted();
    let (owed, quarantined) = (vault.owed_records, vault.lost_records);
    let known = delivered + owed + quarantined + all.dead_lettered + rejected + all.dropped;
    pb::Ledger {
        destination: circuit.name().to_owned(),
        accepted,
        delivered,
        owed,
        in_flight: 0,
        quarantined,
        dead_lettered: all.dead_lettered,
        rejected,
        dropped: all.dropped,
        residue: accepted.cast_signed() - known.cast_signed(),
        vaulted,
        replayed: all.replayed,
    }
}

/// What the vault has settled, as far as those who delivered it or put it aside say so, too. They count
/// before the vault hears of it, so they may know of more.
fn explained(circuit: &Circuit, vault: &DestinationStats) -> Books {
    let (counters, settled) = (&circuit.counters, vault.settled);
    let delivered = counters.delivered.load(Relaxed);
    // Counted there before the vault refused them.
    let delivered = delivered.saturating_sub(vault.unstored_records);
    let held = settled.held.min(delivered);
    Books {
        held,
        replayed: settled.replayed.min(delivered - held),
        dead_lettered: settled
            .dead_lettered
            .min(counters.dead_lettered.load(Relaxed)),
        rejected: settled.rejected.min(counters.rejected.load(Relaxed)),
        ..settled
    }
}

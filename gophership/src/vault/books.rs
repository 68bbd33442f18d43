//! What became of one destination's records that it is owed no more, over all runs.
//!
//! Each segment's ledger keeps those it has settled; when a segment is removed, its books go over to
//! the vault's. The cursors carry the sum, together with the bits it is the sum of: after a crash what
//! was settled since the last writing is owed again, and hasn't been counted yet.

use super::bytes::u64_at;

/// How an entry was settled for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The export that was under way when the vault acknowledged it has succeeded.
    Delivered,
    /// Replay delivered it; the destination refused so many of its records for good.
    Replayed {
        /// Those.
        rejected_records: u32,
    },
    /// The destination will never take it: it was put aside.
    DeadLettered,
}

/// Records of one destination, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// Delivered without the vault.
    pub direct: u64,
    /// Delivered by an export that was under way when the vault acknowledged them.
    pub held: u64,
    /// Delivered by replay.
    pub replayed: u64,
    /// Put aside as dead letters.
    pub dead_lettered: u64,
    /// Refused for good by the destination, in entries that it took.
    pub rejected: u64,
    /// Dropped because the vault was full.
    pub dropped: u64,
}

impl Books {
    /// Bytes of one destination's books in the cursors.
    pub(super) const BYTES: usize = 48;

    /// Counts an entry of `records` records.
    pub(super) fn settle(&mut self, how: Settlement, records: u64) {
        match how {
            Settlement::Delivered => self.held += records,
            Settlement::Replayed { rejected_records } => {
                let rejected = records.min(u64::from(rejected_records));
                self.rejected += rejected;
                self.replayed += records - rejected;
            }
            Settlement::DeadLettered => self.dead_lettered += records,
        }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            direct: self.direct.saturating_add(other.direct),
            held: self.held.saturating_add(other.held),
            replayed: self.replayed.saturating_add(other.replayed),
            dead_lettered: self.dead_lettered.saturating_add(other.dead_lettered),
            rejected: self.rejected.saturating_add(other.rejected),
            dropped: self.dropped.saturating_add(other.dropped),
        }
    }

    /// Records that the destination has.
    #[must_use]
    pub const fn delivered(&self) -> u64 {
        self.direct
            .saturating_add(self.held)
            .saturating_add(self.replayed)
    }

    /// Records that the vault had.
    #[must_use]
    pub const fn vaulted(&self) -> u64 {
        self.held
            .saturating_add(self.replayed)
            .saturating_add(self.dead_lettered)
            .saturating_add(self.rejected)
            .saturating_add(self.dropped)
    }

    /// Fills [`Books::BYTES`] bytes of the cursors.
    pub(super) fn encode(&self, bytes: &mut [u8]) {
        let Self {
            direct,
            held,
            replayed,
            dead_lettered,
            rejected,
            dropped,
        } = *self;
        let all = [direct, held, replayed, dead_lettered, rejected, dropped];
        for (field, records) in bytes.chunks_exact_mut(8).zip(all) {
            field.copy_from_slice(&records.to_le_bytes());
        }
    }

    /// From [`Books::BYTES`] bytes of the cursors.
    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self {
            direct: u64_at(bytes, 0),
            held: u64_at(bytes, 8),
            replayed: u64_at(bytes, 16),
            dead_lettered: u64_at(bytes, 24),
            rejected: u64_at(bytes, 32),
            dropped: u64_at(bytes, 40),
        }
    }
}

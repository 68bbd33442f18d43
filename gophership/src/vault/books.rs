//! What became of one destination's records that it is owed no more, over all runs.
//!
//! Each segment's ledger keeps those it has settled; when a segment is removed, its books go over to
//! the vault's. The cursors carry the sum, together with the bits it is the sum of: after a crash what
//! was settled since the last writing is owed again, and hasn't been counted yet.

use super::bytes::u64_at;

/// How an entry was settled for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The export that was under way when the vault acknowledged it has succeeded; the destination refused so many of
    /// its records for good.
    Delivered {
        /// Those.
        rejected_records: u32,
    },
    /// Replay delivered it; the destination refused so many of its records for good.
    Replayed {
        /// Those.
        rejected_records: u32,
    },
    /// The destination will never take it: it was put aside.
    DeadLettered,
}

impl Settlement {
    /// The export has delivered all of the entry's records.
    pub(super) const WHOLE: Self = Self::Delivered {
        rejected_records: 0,
    };
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
    /// Refused for good by the destination, in requests that it took without the vault.
    pub direct_rejected: u64,
}

impl Books {
    /// As many as there were before `direct_rejected`.
    pub(super) const BYTES_BEFORE_REJECTIONS: usize = 48;
    /// Bytes of one destination's books in the cursors.
    pub(super) const BYTES: usize = 56;

    /// Counts an entry of `records` records.
    pub(super) fn settle(&mut self, how: Settlement, records: u64) {
        let (delivered, rejected) = match how {
            Settlement::Delivered { rejected_records } => (&mut self.held, rejected_records),
            Settlement::Replayed { rejected_records } => (&mut self.replayed, rejected_records),
            Settlement::DeadLettered => (&mut self.dead_lettered, 0),
        };
        let rejected = records.min(u64::from(rejected));
        *delivered += records - rejected;
        self.rejected += rejected;
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
            direct_rejected: self.direct_rejected.saturating_add(other.direct_rejected),
        }
    }

    /// Records that the destination has.
    #[must_use]
    pub const fn delivered(&self) -> u64 {
        self.direct
            .saturating_add(self.held)
            .saturating_add(self.replayed)
    }

    /// Records that were acknowledged without the vault.
    #[must_use]
    pub const fn unvaulted(&self) -> u64 {
        self.direct.saturating_add(self.direct_rejected)
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
            direct_rejected,
        } = *self;
        let all = [
            direct,
            held,
            replayed,
            dead_lettered,
            rejected,
            dropped,
            direct_rejected,
        ];
        for (field, records) in bytes.chunks_exact_mut(8).zip(all) {
            field.copy_from_slice(&records.to_le_bytes());
        }
    }

    /// From as many bytes of the cursors, or from [`Books::BYTES_BEFORE_REJECTIONS`].
    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self {
            direct: u64_at(bytes, 0),
            held: u64_at(bytes, 8),
            replayed: u64_at(bytes, 16),
            dead_lettered: u64_at(bytes, 24),
            rejected: u64_at(bytes, 32),
            dropped: u64_at(bytes, 40),
            direct_rejected: match bytes.len() {
                Self::BYTES_BEFORE_REJECTIONS => 0,
                _ => u64_at(bytes, 48),
            },
        }
    }
}

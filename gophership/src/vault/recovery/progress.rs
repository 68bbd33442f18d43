//! How far recovery has come.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::vault::{directory::Found, stats::RecoveryStats};

/// Segments and bytes to read, and read so far; written by the recovering thread alone.
#[derive(Debug, Default)]
pub(in crate::vault) struct Progress {
    segments_total: u64,
    bytes_total: u64,
    segments: AtomicU64,
    /// Of the segments that are through.
    bytes_before: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// Nothing of `found` is read yet.
    pub(in crate::vault) fn of(found: &[Found]) -> Self {
        Self {
            segments_total: found.len() as u64,
            bytes_total: found.iter().map(|found| found.bytes).sum(),
            ..Self::default()
        }
    }

    /// The segment that is being read is read up to `offset`.
    pub(super) fn reached(&self, offset: u64) {
        let before = self.bytes_before.load(Relaxed);
        self.bytes.store(before + offset, Relaxed);
    }

    /// A segment of `bytes` is through.
    pub(super) fn passed(&self, bytes: u64) {
        let before = self.bytes_before.load(Relaxed) + bytes;
        self.bytes_before.store(before, Relaxed);
        self.bytes.store(before, Relaxed);
        self.segments.fetch_add(1, Relaxed);
    }

    /// As it stands.
    pub(in crate::vault) fn stats(&self) -> RecoveryStats {
        RecoveryStats {
            segments: self.segments.load(Relaxed),
            segments_total: self.segments_total,
            bytes: self.bytes.load(Relaxed).min(self.bytes_total),
            bytes_total: self.bytes_total,
        }
    }
}

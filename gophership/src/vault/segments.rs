//! The running vault's segments, for operators: what is in each, and taking one out of replay.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Vault,
    ledger::Pending,
    quarantine::{self, Quarantine, QuarantineError, REASON_BYTES_MAX},
    segment::Segment,
    shared::Shared,
};

/// A segment as the running daemon knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentStats {
    /// Lane that wrote it.
    pub lane: u16,
    /// Number, unique in the vault.
    pub number: u64,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// Nothing will be added.
    pub is_closed: bool,
    /// Damage was found in it.
    pub is_damaged: bool,
    /// An operator took it out of replay.
    pub quarantine: Option<Quarantine>,
    /// Acknowledged entries.
    pub entries: u64,
    /// Entries somebody is owed, and their records.
    pub owed_any: (u64, u64),
    /// Entries and records that damage made unreadable.
    pub lost: (u64, u64),
    /// By destination: entries owed, and their records.
    pub owed: Vec<(String, u64, u64)>,
}

impl Vault {
    /// All segments that were begun, in the order of their numbers.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentStats> {
        let shared = &self.inner.shared;
        let mut begun = shared.catalog.select(Segment::is_begun);
        begun.sort_unstable_by_key(|segment| segment.number);
        begun
            .iter()
            .map(|segment| stats_of(shared, segment))
            .collect()
    }

    /// Takes a closed segment out of replay, durably: it is neither replayed nor removed until
    /// [`Vault::readmit_segment`]. Exports that are in flight end as they do.
    ///
    /// # Errors
    /// There is no such segment, it is being written, it is withheld already, or that can't be made durable.
    pub fn quarantine_segment(
        &self,
        number: u64,
        quarantine: &Quarantine,
    ) -> Result<SegmentStats, QuarantineError> {
        let bytes = quarantine.reason.len();
        if bytes > REASON_BYTES_MAX {
            return Err(QuarantineError::Reason { bytes });
        }
        let (shared, segment) = self.begun(number)?;
        if !segment.is_closed() {
            return Err(QuarantineError::Writing(number));
        }
        // First here, so that it isn't removed as spent meanwhile.
        if !segment.withhold() {
            return Err(QuarantineError::Already(number));
        }
        let written = quarantine::write(
            shared.platform.as_ref(),
            shared.dir(),
            segment.lane,
            number,
            quarantine,
        );
        let is_gone = shared.catalog.get(number).is_none();
        if let Err(error) = written {
            segment.readmit();
            return Err(error);
        }
        if is_gone {
            quarantine::remove(shared.platform.as_ref(), shared.dir(), segment.lane, number)?;
            return Err(QuarantineError::Unknown(number));
        }
        tracing::warn!(
            path = %segment.path.display(),
            by = quarantine.by,
            reason = quarantine.reason,
            "an operator took a vault segment out of replay"
        );
        Ok(stats_of(shared, &segment))
    }

    /// Puts a segment back into replay, durably.
    ///
    /// # Errors
    /// There is no such segment, no operator took it out, or that can't be made durable.
    pub fn readmit_segment(&self, number: u64, by: &str) -> Result<SegmentStats, QuarantineError> {
        let (shared, segment) = self.begun(number)?;
        if !segment.is_withheld() {
            return Err(QuarantineError::NotQuarantined(number));
        }
        quarantine::remove(shared.platform.as_ref(), shared.dir(), segment.lane, number)?;
        segment.readmit();
        shared.cursors_wanted.raise();
        tracing::warn!(path = %segment.path.display(), by, "an operator put a vault segment back into replay");
        Ok(stats_of(shared, &segment))
    }

    fn begun(&self, number: u64) -> Result<(&Shared, Arc<Segment>), QuarantineError> {
        let shared = &*self.inner.shared;
        match shared.catalog.get(number) {
            Some(segment) if segment.is_begun() => Ok((shared, segment)),
            Some(_) | None if shared.recovering.load(Ordering::Acquire) => {
                Err(QuarantineError::Recovering(number))
            }
            Some(_) | None => Err(QuarantineError::Unknown(number)),
        }
    }
}

fn stats_of(shared: &Shared, segment: &Segment) -> SegmentStats {
    let quarantine = segment.is_withheld().then(|| {
        quarantine::read(
            shared.platform.as_ref(),
            shared.dir(),
            segment.lane,
            segment.number,
        )
        .unwrap_or(Quarantine {
            since_unix_ns: 0,
            by: "unknown".to_owned(),
            reason: String::new(),
        })
    });
    let pair = |pending: Pending| (pending.entries, pending.records);
    let ledger = segment.ledger();
    SegmentStats {
        lane: segment.lane,
        number: segment.number,
        file_bytes: segment.file_bytes(),
        is_closed: segment.is_closed(),
        is_damaged: segment.is_damaged(),
        quarantine,
        entries: ledger.len() as u64,
        owed_any: pair(ledger.pending()),
        lost: pair(ledger.lost()),
        owed: shared
            .destinations
            .names()
            .enumerate()
            .map(|(bit, name)| {
                let name = name.to_owned();
                (name, ledger.owed_entries(bit), ledger.owed_records(bit))
            })
            .collect(),
    }
}

//! The vault's segments → `VaultListReply`.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    control::{ControlError, QuarantineSpec, pb},
    vault::{Quarantine, QuarantineError, SegmentStats, Vault},
};

/// Segments in one reply: with 32 destinations of long names it stays far below the 4 MiB that a client takes.
const SEGMENTS_A_REPLY: usize = 256;

/// All segments, in parts; one part at least.
pub(super) fn list(dir: &Path, vault: &Vault) -> Vec<pb::VaultListReply> {
    let recovering = vault.stats().recovering;
    let segments = vault.segments();
    let part = |segments: &[SegmentStats]| pb::VaultListReply {
        dir: dir.display().to_string(),
        recovering,
        segments: segments.iter().map(segment).collect(),
    };
    match segments.is_empty() {
        true => vec![part(&[])],
        false => segments.chunks(SEGMENTS_A_REPLY).map(part).collect(),
    }
}

/// Takes a segment out of replay, or puts it back.
pub(super) fn quarantine(
    vault: &Vault,
    spec: QuarantineSpec,
) -> Result<pb::VaultSegment, ControlError> {
    let changed = match spec.reason {
        Some(reason) => vault.quarantine_segment(spec.number, &Quarantine::now(spec.by, reason)),
        None => vault.readmit_segment(spec.number, &spec.by),
    };
    changed.map(|changed| segment(&changed)).map_err(refused)
}

#[expect(clippy::needless_pass_by_value, reason = "a function for map_err")]
fn refused(error: QuarantineError) -> ControlError {
    let message = error.to_string();
    match error {
        QuarantineError::Unknown(_) | QuarantineError::Reason { .. } => {
            ControlError::Invalid(message)
        }
        QuarantineError::Recovering(_)
        | QuarantineError::Writing(_)
        | QuarantineError::Already(_)
        | QuarantineError::NotQuarantined(_) => ControlError::NotNow(message),
        QuarantineError::File(_) => ControlError::Failed(message),
    }
}

fn segment(stats: &SegmentStats) -> pb::VaultSegment {
    pb::VaultSegment {
        lane: stats.lane.into(),
        number: stats.number,
        file_bytes: stats.file_bytes,
        closed: stats.is_closed,
        damaged: stats.is_damaged,
        quarantine: stats.quarantine.as_ref().map(|quarantine| {
            let since = quarantine.since_unix_ns;
            let since = (since != 0).then(|| (UNIX_EPOCH + Duration::from_nanos(since)).into());
            pb::SegmentQuarantine {
                since,
                by: quarantine.by.clone(),
                reason: quarantine.reason.clone(),
            }
        }),
        entries: stats.entries,
        owed_entries: stats.owed_any.0,
        owed_records: stats.owed_any.1,
        lost_entries: stats.lost.0,
        lost_records: stats.lost.1,
        owed: stats
            .owed
            .iter()
            .map(|(destination, entries, records)| pb::SegmentOwed {
                destination: destination.clone(),
                entries: *entries,
                records: *records,
            })
            .collect(),
    }
}

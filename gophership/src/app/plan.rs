//! What a replay would send, counted by reading the vault as the replay does.

use std::time::{SystemTime, UNIX_EPOCH};

use super::daemon::Daemon;
use crate::{
    control::{ControlError, PlanSpec, pb},
    vault::DestMask,
};

/// Message bytes read before the sums are told.
const PORTION_BYTES: usize = 4 << 20;

/// Tells growing sums until all is counted, or `tell` says that nobody listens.
pub(super) fn plan(
    daemon: &Daemon,
    spec: &PlanSpec,
    tell: &mut dyn FnMut(pb::ReplayPlan) -> bool,
) -> Result<(), ControlError> {
    if !daemon.vault.is_recovered() {
        let message =
            "the segments of earlier runs are still being read; status tells how far that is";
        return Err(ControlError::NotNow(message.to_owned()));
    }
    let mut sums = sums(daemon, spec.destination.as_deref());
    if let (Some(name), true) = (&spec.destination, sums.is_empty()) {
        return Err(unknown(name));
    }
    let all = sums.iter().fold(0, |all, (bit, _)| all | bit);
    let mut selection = spec.selection;
    // What comes in meanwhile is another matter, and might never end.
    let now = now_unix_ns();
    selection.to_unix_ns = Some(selection.to_unix_ns.map_or(now, |to| to.min(now)));
    let mut reader = daemon.vault.reader();
    reader.select(selection);
    loop {
        let entries = reader
            .next(PORTION_BYTES, all)
            .map_err(|error| ControlError::Failed(error.to_string()))?;
        for entry in &entries {
            let owed = sums.iter_mut().filter(|(bit, _)| entry.owed & bit != 0);
            for (_, sum) in owed {
                sum.entries += 1;
                sum.records += u64::from(entry.records);
                sum.bytes += entry.bytes.len() as u64;
            }
        }
        let complete = entries.is_empty();
        let plan = pb::ReplayPlan {
            complete,
            destinations: sums.iter().map(|(_, sum)| sum.clone()).collect(),
        };
        if !tell(plan) || complete {
            return Ok(());
        }
    }
}

/// Nothing yet for each destination that is asked for, with its bit.
fn sums(daemon: &Daemon, wanted: Option<&str>) -> Vec<(DestMask, pb::DestinationPlan)> {
    let names = daemon.circuits.iter().map(|circuit| circuit.name());
    names
        .filter(|name| wanted.is_none_or(|wanted| wanted == *name))
        .filter_map(|name| {
            let plan = pb::DestinationPlan {
                destination: name.to_owned(),
                ..pb::DestinationPlan::default()
            };
            Some((daemon.vault.mask_of(name)?, plan))
        })
        .collect()
}

/// No destination has that name.
pub(super) fn unknown(name: &str) -> ControlError {
    ControlError::Invalid(format!("there is no destination {name:?}"))
}

fn now_unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

//! `vault quarantine`.

use gophership::{
    control::pb,
    vault::{Quarantine, QuarantineError, inspect::set_quarantine},
};
use serde_json::json;

use super::{
    args::{Place, SegmentNumber},
    failed, full_number, number,
};
use crate::{cli::Cli, client, failure::Failure, output::Sink};

/// Takes a segment out of replay for a reason, or puts it back for none.
pub(super) async fn run(
    cli: &Cli,
    place: &Place,
    sink: &mut Sink,
    segment: SegmentNumber,
    reason: Option<&str>,
) -> Result<(), Failure> {
    match &place.dir {
        Some(dir) => {
            let by = format!("uid {}", nix::unistd::geteuid());
            let order = reason.map(|reason| Quarantine::now(by, reason.to_owned()));
            set_quarantine(dir, segment.0, order).map_err(refused)?;
        }
        None => {
            let mut daemon = client::connect(&cli.endpoint).await?;
            let request = pb::VaultQuarantineRequest {
                number: segment.0,
                reason: reason.unwrap_or_default().to_owned(),
                release: reason.is_none(),
            };
            daemon.vault_quarantine(request).await?;
        }
    }
    let value = json!({
        "segment": full_number(segment.0),
        "quarantined": reason.is_some(),
    });
    sink.result(&value, || {
        let segment = number(segment.0);
        let dir = place.dir.as_ref();
        let dir = dir.map_or_else(String::new, |dir| format!(" --dir {}", dir.display()));
        match reason {
            Some(_) => format!(
                "segment {segment} is quarantined: it is neither replayed nor removed until\n\
                 gs-ctl vault quarantine {segment} --release{dir}\n"
            ),
            None => format!("segment {segment} is back in replay\n"),
        }
    })
}

fn refused(error: QuarantineError) -> Failure {
    match error {
        QuarantineError::File(error) => failed(error),
        QuarantineError::Unknown(_) | QuarantineError::Reason { .. } => {
            Failure::Usage(error.to_string())
        }
        QuarantineError::Recovering(_)
        | QuarantineError::Writing(_)
        | QuarantineError::Already(_)
        | QuarantineError::NotQuarantined(_) => Failure::Failed(error.to_string()),
    }
}

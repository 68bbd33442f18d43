//! Requests as they come over the wire → what the engine is asked for.

use std::time::Duration;

use time::OffsetDateTime;

use super::{
    engine::{
        ControlError, DrainSpec, OverrideSpec, PlanSpec, QuarantineSpec, ReplayCommand, ReplaySpec,
        SocketsSpec,
    },
    events::Asked,
    pb,
};
use crate::{pressure::SocketOrder, vault::Selection};

/// A drain waits this long for the pipeline unless the caller says otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Far from where clocks and calendars overflow.
const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
/// Reasons are for people to read.
const REASON_BYTES_MAX: usize = 1024;
/// Sockets listed unless the caller says otherwise.
const SOCKETS_LIMIT: usize = 100;
/// The reply stays far below the 4 MiB that a client takes.
const SOCKETS_LIMIT_MAX: u32 = 10_000;

/// Events sent unless the caller says otherwise.
const EVENTS_LIMIT: usize = 100;
/// They are sent one by one; this is beyond what a timeline of usual size holds.
const EVENTS_LIMIT_MAX: u32 = 100_000;

/// As operators type it.
pub(super) fn zone_name(zone: pb::Zone) -> &'static str {
    match zone {
        pb::Zone::Unspecified => "unspecified",
        pb::Zone::Green => "green",
        pb::Zone::Yellow => "yellow",
        pb::Zone::Red => "red",
    }
}

/// The override that is asked for.
pub(super) fn override_spec(
    asked: pb::SetOverrideRequest,
    by: String,
) -> Result<OverrideSpec, ControlError> {
    let zone = asked.zone();
    if zone == pb::Zone::Unspecified {
        return Err(invalid("zone must be green, yellow or red"));
    }
    if asked.reason.len() > REASON_BYTES_MAX {
        let message = format!("reason is longer than {REASON_BYTES_MAX} bytes");
        return Err(ControlError::Invalid(message));
    }
    let duration = asked.duration.map(positive).transpose()?;
    Ok(OverrideSpec {
        zone,
        duration,
        reason: asked.reason,
        by,
    })
}

/// Which sockets to list.
pub(super) fn sockets_spec(asked: pb::SocketsRequest) -> Result<SocketsSpec, ControlError> {
    let limit = match asked.limit {
        0 => SOCKETS_LIMIT,
        limit @ 1..=SOCKETS_LIMIT_MAX => limit as usize,
        _ => {
            let message = format!("limit must be at most {SOCKETS_LIMIT_MAX}");
            return Err(ControlError::Invalid(message));
        }
    };
    let order = match asked.order() {
        pb::SocketOrder::Unspecified | pb::SocketOrder::Depth => SocketOrder::Depth,
        pb::SocketOrder::HighWater => SocketOrder::HighWater,
        pb::SocketOrder::Fill => SocketOrder::Fill,
        pb::SocketOrder::Idle => SocketOrder::Idle,
    };
    Ok(SocketsSpec { limit, order })
}

/// Which events to send.
pub(super) fn events_asked(asked: pb::EventsRequest) -> Result<Asked, ControlError> {
    let limit = match asked.limit {
        0 => EVENTS_LIMIT,
        limit @ 1..=EVENTS_LIMIT_MAX => limit as usize,
        _ => {
            let message = format!("limit must be at most {EVENTS_LIMIT_MAX}");
            return Err(ControlError::Invalid(message));
        }
    };
    let moment = |since: prost_types::Timestamp| {
        let nanos = i128::from(since.seconds) * 1_000_000_000 + i128::from(since.nanos);
        OffsetDateTime::from_unix_timestamp_nanos(nanos)
            .map_err(|_| invalid("since must lie between the years 1 and 9999"))
    };
    Ok(Asked {
        since: asked.since.map(moment).transpose()?,
        limit,
        follow: asked.follow,
    })
}

/// What to do with which segment.
pub(super) fn quarantine_spec(
    asked: pb::VaultQuarantineRequest,
    by: String,
) -> Result<QuarantineSpec, ControlError> {
    if asked.reason.len() > REASON_BYTES_MAX {
        let message = format!("reason is longer than {REASON_BYTES_MAX} bytes");
        return Err(ControlError::Invalid(message));
    }
    if asked.release && !asked.reason.is_empty() {
        return Err(invalid("release goes without a reason"));
    }
    Ok(QuarantineSpec {
        number: asked.number,
        reason: (!asked.release).then_some(asked.reason),
        by,
    })
}

/// What the replay shall do.
pub(super) fn replay_spec(asked: pb::ReplayRequest) -> Result<ReplaySpec, ControlError> {
    let (action, rate) = (asked.action(), asked.max_bytes_per_second);
    let is_start_only = rate != 0 || asked.selection.is_some();
    let command = match action {
        pb::ReplayAction::Start => ReplayCommand::Start {
            max_bytes_per_second: (rate != 0).then_some(rate),
            selection: selection(asked.selection)?,
        },
        pb::ReplayAction::Pause | pb::ReplayAction::Resume if is_start_only => {
            return Err(invalid(
                "max_bytes_per_second and selection go with START only",
            ));
        }
        pb::ReplayAction::Pause => ReplayCommand::Pause,
        pb::ReplayAction::Resume => ReplayCommand::Resume,
        pb::ReplayAction::Unspecified => return Err(invalid("action must be set")),
    };
    Ok(ReplaySpec {
        destination: named(asked.destination),
        command,
    })
}

/// Which replay's extent is asked for.
pub(super) fn plan_spec(asked: pb::PlanReplayRequest) -> Result<PlanSpec, ControlError> {
    Ok(PlanSpec {
        destination: named(asked.destination),
        selection: selection(asked.selection)?,
    })
}

fn named(destination: String) -> Option<String> {
    Some(destination).filter(|name| !name.is_empty())
}

fn selection(asked: Option<pb::ReplaySelection>) -> Result<Selection, ControlError> {
    let Some(asked) = asked else {
        return Ok(Selection::default());
    };
    let unix_ns = |time: prost_types::Timestamp| {
        let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        u64::try_from(nanos).map_err(|_| invalid("from and to must lie between 1970 and 2554"))
    };
    let lane = asked.lane.map(u16::try_from).transpose();
    let selection = Selection {
        from_unix_ns: asked.from.map(unix_ns).transpose()?,
        to_unix_ns: asked.to.map(unix_ns).transpose()?,
        lane: lane.map_err(|_| invalid("lane must be at most 65535"))?,
        newest_first: asked.newest_first,
    };
    match (selection.from_unix_ns, selection.to_unix_ns) {
        (Some(from), Some(to)) if from >= to => Err(invalid("from must lie before to")),
        (Some(_) | None, Some(_) | None) => Ok(selection),
    }
}

/// How to drain.
pub(super) fn drain_spec(asked: pb::DrainRequest) -> Result<DrainSpec, ControlError> {
    if !asked.cancel {
        let timeout = asked.timeout.map(positive).transpose()?;
        return Ok(DrainSpec::Start {
            timeout: timeout.unwrap_or(DRAIN_TIMEOUT),
            exit: asked.exit,
        });
    }
    if asked.exit || asked.timeout.is_some() {
        return Err(invalid("cancel goes without exit and timeout"));
    }
    Ok(DrainSpec::Cancel)
}

fn positive(duration: prost_types::Duration) -> Result<Duration, ControlError> {
    Duration::try_from(duration)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= DURATION_MAX)
        .ok_or_else(|| invalid("durations must be longer than 0 and at most 100 years"))
}

fn invalid(message: &str) -> ControlError {
    ControlError::Invalid(message.to_owned())
}

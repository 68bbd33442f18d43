//! Replies as JSON; the keys are promises.

use gophership::control::pb;
use serde_json::{Map, Value, json};

use crate::human::rfc3339;

/// `status --output json`.
pub(crate) fn status(status: &pb::StatusReply) -> Value {
    json!({
        "version": status.version,
        "zone": zone(status.zone()),
        "cause": status.cause,
        "zone_since": status.zone_since.as_ref().and_then(rfc3339),
        "slow_disk": status.slow_disk,
        "source": source(status.source()),
        "source_reason": status.source_reason,
        "override": status.r#override.as_ref().map(held),
        "signals": named(&status.signals, |signal| (&signal.name, json!({
            "value": signal.available.then_some(signal.value),
            "unit": signal.unit,
            "available": signal.available,
            "reason": signal.reason,
            "yellow": signal.yellow,
            "red": signal.red,
            "worst": signal.worst,
        }))),
        "memory": status.memory.as_ref().map(memory),
        "ingest": status.ingest.as_ref().map(|ingest| json!({
            "requests": ingest.requests,
            "records": ingest.records,
            "bytes": ingest.bytes,
            "refused": ingest.refused,
            "connections": ingest.connections,
            "remote_connections": ingest.remote_connections,
            "max_connections": ingest.max_connections,
            "connections_waiting": ingest.connections_waiting,
            "workers": ingest.workers.iter().map(worker).collect::<Value>(),
            "tls": ingest.tls.as_ref().map(tls),
        })),
        "export": status.export.iter().map(destination).collect::<Value>(),
        "vault": status.vault.as_ref().map(vault),
        "replay": status.replay.as_ref().map(replay),
        "ledger": {
            "residue": residue(&status.ledger),
            "destinations": named(&status.ledger, |ledger| (&ledger.destination, self::ledger(ledger))),
        },
        "xdp": status.xdp.iter().map(interface).collect::<Value>(),
    })
}

/// An override.
pub(crate) fn held(held: &pb::Override) -> Value {
    json!({
        "zone": zone(held.zone()),
        "until": held.until.as_ref().and_then(rfc3339),
        "by": held.by,
        "reason": held.reason,
    })
}

/// A replay.
pub(crate) fn replay(replay: &pb::ReplayProgress) -> Value {
    json!({
        "state": replay_state(replay.state()),
        "records": replay.records,
        "bytes": replay.bytes,
        "rate": replay.rate_bytes_per_second,
        "max_rate": replay.max_bytes_per_second,
        "limited_by": replay.limited_by,
        "remaining_seconds": replay.remaining.map(|remaining| remaining.seconds),
        "ordered": replay.ordered,
        "entries_pending": replay.entries_pending,
        "records_pending": replay.records_pending,
        "destinations": named(&replay.destinations, |to| (&to.destination, json!({
            "state": replay_state(to.state()),
            "records": to.records,
            "bytes": to.bytes,
            "rate": to.rate_bytes_per_second,
            "max_rate": to.max_bytes_per_second,
            "limited_by": to.limited_by,
            "remaining_seconds": to.remaining.map(|remaining| remaining.seconds),
            "ordered": to.ordered,
            "records_pending": to.records_pending,
        }))),
    })
}

/// A drain.
pub(crate) fn drain(drain: &pb::DrainProgress) -> Value {
    json!({
        "phase": drain_phase(drain.phase()),
        "connections": drain.connections,
        "requests": drain.requests,
        "pipeline_bytes": drain.pipeline_bytes,
        "records_pending": drain.records_pending,
    })
}

/// The sum over all destinations, without their signs: faults don't cancel each other out.
pub(crate) fn residue(ledgers: &[pb::Ledger]) -> u64 {
    let residues = ledgers.iter().map(|ledger| ledger.residue.unsigned_abs());
    residues.fold(0, u64::saturating_add)
}

fn memory(memory: &pb::Memory) -> Value {
    json!({
        "total": memory.total_bytes,
        "used": memory.used_bytes,
        "components": named(&memory.components, |component| (&component.name, json!({
            "limit": component.limit_bytes,
            "used": component.used_bytes,
        }))),
    })
}

fn worker(worker: &pb::Worker) -> Value {
    json!({ "connections": worker.connections, "stuck": worker.stuck })
}

fn tls(tls: &pb::Tls) -> Value {
    json!({
        "not_after": named(&tls.expiries, |expiry| (
            &expiry.file,
            json!(expiry.not_after.as_ref().and_then(rfc3339)),
        )),
        "reloads": tls.reloads,
        "failed_reloads": tls.failed_reloads,
        "failure": (!tls.failure.is_empty()).then_some(&tls.failure),
    })
}

fn destination(destination: &pb::Destination) -> Value {
    json!({
        "name": destination.name,
        "state": destination_state(destination.state()),
        "sent": destination.sent_records,
        "failed": destination.failed_requests,
        "rejected": destination.rejected_records,
        "last_error": destination.last_error,
    })
}

fn interface(interface: &pb::Interface) -> Value {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    json!({
        "interface": interface.name,
        "mode": text(&interface.mode),
        "reason": text(&interface.reason),
        "packets": interface.packets,
        "bytes": interface.bytes,
        "syn": interface.opens,
        "syn_denied": interface.denied,
        "syn_limited": interface.limited,
    })
}

fn vault(vault: &pb::Vault) -> Value {
    json!({
        "bytes": vault.bytes,
        "max_bytes": vault.max_bytes,
        "segments": vault.segments,
        "unused_segments": vault.unused_segments,
        "entries_pending": vault.entries_pending,
        "records_pending": vault.records_pending,
        "quarantined_segments": vault.quarantined_segments,
        "quarantined_records": vault.quarantined_records,
        "dead_letters": vault.dead_letters,
        "dead_letter_bytes": vault.dead_letter_bytes,
        "dead_letters_max_bytes": vault.dead_letters_max_bytes,
        "dead_letters_refused": (!vault.dead_letters_refused.is_empty()).then_some(&vault.dead_letters_refused),
        "rung": vault.rung,
        "scrubbed_bytes": vault.scrubbed_bytes,
        "sync": vault.sync,
        "compression": vault.compression,
        "retained_segments": vault.retained_segments,
        "dropped_segments": vault.dropped_segments,
        "dropped_records": vault.dropped_records,
        "fault": (!vault.fault.is_empty()).then_some(&vault.fault),
        "refusing": (!vault.refusing.is_empty()).then_some(&vault.refusing),
        "recovery": vault.recovery.as_ref().map(|recovery| json!({
            "done": recovery.done,
            "segments": recovery.segments,
            "segments_total": recovery.segments_total,
            "bytes": recovery.bytes,
            "bytes_total": recovery.bytes_total,
        })),
    })
}

fn ledger(ledger: &pb::Ledger) -> Value {
    json!({
        "accepted": ledger.accepted,
        "delivered": ledger.delivered,
        "owed": ledger.owed,
        "in_flight": ledger.in_flight,
        "quarantined": ledger.quarantined,
        "dead_lettered": ledger.dead_lettered,
        "rejected": ledger.rejected,
        "dropped": ledger.dropped,
        "residue": ledger.residue,
        "vaulted": ledger.vaulted,
        "replayed": ledger.replayed,
    })
}

/// An object with one key for each item.
fn named<'a, T>(items: &'a [T], entry: impl Fn(&'a T) -> (&'a String, Value)) -> Value {
    let entries = items.iter().map(|item| {
        let (name, value) = entry(item);
        (name.clone(), value)
    });
    Value::Object(entries.collect::<Map<_, _>>())
}

/// As typed and shown.
pub(crate) fn zone(zone: pb::Zone) -> &'static str {
    match zone {
        pb::Zone::Unspecified => "unknown",
        pb::Zone::Green => "green",
        pb::Zone::Yellow => "yellow",
        pb::Zone::Red => "red",
    }
}

/// As shown.
pub(crate) fn source(source: pb::Source) -> &'static str {
    match source {
        pb::Source::Unspecified => "unknown",
        pb::Source::Kernel => "kernel",
        pb::Source::Stochastic => "stochastic",
    }
}

/// As shown.
pub(crate) fn destination_state(state: pb::DestinationState) -> &'static str {
    match state {
        pb::DestinationState::Unspecified => "unknown",
        pb::DestinationState::Idle => "idle",
        pb::DestinationState::Up => "up",
        pb::DestinationState::Down => "down",
    }
}

/// As shown.
pub(crate) fn replay_state(state: pb::ReplayState) -> &'static str {
    match state {
        pb::ReplayState::Unspecified => "unknown",
        pb::ReplayState::Idle => "idle",
        pb::ReplayState::Waiting => "waiting",
        pb::ReplayState::Running => "running",
        pb::ReplayState::Paused => "paused",
    }
}

/// As shown.
pub(crate) fn drain_phase(phase: pb::DrainPhase) -> &'static str {
    match phase {
        pb::DrainPhase::Unspecified => "unknown",
        pb::DrainPhase::Accepting => "accepting",
        pb::DrainPhase::Closing => "closing",
        pb::DrainPhase::Emptying => "emptying",
        pb::DrainPhase::Sealing => "sealing",
        pb::DrainPhase::Drained => "drained",
        pb::DrainPhase::TimedOut => "timed_out",
    }
}

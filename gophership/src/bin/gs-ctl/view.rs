//! Replies as tables.

use std::{iter, time::Duration};

use gophership::control::{certs, pb};

use crate::{
    human::{bytes, count, counted, distance, duration, plain, seconds, to_ms, whole},
    json,
    table::{paint, table, titled},
};

/// `status`.
pub(crate) fn status(status: &pb::StatusReply, colour: bool) -> String {
    let mut facts = verdict_facts(status, colour);
    let mut fact = |name: &str, text: String| facts.push(vec![name.to_owned(), text]);
    if let Some(memory) = &status.memory {
        fact("memory", memory_line(memory));
    }
    if let Some(ingest) = &status.ingest {
        fact("ingest", ingest_line(ingest));
        if let Some(tls) = &ingest.tls {
            fact("certificates", certificates_line(tls));
        }
        for warning in ingest_warnings(ingest) {
            fact("warning", paint(&warning, "31", colour));
        }
    }
    if let Some(vault) = &status.vault {
        fact("vault", vault_line(vault));
        if let Some(recovery) = vault.recovery.filter(|recovery| !recovery.done) {
            fact("recovery", recovery_line(&recovery));
        }
        for warning in vault_warnings(vault) {
            fact("warning", paint(&warning, "31", colour));
        }
        if vault.quarantined_segments + vault.quarantined_records + vault.dead_letters > 0 {
            fact("damage", damage_line(vault, colour));
        }
    }
    if let Some(replay) = &status.replay {
        fact("replay", self::replay(replay));
    }
    fact("version", status.version.clone());
    let mut out = table(&facts, &[]);
    for block in [
        signals(&status.signals),
        interfaces(&status.xdp, colour),
        destinations(&status.export),
        ledger(&status.ledger, colour),
    ] {
        if !block.is_empty() {
            out.push('\n');
            out.push_str(&block);
        }
    }
    out
}

/// The zone, who judges, and the override.
pub(crate) fn verdict(status: &pb::StatusReply, colour: bool) -> String {
    table(&verdict_facts(status, colour), &[])
}

fn verdict_facts(status: &pb::StatusReply, colour: bool) -> Vec<Vec<String>> {
    let held = status.r#override.as_ref().map_or("none".to_owned(), held);
    let facts = [
        ("zone", zone_line(status, colour)),
        ("judged by", source_line(status)),
        ("override", held),
    ];
    let facts = facts.into_iter();
    facts
        .map(|(name, text)| vec![name.to_owned(), text])
        .collect()
}

fn zone_line(status: &pb::StatusReply, colour: bool) -> String {
    let zone = json::zone(status.zone());
    let ansi = match status.zone() {
        pb::Zone::Green => "32",
        pb::Zone::Yellow => "33",
        pb::Zone::Red | pb::Zone::Unspecified => "31",
    };
    let mut line = paint(&zone.to_uppercase(), ansi, colour);
    if let Some(since) = status
        .zone_since
        .as_ref()
        .and_then(|at| distance(at, false))
    {
        line.push_str(&format!(" for {since}"));
    }
    if !status.cause.is_empty() {
        line.push_str(&format!(", cause: {}", plain(&status.cause)));
    }
    if status.slow_disk {
        line.push_str("; the vault's disk is slow");
    }
    line
}

fn source_line(status: &pb::StatusReply) -> String {
    let source = json::source(status.source());
    match status.source_reason.as_str() {
        "" => source.to_owned(),
        reason => format!("{source} (not the kernel: {})", plain(reason)),
    }
}

/// An override in words, with what is left of it.
pub(crate) fn held(held: &pb::Override) -> String {
    let left = held.until.as_ref().and_then(|until| distance(until, true));
    match left {
        Some(left) => held_for(held, &format!("for another {left}")),
        None => held_until(held),
    }
}

/// An override in words that stay true.
pub(crate) fn held_until(held: &pb::Override) -> String {
    let until = match held.until.as_ref().map(to_ms) {
        None => "until cleared".to_owned(),
        Some(Some(until)) => format!("until {until}"),
        Some(None) => "until an unknown time".to_owned(),
    };
    held_for(held, &until)
}

fn held_for(held: &pb::Override, time: &str) -> String {
    let zone = json::zone(held.zone());
    let reason = match held.reason.as_str() {
        "" => String::new(),
        reason => format!(": {}", plain(reason)),
    };
    format!("{zone} {time}, by {}{reason}", held.by)
}

fn memory_line(memory: &pb::Memory) -> String {
    let components = memory.components.iter().map(|component| {
        let (used, limit) = (component.used_bytes, component.limit_bytes);
        format!("{} {} of {}", component.name, bytes(used), bytes(limit))
    });
    let total = format!(
        "{} of {}",
        bytes(memory.used_bytes),
        bytes(memory.total_bytes)
    );
    iter::once(total)
        .chain(components)
        .collect::<Vec<_>>()
        .join("; ")
}

fn ingest_line(ingest: &pb::Ingest) -> String {
    format!(
        "{}, {}, {}; {} refused; {}, {} of them remote (at most {}), {} waiting",
        counted(ingest.requests, "request"),
        counted(ingest.records, "record"),
        bytes(ingest.bytes),
        count(ingest.refused),
        counted(ingest.connections, "connection"),
        count(ingest.remote_connections),
        count(ingest.max_connections),
        count(ingest.connections_waiting)
    )
}

fn certificates_line(tls: &pb::Tls) -> String {
    let ends = tls.expiries.iter().map(|expiry| {
        let left = expiry.not_after.as_ref().and_then(|at| distance(at, true));
        match left {
            Some(left) => format!("{} for another {left}", plain(&expiry.file)),
            None => format!("{} HAS EXPIRED", plain(&expiry.file)),
        }
    });
    let reloads = iter::once(counted(tls.reloads, "reload"));
    ends.chain(reloads).collect::<Vec<_>>().join("; ")
}

/// What an operator must not overlook.
fn ingest_warnings(ingest: &pb::Ingest) -> Vec<String> {
    let stuck = ingest.workers.iter().enumerate();
    let stuck = stuck.filter(|(_, worker)| worker.stuck);
    let stuck = stuck.map(|(number, worker)| {
        let connections = counted(worker.connections, "connection");
        format!("worker {number} is stuck, with {connections}")
    });
    let failure = ingest.tls.iter().filter(|tls| !tls.failure.is_empty());
    let failure = failure.map(|tls| format!("certificates not reloaded: {}", plain(&tls.failure)));
    stuck.chain(failure).collect()
}

fn vault_line(vault: &pb::Vault) -> String {
    format!(
        "{} of {} in {}, {} of them unused; {} pending ({}); {} scrubbed; {}{}",
        bytes(vault.bytes),
        bytes(vault.max_bytes),
        counted(vault.segments, "segment"),
        count(vault.unused_segments),
        counted(vault.records_pending, "record"),
        counted(vault.entries_pending, "entry"),
        bytes(vault.scrubbed_bytes),
        vault.rung,
        match vault.compression.as_str() {
            "" => String::new(),
            codec => format!(", compression {codec}"),
        }
    )
}

fn recovery_line(recovery: &pb::Recovery) -> String {
    format!(
        "{} of {} in {} of {} of earlier runs read; their records aren't all counted yet",
        bytes(recovery.bytes),
        bytes(recovery.bytes_total),
        count(recovery.segments),
        counted(recovery.segments_total, "segment")
    )
}

/// What an operator must not overlook.
fn vault_warnings(vault: &pb::Vault) -> Vec<String> {
    let mut warnings = Vec::new();
    if vault.sync == "never" {
        warnings.push("sync is never: acknowledged before it is on stable storage".to_owned());
    }
    if vault.dropped_segments > 0 {
        warnings.push(format!(
            "full: dropped {} with {} still owed",
            counted(vault.dropped_segments, "segment"),
            counted(vault.dropped_records, "record")
        ));
    }
    if !vault.dead_letters_refused.is_empty() {
        warnings.push(format!(
            "entries stay owed: {}",
            plain(&vault.dead_letters_refused)
        ));
    }
    if !vault.fault.is_empty() {
        warnings.push(vault.fault.clone());
    } else if !vault.refusing.is_empty() {
        warnings.push(format!(
            "the vault refuses requests: {}",
            plain(&vault.refusing)
        ));
    }
    warnings
}

fn damage_line(vault: &pb::Vault, colour: bool) -> String {
    let line = format!(
        "{} with {} in quarantine, {}",
        counted(vault.quarantined_segments, "segment"),
        counted(vault.quarantined_records, "record"),
        counted(vault.dead_letters, "dead letter")
    );
    paint(&line, "31", colour)
}

/// A replay in one line.
pub(crate) fn replay(replay: &pb::ReplayProgress) -> String {
    replay_line(&pb::DestinationReplay {
        destination: String::new(),
        state: replay.state,
        records: replay.records,
        bytes: replay.bytes,
        rate_bytes_per_second: replay.rate_bytes_per_second,
        max_bytes_per_second: replay.max_bytes_per_second,
        limited_by: replay.limited_by.clone(),
        records_pending: replay.records_pending,
        remaining: replay.remaining,
        ordered: replay.ordered,
    })
}

/// The replay to one destination in one line.
pub(crate) fn replay_to(replay: &pb::ReplayProgress, destination: &str) -> String {
    let mut destinations = replay.destinations.iter();
    let found = destinations.find(|to| to.destination == destination);
    found.map_or_else(String::new, replay_line)
}

fn replay_line(replay: &pb::DestinationReplay) -> String {
    let why = match &*replay.limited_by {
        "" | "configured" => String::new(),
        why => format!(" ({why})"),
    };
    let remaining = replay
        .remaining
        .and_then(|remaining| Duration::try_from(remaining).ok())
        .map_or_else(String::new, |remaining| {
            format!("; about {} left", duration(remaining))
        });
    format!(
        "{}; {}, {} replayed; {} pending; {}/s of {}/s{why}{remaining}",
        json::replay_state(replay.state()),
        counted(replay.records, "record"),
        bytes(replay.bytes),
        counted(replay.records_pending, "record"),
        bytes(replay.rate_bytes_per_second),
        bytes(replay.max_bytes_per_second)
    )
}

/// A drain in one line.
pub(crate) fn drain(drain: &pb::DrainProgress) -> String {
    format!(
        "{}; {}, {}, {} in the pipeline; {} in the vault",
        json::drain_phase(drain.phase()).replace('_', " "),
        counted(drain.connections, "connection"),
        counted(drain.requests, "request"),
        bytes(drain.pipeline_bytes),
        counted(drain.records_pending, "record")
    )
}

/// The signals, with their thresholds where there are any.
pub(crate) fn signals(signals: &[pb::Signal]) -> String {
    let has_levels = signals
        .iter()
        .any(|signal| signal.yellow.or(signal.red).is_some());
    let rows = signals.iter().map(|signal| {
        let show = |value| match signal.name.as_str() {
            // Nobody looks further ahead.
            "time_to_full" if value >= 3600.0 => "≥ 1 h".to_owned(),
            _ => quantity(value, &signal.unit),
        };
        let value = match (signal.available, signal.reason.as_str()) {
            (true, "") => show(signal.value),
            (true, note) => format!("{} ({})", show(signal.value), plain(note)),
            (false, "") => "unavailable".to_owned(),
            (false, reason) => format!("unavailable: {}", plain(reason)),
        };
        let mut row = vec![plain(&signal.name)];
        if has_levels {
            let levels = [signal.yellow, signal.red];
            row.extend(levels.map(|level| level.map_or("-".to_owned(), show)));
        }
        row.push(value);
        row
    });
    // The value comes last: a reason may be long.
    match has_levels {
        true => titled(&["SIGNAL", "YELLOW", "RED", "VALUE"], rows, &[1, 2]),
        false => titled(&["SIGNAL", "VALUE"], rows, &[]),
    }
}

/// A value in its unit.
pub(crate) fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "ratio" => format!("{:.1} %", value * 100.0),
        "seconds" => seconds(value),
        "bytes" => bytes(whole(value)),
        "bytes_per_second" => format!("{}/s", bytes(whole(value))),
        "count" => count(whole(value)),
        unit => format!("{value} {}", plain(unit)),
    }
}

fn interfaces(interfaces: &[pb::Interface], colour: bool) -> String {
    let rows = interfaces.iter().map(|interface| {
        let mode = match interface.mode.as_str() {
            "" => paint("not attached", "31", colour),
            mode => plain(mode),
        };
        vec![
            plain(&interface.name),
            mode,
            count(interface.packets),
            bytes(interface.bytes),
            count(interface.opens),
            count(interface.denied),
            count(interface.limited),
            plain(&interface.reason),
        ]
    });
    let titles = [
        "INTERFACE",
        "XDP",
        "PACKETS",
        "BYTES",
        "NEW CONNECTIONS",
        "DENIED",
        "LIMITED",
        "REASON",
    ];
    titled(&titles, rows, &[2, 3, 4, 5, 6])
}

fn destinations(destinations: &[pb::Destination]) -> String {
    let rows = destinations.iter().map(|destination| {
        vec![
            destination.name.clone(),
            json::destination_state(destination.state()).to_owned(),
            count(destination.sent_records),
            count(destination.rejected_records),
            count(destination.failed_requests),
            plain(&destination.last_error),
        ]
    });
    let titles = [
        "DESTINATION",
        "STATE",
        "SENT",
        "REJECTED",
        "FAILED CALLS",
        "LAST ERROR",
    ];
    titled(&titles, rows, &[2, 3, 4])
}

fn ledger(ledgers: &[pb::Ledger], colour: bool) -> String {
    let rows = ledgers.iter().map(|ledger| {
        let counts = [
            ledger.accepted,
            ledger.vaulted,
            ledger.delivered,
            ledger.replayed,
            ledger.owed,
            ledger.in_flight,
            ledger.quarantined,
            ledger.dead_lettered,
            ledger.rejected,
            ledger.dropped,
        ];
        let residue = ledger.residue.to_string();
        let residue = match ledger.residue {
            0 => residue,
            _ => paint(&residue, "31", colour),
        };
        let counts = counts.into_iter().map(count);
        iter::once(ledger.destination.clone())
            .chain(counts)
            .chain([residue])
            .collect()
    });
    let titles = [
        "LEDGER",
        "ACCEPTED",
        "VAULTED",
        "DELIVERED",
        "REPLAYED",
        "OWED",
        "IN FLIGHT",
        "QUARANTINED",
        "DEAD",
        "REJECTED",
        "DROPPED",
        "RESIDUE",
    ];
    titled(&titles, rows, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
}

/// `certs show`.
pub(crate) fn certificates(shown: &[certs::Shown]) -> String {
    let blocks = shown.iter().map(|certificate| {
        let validity = if certificate.valid_now {
            ""
        } else {
            " (not valid now)"
        };
        let rows = [
            ("subject", plain(&certificate.subject)),
            ("issuer", plain(&certificate.issuer)),
            ("hosts", plain(&certificate.hosts.join(", "))),
            (
                "is a CA",
                if certificate.is_ca { "yes" } else { "no" }.to_owned(),
            ),
            ("valid from", certificate.not_before.clone()),
            (
                "valid until",
                format!("{}{validity}", certificate.not_after),
            ),
        ];
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(name, text)| vec![name.to_owned(), text])
            .collect();
        table(&rows, &[])
    });
    blocks.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_in_their_unit() {
        for (value, unit, shown) in [
            (0.931, "ratio", "93.1 %"),
            (0.0062, "seconds", "6.2 ms"),
            (1.5, "seconds", "1.5 s"),
            (125.0, "seconds", "2 min 5 s"),
            (1_258_291.2, "bytes_per_second", "1.1 MiB/s"),
            (1536.0, "bytes", "1.5 KiB"),
            (1_234.0, "count", "1 234"),
            (-1.0, "count", "0"),
            (2.5, "parsec", "2.5 parsec"),
        ] {
            assert_eq!(quantity(value, unit), shown);
        }
    }

    #[test]
    fn what_a_value_leaves_out_is_shown_beside_it() {
        let signal = pb::Signal {
            name: "disk_depth".to_owned(),
            value: 3.0,
            unit: "count".to_owned(),
            available: true,
            reason: "4 of the vault's 6 disks are followed".to_owned(),
            ..pb::Signal::default()
        };
        let page = signals(&[signal]);
        assert!(
            page.contains("3 (4 of the vault's 6 disks are followed)"),
            "{page}"
        );
    }

    #[test]
    fn an_hour_to_full_is_an_hour_or_more() {
        let signal = pb::Signal {
            name: "time_to_full".to_owned(),
            value: 3600.0,
            unit: "seconds".to_owned(),
            available: true,
            yellow: Some(1.0),
            ..pb::Signal::default()
        };
        let page = signals(&[signal]);
        assert!(page.contains("≥ 1 h") && page.contains("1.0 s"), "{page}");
    }
}

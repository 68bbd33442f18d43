//! The daemon → Prometheus families, and the pages of the telemetry listener.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::daemon::{Daemon, lock};
use crate::{
    pressure::InterfaceCounts,
    somatic::route::Pivot,
    telemetry::{
        counters::{
            AnsweredTotal, ByFate, Fate, HandshakeFailure, HistogramTotal, Protocol,
            TIME_BOUNDS_US, Totals,
        },
        http::Source,
        metrics::{Families, Labels, Samples},
        process,
    },
    vault::{SYNC_BOUNDS_US, Stats},
};

/// The pages of one daemon.
pub(super) struct Pages(pub(super) Arc<Daemon>);

impl Source for Pages {
    fn metrics(&self) -> Result<String, String> {
        let daemon = &*self.0;
        let mut families = Families::default();
        zone(daemon, &mut families);
        ingest(daemon, &mut families);
        workers(daemon, &mut families);
        tls(daemon, &mut families);
        memory(daemon, &mut families);
        interfaces(daemon, &mut families);
        vault(daemon, &mut families);
        export(daemon, &mut families);
        ledger(daemon, &mut families);
        process::families(&mut families);
        families.encode().map_err(|error| error.to_string())
    }

    fn not_ready(&self) -> Option<String> {
        self.0.not_ready()
    }
}

fn zone(daemon: &Daemon, families: &mut Families) {
    let judged = daemon.pressure.snapshot();
    families
        .gauge(
            "gophership_ingester_zone",
            "The zone in force: 0 Green, 1 Yellow, 2 Red.",
        )
        .add(&[], f64::from(judged.zone as u8));
    families
        .counter(
            "gophership_events_lost_total",
            "Events that the kernel's ring buffer had no room for, or that the timeline couldn't keep.",
        )
        .add(
            &[],
            count(judged.events_lost + daemon.chronicle.timeline.lost()),
        );
    families
        .gauge(
            "gophership_sockets_followed",
            "Ingest sockets whose receive queues are followed.",
        )
        .add(&[], count(judged.followed.sockets));
    families
        .counter(
            "gophership_sockets_untracked_total",
            "Segments of, or looks at, ingest sockets that the full table has no room to follow.",
        )
        .add(&[], count(judged.followed.untracked));
    families
        .counter(
            "gophership_sockets_unwatched_total",
            "Events of ingest sockets above a level that found no watch slot.",
        )
        .add(&[], count(judged.followed.unwatched));
    let mut signals = families.gauge("gophership_signal", "Last value of each available signal.");
    for signal in judged.signals.iter().filter(|signal| signal.available) {
        signals.add(&[("name", signal.signal.as_str())], signal.value);
    }
    let mut transitions =
        families.counter("gophership_zone_transitions_total", "Changes of the zone.");
    for (&(from, to, cause), &times) in &*lock(&daemon.transitions) {
        let labels = [
            ("from", from.as_str()),
            ("to", to.as_str()),
            ("cause", cause.as_str()),
        ];
        transitions.add(&labels, count(times));
    }
}

fn ingest(daemon: &Daemon, families: &mut Families) {
    let totals = daemon.totals();
    let by_fate = |mut samples: Samples<'_>, of: fn(&AnsweredTotal) -> &ByFate<u64>| {
        for protocol in Protocol::ALL {
            for fate in Fate::ALL {
                samples.add(
                    &[("protocol", protocol.as_str()), ("outcome", fate.as_str())],
                    count(of(&totals.answered[protocol as usize])[fate as usize]),
                );
            }
        }
    };
    let requests = families.counter(
        "gophership_ingester_requests_total",
        "Requests answered, by outcome.",
    );
    by_fate(requests, |answered| &answered.requests);
    let records = families.counter(
        "gophership_ingester_records_total",
        "Log records in answered requests.",
    );
    by_fate(records, |answered| &answered.records);
    let bytes = families.counter(
        "gophership_ingester_bytes_total",
        "Message bytes in answered requests.",
    );
    by_fate(bytes, |answered| &answered.bytes);
    families
        .gauge("gophership_ingester_connections", "Connections open.")
        .add(&[], count(totals.connections));
    admission(daemon, &totals, families);
    let help = "TLS handshakes that failed.";
    let mut failed = families.counter("gophership_ingester_failed_handshakes_total", help);
    for failure in HandshakeFailure::ALL {
        let times = totals.failed_handshakes[failure as usize];
        failed.add(&[("reason", failure.as_str())], count(times));
    }
    let mut acks = families.histogram(
        "gophership_ingester_ack_seconds",
        "Time from a request's last byte to its acknowledgement, by route.",
    );
    buckets(&mut acks, &[("route", "pipeline")], &totals.delivered_ack);
    buckets(&mut acks, &[("route", "vault")], &totals.vaulted_ack);
    let mut reflex = families.histogram(
        "gophership_ingester_reflex_seconds",
        "Time from reading a request's first byte to its bytes being placed in the pipeline or the vault.",
    );
    buckets(&mut reflex, &[], &totals.reflex);
    let help = "Requests that the vault acknowledged instead of the destinations.";
    let mut pivots = families.counter("gophership_somatic_pivots_total", help);
    for pivot in Pivot::all() {
        pivots.add(
            &[("cause", pivot.as_str())],
            count(totals.pivots[pivot.index()]),
        );
    }
}

fn admission(daemon: &Daemon, totals: &Totals, families: &mut Families) {
    let room = &daemon.room;
    let charged = room.charged_bytes() as u64;
    let buffers = daemon.config.ingest.buffers_bytes() as u64;
    let requests = daemon.budget.used_by_requests() as u64;
    let gauges = [
        (
            "gophership_ingester_remote_connections",
            "Connections open from other hosts.",
            room.remote() as u64,
        ),
        (
            "gophership_ingester_remote_connections_limit",
            "Most of them: ingest.max_connections.",
            room.remote_max() as u64,
        ),
        (
            "gophership_ingester_connections_waiting",
            "Connections accepted that wait for room to be served.",
            room.waiting.load(Relaxed) as u64,
        ),
        (
            "gophership_ingester_readers_stopped",
            "Connections that aren't read because the ingest budget is spent.",
            totals.readers_stopped,
        ),
    ];
    for (name, help, value) in gauges {
        families.gauge(name, help).add(&[], count(value));
    }
    let mut reserved = families.gauge(
        "gophership_ingester_reserved_bytes",
        "Bytes of the ingest budget: of the workers' buffers, charged to connections, reserved by requests.",
    );
    reserved.add(&[("for", "buffers")], count(buffers));
    reserved.add(&[("for", "connections")], count(charged));
    reserved.add(&[("for", "requests")], count(requests));
    let mut closed = families.counter(
        "gophership_ingester_connections_closed_total",
        "Connections closed: idle ones to make room, new ones because too many waited, stuck ones, floods.",
    );
    let by_reason = [
        ("idle", room.evicted.load(Relaxed)),
        ("no_room", room.turned_away.load(Relaxed)),
        ("stuck", totals.cut_off),
        ("flood", totals.abusive),
    ];
    for (reason, value) in by_reason {
        closed.add(&[("reason", reason)], count(value));
    }
}

fn workers(daemon: &Daemon, families: &mut Families) {
    let mut connections = families.gauge(
        "gophership_worker_connections",
        "Connections open, by the worker that serves them.",
    );
    for (index, worker) in daemon.workers.iter().enumerate() {
        let open = worker.counters.connections.load(Relaxed);
        connections.add(&[("worker", &index.to_string())], count(open));
    }
    let mut stuck = families.gauge(
        "gophership_worker_stuck",
        "Whether the worker's heartbeat is too old, so that it gets no connections: 1 yes, 0 no.",
    );
    for index in 0..daemon.workers.len() {
        let is_stuck = f64::from(u8::from(daemon.is_stuck(index)));
        stuck.add(&[("worker", &index.to_string())], is_stuck);
    }
}

fn tls(daemon: &Daemon, families: &mut Families) {
    let Some(tls) = &daemon.tls else { return };
    let status = tls.status();
    let mut ends = families.gauge(
        "gophership_tls_certificate_not_after_timestamp_seconds",
        "When the first of the certificates in force ends, by the key below ingest.tls that names their file; Unix time.",
    );
    for expiry in &status.expiries {
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
        ends.add(&[("file", expiry.file)], expiry.not_after_unix_s as f64);
    }
    let help = "Times that the ingest certificates were read again: success, or failure, which leaves the old ones in force.";
    let mut reloads = families.counter("gophership_tls_reloads_total", help);
    reloads.add(&[("outcome", "success")], count(status.reloaded));
    reloads.add(&[("outcome", "failure")], count(status.failed));
}

fn buckets(samples: &mut Samples<'_>, labels: Labels<'_>, total: &HistogramTotal) {
    let bounds = TIME_BOUNDS_US.map(|us| count(us) / 1e6);
    let sum = count(total.sum_us) / 1e6;
    samples.add_buckets(labels, &bounds, &total.buckets, sum);
}

fn memory(daemon: &Daemon, families: &mut Families) {
    let memory = daemon.memory();
    let mut used = families.gauge(
        "gophership_memory_used_bytes",
        "Bytes of each budget in use.",
    );
    for (component, bytes, _) in memory {
        used.add(&[("component", component)], count(bytes));
    }
    let mut limits = families.gauge("gophership_memory_limit_bytes", "Each budget.");
    for (component, _, bytes) in memory {
        limits.add(&[("component", component)], count(bytes));
    }
}

fn vault(daemon: &Daemon, families: &mut Families) {
    let stats = daemon.vault.stats();
    let gauges = [
        (
            "gophership_vault_bytes",
            "Bytes of all segment files.",
            stats.bytes,
        ),
        (
            "gophership_vault_segments",
            "Segment files, those made ahead included.",
            stats.segments + stats.unused_segments,
        ),
        (
            "gophership_vault_entries_pending",
            "Entries owed to a destination.",
            stats.entries_pending,
        ),
        (
            "gophership_vault_records_pending",
            "Log records in those entries.",
            stats.records_pending,
        ),
        (
            "gophership_vault_retained_segments",
            "Segments all of which is delivered, and which are kept.",
            stats.retained_segments,
        ),
        (
            "gophership_vault_quarantined_segments",
            "Segments with damage.",
            stats.quarantined_segments,
        ),
    ];
    for (name, help, value) in gauges {
        families.gauge(name, help).add(&[], count(value));
    }
    recovery(&stats, families);
    sync_times(&stats, families);
    let counters = [
        (
            "gophership_vault_bytes_raw_total",
            "Bytes of blocks before compression.",
            stats.raw_bytes_total,
        ),
        (
            "gophership_vault_bytes_stored_total",
            "Bytes of blocks as written.",
            stats.stored_bytes_total,
        ),
        (
            "gophership_vault_checksum_errors_total",
            "Blocks whose checksum was wrong.",
            stats.checksum_errors_total,
        ),
        (
            "gophership_vault_scrubbed_bytes_total",
            "Bytes of sealed segments read again to find damage.",
            stats.scrubbed_bytes_total,
        ),
    ];
    for (name, help, value) in counters {
        families.counter(name, help).add(&[], count(value));
    }
    blocks_and_drops(&stats, families);
    replay(daemon, families);
}

fn replay(daemon: &Daemon, families: &mut Families) {
    let (progress, letters) = (daemon.replay.progress(), daemon.replay.held_letters());
    families
        .counter(
            "gophership_replay_records_total",
            "Log records that replay delivered.",
        )
        .add(&[], count(progress.records));
    families
        .gauge("gophership_dead_letters", "Dead letters.")
        .add(&[], count(letters.letters));
    families
        .gauge(
            "gophership_dead_letters_bytes",
            "Bytes of the dead letters' files.",
        )
        .add(&[], count(letters.bytes));
}

fn recovery(stats: &Stats, families: &mut Families) {
    families
        .gauge(
            "gophership_vault_recovering",
            "Whether segments of earlier runs are still being read: 1 yes, 0 no.",
        )
        .add(&[], f64::from(u8::from(stats.recovering)));
    let recovery = &stats.recovery;
    let mut bytes = families.gauge(
        "gophership_vault_recovery_bytes",
        "Bytes of the segments that earlier runs have left, read since the start or still to be read.",
    );
    bytes.add(&[("state", "read")], count(recovery.bytes));
    let left = recovery.bytes_total.saturating_sub(recovery.bytes);
    bytes.add(&[("state", "left")], count(left));
}

fn blocks_and_drops(stats: &Stats, families: &mut Families) {
    let mut blocks = families.counter("gophership_vault_blocks_total", "Blocks written.");
    let raw = stats.blocks_total.saturating_sub(stats.lz4_blocks_total);
    blocks.add(&[("codec", "lz4")], count(stats.lz4_blocks_total));
    blocks.add(&[("codec", "none")], count(raw));
    let mut dropped = families.counter(
        "gophership_dropped_records_total",
        "Log records given up though a destination was owed them, once for each such destination.",
    );
    for destination in &stats.by_destination {
        let labels = [
            ("reason", "vault_full"),
            ("destination", destination.name.as_str()),
        ];
        dropped.add(&labels, count(destination.settled.dropped));
    }
}

fn interfaces(daemon: &Daemon, families: &mut Families) {
    type Of = fn(&InterfaceCounts) -> u64;
    let readings = daemon.pressure.interfaces();
    let mut attached = families.gauge(
        "gophership_xdp_attached",
        "Whether the interface is metered and guarded: 1 yes, 0 no.",
    );
    for reading in &readings {
        let is_attached = f64::from(u8::from(reading.attached.is_ok()));
        attached.add(&[("interface", &reading.name)], is_attached);
    }
    let all: [(&str, &str, Of); 3] = [
        (
            "gophership_xdp_packets_total",
            "TCP segments that came in for the ingest ports, dropped ones included.",
            |counts| counts.packets,
        ),
        (
            "gophership_xdp_bytes_total",
            "Their bytes, with Ethernet headers.",
            |counts| counts.bytes,
        ),
        (
            "gophership_xdp_syn_total",
            "New connections asked for, dropped ones included.",
            |counts| counts.opens,
        ),
    ];
    for (name, help, of) in all {
        let mut samples = families.counter(name, help);
        for reading in &readings {
            samples.add(&[("interface", &reading.name)], count(of(&reading.counts)));
        }
    }
    let mut dropped = families.counter(
        "gophership_xdp_syn_dropped_total",
        "New connections that the guard dropped: from a denied prefix, or beyond the limit in Red.",
    );
    let reasons: [(&str, Of); 2] = [
        ("denied", |counts| counts.denied),
        ("limited", |counts| counts.limited),
    ];
    for reading in &readings {
        for (reason, of) in reasons {
            let labels = [("interface", reading.name.as_str()), ("reason", reason)];
            dropped.add(&labels, count(of(&reading.counts)));
        }
    }
}

fn sync_times(stats: &Stats, families: &mut Families) {
    let bounds = SYNC_BOUNDS_US.map(|us| count(us) / 1e6);
    families
        .histogram(
            "gophership_vault_sync_seconds",
            "Time of one durable write.",
        )
        .add_buckets(
            &[],
            &bounds,
            &stats.sync.buckets,
            count(stats.sync.sum_nanos) / 1e9,
        );
}

fn export(daemon: &Daemon, families: &mut Families) {
    type Of = fn(&crate::pipeline::circuit::Counters) -> &std::sync::atomic::AtomicU64;
    let all: [(&str, &str, Of); 6] = [
        (
            "gophership_export_requests_total",
            "Batches that the destination accepted.",
            |c| &c.requests,
        ),
        (
            "gophership_export_records_total",
            "Log records that the destination accepted.",
            |c| &c.records,
        ),
        (
            "gophership_export_retries_total",
            "Attempts after a failure, successful or not.",
            |c| &c.retries,
        ),
        (
            "gophership_export_failures_total",
            "Attempts that failed.",
            |c| &c.failures,
        ),
        (
            "gophership_export_refusals_total",
            "Batches refused for good; replay tries the requests of each.",
            |c| &c.refusals,
        ),
        (
            "gophership_export_rejected_records_total",
            "Log records it will never take.",
            |c| &c.rejected_records,
        ),
    ];
    for (name, help, of) in all {
        let mut samples = families.counter(name, help);
        for circuit in &daemon.circuits {
            samples.add(
                &[("destination", circuit.name())],
                count(of(&circuit.counters).load(Relaxed)),
            );
        }
    }
    let help = "1 unless its last attempt failed, or it refused the last ten for good.";
    let mut up = families.gauge("gophership_export_up", help);
    for circuit in &daemon.circuits {
        let is_up = u8::from(circuit.is_up());
        up.add(&[("destination", circuit.name())], f64::from(is_up));
    }
}

fn ledger(daemon: &Daemon, families: &mut Families) {
    let ledgers = daemon.ledgers();
    let mut records = families.gauge(
        "gophership_ledger_records",
        "Acknowledged log records of all runs, by where they are: accepted is the sum of all but vaulted and replayed.",
    );
    for ledger in &ledgers {
        for (account, value) in [
            ("accepted", ledger.accepted),
            ("delivered", ledger.delivered),
            ("owed", ledger.owed),
            ("quarantined", ledger.quarantined),
            ("dead_lettered", ledger.dead_lettered),
            ("rejected", ledger.rejected),
            ("dropped", ledger.dropped),
            ("vaulted", ledger.vaulted),
            ("replayed", ledger.replayed),
        ] {
            let labels = [("destination", &*ledger.destination), ("account", account)];
            records.add(&labels, count(value));
        }
    }
    let mut residue = families.gauge(
        "gophership_ledger_residue_records",
        "Acknowledged log records that the ledger can't explain; anything but 0 is a fault.",
    );
    for ledger in &ledgers {
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
        residue.add(
            &[("destination", &ledger.destination)],
            ledger.residue as f64,
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
fn count(value: u64) -> f64 {
    value as f64
}

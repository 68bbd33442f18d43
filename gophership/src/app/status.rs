//! The daemon → `StatusReply`.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{SystemTime, UNIX_EPOCH},
};

use gophership_common::Zone;

use super::daemon::Daemon;
use crate::{
    control::pb,
    ingest::tls::{Expiry, reload},
    pipeline::circuit::Circuit,
    pressure::{InterfaceReading, Source},
    replay::control::{Progress, State},
    somatic::overrides::Override,
    telemetry::counters::Fate,
};

impl Daemon {
    pub(super) fn status_reply(&self) -> pb::StatusReply {
        let judged = self.pressure.snapshot();
        let source = match judged.source {
            Source::Kernel => pb::Source::Kernel,
            Source::Stochastic => pb::Source::Stochastic,
        };
        let signals = judged.signals.iter().map(|signal| pb::Signal {
            name: signal.signal.as_str().to_owned(),
            value: signal.value,
            unit: signal.unit.to_owned(),
            available: signal.available,
            reason: signal.reason.clone(),
            yellow: signal.yellow,
            red: signal.red,
            worst: signal.worst,
        });
        pb::StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            zone: zone(judged.zone).into(),
            cause: judged.cause.as_str().to_owned(),
            slow_disk: judged.slow_disk,
            zone_since: Some(timestamp(judged.since)),
            source: source.into(),
            source_reason: judged.why_not_kernel.clone().unwrap_or_default(),
            r#override: self.current_override().as_ref().map(overridden),
            signals: signals.collect(),
            memory: Some(self.memory_reply()),
            ingest: Some(self.ingest_reply()),
            export: self
                .circuits
                .iter()
                .map(|circuit| destination(circuit))
                .collect(),
            vault: Some(self.vault_reply()),
            replay: Some(self.replay_reply()),
            ledger: self.ledgers(),
            xdp: self
                .pressure
                .interfaces()
                .into_iter()
                .map(interface)
                .collect(),
        }
    }

    fn memory_reply(&self) -> pb::Memory {
        let components: Vec<_> = self
            .memory()
            .into_iter()
            .map(|(name, used_bytes, limit_bytes)| pb::MemoryComponent {
                name: name.to_owned(),
                limit_bytes,
                used_bytes,
            })
            .collect();
        pb::Memory {
            total_bytes: self.config.memory_total_bytes,
            used_bytes: components
                .iter()
                .map(|component| component.used_bytes)
                .sum(),
            components,
        }
    }

    fn ingest_reply(&self) -> pb::Ingest {
        let totals = self.totals();
        let (_, records, bytes) = totals.acknowledged();
        pb::Ingest {
            requests: totals.requests().iter().sum(),
            records,
            bytes,
            refused: totals.requests()[Fate::Refused as usize]
                + totals.requests()[Fate::Invalid as usize],
            connections: totals.connections,
            remote_connections: self.room.remote() as u64,
            max_connections: self.room.remote_max() as u64,
            connections_waiting: self.room.waiting.load(Relaxed) as u64,
            workers: self.workers_reply(),
            tls: self.tls.as_ref().map(|tls| certificates(tls.status())),
        }
    }

    fn workers_reply(&self) -> Vec<pb::Worker> {
        let workers = self.workers.iter().enumerate();
        let reply = workers.map(|(index, worker)| pb::Worker {
            connections: worker.counters.connections.load(Relaxed),
            stuck: self.is_stuck(index),
        });
        reply.collect()
    }

    fn vault_reply(&self) -> pb::Vault {
        let (stats, letters) = (self.vault.stats(), self.replay.held_letters());
        pb::Vault {
            bytes: stats.bytes,
            max_bytes: stats.max_bytes,
            segments: stats.segments + stats.unused_segments,
            unused_segments: stats.unused_segments,
            entries_pending: stats.entries_pending,
            records_pending: stats.records_pending,
            quarantined_segments: stats.quarantined_segments,
            quarantined_records: stats.quarantined_records,
            dead_letters: letters.letters,
            dead_letter_bytes: letters.bytes,
            dead_letters_max_bytes: self.config.replay.dead_letters_max_bytes,
            dead_letters_refused: self.replay.letters_refused().unwrap_or_default(),
            rung: stats.rung.to_owned(),
            scrubbed_bytes: stats.scrubbed_bytes_total,
            sync: if stats.synced { "always" } else { "never" }.to_owned(),
            compression: match (stats.lanes_lz4, stats.lanes_raw) {
                (0, 0) => "",
                (_, 0) => "lz4",
                (0, _) => "none",
                (_, _) => "mixed",
            }
            .to_owned(),
            retained_segments: stats.retained_segments,
            dropped_segments: stats.dropped_segments_total,
            dropped_records: stats.dropped_records_total,
            fault: stats.fault.unwrap_or_default(),
            refusing: self.vault.refusal().unwrap_or_default(),
            recovery: Some(pb::Recovery {
                done: !stats.recovering,
                segments: stats.recovery.segments,
                segments_total: stats.recovery.segments_total,
                bytes: stats.recovery.bytes,
                bytes_total: stats.recovery.bytes_total,
            }),
        }
    }

    pub(super) fn replay_reply(&self) -> pb::ReplayProgress {
        let (progress, stats) = (self.replay.progress(), self.vault.stats());
        let owed = |name: &str| {
            let mut all = stats.by_destination.iter();
            all.find(|to| to.name == name)
                .map_or(0, |to| to.owed_records)
        };
        let by_destination = self.replay.by_destination().map(|(name, progress)| {
            let records_pending = owed(name);
            pb::DestinationReplay {
                destination: name.to_owned(),
                state: replay_state(progress.state).into(),
                records: progress.records,
                bytes: progress.bytes,
                rate_bytes_per_second: progress.rate_now,
                max_bytes_per_second: progress.rate,
                limited_by: progress.limited_by.as_str().to_owned(),
                records_pending,
                remaining: remaining(&progress, records_pending),
                ordered: progress.ordered,
            }
        });
        let destinations: Vec<_> = by_destination.collect();
        // Of several, the last to be through.
        let last = |to: &pb::DestinationReplay| {
            to.remaining
                .map(|remaining| (remaining.seconds, remaining.nanos))
        };
        let slowest = destinations.iter().max_by_key(|to| last(to));
        pb::ReplayProgress {
            state: replay_state(progress.state).into(),
            records: progress.records,
            bytes: progress.bytes,
            rate_bytes_per_second: progress.rate_now,
            max_bytes_per_second: progress.rate,
            entries_pending: stats.entries_pending,
            records_pending: stats.records_pending,
            limited_by: progress.limited_by.as_str().to_owned(),
            remaining: slowest.and_then(|to| to.remaining),
            ordered: progress.ordered,
            destinations,
        }
    }
}

const fn replay_state(state: State) -> pb::ReplayState {
    match state {
        State::Idle => pb::ReplayState::Idle,
        State::Waiting => pb::ReplayState::Waiting,
        State::Running => pb::ReplayState::Running,
        State::Paused => pb::ReplayState::Paused,
    }
}

fn remaining(progress: &Progress, records: u64) -> Option<prost_types::Duration> {
    progress.time_for(records)?.try_into().ok()
}

fn certificates(status: reload::Status) -> pb::Tls {
    let expiry = |expiry: &Expiry| pb::Expiry {
        file: expiry.file.to_owned(),
        not_after: Some(prost_types::Timestamp {
            seconds: expiry.not_after_unix_s,
            nanos: 0,
        }),
    };
    pb::Tls {
        expiries: status.expiries.iter().map(expiry).collect(),
        reloads: status.reloaded,
        failed_reloads: status.failed,
        failure: status.failure.unwrap_or_default(),
    }
}

fn interface(reading: InterfaceReading) -> pb::Interface {
    let (mode, reason) = match (reading.attached, reading.guard_suspended) {
        (Ok(mode), None) => (mode.as_str(), String::new()),
        (Ok(mode), Some(why)) => (mode.as_str(), format!("the guard is suspended: {why}")),
        (Err(reason), _) => ("", reason),
    };
    pb::Interface {
        name: reading.name,
        mode: mode.to_owned(),
        reason,
        packets: reading.counts.packets,
        bytes: reading.counts.bytes,
        opens: reading.counts.opens,
        denied: reading.counts.denied,
        limited: reading.counts.limited,
    }
}

fn destination(circuit: &Circuit) -> pb::Destination {
    let counters = &circuit.counters;
    let state = match (circuit.is_up(), counters.requests.load(Relaxed)) {
        (false, _) => pb::DestinationState::Down,
        (true, 0) => pb::DestinationState::Idle,
        (true, _) => pb::DestinationState::Up,
    };
    pb::Destination {
        name: circuit.name().to_owned(),
        state: state.into(),
        sent_records: counters.records.load(Relaxed),
        failed_requests: counters.failures.load(Relaxed) + counters.refusals.load(Relaxed),
        rejected_records: counters.rejected_records.load(Relaxed),
        last_error: circuit.last_error().unwrap_or_default(),
    }
}

pub(super) const fn zone(zone: Zone) -> pb::Zone {
    match zone {
        Zone::Green => pb::Zone::Green,
        Zone::Yellow => pb::Zone::Yellow,
        Zone::Red => pb::Zone::Red,
    }
}

pub(super) fn overridden(kept: &Override) -> pb::Override {
    let until = kept
        .until_unix_ms
        .map(|ms| UNIX_EPOCH + std::time::Duration::from_millis(ms));
    pb::Override {
        zone: zone(kept.zone).into(),
        until: until.map(timestamp),
        by: kept.by.clone(),
        reason: kept.reason.clone(),
    }
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

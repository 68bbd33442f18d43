//! The event timeline on its way to those who asked for it.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use gophership_common::Zone;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::{engine::Engine, pb};
use crate::telemetry::timeline::{
    Amount, Entry, Event, Held, Query, SignalAt, Stay, Verdict, ZoneCause,
};

/// Events under way to one caller.
pub(super) const IN_FLIGHT_MAX: usize = 16;

/// What one caller asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) since: Option<OffsetDateTime>,
    pub(super) limit: usize,
    pub(super) follow: bool,
}

type Sender = mpsc::Sender<Result<pb::Event, Status>>;

/// Sends what was asked for until it is all, the caller hangs up or we stop.
pub(super) async fn send(
    engine: Arc<dyn Engine>,
    asked: Asked,
    to: Sender,
    mut stopping: watch::Receiver<bool>,
) {
    // Subscribed first, so that nothing happens between what is read and what is waited for.
    let mut latest = engine.timeline().latest();
    latest.mark_unchanged();
    let mut query = Query {
        after: 0,
        since: asked.since,
        limit: asked.limit,
    };
    loop {
        let newest = *latest.borrow_and_update();
        let (reader, sender) = (Arc::clone(&engine), to.clone());
        let read = move || read(&*reader, query, &sender);
        let Ok(ControlFlow::Continue(last)) = tokio::task::spawn_blocking(read).await else {
            return;
        };
        if !asked.follow {
            return;
        }
        query = Query {
            since: asked.since,
            ..Query::after(last.unwrap_or(query.after).max(newest))
        };
        tokio::select! {
            changed = latest.changed() => if changed.is_err() { return },
            _ = stopping.wait_for(|stopping| *stopping) => return,
            () = to.closed() => return,
        }
    }
}

/// The sequence number of the last event that was sent, or a break if the caller has hung up.
fn read(engine: &dyn Engine, query: Query, to: &Sender) -> ControlFlow<(), Option<u64>> {
    let (since_ns, stay) = engine.present_stay();
    let (mut last, mut hung_up) = (None, false);
    engine.timeline().read(query, |entry| {
        last = Some(entry.sequence);
        let mut shown = event(&entry);
        if shown.begins_stay() && entry.at.monotonic_ns == since_ns {
            shown.ongoing = Some(self::stay(&stay));
        }
        hung_up = to.blocking_send(Ok(shown)).is_err();
        !hung_up
    });
    if hung_up {
        return ControlFlow::Break(());
    }
    ControlFlow::Continue(last)
}

impl pb::Event {
    fn begins_stay(&self) -> bool {
        match self.kind() {
            pb::EventKind::Start => true,
            pb::EventKind::Verdict => self.from != self.to,
            _ => false,
        }
    }
}

fn event(entry: &Entry) -> pb::Event {
    let mut shown = pb::Event {
        sequence: entry.sequence,
        time: Some(timestamp(entry.at.time)),
        monotonic_ns: entry.at.monotonic_ns,
        ..pb::Event::default()
    };
    let kind = match &entry.event {
        Event::Start {
            version,
            source,
            reason,
            after_crash,
        } => {
            shown.version.clone_from(version);
            shown.after_crash = *after_crash;
            shown.judged_by(source, reason);
            pb::EventKind::Start
        }
        Event::Stop { previous } => {
            shown.previous = Some(stay(previous));
            pb::EventKind::Stop
        }
        Event::Verdict(verdict) => {
            shown.decided(verdict);
            pb::EventKind::Verdict
        }
        Event::OomKill { ours } => {
            shown.ours = *ours;
            pb::EventKind::OomKill
        }
        Event::Source { source, reason } => {
            shown.judged_by(source, reason);
            pb::EventKind::Source
        }
        Event::OverrideSet(kept) => shown.about(kept, pb::EventKind::OverrideSet),
        Event::OverrideRestored(kept) => shown.about(kept, pb::EventKind::OverrideRestored),
        Event::OverrideCleared { held: kept, by } => {
            shown.by.clone_from(by);
            shown.about(kept, pb::EventKind::OverrideCleared)
        }
        Event::OverrideExpired(kept) => shown.about(kept, pb::EventKind::OverrideExpired),
        Event::Lost { events, place } => {
            shown.lost = *events;
            place.as_str().clone_into(&mut shown.lost_in);
            pb::EventKind::Lost
        }
    };
    shown.kind = kind.into();
    shown
}

impl pb::Event {
    fn judged_by(&mut self, source: &str, reason: &str) {
        let source = match source {
            "kernel" => pb::Source::Kernel,
            "stochastic" => pb::Source::Stochastic,
            _ => pb::Source::Unspecified,
        };
        self.source = source.into();
        reason.clone_into(&mut self.source_reason);
    }

    fn about(&mut self, kept: &Held, kind: pb::EventKind) -> pb::EventKind {
        self.r#override = Some(held(kept));
        kind
    }

    fn decided(&mut self, verdict: &Verdict) {
        let ZoneCause { zone: from, cause } = &verdict.from;
        self.from = zone(*from).into();
        self.from_cause.clone_from(cause);
        self.to = zone(verdict.to.zone).into();
        self.cause.clone_from(&verdict.to.cause);
        self.slow_disk = verdict.slow_disk;
        self.hold = verdict.hold_seconds.and_then(seconds);
        self.signals = verdict.signals.iter().map(signal).collect();
        self.previous = verdict.previous.as_ref().map(stay);
        self.r#override = verdict.held.as_ref().map(held);
    }
}

fn signal(signal: &SignalAt) -> pb::EventSignal {
    pb::EventSignal {
        name: signal.name.clone(),
        value: signal.value,
        unit: signal.unit.clone(),
        yellow: signal.yellow,
        red: signal.red,
        reaches: zone(signal.reaches).into(),
        holds: zone(signal.holds).into(),
    }
}

fn held(held: &Held) -> pb::Override {
    let until = held.until_unix_ms.and_then(|ms| {
        let ms = i64::try_from(ms).ok()?;
        Some(prost_types::Timestamp {
            seconds: ms / 1000,
            nanos: i32::try_from(ms % 1000).ok()? * 1_000_000,
        })
    });
    pb::Override {
        zone: zone(held.zone).into(),
        until,
        by: held.by.clone(),
        reason: held.reason.clone(),
    }
}

fn stay(stay: &Stay) -> pb::Stay {
    pb::Stay {
        zone: zone(stay.zone).into(),
        cause: stay.cause.clone(),
        lasted: seconds(stay.seconds),
        diverted: Some(amount(stay.diverted)),
        delivered: Some(amount(stay.delivered)),
    }
}

const fn amount(amount: Amount) -> pb::Amount {
    pb::Amount {
        requests: amount.requests,
        records: amount.records,
        bytes: amount.bytes,
    }
}

const fn zone(zone: Zone) -> pb::Zone {
    match zone {
        Zone::Green => pb::Zone::Green,
        Zone::Yellow => pb::Zone::Yellow,
        Zone::Red => pb::Zone::Red,
    }
}

/// None if no file that we have written says so.
fn seconds(seconds: f64) -> Option<prost_types::Duration> {
    Duration::try_from_secs_f64(seconds).ok()?.try_into().ok()
}

fn timestamp(time: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.unix_timestamp(),
        nanos: i32::try_from(time.nanosecond()).unwrap_or(0),
    }
}

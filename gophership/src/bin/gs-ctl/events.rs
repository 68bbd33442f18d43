//! The event timeline, for people and for machines.

use std::time::Duration;

use gophership::control::pb;
use serde_json::{Map, Value, json};

use crate::{
    human::{bytes, counted, duration, plain, rfc3339, seconds, to_ms},
    json::{held, source, zone},
    table::paint,
    view::{self, quantity},
};

/// Signals named as the reason for one change.
const REASONS_MAX: usize = 3;
/// `OVERRIDE RESTORED`, the widest.
const CHANGE_WIDTH: usize = 17;

/// One event as JSON; the keys are promises.
pub(crate) fn value(event: &pb::Event) -> Value {
    let mut shown = json!({
        "sequence": event.sequence,
        "time": event.time.as_ref().and_then(rfc3339),
        "monotonic_ns": event.monotonic_ns,
        "kind": kind(event.kind()),
    });
    let more = match event.kind() {
        pb::EventKind::Unspecified => json!({}),
        pb::EventKind::Start => json!({
            "version": event.version,
            "source": source(event.source()),
            "source_reason": event.source_reason,
            "after_crash": event.after_crash,
            "ongoing": event.ongoing.as_ref().map(stay),
        }),
        pb::EventKind::Stop => json!({ "previous": event.previous.as_ref().map(stay) }),
        pb::EventKind::Verdict => verdict(event),
        pb::EventKind::OomKill => json!({ "ours": event.ours }),
        pb::EventKind::Source => json!({
            "source": source(event.source()),
            "source_reason": event.source_reason,
        }),
        pb::EventKind::OverrideSet
        | pb::EventKind::OverrideRestored
        | pb::EventKind::OverrideExpired => {
            json!({ "override": event.r#override.as_ref().map(held) })
        }
        pb::EventKind::OverrideCleared => json!({
            "override": event.r#override.as_ref().map(held),
            "by": event.by,
        }),
        pb::EventKind::Lost => json!({ "events": event.lost, "place": event.lost_in }),
    };
    if let (Value::Object(shown), Value::Object(more)) = (&mut shown, more) {
        shown.extend(more);
    }
    shown
}

fn verdict(event: &pb::Event) -> Value {
    let signals = event.signals.iter().map(|signal| {
        let shown = json!({
            "value": signal.value,
            "unit": signal.unit,
            "yellow": signal.yellow,
            "red": signal.red,
            "reaches": zone(signal.reaches()),
            "holds": zone(signal.holds()),
        });
        (signal.name.clone(), shown)
    });
    json!({
        "from": zone(event.from()),
        "from_cause": event.from_cause,
        "to": zone(event.to()),
        "cause": event.cause,
        "slow_disk": event.slow_disk,
        "hold": event.hold.as_ref().and_then(time).map(|hold| hold.as_secs_f64()),
        "override": event.r#override.as_ref().map(held),
        "signals": signals.collect::<Map<_, _>>(),
        "previous": event.previous.as_ref().map(stay),
        "ongoing": event.ongoing.as_ref().map(stay),
    })
}

fn stay(stay: &pb::Stay) -> Value {
    json!({
        "zone": zone(stay.zone()),
        "cause": stay.cause,
        "seconds": stay.lasted.as_ref().and_then(time).map(|lasted| lasted.as_secs_f64()),
        "diverted": stay.diverted.as_ref().map(amount),
        "delivered": stay.delivered.as_ref().map(amount),
    })
}

fn amount(amount: &pb::Amount) -> Value {
    json!({
        "requests": amount.requests,
        "records": amount.records,
        "bytes": amount.bytes,
    })
}

/// One event in one line: when, what, and why.
pub(crate) fn line(event: &pb::Event, colour: bool) -> String {
    let at = event.time.as_ref().and_then(to_ms).unwrap_or_default();
    let (change, wide) = change(event, colour);
    let gap = " ".repeat(CHANGE_WIDTH.saturating_sub(wide));
    let line = format!("{at}  {change}{gap}  {}", about(event));
    line.trim_end().to_owned()
}

/// What happened, painted, and how wide that is.
fn change(event: &pb::Event, colour: bool) -> (String, usize) {
    if event.kind() != pb::EventKind::Verdict {
        let kind = kind(event.kind()).to_uppercase().replace('_', " ");
        let wide = kind.chars().count();
        return (kind, wide);
    }
    let painted = |shown: pb::Zone| {
        let ansi = match shown {
            pb::Zone::Green => "32",
            pb::Zone::Yellow => "33",
            pb::Zone::Red | pb::Zone::Unspecified => "31",
        };
        paint(&zone(shown).to_uppercase(), ansi, colour)
    };
    let (from, to) = (event.from(), event.to());
    if from == to {
        return (painted(to), zone(to).len());
    }
    let wide = zone(from).len() + zone(to).len() + 3;
    (format!("{} → {}", painted(from), painted(to)), wide)
}

fn about(event: &pb::Event) -> String {
    let held = || {
        let held = event.r#override.as_ref();
        held.map_or(String::new(), view::held_until)
    };
    let judges = || match event.source_reason.as_str() {
        "" => format!("the {} judges", source(event.source())),
        reason => format!("{} judges: {}", source(event.source()), plain(reason)),
    };
    let text = match event.kind() {
        pb::EventKind::Unspecified => String::new(),
        pb::EventKind::Start => {
            let crash = match event.after_crash {
                true => "; the daemon before it wasn't stopped in order",
                false => "",
            };
            format!("gophership {}, {}{crash}", plain(&event.version), judges())
        }
        pb::EventKind::Stop => "in order".to_owned(),
        pb::EventKind::Verdict => why(event),
        pb::EventKind::OomKill if event.ours => {
            "a process was killed: memory has run out".to_owned()
        }
        pb::EventKind::OomKill => "a process of another cgroup was killed".to_owned(),
        pb::EventKind::Source => judges(),
        pb::EventKind::OverrideSet
        | pb::EventKind::OverrideRestored
        | pb::EventKind::OverrideExpired => held(),
        pb::EventKind::OverrideCleared => format!("by {}; it was {}", plain(&event.by), held()),
        pb::EventKind::Lost => {
            let events = counted(event.lost, "event");
            format!("{events}, in the {}", plain(&event.lost_in))
        }
    };
    let after = event.previous.as_ref().map(|previous| {
        format!("after {} of {}", lasted(previous), zone(previous.zone())) + &diverted(previous)
    });
    let so_far = event
        .ongoing
        .as_ref()
        .map(|ongoing| format!("so far {}", lasted(ongoing)) + &diverted(ongoing));
    let parts = [Some(text), after, so_far].into_iter().flatten();
    parts
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// What made the judge decide so.
fn why(event: &pb::Event) -> String {
    let (from, to) = (event.from(), event.to());
    let mut parts = match (event.cause.as_str(), event.from_cause.as_str()) {
        ("override", _) => vec![event.r#override.as_ref().map_or_else(
            || "override".to_owned(),
            |held| format!("override: {}", view::held_until(held)),
        )],
        (_, "override") => {
            let mut parts = vec!["the override has ended".to_owned()];
            parts.extend(reasons(event, |signal| signal.holds() == to));
            parts
        }
        _ if (to as i32) < (from as i32) => {
            let hold = event.hold.as_ref().and_then(time);
            let hold = hold.map(|hold| format!(" for {}", seconds(hold.as_secs_f64())));
            let mut parts = vec![format!("calm{}", hold.unwrap_or_default())];
            parts.extend(reasons(event, |signal| signal.holds() == to));
            parts
        }
        (cause, _) => {
            let reasons: Vec<_> = reasons(event, |signal| signal.reaches() == to).collect();
            match (reasons.as_slice(), to) {
                (_, pb::Zone::Green) => vec![],
                ([], _) => vec![plain(cause)],
                _ => vec![format!("{}: {}", plain(cause), reasons.join(", "))],
            }
        }
    };
    if event.slow_disk {
        parts.push("slow disk".to_owned());
    } else if parts.is_empty() {
        parts.push("the disk isn't slow any more".to_owned());
    }
    parts.join(", ")
}

/// The first of the signals that speak for a zone above Green.
fn reasons(
    event: &pb::Event,
    speaks: impl Fn(&pb::EventSignal) -> bool,
) -> impl Iterator<Item = String> {
    let to = event.to();
    let signals = event.signals.iter().filter(move |signal| speaks(signal));
    let signals = signals.filter(move |_| to != pb::Zone::Green);
    signals
        .take(REASONS_MAX)
        .map(move |signal| reason(signal, to))
}

/// A value beside the threshold of `to`.
fn reason(signal: &pb::EventSignal, to: pb::Zone) -> String {
    let name = match signal.name.as_str() {
        "receive_queue_stalled" => "no read for".to_owned(),
        name => plain(name),
    };
    let value = quantity(signal.value, &signal.unit);
    let threshold = match to {
        pb::Zone::Red => signal.red,
        pb::Zone::Yellow | pb::Zone::Green | pb::Zone::Unspecified => signal.yellow,
    };
    match threshold {
        None => format!("{name} {value}"),
        Some(at) if signal.reaches() as i32 >= to as i32 => {
            let relation = if signal.value >= at { '≥' } else { '≤' };
            format!("{name} {value} {relation} {}", quantity(at, &signal.unit))
        }
        Some(at) => format!(
            "{name} still {value} (entry {})",
            quantity(at, &signal.unit)
        ),
    }
}

fn lasted(stay: &pb::Stay) -> String {
    let lasted = stay.lasted.as_ref().and_then(time);
    lasted.map_or("an unknown time".to_owned(), |lasted| {
        match lasted.as_secs() {
            0..10 => seconds(lasted.as_secs_f64()),
            _ => duration(lasted),
        }
    })
}

fn diverted(stay: &pb::Stay) -> String {
    match &stay.diverted {
        Some(diverted) if diverted.requests > 0 => format!(
            ", {} in {} to the vault",
            bytes(diverted.bytes),
            counted(diverted.requests, "request")
        ),
        Some(_) | None => ", nothing to the vault".to_owned(),
    }
}

fn time(duration: &prost_types::Duration) -> Option<Duration> {
    (*duration).try_into().ok()
}

/// As shown.
fn kind(kind: pb::EventKind) -> &'static str {
    match kind {
        pb::EventKind::Unspecified => "unknown",
        pb::EventKind::Start => "start",
        pb::EventKind::Stop => "stop",
        pb::EventKind::Verdict => "verdict",
        pb::EventKind::OomKill => "oom_kill",
        pb::EventKind::Source => "source",
        pb::EventKind::OverrideSet => "override_set",
        pb::EventKind::OverrideRestored => "override_restored",
        pb::EventKind::OverrideCleared => "override_cleared",
        pb::EventKind::OverrideExpired => "override_expired",
        pb::EventKind::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(name: &str, value: f64, unit: &str, red: f64, reaches: pb::Zone) -> pb::EventSignal {
        pb::EventSignal {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            yellow: None,
            red: Some(red),
            reaches: reaches.into(),
            holds: reaches.into(),
        }
    }

    fn transition(from: pb::Zone, to: pb::Zone, cause: &str) -> pb::Event {
        pb::Event {
            sequence: 7,
            time: Some(prost_types::Timestamp {
                seconds: 1_767_322_245,
                nanos: 678_900_000,
            }),
            kind: pb::EventKind::Verdict.into(),
            from: from.into(),
            to: to.into(),
            cause: cause.to_owned(),
            ..pb::Event::default()
        }
    }

    fn previous(zone: pb::Zone, seconds: i64, requests: u64) -> Option<pb::Stay> {
        Some(pb::Stay {
            zone: zone.into(),
            lasted: Some(prost_types::Duration { seconds, nanos: 0 }),
            diverted: Some(pb::Amount {
                requests,
                records: requests,
                bytes: requests * 1536,
            }),
            ..pb::Stay::default()
        })
    }

    #[test]
    fn a_line_tells_what_crossed_what_and_what_came_before() {
        let event = pb::Event {
            signals: vec![
                signal("receive_queue", 0.931, "ratio", 0.8, pb::Zone::Red),
                signal(
                    "receive_queue_stalled",
                    0.0062,
                    "seconds",
                    0.005,
                    pb::Zone::Red,
                ),
                signal("budget_ingest", 0.1, "ratio", 0.95, pb::Zone::Green),
                signal("memory_available", 0.06, "ratio", 0.07, pb::Zone::Red),
            ],
            previous: previous(pb::Zone::Green, 12, 0),
            ..transition(pb::Zone::Green, pb::Zone::Red, "receive_queue")
        };
        assert_eq!(
            line(&event, false),
            "2026-01-02T02:50:45.678Z  GREEN → RED        receive_queue: receive_queue 93.1 % ≥ 80.0 %, \
             no read for 6.2 ms ≥ 5.0 ms, memory_available 6.0 % ≤ 7.0 %; after 12 s of green, \
             nothing to the vault"
        );
    }

    #[test]
    fn a_line_tells_what_a_stay_diverted() {
        let event = pb::Event {
            hold: Some(prost_types::Duration {
                seconds: 2,
                nanos: 0,
            }),
            previous: previous(pb::Zone::Red, 185, 2),
            ..transition(pb::Zone::Red, pb::Zone::Green, "none")
        };
        assert_eq!(
            line(&event, false),
            "2026-01-02T02:50:45.678Z  RED → GREEN        calm for 2.0 s; after 3 min 5 s of red, 3.0 KiB \
             in 2 requests to the vault"
        );
    }

    #[test]
    fn an_override_reads_the_same_whenever_its_events_are_shown() {
        // Far ahead and long over: what is left of it mustn't show.
        for (until, shown) in [
            (32_503_680_000, "3000-01-01T00:00:00.000Z"),
            (1_767_322_245, "2026-01-02T02:50:45.000Z"),
        ] {
            let held = pb::Override {
                zone: pb::Zone::Red.into(),
                until: Some(prost_types::Timestamp {
                    seconds: until,
                    nanos: 0,
                }),
                by: "uid 0".to_owned(),
                reason: "test".to_owned(),
            };
            let of_kind = |kind: pb::EventKind| pb::Event {
                kind: kind.into(),
                r#override: Some(held.clone()),
                by: "uid 1".to_owned(),
                ..transition(pb::Zone::Green, pb::Zone::Red, "override")
            };
            let expected = format!("red until {shown}, by uid 0: test");
            for (kind, line_ends) in [
                (pb::EventKind::OverrideSet, format!("  {expected}")),
                (pb::EventKind::OverrideRestored, format!("  {expected}")),
                (pb::EventKind::OverrideExpired, format!("  {expected}")),
                (
                    pb::EventKind::OverrideCleared,
                    format!("by uid 1; it was {expected}"),
                ),
                (pb::EventKind::Verdict, format!("override: {expected}")),
            ] {
                let line = line(&of_kind(kind), false);
                assert!(line.ends_with(&line_ends), "{line}");
            }
        }
    }

    #[test]
    fn foreign_text_in_an_event_cannot_steer_the_terminal() {
        let event = pb::Event {
            kind: pb::EventKind::Source.into(),
            source: pb::Source::Stochastic.into(),
            source_reason: "\x1b[2J".to_owned(),
            ..pb::Event::default()
        };
        assert!(!line(&event, false).contains('\x1b'));
    }
}

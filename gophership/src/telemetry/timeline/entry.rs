//! One event, as it lies in the file and as it is shown.
//!
//! ```json
//! {"sequence":17,"time":"2026-01-02T03:04:05.678901234Z","monotonic_ns":912345678901,
//!  "kind":"verdict","from":{"zone":"green","cause":"none"},
//!  "to":{"zone":"red","cause":"receive_queue"},"slow_disk":false,
//!  "signals":[{"name":"receive_queue","value":0.931,"unit":"ratio","yellow":0.5,"red":0.8,
//!              "reaches":"red","holds":"red"}],
//!  "previous":{"zone":"green","cause":"none","seconds":12.5,
//!              "diverted":{"requests":0,"records":0,"bytes":0},
//!              "delivered":{"requests":9,"records":90,"bytes":5400}}}
//! ```
//! (on one line). `previous` tells of the stay that ended with this event; what a stay amounts to is
//! known at its end only, so that the line of its beginning doesn't have it.

use gophership_common::Zone;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// An event with its place in the timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Rises by one from event to event, over restarts, too.
    pub sequence: u64,
    /// When it happened.
    #[serde(flatten)]
    pub at: Moment,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// By the wall clock.
    #[serde(with = "rfc3339")]
    pub time: OffsetDateTime,
    /// `CLOCK_MONOTONIC` nanoseconds, which say nothing across a boot.
    pub monotonic_ns: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The daemon has started.
    Start {
        /// Its version.
        version: String,
        /// Who judges: `kernel` or `stochastic`.
        source: String,
        /// Why the kernel doesn't; empty if it does.
        reason: String,
        /// Whether the timeline ends with a daemon that wasn't stopped in order, so that nobody knows
        /// how its last stay ended.
        after_crash: bool,
    },
    /// The daemon stops, in order.
    Stop {
        /// The stay that ends with it.
        previous: Stay,
    },
    /// The verdict has changed: another zone, or another cause or flag within it.
    Verdict(Box<Verdict>),
    /// A process was killed for lack of memory.
    OomKill {
        /// Whether the host or the engine's cgroup lacked it, rather than another cgroup.
        ours: bool,
    },
    /// Another one judges.
    Source {
        /// Who: `kernel` or `stochastic`.
        source: String,
        /// Why the kernel doesn't; empty if it does.
        reason: String,
    },
    /// An operator holds a zone.
    OverrideSet(Held),
    /// An override of the last run holds again.
    OverrideRestored(Held),
    /// An operator has given the zone back to the signals.
    OverrideCleared {
        /// The override that was in force.
        held: Held,
        /// Who ended it.
        by: String,
    },
    /// An override's time was over.
    OverrideExpired(Held),
    /// Events that couldn't be kept.
    Lost {
        /// How many.
        events: u64,
        /// Where.
        place: Place,
    },
}

/// Where events got lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The kernel's ring buffer was full.
    Kernel,
    /// The timeline's queue was full, or its file couldn't be written.
    Timeline,
}

impl Place {
    /// As shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Timeline => "timeline",
        }
    }
}

/// A change of the verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Before.
    pub from: ZoneCause,
    /// After.
    pub to: ZoneCause,
    /// Whether the vault's disk is slow.
    pub slow_disk: bool,
    /// Who holds the zone and why, if an operator does.
    #[serde(rename = "override", default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// How long every signal had to be calm, where the zone went down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<f64>,
    /// What could be measured when it was decided; if a probe decided, its own socket only.
    pub signals: Vec<SignalAt>,
    /// The stay that ended; none if the zone is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Stay>,
}

/// A zone and what it is due to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneCause {
    /// The zone.
    #[serde(with = "zone_name")]
    pub zone: Zone,
    /// `none` in Green.
    pub cause: String,
}

/// A signal when it was decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignalAt {
    /// Such as `receive_queue`.
    pub name: String,
    /// In `unit`.
    pub value: f64,
    /// `ratio`, `seconds`, `bytes`, `bytes_per_second` or `count`.
    pub unit: String,
    /// Where it enters Yellow, in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yellow: Option<f64>,
    /// Where it enters Red, in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub red: Option<f64>,
    /// The zone that the value enters.
    #[serde(with = "zone_name")]
    pub reaches: Zone,
    /// The zone that it doesn't let the verdict leave: exits lie below entries.
    #[serde(with = "zone_name")]
    pub holds: Zone,
}

/// An operator's choice of zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The zone.
    #[serde(with = "zone_name")]
    pub zone: Zone,
    /// When it ends by itself, in milliseconds since the Unix epoch; none: never.
    pub until_unix_ms: Option<u64>,
    /// Who chose it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// A stay in one zone, and what happened meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stay {
    /// The zone.
    #[serde(with = "zone_name")]
    pub zone: Zone,
    /// Its cause at the end.
    pub cause: String,
    /// How long, in kernel time.
    pub seconds: f64,
    /// What went to the vault instead of the pipeline, or because the destinations were late.
    pub diverted: Amount,
    /// What was acknowledged because the destinations have it.
    pub delivered: Amount,
}

/// How much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Requests.
    pub requests: u64,
    /// Their log records.
    pub records: u64,
    /// Their bytes as received.
    pub bytes: u64,
}

impl Amount {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            records: self.records + other.records,
            bytes: self.bytes + other.bytes,
        }
    }

    /// What has come since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            records: self.records.saturating_sub(earlier.records),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

/// What the reader of the file needs to know of a line before all else; the rest isn't looked at.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Header {
    pub(super) sequence: u64,
    #[serde(with = "rfc3339")]
    pub(super) time: OffsetDateTime,
    kind: String,
}

impl Header {
    /// Whether a daemon ends with it, in order.
    pub(super) fn is_stop(&self) -> bool {
        self.kind == "stop"
    }
}

mod rfc3339 {
    use super::{OffsetDateTime, Rfc3339};
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(
        time: &OffsetDateTime,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let text = time.format(&Rfc3339).map_err(ser::Error::custom)?;
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<OffsetDateTime, D::Error> {
        let text = String::deserialize(from)?;
        OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)
    }
}

mod zone_name {
    use super::Zone;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(zone: &Zone, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(zone.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Zone, D::Error> {
        let name = String::deserialize(from)?;
        [Zone::Green, Zone::Yellow, Zone::Red]
            .into_iter()
            .find(|zone| zone.as_str() == name)
            .ok_or_else(|| D::Error::custom(format!("no zone {name:?}")))
    }
}

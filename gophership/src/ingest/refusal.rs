//! Why a request isn't acknowledged, before it is said in gRPC's or HTTP's words.

use std::time::Duration;

use crate::telemetry::counters::Fate;

/// Why a request isn't acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It will never be a message of logs. Don't retry.
    Malformed(String),
    /// It is larger than allowed. Don't retry.
    TooLarge(String),
    /// It is encoded in a way that isn't served. Don't retry.
    Unsupported(String),
    /// Nothing of it came for too long. May be retried.
    TooSlow(String),
    /// Not now. May be retried.
    Busy {
        /// What stands in the way.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// Its stream broke off: nobody hears the answer.
    Gone(String),
}

impl Refusal {
    /// What the request counts as; `None` if nobody hears the answer.
    pub(super) const fn fate(&self) -> Option<Fate> {
        match self {
            Self::Malformed(_) | Self::TooLarge(_) | Self::Unsupported(_) => Some(Fate::Invalid),
            Self::TooSlow(_) | Self::Busy { .. } => Some(Fate::Refused),
            Self::Gone(_) => None,
        }
    }

    /// JSON that takes `needed` bytes to be read, where a request may have `most`.
    pub(super) fn needs_too_much(len: usize, needed: usize, most: usize) -> Self {
        Self::TooLarge(format!(
            "the message has {len} bytes of JSON, which takes {needed} of the ingest budget, and one message may have \
             {most}; raise memory.total or memory.ingest, or send smaller batches"
        ))
    }

    /// A message that has more than `limit` bytes decompressed, where `max` are allowed and there may be room for less.
    pub(super) fn unpacks_to_more(limit: usize, max: usize) -> Self {
        let why = if limit < max {
            "all that the ingest budget has room for; raise memory.total or memory.ingest"
        } else {
            "ingest.max_request_bytes"
        };
        Self::TooLarge(format!(
            "the message is larger than {limit} bytes decompressed ({why})"
        ))
    }

    /// A message of `len` bytes, where `limit` are allowed.
    pub(super) fn too_large(len: impl std::fmt::Display, limit: usize) -> Self {
        Self::TooLarge(format!(
            "the message has {len} bytes, more than {limit} (ingest.max_request_bytes)"
        ))
    }
}

//! What became of the requests, readable while they run.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::histogram::{Counts, Histogram};

/// Counters that the connections add to.
#[derive(Debug)]
pub(crate) struct Meter {
    records_per_request: u64,
    acked: AtomicU64,
    acked_bytes: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    ack_ns: Histogram,
    first_failure: Mutex<Option<String>>,
}

/// The counters at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    at: Instant,
    records_per_request: u64,
    acked: u64,
    acked_bytes: u64,
    refused: u64,
    broken: u64,
    ack_ns: Counts,
}

/// What happened between two readings.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) took: Duration,
    pub(crate) requests: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Answered with anything but OK.
    pub(crate) refused: u64,
    /// Connections that ended.
    pub(crate) broken: u64,
    /// From the moment a request was due to its acknowledgement.
    pub(crate) ack_ns: Counts,
}

impl Meter {
    pub(crate) fn new(records_per_request: u64) -> Self {
        Self {
            records_per_request,
            acked: AtomicU64::new(0),
            acked_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            ack_ns: Histogram::new(),
            first_failure: Mutex::default(),
        }
    }

    pub(super) fn acked(&self, bytes: usize, took: Duration) {
        self.acked.fetch_add(1, Relaxed);
        self.acked_bytes.fetch_add(bytes as u64, Relaxed);
        self.ack_ns
            .add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn refused(&self, why: String) {
        self.refused.fetch_add(1, Relaxed);
        self.fail(why);
    }

    pub(super) fn broken(&self, why: String) {
        self.broken.fetch_add(1, Relaxed);
        self.fail(why);
    }

    fn fail(&self, why: String) {
        let mut first = self
            .first_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(why);
    }

    /// The first refusal or broken connection, in words.
    pub(crate) fn first_failure(&self) -> Option<String> {
        let first = self.first_failure.lock();
        first.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn read(&self) -> Reading {
        Reading {
            at: Instant::now(),
            records_per_request: self.records_per_request,
            acked: self.acked.load(Relaxed),
            acked_bytes: self.acked_bytes.load(Relaxed),
            refused: self.refused.load(Relaxed),
            broken: self.broken.load(Relaxed),
            ack_ns: self.ack_ns.read(),
        }
    }
}

impl Reading {
    pub(crate) fn since(&self, earlier: &Self) -> Window {
        let requests = self.acked - earlier.acked;
        Window {
            took: self.at - earlier.at,
            requests,
            records: requests * self.records_per_request,
            bytes: self.acked_bytes - earlier.acked_bytes,
            refused: self.refused - earlier.refused,
            broken: self.broken - earlier.broken,
            ack_ns: self.ack_ns.since(&earlier.ack_ns),
        }
    }
}

impl Window {
    pub(crate) fn records_per_second(&self) -> f64 {
        self.records as f64 / self.took.as_secs_f64()
    }

    /// The figures, with their units in their names.
    pub(crate) fn json(&self) -> Value {
        let seconds = self.took.as_secs_f64();
        json!({
            "window_seconds": seconds,
            "acked_requests": self.requests,
            "acked_records": self.records,
            "acked_requests_per_second": self.requests as f64 / seconds,
            "acked_records_per_second": self.records_per_second(),
            "acked_bytes_per_second": self.bytes as f64 / seconds,
            "refused_requests": self.refused,
            "broken_connections": self.broken,
            "ack_p50_ns": self.ack_ns.quantile_ns(500),
            "ack_p99_ns": self.ack_ns.quantile_ns(990),
            "ack_p999_ns": self.ack_ns.quantile_ns(999),
            "ack_max_ns": self.ack_ns.quantile_ns(1000),
        })
    }
}

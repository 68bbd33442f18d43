//! Who judges the zone: the kernel half, or the same `judge()` in user space.

use std::time::Duration;

/// Whether the kernel half must judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelMode {
    /// Use it where it loads; fall back loudly otherwise.
    Auto,
    /// Refuse to start without it.
    Required,
    /// Never load it.
    Off,
}

/// Entry thresholds of one signal, in permille of its full scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// Yellow at or beyond this.
    pub yellow_permille: u32,
    /// Red at or beyond this.
    pub red_permille: u32,
}

/// Thresholds and sources of the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whether the kernel half must judge.
    pub kernel: KernelMode,
    /// Period of the kernel's full judgement.
    pub tick: Duration,
    /// Fallback only: sample after this many operations (and at least every 100 ms).
    pub sample_every: u64,
    /// De-escalate only after every signal stayed below its exit threshold for this long.
    pub hold: Duration,
    /// Receive-queue depth of an ingest socket over its real capacity.
    pub receive_queue: Levels,
    /// Red by the receive queue needs this long without a dequeue on that socket.
    pub receive_queue_for: Duration,
    /// Available memory over the limit: low is bad, so red is the smaller value.
    pub memory_available: Levels,
    /// Bytes in use over budget, the fullest budget counting.
    pub budget: Levels,
    /// A worker whose heartbeat is older than this is a cause of Red.
    pub heartbeat_limit: Duration,
}

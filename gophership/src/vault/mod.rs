//! The vault: a log of acknowledged requests on stable storage.

use std::{path::PathBuf, time::Duration};

/// Codec of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 block format; a block that doesn't shrink is stored raw.
    Lz4,
    /// Raw.
    None,
}

/// When an append counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// After the bytes are on stable storage.
    Always,
    /// After the write; for benchmarks, warned about.
    Never,
}

/// The vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory that this process alone owns while it runs.
    pub dir: PathBuf,
    /// Most bytes of segments, over all lanes.
    pub max_bytes: u64,
    /// Bytes of one segment file; a multiple of 4 KiB.
    pub segment_bytes: u64,
    /// Longest an entry waits for others while a write is in flight.
    pub linger: Duration,
    /// Codec of the blocks.
    pub compression: Compression,
    /// When an append counts as done.
    pub sync: Sync,
    /// How often the cursors are written.
    pub cursor_interval: Duration,
    /// Lanes, one per worker.
    pub lanes: usize,
    /// Bytes of block buffers over all lanes.
    pub budget_bytes: usize,
    /// Largest entry, in bytes.
    pub max_entry_bytes: usize,
}

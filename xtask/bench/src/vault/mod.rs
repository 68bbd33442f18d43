//! `vault`: how close the vault comes to the disk, to LZ4 and to nothing at all.

mod disk;
mod lane;
mod latency;
mod lz4;
mod recovery;
mod throughput;

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

pub(crate) use lane::thread_cpu;

use crate::report::Report;

/// A measurement that can be had by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What a synced write costs into a file that was written before, and into one that wasn't
    Prepared,
    /// A lane's throughput against the disk's own, and the CPU time of a gigabyte
    Throughput,
    /// A compressing lane against lz4_flex alone
    Lz4,
    /// Sync and acknowledgement latency at 1, 16 and 256 requests in flight
    Latency,
    /// Recovery of a full vault
    Recovery,
}

/// What the measurements share.
pub(crate) struct Bench<'a> {
    /// Directory on the disk to measure.
    pub(crate) scratch: &'a Path,
    pub(crate) quick: bool,
    pub(crate) report: &'a mut Report,
}

/// Takes the measurements asked for, all of them if none is named.
pub(crate) fn run(bench: &mut Bench<'_>, parts: &[Part]) -> Result<()> {
    for part in Part::value_variants() {
        if !parts.is_empty() && !parts.contains(part) {
            continue;
        }
        let result = match part {
            Part::Prepared => disk::prepared(bench),
            Part::Throughput => throughput::run(bench),
            Part::Lz4 => lz4::run(bench),
            Part::Latency => latency::run(bench),
            Part::Recovery => recovery::run(bench),
        };
        result.with_context(|| format!("{part:?}"))?;
    }
    Ok(())
}

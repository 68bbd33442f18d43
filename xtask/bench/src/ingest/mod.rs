//! `ingest`: what the front door does in a second of the daemon's CPU time, how fast it answers, and what memory it takes.
//!
//! Generator, daemon and destination share the CPUs, so records a CPU second *of the daemon* are the figure to go by:
//! records a second depend on what the generator costs.

mod allocations;
pub(crate) mod case;
mod latency;
mod memory;
mod throughput;
mod workers;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{daemon::Site, report::Report};

/// A measurement that can be had by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Records a CPU second, acknowledgement times and peak memory, over protocols, transports, sizes and ways
    Throughput,
    /// From a request's first byte to its bytes placed, and acknowledgement times, at half the most load
    Latency,
    /// Resident memory of an idle daemon and of one at full load
    Memory,
    /// Two workers on two CPUs against one on one
    Workers,
    /// Heap allocations a request
    Allocations,
}

/// What the measurements share.
pub(crate) struct Bench<'a> {
    pub(crate) site: &'a Site,
    pub(crate) quick: bool,
    pub(crate) report: &'a mut Report,
    /// Of the throughput, cases with this in their names.
    pub(crate) case: &'a str,
}

/// Takes the measurements asked for, all of them if none is named.
pub(crate) fn run(bench: &mut Bench<'_>, parts: &[Part]) -> Result<()> {
    for part in Part::value_variants() {
        if !parts.is_empty() && !parts.contains(part) {
            continue;
        }
        let result = match part {
            Part::Throughput => throughput::run(bench),
            Part::Latency => latency::run(bench),
            Part::Memory => memory::run(bench),
            Part::Workers => workers::run(bench),
            Part::Allocations => allocations::run(bench),
        };
        result.with_context(|| format!("{part:?}"))?;
    }
    Ok(())
}

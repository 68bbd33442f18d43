//! `kernel`: what the kernel half shows in time, costs, and leaves alone.

mod cost;
mod healthy;
mod latency;
mod loaded;
mod throughput;

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    daemon::Site,
    load::{Plan, Protocol, Transport},
    report::Report,
    sink::Sink,
};

/// A measurement that can be had by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// From a queue that grows to Yellow and to Red, with the daemon stopped
    Latency,
    /// Nanoseconds a segment, a read and a tick
    Cost,
    /// A saturating healthy load, and what the programs cost meanwhile
    Healthy,
    /// Throughput with the kernel half against without
    Throughput,
}

/// What the measurements share.
pub(crate) struct Bench<'a> {
    pub(crate) site: &'a Site,
    pub(crate) sink: &'a Sink,
    /// The kernel half's object.
    pub(crate) object: &'a Path,
    pub(crate) quick: bool,
    pub(crate) report: &'a mut Report,
    /// What the kernel's statistics cost a run, once it is known.
    pub(crate) empty_ns: Option<f64>,
}

/// Takes the measurements asked for, all of them if none is named.
pub(crate) fn run(bench: &mut Bench<'_>, parts: &[Part]) -> Result<()> {
    for part in Part::value_variants() {
        if !parts.is_empty() && !parts.contains(part) {
            continue;
        }
        let result = match part {
            Part::Latency => latency::run(bench),
            Part::Cost => cost::run(bench),
            Part::Healthy => healthy::run(bench),
            Part::Throughput => throughput::run(bench),
        };
        result.with_context(|| format!("{part:?}"))?;
    }
    Ok(())
}

/// More than a small machine's daemon can take: four connections that always have eight requests of a
/// hundred records in flight.
fn plan(bench: &Bench<'_>, address: SocketAddr) -> Result<Plan> {
    Ok(Plan {
        address,
        protocol: Protocol::Grpc,
        transport: Transport::Tls(bench.site.tls()?),
        threads: 1,
        cpus: Vec::new(),
        connections: 4,
        in_flight: 8,
        records: 100,
        requests_per_second: None,
        frame_bytes: usize::MAX,
    })
}

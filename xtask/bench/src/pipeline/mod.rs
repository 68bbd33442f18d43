//! `pipeline`: what happens behind the front door: a destination that is dead at full load or far away, and the
//! replay, by itself and beside live traffic.

mod dead;
mod hedge;
mod replay;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{daemon::Site, report::Report};

/// A measurement that can be had by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Memory at full load while the destination refuses connections, and while it never answers
    Dead,
    /// Acknowledgement times, and what a client gets done that sends one request at a time, while the destination is near and far
    Hedge,
    /// The replay's records a second on an idle daemon, over those of live traffic
    Replay,
    /// The replay's CPU time in Yellow
    Yellow,
    /// Acknowledgement times of live traffic beside the replay, over those without
    Beside,
}

/// What the measurements share.
pub(crate) struct Bench<'a> {
    pub(crate) site: &'a Site,
    pub(crate) quick: bool,
    pub(crate) report: &'a mut Report,
}

impl Bench<'_> {
    fn window(&self, long: u64, quick: u64) -> Duration {
        Duration::from_secs(if self.quick { quick } else { long })
    }
}

/// Takes the measurements asked for, all of them if none is named.
pub(crate) fn run(bench: &mut Bench<'_>, parts: &[Part]) -> Result<()> {
    for part in Part::value_variants() {
        if !parts.is_empty() && !parts.contains(part) {
            continue;
        }
        let result = match part {
            Part::Dead => dead::run(bench),
            Part::Hedge => hedge::run(bench),
            Part::Replay => replay::alone(bench),
            Part::Yellow => replay::in_yellow(bench),
            Part::Beside => replay::beside_live(bench),
        };
        result.with_context(|| format!("{part:?}"))?;
    }
    Ok(())
}

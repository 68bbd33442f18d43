//! `gophership doctor`: tries what the daemon needs of this machine, and says what to do about what
//! it lacks.
//!
//! Nothing stays behind: programs are detached, sockets closed and files removed before it ends. It
//! answers for whoever runs it, so it is to be run as the daemon is started.

mod configuration;
mod confinement;
mod kernel;
mod limits;
mod report;
mod storage;

use std::fs;

pub use report::{Check, Report, Verdict};

use crate::{app, config};

/// Checks everything; `config` is what [`config::load`] came to.
#[must_use]
pub fn examine(config: &Result<app::Config, config::Errors>) -> Report {
    let valid = config.as_ref().ok();
    let mut checks = configuration::check(config);
    checks.extend(kernel::check(valid.map(|valid| valid.pressure.kernel)));
    checks.extend(storage::check(valid.map(|valid| &valid.vault)));
    checks.extend(limits::check(valid.map(|valid| &valid.vault)));
    checks.extend(confinement::check(valid));
    Report { checks }
}

/// Of this thread, a bit for each (capabilities(7)); 0 if the kernel doesn't say.
fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}

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
    checks.extend(confinement::check(valid.map(|valid| &valid.service)));
    Report { checks }
}

//! The kernel half's own diagnostics, as lines of the daemon's log.
//!
//! Off unless `telemetry.log.level` asks for [`TARGET`] at `trace`: a line costs the kernel half a
//! helper call and a place in a ring buffer. What a program logs as a warning stays one.

use log::{Level, Log, Metadata, Record};

/// Target of the lines, for `telemetry.log.level`.
const TARGET: &str = "gophership::pressure::kernel";

/// Whether somebody listens.
pub(super) fn is_wanted() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::TRACE)
}

/// Hands the lines on.
pub(super) struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let (module, line) = (record.module_path(), record.args());
        match record.level() {
            Level::Error | Level::Warn => {
                tracing::warn!(target: TARGET, module, "kernel half: {line}");
            }
            Level::Info | Level::Debug | Level::Trace => {
                tracing::trace!(target: TARGET, module, "kernel half: {line}");
            }
        }
    }

    fn flush(&self) {}
}

//! Metrics, health, the event timeline and the daemon's own log. A leaf: it knows none of the other modules.

use std::net::SocketAddr;

pub mod counters;
pub mod http;
pub mod lines;
pub mod log;
pub mod metrics;
pub mod process;
pub mod throttle;
pub mod timeline;

/// Format of the daemon's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a terminal.
    Pretty,
}

/// The telemetry listener, the event timeline and the daemon's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address of `/metrics`, `/healthz` and `/readyz`.
    pub listen: SocketAddr,
    /// `tracing` filter directive, such as `info`.
    pub log_level: String,
    /// Format of the daemon's own log, written to standard error.
    pub log_format: LogFormat,
    /// The event timeline.
    pub timeline: timeline::Config,
}

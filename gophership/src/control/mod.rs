//! The gRPC control service, peer authentication and the audit log.

use std::path::PathBuf;

/// Where operators reach the daemon, and who may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Path of the Unix socket.
    pub path: PathBuf,
    /// File mode of the socket, such as `0o600`.
    pub mode: u32,
    /// Uids allowed to call, by `SO_PEERCRED`. The daemon's own uid is not implied.
    pub allow_uids: Vec<u32>,
    /// Gids allowed to call, by `SO_PEERCRED` (the peer's primary group).
    pub allow_gids: Vec<u32>,
    /// JSON-lines file with one line for each call that changes something.
    pub audit_log: PathBuf,
}

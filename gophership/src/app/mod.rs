//! Builds the subsystems from their configurations, runs them, and drains them.

mod build;
mod certificates;
mod chronicle;
mod cpus;
mod daemon;
mod drain;
mod engine;
mod heartbeats;
mod ledger;
mod metrics;
mod pacing;
mod plan;
mod room;
mod segments;
mod service;
mod sockets;
mod status;
mod stop;
mod worker;

use std::{net::SocketAddr, time::Duration};

use crate::{
    control, export, ingest, local_socket, pipeline, pressure, privileges, replay, somatic,
    telemetry, vault,
};

/// Longest that the end waits for blocking calls of the control service.
const LAST_CALLS_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything the daemon needs to know, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The front door.
    pub ingest: ingest::Config,
    /// The verdict.
    pub pressure: pressure::Config,
    /// The way of Green.
    pub pipeline: pipeline::Config,
    /// What is added to requests.
    pub enrich: pipeline::enrich::Config,
    /// Where logs go.
    pub destinations: Vec<export::DestinationConfig>,
    /// The vault.
    pub vault: vault::Config,
    /// Vault → destinations.
    pub replay: replay::Config,
    /// Operators' socket.
    pub control: control::Config,
    /// Metrics, health, own log.
    pub telemetry: telemetry::Config,
    /// Whom to run as.
    pub service: privileges::Config,
    /// The file it was read from, if it was.
    pub file: Option<std::path::PathBuf>,
    /// Bytes that all budgets add up to.
    pub memory_total_bytes: u64,
}

/// Why the daemon can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address can't be bound.
    #[error("{key}: can't listen on {address}: {source}")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The listener's TLS.
    #[error(transparent)]
    Tls(#[from] ingest::tls::Error),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The destinations.
    #[error(transparent)]
    Destinations(#[from] export::Error),
    /// The verdict.
    #[error(transparent)]
    Pressure(#[from] pressure::Error),
    /// The override kept from the last run.
    #[error(transparent)]
    Override(#[from] somatic::overrides::Error),
    /// The replay.
    #[error(transparent)]
    Replay(#[from] replay::Error),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] worker::Error),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The socket of local producers.
    #[error(transparent)]
    LocalSocket(#[from] local_socket::Error),
    /// The service user, its directories, or the drop of privileges.
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    /// It has stopped, but something hung or failed meanwhile; nothing acknowledged is lost.
    #[error("stopped, but not in order: {0}")]
    Undone(String),
    /// A thread, a signal handler or the runtime.
    #[error("{what}: {source}")]
    System {
        /// What was to be made.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Config {
    /// What the daemon touches by path once it is the service user.
    #[must_use]
    pub fn needs(&self) -> privileges::Needs {
        service::needs(self)
    }
}

impl Error {
    /// Whether the configuration asks for what isn't here, rather than something having failed.
    #[must_use]
    pub const fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Pressure(pressure::Error::NoInterface { .. })
                | Self::Privileges(privileges::Error::UnknownUser { .. })
        )
    }

    fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Runs the daemon until SIGTERM, SIGINT or `drain --exit`, and drains it.
///
/// # Errors
/// If it can't start; nothing has been accepted then. [`Error::Undone`] if it couldn't take everything
/// down in time.
pub fn run(config: Config) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("the main runtime"))?;
    let set = tokio::task::LocalSet::new();
    let ended = set.block_on(&runtime, async {
        let running = build::start(config).await?;
        running.until_told_to_stop().await
    });
    // A blocking call, such as one to the audit log's disk, may hang.
    runtime.shutdown_timeout(LAST_CALLS_TIMEOUT);
    ended
}

//! The gRPC control service, peer authentication and the audit log.
//!
//! The socket never has wider permissions than configured, every call is checked against the
//! peer's credentials, and every call that changes something, or is refused, has an audit line.

mod audit;
pub mod certs;
mod engine;
mod events;
/// Messages, client and server of `proto/control.proto`; `cargo xtask proto` writes it.
pub mod pb;
mod request;
mod service;

use crate::local_socket;
use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};

pub use engine::{
    ControlError, DrainSpec, Engine, OverrideSpec, PlanSpec, QuarantineSpec, ReplayCommand,
    ReplaySpec, SocketsSpec,
};
use pb::control_server::ControlServer;
use tokio_stream::wrappers::UnixListenerStream;

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

/// The control service can't be offered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket can't be offered.
    #[error(transparent)]
    Socket(#[from] local_socket::Error),
    /// The audit log can't be written, so no call may change anything.
    #[error("cannot write the audit log {}: {source}", path.display())]
    Audit {
        /// The log.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The server stopped by itself.
    #[error("the control service failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The socket is bound and the audit log open; callers wait in the backlog until [`Bound::serve`].
#[derive(Debug)]
pub struct Bound {
    socket: local_socket::Socket,
    allowed: service::Allowed,
    audit: audit::Log,
}

/// Binds the socket and opens the audit log.
///
/// # Errors
/// Whatever keeps the service from being offered: see [`Error`].
pub fn bind(config: &Config) -> Result<Bound, Error> {
    let audit = audit::Log::open(&config.audit_log)?;
    let socket = local_socket::bind(SOCKET_KEY, &config.path, config.mode, BACKLOG)?;
    let allowed = service::Allowed {
        uids: config.allow_uids.clone(),
        gids: config.allow_gids.clone(),
    };
    Ok(Bound {
        socket,
        allowed,
        audit,
    })
}

impl Bound {
    /// Serves until `shutdown` resolves and the calls under way have ended, or 2 s have passed; then
    /// the socket is removed. Needs a tokio runtime with I/O and time; a current-thread one will do.
    ///
    /// # Errors
    /// If the server stops by itself.
    pub async fn serve(
        self,
        engine: Arc<dyn Engine>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let listener = self.socket.listener()?;
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let service = service::Service::new(engine, self.allowed, self.audit, stopping);
        let service = ControlServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut stopped = stop.subscribe();
        let shutdown = async {
            shutdown.await;
            // Followers would otherwise keep the server, and the daemon, alive.
            stop.send_replace(true);
        };
        let server = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown);
        let overdue = async {
            // The sender lives as long as `server`, so this can't fail before it ends.
            drop(stopped.wait_for(|stopped| *stopped).await);
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            served = server => served?,
            () = overdue => tracing::warn!("control calls were cut off at shutdown"),
        }
        Ok(())
    }
}

const SOCKET_KEY: &str = "control.unix.path";
/// Callers that wait to be accepted.
const BACKLOG: i32 = 64;
/// Requests are a few fields and a reason.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Calls under way at shutdown get this long to end.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// An operator's command makes one call.
const CALLS_PER_CONNECTION_MAX: usize = 16;

//! Listeners, TLS, and the endpoints of OTLP/gRPC and OTLP/HTTP.
//!
//! One acceptor hands each connection to the worker with the fewest; a worker serves its own and
//! shares nothing that is written in the hot path but the admission budget. A request reserves its
//! whole length from the 5-byte gRPC prefix before its body is read, so that at the limit the
//! reading stops and the pressure stands in the kernel's queues, where the kernel half sees it.

use std::{net::SocketAddr, path::PathBuf};

pub mod acceptor;
mod body;
pub mod connection;
mod export;
mod grpc;
mod http;
pub mod inflate;
pub mod message;
mod refusal;
pub mod tls;

/// Whether producers must present a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// mTLS: a certificate that chains to `client_ca` is demanded.
    Required,
    /// Server authentication only.
    None,
}

/// Certificates of the ingest listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM chain of the server.
    pub cert: PathBuf,
    /// PEM key of the server.
    pub key: PathBuf,
    /// PEM bundle that client certificates must chain to; present if `client_auth` is required.
    pub client_ca: Option<PathBuf>,
    /// Whether producers must present a certificate.
    pub client_auth: ClientAuth,
}

/// A Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixConfig {
    /// Its path.
    pub path: PathBuf,
    /// Its file's mode, such as `0o666`.
    pub mode: u32,
}

/// The front door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address of the OTLP/gRPC listener; port 0 lets the OS pick.
    pub grpc_listen: SocketAddr,
    /// Address of the OTLP/HTTP listener; port 0 lets the OS pick.
    pub http_listen: SocketAddr,
    /// Socket of OTLP/gRPC for local producers, without TLS.
    pub unix: Option<UnixConfig>,
    /// Certificates; `None`: the addresses, which are loopback ones, are served in plaintext.
    pub tls: Option<TlsConfig>,
    /// Largest accepted message, compressed and decompressed, in bytes.
    pub max_request_bytes: usize,
    /// Bytes that requests being received may hold, over all workers.
    pub budget_bytes: usize,
    /// Worker threads; one per core unless configured.
    pub workers: usize,
    /// Each worker stays on one CPU, of those allowed to the process in turn.
    pub pin_workers: bool,
}

/// What the front door does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Connections are accepted and served.
    Serving,
    /// Connections finish their requests and close; new ones wait in the backlog.
    Draining,
    /// As draining, and the workers end when they are done.
    Stopping,
}

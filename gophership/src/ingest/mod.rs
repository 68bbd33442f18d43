//! Listeners, TLS, and the endpoints of OTLP/gRPC and OTLP/HTTP.
//!
//! One acceptor hands each connection to the worker with the fewest; a worker serves its own and
//! shares nothing that is written in the hot path but the admission budget.
//!
//! # What bounds the memory
//! The budget is one count of bytes. A connection is charged when it is accepted, with the most that its layers can hold
//! ([`window`]), and a request reserves its whole length, from the 5-byte gRPC prefix or the content length (the largest
//! there may be, where HTTP/1.1 sends chunks), before its body is read. So what is received is at most the budget, at
//! any load and with any number of connections. When a request has to wait for its bytes, sockets are no longer read
//! ([`gate`]), but those of connections that are finishing admitted requests: the pressure stands in the kernel's
//! queues, where the kernel half sees it.
//!
//! Nobody waits for somebody who waits for him:
//!
//! - A request takes its bytes at once or holds none of the budget while it waits, so half-received requests never
//!   wait for each other.
//! - Connections leave the largest request its room, so it is served when the smaller ones before it are answered; who
//!   comes first is served first.
//! - What requests that wait have sent may fill the window of a connection on which an admitted one has to come in.
//!   They wait for a bounded time, are then refused with a retryable status, and their bytes are dropped.
//! - An admitted request ends: its body has a deadline, in proportion to its length, and its answer needs no budget.
//!
//! Beyond the budget are one decompressed message a worker, and what is decoded of headers until their handlers run.

use std::{net::SocketAddr, path::PathBuf};

pub mod acceptor;
mod body;
pub mod budget;
pub mod connection;
mod export;
mod frames;
pub mod gate;
mod grpc;
mod http;
pub mod message;
mod refusal;
pub mod room;
pub mod state;
pub mod tls;
pub mod unpack;
pub mod window;

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
    /// Bytes that connections and requests being received may hold, over all workers.
    pub budget_bytes: usize,
    /// Remote connections; local ones are limited by the budget alone.
    pub max_connections: usize,
    /// Worker threads; one per core unless configured.
    pub workers: usize,
    /// Each worker stays on one CPU, of those allowed to the process in turn.
    pub pin_workers: bool,
}

/// The smallest budget that has room for a connection beside requests.
#[must_use]
pub const fn budget_bytes_min() -> u64 {
    4 * window::Windows::SMALLEST.charge() as u64
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

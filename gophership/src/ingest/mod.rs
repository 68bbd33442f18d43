//! Listeners, TLS, and the endpoints of OTLP/gRPC and OTLP/HTTP.
//!
//! One acceptor hands each connection to the worker with the least to do; a worker serves its own and
//! shares nothing that is written in the hot path but the admission budget.
//!
//! # What bounds the memory
//! The budget is one count of bytes. A connection is charged when it is accepted, with the most that its layers can hold
//! ([`window`]), and a request reserves its whole length, from the 5-byte gRPC prefix or the content length (step by step,
//! where HTTP/1.1 sends chunks), before its body is read, and with it what it may unpack to ([`needs`]).
//! So what is received and unpacked is at most the budget, at any load and with any number of connections. When a request
//! has to wait for its bytes, sockets are no longer read ([`gate`]), but those of connections that are finishing admitted
//! requests: the pressure stands in the kernel's queues, where the kernel half sees it.
//!
//! Nobody waits for somebody who waits for him:
//!
//! - A request takes its bytes at once or holds none of the budget while it waits, so half-received requests never
//!   wait for each other. One whose length isn't known takes more as it comes, without waiting, or is refused.
//! - Connections leave what one request may reserve its room, so it is served when the smaller ones before it are answered; who
//!   comes first is served first.
//! - What requests that wait have sent may fill the window of a connection on which an admitted one has to come in.
//!   They wait for a bounded time, are then refused with a retryable status, and their bytes are dropped.
//! - An admitted request ends: its body has to come at a least rate, and makes way while others wait if it is the slowest
//!   (`slow`); its answer needs no budget. What unpacks to more than it has reserved takes the rest without waiting, or is
//!   refused with a retryable status.
//! - Messages that are unpacked on another thread ([`packed`]) wait for each other there, and for nothing else.
//!
//! Beyond the budget are, for the requests that are unpacked, one by each worker and one beside it, what the decompressor and
//! the JSON parser remember (zstd's window, 8 MiB at most; the longest string with escapes, or a byte for each level of a
//! nested unknown field, in a buffer that doubles), and what is decoded of headers until their handlers run.

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
pub mod load;
pub mod message;
pub mod needs;
mod packed;
mod refusal;
mod return_time;
pub mod room;
mod slow;
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

impl Config {
    /// What requests may have, and need of the budget.
    #[must_use]
    pub fn needs(&self) -> needs::Needs {
        needs::Needs::of(self.budget_bytes, self.workers, self.max_request_bytes)
    }

    /// What the workers' buffers take of the budget.
    #[must_use]
    pub fn buffers_bytes(&self) -> usize {
        needs::buffers_bytes(self.budget_bytes, self.workers)
    }

    /// What connections may be charged with altogether.
    #[must_use]
    pub fn connections_bytes(&self) -> usize {
        let request_bytes = self.needs().kept_bytes();
        window::share_of(self.budget_bytes, self.buffers_bytes(), request_bytes)
    }
}

/// The smallest budget that has room for a connection beside requests and the buffers of so many workers.
#[must_use]
pub const fn budget_bytes_min(workers: usize) -> u64 {
    let connections = 4 * window::Windows::SMALLEST.charge();
    // A quarter stays free of connections and of buffers.
    (connections + 2 * needs::buffers_bytes_min(workers)) as u64
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

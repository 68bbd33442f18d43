//! Listeners, TLS and the OTLP/gRPC endpoint.

use std::{net::SocketAddr, path::PathBuf};

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

/// The front door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address of the OTLP/gRPC listener; port 0 lets the OS pick.
    pub grpc_listen: SocketAddr,
    /// Certificates.
    pub tls: TlsConfig,
    /// Largest accepted message, compressed and decompressed, in bytes.
    pub max_request_bytes: usize,
    /// Bytes that requests being received may hold, over all workers.
    pub budget_bytes: usize,
    /// Worker threads; one per core unless configured.
    pub workers: usize,
}

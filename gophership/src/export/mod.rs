//! Destinations: OTLP servers and files that accept batches of requests.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;

/// One `ExportLogsServiceRequest` in protobuf: requests concatenated, never compressed.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The message bytes.
    pub bytes: Bytes,
    /// Log records inside.
    pub records: u64,
}

/// What a destination said to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has the batch (a file: after `fdatasync`), less the records it rejected for good.
    Accepted {
        /// OTLP partial success: records the destination will never take.
        rejected_records: u64,
    },
    /// It doesn't have it, and may take it later.
    Retry {
        /// The delay it asked for.
        after: Option<Duration>,
        /// What went wrong.
        reason: String,
    },
    /// It will never take it.
    Rejected {
        /// What it said.
        reason: String,
    },
}

/// Where and how one destination is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationConfig {
    /// Unique name: metric label, vault cursor.
    pub name: String,
    /// What kind it is.
    pub kind: DestinationKind,
}

/// The kinds of destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationKind {
    /// An OTLP/gRPC server.
    Otlp(OtlpConfig),
    /// A file of OTLP JSON lines.
    File(FileConfig),
}

/// An OTLP/gRPC server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// `https://host:port`, or `http://` with `tls.insecure`.
    pub endpoint: String,
    /// Limit of one export call.
    pub timeout: Duration,
    /// Metadata sent with each export: lower-case names and values.
    pub headers: Vec<(String, String)>,
    /// PEM bundle to verify the server by; none: the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM client certificate and key, for mTLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Plaintext is allowed (endpoint scheme `http`).
    pub insecure: bool,
}

/// A file of OTLP JSON lines, one `ExportLogsServiceRequest` a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// The file that is appended to.
    pub path: PathBuf,
}

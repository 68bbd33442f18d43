//! Destinations: OTLP servers and files that accept batches of requests.
//!
//! A delivery is one attempt with one [`Outcome`]; retrying, and when, is the pipeline's choice. [`Destinations`] is
//! opened, then started once a process, and checks all that can be checked; each runtime then connects its own [`Destination`]s.

mod answer;
mod append;
mod clients;
mod compress;
mod connect;
mod endpoints;
mod error;
mod file;
mod headers;
mod http_answer;
mod otlp;
mod response;
mod retry;
mod rotate;
mod tls;

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

pub use self::{
    compress::Compression,
    endpoints::Balance,
    error::Error,
    file::{FileDestination, WAITING_MAX},
    headers::HeaderSource,
    otlp::OtlpDestination,
    retry::Retry,
    rotate::{Rotation, is_name_of_rotated},
};
use self::{file::OpenFile, otlp::OtlpServer};

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
    /// An OTLP server.
    Otlp(OtlpConfig),
    /// A file of OTLP JSON lines.
    File(FileConfig),
}

impl DestinationConfig {
    /// How long to wait after its failures.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match &self.kind {
            DestinationKind::Otlp(otlp) => otlp.retry,
            DestinationKind::File(_) => Retry::default(),
        }
    }
}

/// How OTLP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf.
    Http,
}

/// An OTLP server.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// At least one `https://host:port`, or `http://` with `tls.insecure`; for HTTP, with the path that `v1/logs` is
    /// appended to. They are one destination: what one of them has, the destination has.
    pub endpoints: Vec<String>,
    /// Which of several is asked first.
    pub balance: Balance,
    /// While there is something to send, their names are looked up again this often.
    pub resolve_every: Duration,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// How messages are compressed.
    pub compression: Compression,
    /// Limit of one export call.
    pub timeout: Duration,
    /// Headers (gRPC: metadata) sent with each export: lower-case names and where the values come from.
    pub headers: Vec<(String, HeaderSource)>,
    /// PEM bundle to verify the server by; none: the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM client certificate and key, for mTLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Plaintext is allowed (endpoint scheme `http`).
    pub insecure: bool,
    /// How long to wait after failures.
    pub retry: Retry,
    /// `http://[user:password@]host:port` of an HTTP CONNECT proxy on the way.
    pub proxy: Option<String>,
}

/// Without the proxy's URL, which may have a password in it.
impl std::fmt::Debug for OtlpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OtlpConfig")
            .field("endpoints", &self.endpoints)
            .field("balance", &self.balance)
            .field("resolve_every", &self.resolve_every)
            .field("protocol", &self.protocol)
            .field("compression", &self.compression)
            .field("timeout", &self.timeout)
            .field("headers", &self.headers)
            .field("ca", &self.ca)
            .field("identity", &self.identity)
            .field("insecure", &self.insecure)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

/// A file of OTLP JSON lines, one `ExportLogsServiceRequest` a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// The file that is appended to.
    pub path: PathBuf,
    /// When it is rotated; none: never.
    pub rotation: Option<Rotation>,
}

/// A connected destination, as one runtime uses it; cheap to create and clone.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A file of OTLP JSON lines.
    File(FileDestination),
    /// An OTLP server.
    Otlp(OtlpDestination),
}

impl Destination {
    /// Delivers one batch in one attempt. Deliveries may run concurrently.
    ///
    /// If the returned future is dropped, the batch may or may not have been delivered.
    pub async fn deliver(&self, batch: Batch) -> Outcome {
        match self {
            Self::File(file) => file.deliver(batch).await,
            Self::Otlp(server) => server.deliver(batch).await,
        }
    }

    /// Whether a batch on its way takes its bytes once more, for what it is compressed to.
    #[must_use]
    pub fn compresses(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Otlp(server) => server.compresses(),
        }
    }

    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::File(file) => file.name(),
            Self::Otlp(server) => server.name(),
        }
    }
}

/// The configured destinations, shared by all threads: open files with their threads, read certificates and keys.
#[derive(Debug, Clone)]
pub struct Destinations {
    opened: Arc<[Opened]>,
}

#[derive(Debug)]
enum Opened {
    File(OpenFile),
    Otlp(Arc<OtlpServer>),
}

impl Destinations {
    /// Reads the TLS material and checks endpoints and headers. Connects nowhere, opens no file and starts no thread:
    /// that is [`Self::start`], which needs no privileges.
    ///
    /// # Errors
    /// The first thing that is wrong, by destination and path or key.
    pub fn open(configs: &[DestinationConfig]) -> Result<Self, Error> {
        let mut names = HashSet::new();
        let open = |config: &DestinationConfig| {
            if !names.insert(config.name.clone()) {
                return Err(Error::DuplicateName {
                    name: config.name.clone(),
                });
            }
            Ok(match &config.kind {
                DestinationKind::File(file) => Opened::File(OpenFile::new(&config.name, file)),
                DestinationKind::Otlp(otlp) => {
                    Opened::Otlp(Arc::new(OtlpServer::new(&config.name, otlp)?))
                }
            })
        };
        Ok(Self {
            opened: configs.iter().map(open).collect::<Result<_, _>>()?,
        })
    }

    /// Opens the files and starts their threads; before that, deliveries to files wait. Blocks on files.
    ///
    /// # Errors
    /// The first file that can't be opened, by destination and path; [`Error::Thread`].
    pub fn start(&self) -> Result<(), Error> {
        self.opened.iter().try_for_each(|opened| match opened {
            Opened::File(file) => file.start(),
            Opened::Otlp(_) => Ok(()),
        })
    }

    /// The destinations for one runtime (a worker, the replay thread), in the configured order. Servers are connected
    /// to by the first delivery.
    ///
    /// # Panics
    /// If called outside that runtime.
    #[must_use]
    pub fn connect(&self) -> Vec<Destination> {
        let connect = |opened: &Opened| match opened {
            Opened::File(file) => Destination::File(file.connect()),
            Opened::Otlp(server) => Destination::Otlp(OtlpServer::connect(server)),
        };
        self.opened.iter().map(connect).collect()
    }

    /// Closes the files: what waits is written and synced, later deliveries get [`Outcome::Retry`]. Blocks until then.
    pub fn close(&self) {
        for opened in &*self.opened {
            if let Opened::File(file) = opened {
                file.close();
            }
        }
    }
}

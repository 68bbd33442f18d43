//! What can be wrong with the configured destinations.

use std::{io, path::PathBuf};

use rustls_pki_types::pem;

/// A destination can't be opened as configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two destinations have the same name, which metrics and cursors go by.
    #[error("export destination `{name}`: another one has this name")]
    DuplicateName {
        /// The destination.
        name: String,
    },
    /// `otlp.endpoint` can't be used.
    #[error("export destination `{name}`: endpoint `{endpoint}`: {what}")]
    Endpoint {
        /// The destination.
        name: String,
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An entry of `otlp.headers` can't be sent.
    #[error("export destination `{name}`: header `{header}`: {what}")]
    Header {
        /// The destination.
        name: String,
        /// The header's name; values may be secret.
        header: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The variable that a header's value is in isn't set, or isn't text.
    #[error(
        "export destination `{name}`: header `{header}`: the variable {variable} isn't set, or isn't text"
    )]
    HeaderVariable {
        /// The destination.
        name: String,
        /// The header.
        header: String,
        /// The variable.
        variable: String,
    },
    /// The file that a header's value is in can't be read.
    #[error("export destination `{name}`: header `{header}`: {}: {source}", path.display())]
    HeaderFile {
        /// The destination.
        name: String,
        /// The header.
        header: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `otlp.proxy` can't be used.
    #[error("export destination `{name}`: proxy: {what}")]
    Proxy {
        /// The destination.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A certificate or key file can't be read.
    #[error("export destination `{name}`: {}: {source}", path.display())]
    Pem {
        /// The destination.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// A certificate, key or authority isn't usable.
    #[error("export destination `{name}`: TLS: {source}")]
    Tls {
        /// The destination.
        name: String,
        /// Why not.
        source: rustls::Error,
    },
    /// The system has no certificate authorities to verify servers by.
    #[error(
        "export destination `{name}`: the system has no certificate authorities (set otlp.tls.ca): {what}"
    )]
    SystemRoots {
        /// The destination.
        name: String,
        /// What reading them said.
        what: String,
    },
    /// `file.path` can't be opened, created or repaired.
    #[error("export destination `{name}`: {}: {source}", path.display())]
    File {
        /// The destination.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `file.path` is a directory, device or pipe: nothing that can be synced.
    #[error("export destination `{name}`: {}: not a regular file", path.display())]
    NotRegular {
        /// The destination.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Another destination or process appends to `file.path`.
    #[error(
        "export destination `{name}`: {}: locked by another destination or process that writes it", path.display()
    )]
    Locked {
        /// The destination.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// `file.path` ends in something that no destination wrote, so it isn't cut off.
    #[error(
        "export destination `{name}`: {}: its last line is neither complete nor OTLP JSON; move the file away", path.display()
    )]
    ForeignTail {
        /// The destination.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// The thread that writes a file can't be started.
    #[error("export destination `{name}`: can't start its thread: {source}")]
    Thread {
        /// The destination.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

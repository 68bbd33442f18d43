//! TLS 1.3 for the ingest listeners, with client certificates demanded by default.
//!
//! Certificates, key and authorities are one set, read from the files at once, whole or not at all.
//! [`reload`] swaps another one in while the daemon runs. Each set has its own memory of sessions: nobody
//! resumes one that was begun under an authority that is gone.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_rustls::TlsAcceptor;

use super::{ClientAuth, TlsConfig};
use crate::telemetry::counters::Protocol;

mod changes;
pub mod refused;
pub mod reload;

/// Why the listener's TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file can't be read or holds nothing fitting.
    #[error("{key}: {}: {source}", path.display())]
    Pem {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The certificates in a file can't be used.
    #[error("{key}: {}: {reason}", path.display())]
    Unusable {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Client certificates are demanded without an authority to verify them.
    #[error("ingest.tls.client_ca is missing, and ingest.tls.client_auth is required")]
    NoClientCa,
}

/// When the certificates of one file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The file, by the last part of its key: `cert` or `client_ca`.
    pub file: &'static str,
    /// When the first of its certificates ends, in seconds since 1970.
    pub not_after_unix_s: i64,
}

impl Expiry {
    /// Whether that is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        self.not_after_unix_s < now
    }
}

impl fmt::Display for Expiry {
    /// `cert until 2026-01-02T03:04:05Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = OffsetDateTime::from_unix_timestamp(self.not_after_unix_s).ok();
        match end.and_then(|end| end.format(&Rfc3339).ok()) {
            Some(end) => write!(f, "{} until {end}", self.file),
            // No certificate can say a later year than 9999.
            None => write!(f, "{} until Unix time {}", self.file, self.not_after_unix_s),
        }
    }
}

/// TLS of both listeners.
#[derive(Clone)]
pub struct Tls {
    grpc: TlsAcceptor,
    http: TlsAcceptor,
    expiries: Arc<[Expiry]>,
}

impl Tls {
    /// Reads the files. What has expired is taken all the same, with a warning: only those who connect
    /// can tell whether it matters to them.
    ///
    /// # Errors
    /// If a file can't be read or used, naming the configuration key and the path.
    pub fn load(config: &TlsConfig) -> Result<Self, Error> {
        let set = Set::read(config)?;
        let tls = Self {
            grpc: set.server_config(config, Protocol::Grpc)?.into(),
            http: set.server_config(config, Protocol::Http)?.into(),
            expiries: set.expiries(),
        };
        for expired in tls.expiries.iter().filter(|expiry| expiry.is_over()) {
            tracing::warn!(
                file = expired.file,
                not_after_unix_s = expired.not_after_unix_s,
                "ingest.tls: a certificate has expired"
            );
        }
        Ok(tls)
    }

    /// Of the listener that serves `protocol`.
    #[must_use]
    pub const fn acceptor(&self, protocol: Protocol) -> &TlsAcceptor {
        match protocol {
            Protocol::Grpc => &self.grpc,
            Protocol::Http => &self.http,
        }
    }

    /// When the certificates end, by file.
    #[must_use]
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }
}

/// What the files hold.
struct Set {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Vec<CertificateDer<'static>>,
}

impl Set {
    fn read(config: &TlsConfig) -> Result<Self, Error> {
        let chain = certificates(CERT, &config.cert)?;
        let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|source| Error::Pem {
            key: "ingest.tls.key",
            path: config.key.clone(),
            source,
        })?;
        let authorities = match config.client_auth {
            ClientAuth::None => Vec::new(),
            ClientAuth::Required => certificates(CLIENT_CA, client_ca(config)?)?,
        };
        Ok(Self {
            chain,
            key,
            authorities,
        })
    }

    /// The configuration of the listener that serves `protocol`.
    fn server_config(
        &self,
        config: &TlsConfig,
        protocol: Protocol,
    ) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let unusable = |reason: rustls::Error| Error::Unusable {
            key: CERT,
            path: config.cert.clone(),
            reason: match reason {
                rustls::Error::InconsistentKeys(_) => {
                    format!("{} is not its key", config.key.display())
                }
                reason => reason.to_string(),
            },
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?;
        let builder = match config.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::Required => {
                let path = client_ca(config)?;
                let roots = Arc::new(self.roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|reason| Error::Unusable {
                        key: CLIENT_CA,
                        path: path.to_owned(),
                        reason: reason.to_string(),
                    })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut server = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = match protocol {
            Protocol::Grpc => vec![b"h2".to_vec()],
            Protocol::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(Arc::new(server))
    }

    fn roots(&self, path: &Path) -> Result<RootCertStore, Error> {
        let mut store = RootCertStore::empty();
        for certificate in &self.authorities {
            let added = store.add(certificate.clone());
            added.map_err(|reason| Error::Unusable {
                key: CLIENT_CA,
                path: path.to_owned(),
                reason: reason.to_string(),
            })?;
        }
        Ok(store)
    }

    fn expiries(&self) -> Arc<[Expiry]> {
        let files = [("cert", &self.chain), ("client_ca", &self.authorities)];
        let first = |(file, certificates): (_, &Vec<CertificateDer<'_>>)| {
            let not_after_unix_s = certificates.iter().filter_map(not_after_unix_s).min()?;
            Some(Expiry {
                file,
                not_after_unix_s,
            })
        };
        files.into_iter().filter_map(first).collect()
    }
}

const CERT: &str = "ingest.tls.cert";
const CLIENT_CA: &str = "ingest.tls.client_ca";

fn client_ca(config: &TlsConfig) -> Result<&Path, Error> {
    config.client_ca.as_deref().ok_or(Error::NoClientCa)
}

/// `None` for what this parser can't read though the handshake's could.
fn not_after_unix_s(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |source| Error::Pem {
        key,
        path: path.to_owned(),
        source,
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(error)?
        .collect::<Result<_, _>>()
        .map_err(error)?;
    if chain.is_empty() {
        return Err(error(pem::Error::NoItemsFound));
    }
    Ok(chain)
}

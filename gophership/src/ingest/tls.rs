//! TLS 1.3 for the ingest listeners, with client certificates demanded by default.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};
use tokio_rustls::TlsAcceptor;

use super::{ClientAuth, TlsConfig};
use crate::telemetry::counters::Protocol;

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

/// TLS of both listeners.
#[derive(Clone)]
pub struct Tls {
    grpc: TlsAcceptor,
    http: TlsAcceptor,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If a file can't be read or used, naming the configuration key and the path.
    pub fn load(config: &TlsConfig) -> Result<Self, Error> {
        Ok(Self {
            grpc: server_config(config, Protocol::Grpc)?.into(),
            http: server_config(config, Protocol::Http)?.into(),
        })
    }

    /// Of the listener that serves `protocol`.
    #[must_use]
    pub const fn acceptor(&self, protocol: Protocol) -> &TlsAcceptor {
        match protocol {
            Protocol::Grpc => &self.grpc,
            Protocol::Http => &self.http,
        }
    }
}

/// Reads the files and builds the configuration of the listener that serves `protocol`.
///
/// # Errors
/// If a file can't be read or used, naming the configuration key and the path.
fn server_config(config: &TlsConfig, protocol: Protocol) -> Result<Arc<ServerConfig>, Error> {
    let cert_key = "ingest.tls.cert";
    let chain = certificates(cert_key, &config.cert)?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|source| Error::Pem {
        key: "ingest.tls.key",
        path: config.key.clone(),
        source,
    })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let unusable = |reason: rustls::Error| Error::Unusable {
        key: cert_key,
        path: config.cert.clone(),
        reason: reason.to_string(),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?;
    let builder = match config.client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Required => {
            let path = config.client_ca.as_deref().ok_or(Error::NoClientCa)?;
            let roots = Arc::new(roots("ingest.tls.client_ca", path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|reason| Error::Unusable {
                    key: "ingest.tls.client_ca",
                    path: path.to_owned(),
                    reason: reason.to_string(),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_single_cert(chain, key).map_err(unusable)?;
    server.alpn_protocols = match protocol {
        Protocol::Grpc => vec![b"h2".to_vec()],
        Protocol::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(Arc::new(server))
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

fn roots(key: &'static str, path: &Path) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(key, path)? {
        store.add(certificate).map_err(|reason| Error::Unusable {
            key,
            path: path.to_owned(),
            reason: reason.to_string(),
        })?;
    }
    Ok(store)
}

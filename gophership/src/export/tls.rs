//! TLS towards destinations: 1.3 only, verified by the configured authorities or the system's.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use super::{Error, OtlpConfig, Protocol};

/// Reads and checks everything that connections need; done once, not at each connection.
///
/// # Errors
/// [`Error::Pem`], [`Error::Tls`] and [`Error::SystemRoots`].
pub(super) fn client_config(name: &str, config: &OtlpConfig) -> Result<Arc<ClientConfig>, Error> {
    let tls = |source| Error::Tls {
        name: name.to_owned(),
        source,
    };
    let roots = match &config.ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(name, path)? {
                roots.add(certificate).map_err(tls)?;
            }
            roots
        }
        None => system_roots(name)?,
    };
    // The provider is named here: a process-wide default could be another one, or none.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_root_certificates(roots);
    let mut client = match &config.identity {
        Some((certificate, key)) => {
            let chain = certificates(name, certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(pem_error(name, key))?;
            builder.with_client_auth_cert(chain, key).map_err(tls)?
        }
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = match config.protocol {
        Protocol::Grpc => vec![b"h2".to_vec()],
        Protocol::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(Arc::new(client))
}

fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = pem_error(name, path);
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(&error)?;
    if certificates.is_empty() {
        return Err(error(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn pem_error(name: &str, path: &Path) -> impl Fn(pem::Error) -> Error {
    move |source| Error::Pem {
        name: name.to_owned(),
        path: path.to_owned(),
        source,
    }
}

/// The authorities the system's other programs trust; `SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured.
fn system_roots(name: &str) -> Result<RootCertStore, Error> {
    let native = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry old authorities that rustls can't parse; the others count.
    let (usable, _unparsable) = roots.add_parsable_certificates(native.certs);
    if usable == 0 {
        let what = match native.errors.first() {
            Some(error) => error.to_string(),
            None => "none found".to_owned(),
        };
        return Err(Error::SystemRoots {
            name: name.to_owned(),
            what,
        });
    }
    Ok(roots)
}

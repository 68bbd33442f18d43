//! Certificates as a user makes them: by `gs-ctl certs init`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Path of the operator's command.
pub(crate) const GS_CTL: &str = env!("CARGO_BIN_EXE_gs-ctl");

/// A directory with a CA, a server and a client certificate, all valid for `localhost`.
#[derive(Debug, Clone)]
pub(crate) struct Certs {
    dir: PathBuf,
}

/// Whether a client shows its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientIdentity {
    /// mTLS.
    Shown,
    /// The server alone is authenticated.
    None,
}

impl Certs {
    /// Makes them in `dir`.
    pub(crate) fn init(dir: &Path) -> Self {
        let mut command = Command::new(GS_CTL);
        command.args(["certs", "init", "--dir"]).arg(dir);
        command.args(["--host", "localhost", "--host", "127.0.0.1"]);
        super::process::run(&mut command, Duration::from_secs(60)).expect_success();
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Takes the files of a directory that has them already.
    pub(crate) fn existing(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Path of one of `ca.pem server.pem server.key client.pem client.key`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A producer's TLS for HTTP/2, restricted to `versions`.
    pub(crate) fn client(
        &self,
        identity: ClientIdentity,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("the provider has these TLS versions")
            .with_root_certificates(self.roots());
        let mut config = match identity {
            ClientIdentity::Shown => builder
                .with_client_auth_cert(self.chain("client.pem"), self.key("client.key"))
                .expect("the client's certificate and key belong together"),
            ClientIdentity::None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// A sink's TLS for HTTP/2, which demands a client certificate.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider())
                .build()
                .expect("a verifier from the CA");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default TLS versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain("server.pem"), self.key("server.key"))
            .expect("the server's certificate and key belong together");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for certificate in self.chain("ca.pem") {
            roots.add(certificate).expect("ca.pem holds a CA");
        }
        roots
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(self.path(name))
            .and_then(Iterator::collect)
            .unwrap_or_else(|e| panic!("{} doesn't read as PEM: {e}", self.path(name).display()))
    }

    fn key(&self, name: &str) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.path(name))
            .unwrap_or_else(|e| panic!("{} doesn't read as PEM: {e}", self.path(name).display()))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

//! A certificate authority of the tests' own, for what `gs-ctl certs init` never makes, and clients of its making.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, HandshakeKind, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use time::OffsetDateTime;

/// Longest wait for the server's side of a handshake.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A server called `localhost`.
    Server,
    /// A client.
    Client,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub(crate) pem: String,
}

/// From so many hours from now to so many, either of which may be past.
pub(crate) type Hours = std::ops::Range<i64>;

/// Valid now.
pub(crate) const NOW: Hours = -1..240;

fn params(name: &str, hosts: &[String], valid: &Hours) -> CertificateParams {
    let mut params = CertificateParams::new(hosts).expect("valid names");
    // Whole seconds: a certificate has no others.
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let at = |hours: i64| OffsetDateTime::from_unix_timestamp(now + hours * 3600);
    params.not_before = at(valid.start).expect("a date");
    params.not_after = at(valid.end).expect("a date");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

impl Authority {
    /// A new one. All of them have the same name, as those of `gs-ctl certs init` have.
    pub(crate) fn new() -> Self {
        Self::valid(&NOW)
    }

    /// A new one, valid then.
    pub(crate) fn valid(valid: &Hours) -> Self {
        let mut params = params("Test CA", &[], valid);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key();
        let pem = params.self_signed(&key).expect("signed").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A new certificate of its.
    pub(crate) fn issue(&self, role: Role, valid: &Hours) -> Pair {
        let (name, hosts, purpose) = match role {
            Role::Server => (
                "server",
                vec!["localhost".to_owned()],
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            Role::Client => ("client", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth),
        };
        let mut params = params(name, &hosts, valid);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = new_key();
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    /// A client that trusts this authority and shows `identity`, with all that TLS 1.3 has.
    pub(crate) fn client(&self, identity: Option<&Pair>) -> Arc<ClientConfig> {
        self.client_of(aws_lc_rs::default_provider(), identity)
    }

    /// As [`Self::client`], with the suites of `provider`.
    pub(crate) fn client_of(
        &self,
        provider: CryptoProvider,
        identity: Option<&Pair>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.pem)).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let mut config = match identity {
            Some(pair) => {
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
                let chain = vec![certificate(&pair.cert)];
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// The certificate of a PEM text.
pub(crate) fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// What a client saw of a handshake after which it was served.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The server's certificate.
    pub(crate) certificate: CertificateDer<'static>,
    /// What was agreed on.
    pub(crate) suite: CipherSuite,
    /// In full, or resumed.
    pub(crate) kind: HandshakeKind,
}

/// Connects, and waits until the server speaks HTTP/2: in TLS 1.3 a client has done its part before the server has
/// judged its certificate.
pub(crate) fn handshake(address: SocketAddr, tls: &Arc<ClientConfig>) -> Result<Seen, String> {
    let text = |error: std::io::Error| error.to_string();
    let name = ServerName::try_from("localhost").expect("a valid name");
    let mut connection =
        ClientConnection::new(Arc::clone(tls), name).map_err(|error| error.to_string())?;
    let mut socket = TcpStream::connect(address).map_err(text)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN)).map_err(text)?;
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    // The preface, and empty SETTINGS.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).map_err(text)?;
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).map_err(text)?;
    let seen = Seen {
        certificate: connection.peer_certificates().expect("a certificate")[0]
            .clone()
            .into_owned(),
        suite: connection.negotiated_cipher_suite().expect("one").suite(),
        kind: connection.handshake_kind().expect("done"),
    };
    Ok(seen)
}

//! A private certificate authority for one installation: CA, server and client, ECDSA P-256.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{extensions::GeneralName, pem::Pem};

/// Validity of the CA.
const CA_DAYS: i64 = 3650;
/// Validity of server and client.
const LEAF_DAYS: i64 = 730;
/// Clocks of the machines that check the certificates may be behind.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Certificates can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is there already; nothing was written.
    #[error("{} exists; nothing is overwritten and nothing was written", path.display())]
    Exists {
        /// It.
        path: PathBuf,
    },
    /// A host is neither a DNS name nor an IP address.
    #[error("{host:?} is neither a DNS name nor an IP address")]
    Host {
        /// It.
        host: String,
    },
    /// No host was named.
    #[error("a server certificate needs at least one host")]
    NoHost,
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// It.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds no certificate that can be read.
    #[error("{}: {reason}", path.display())]
    NotACertificate {
        /// It.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Keys or certificates can't be generated.
    #[error("cannot generate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// One certificate, as people want to see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    /// Whom it names.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// DNS names and IP addresses it is good for.
    pub hosts: Vec<String>,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// Whether now is between the two.
    pub valid_now: bool,
}

/// Writes `ca.pem ca.key server.pem server.key client.pem client.key` into `dir`, which is made if
/// absent; the server is good for `hosts` (DNS names or IP addresses). Keys have mode 0600.
///
/// # Errors
/// If any of the files exists: then none is written. If a host isn't one, or writing fails: then
/// what was written is removed.
pub fn init(dir: &Path, hosts: &[String]) -> Result<Vec<PathBuf>, Error> {
    check_hosts(hosts)?;
    let names = ["ca", "server", "client"];
    let paths = names.map(|name| {
        let path = |extension| dir.join(format!("{name}.{extension}"));
        (path("pem"), path("key"))
    });
    for path in paths.iter().flat_map(|(cert, key)| [cert, key]) {
        // Also a dangling link is something: `exists` would follow it.
        if fs::symlink_metadata(path).is_ok() {
            let path = path.clone();
            return Err(Error::Exists { path });
        }
    }
    let pairs = generate(hosts)?;
    fs::create_dir_all(dir).map_err(|source| file_error(dir, source))?;
    let mut written = Vec::new();
    for ((cert_path, key_path), (cert, key)) in paths.iter().zip(&pairs) {
        let result = write_new(key_path, key, 0o600, &mut written)
            .and_then(|()| write_new(cert_path, cert, 0o644, &mut written));
        if let Err(error) = result {
            for path in &written {
                // Best effort: the error that matters is the one that brought us here.
                drop(fs::remove_file(path));
            }
            return Err(error);
        }
    }
    Ok(paths
        .into_iter()
        .flat_map(|(cert, key)| [cert, key])
        .collect())
}

/// Reads every certificate in a PEM file.
///
/// # Errors
/// If there is none, or one can't be read.
pub fn show(path: &Path) -> Result<Vec<Shown>, Error> {
    let text = fs::read(path).map_err(|source| file_error(path, source))?;
    let unreadable = |reason: String| Error::NotACertificate {
        path: path.to_owned(),
        reason,
    };
    let mut shown = Vec::new();
    for block in Pem::iter_from_buffer(&text) {
        let block = block.map_err(|error| unreadable(error.to_string()))?;
        if block.label == "CERTIFICATE" {
            shown.push(describe(&block).map_err(unreadable)?);
        }
    }
    if shown.is_empty() {
        return Err(unreadable("no certificate in it".to_owned()));
    }
    Ok(shown)
}

fn check_hosts(hosts: &[String]) -> Result<(), Error> {
    if hosts.is_empty() {
        return Err(Error::NoHost);
    }
    for host in hosts {
        if rustls_pki_types::ServerName::try_from(host.as_str()).is_err() {
            let host = host.clone();
            return Err(Error::Host { host });
        }
    }
    Ok(())
}

/// PEM of certificate and key of CA, server and client.
fn generate(hosts: &[String]) -> Result<[(String, String); 3], Error> {
    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params("GopherShip CA", CA_DAYS, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = params.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(params, ca_key);
    let server = leaf(
        &issuer,
        "GopherShip server",
        hosts,
        ExtendedKeyUsagePurpose::ServerAuth,
    )?;
    let client = leaf(
        &issuer,
        "GopherShip client",
        &[],
        ExtendedKeyUsagePurpose::ClientAuth,
    )?;
    Ok([(ca, issuer.key().serialize_pem()), server, client])
}

fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    hosts: &[String],
    purpose: ExtendedKeyUsagePurpose,
) -> Result<(String, String), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(name, LEAF_DAYS, hosts)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn params(name: &str, days: i64, hosts: &[String]) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(hosts)?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(days);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// Creates `path`, which must not exist, with its content on stable storage.
fn write_new(path: &Path, text: &str, mode: u32, written: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(path);
    let mut file: File = opened.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists {
            path: path.to_owned(),
        },
        _ => file_error(path, source),
    })?;
    written.push(path.to_owned());
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        source,
    }
}

fn describe(block: &Pem) -> Result<Shown, String> {
    let certificate = block.parse_x509().map_err(|error| error.to_string())?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let validity = certificate.validity();
    let time = |time: OffsetDateTime| time.format(&Rfc3339).map_err(|error| error.to_string());
    Ok(Shown {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        hosts: names.iter().map(host).collect(),
        is_ca: certificate.is_ca(),
        not_before: time(validity.not_before.to_datetime())?,
        not_after: time(validity.not_after.to_datetime())?,
        valid_now: validity.is_valid(),
    })
}

fn host(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => {
            match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => IpAddr::from(v4).to_string(),
                (_, Ok(v6)) => IpAddr::from(v6).to_string(),
                _ => format!("{bytes:02x?}"),
            }
        }
        other => other.to_string(),
    }
}

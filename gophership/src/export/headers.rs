//! What goes into the head of every request to a server.

use std::{
    env, fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Compression, Error, OtlpConfig, Protocol};

/// Longest value that is read from a file; servers allow less.
const VALUE_BYTES_MAX: u64 = 16 << 10;

/// Where the value of a header comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum HeaderSource {
    /// The configuration.
    Value(String),
    /// This variable of the environment.
    Variable(String),
    /// This file, less the line break at its end.
    File(PathBuf),
}

/// Without the value, which may be a secret.
impl fmt::Debug for HeaderSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(…)"),
            Self::Variable(name) => f.debug_tuple("Variable").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// The protocol's headers and the configured ones.
pub(super) fn headers(name: &str, config: &OtlpConfig) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (header, source) in &config.headers {
        let key = key(name, header, config.protocol)?;
        let mut value = HeaderValue::try_from(value(name, header, source)?).map_err(|_| {
            wrong(
                name,
                header,
                "its value has characters that a header can't hold",
            )
        })?;
        // Tokens: kept out of HPACK's tables and of debug output.
        value.set_sensitive(true);
        headers.append(key, value);
    }
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("gophership/", env!("CARGO_PKG_VERSION"))),
    );
    match config.protocol {
        Protocol::Grpc => grpc(&mut headers, config),
        Protocol::Http => {
            let protobuf = HeaderValue::from_static("application/x-protobuf");
            headers.insert(header::CONTENT_TYPE, protobuf);
        }
    }
    Ok(headers)
}

fn grpc(headers: &mut HeaderMap, config: &OtlpConfig) {
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    // The unit with the widest range that 8 digits may need: a day has 86,400,000 ms.
    let millis = config.timeout.as_millis().clamp(1, 99_999_999);
    let limit = HeaderValue::from_str(&format!("{millis}m"));
    if let Ok(limit) = limit {
        headers.insert("grpc-timeout", limit);
    }
}

/// The name of the encoding of a compressed message, and the header that tells it.
pub(super) fn encoding(
    protocol: Protocol,
    compression: Compression,
) -> Option<(HeaderName, HeaderValue)> {
    let name = match compression {
        Compression::None => return None,
        Compression::Gzip => HeaderValue::from_static("gzip"),
        Compression::Zstd => HeaderValue::from_static("zstd"),
    };
    let header = match protocol {
        Protocol::Grpc => HeaderName::from_static("grpc-encoding"),
        Protocol::Http => header::CONTENT_ENCODING,
    };
    Some((header, name))
}

fn key(name: &str, header: &str, protocol: Protocol) -> Result<HeaderName, Error> {
    let key: HeaderName = header
        .parse()
        .map_err(|_| wrong(name, header, "not a header name"))?;
    let reserved = [
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::HOST,
        header::TE,
        header::TRANSFER_ENCODING,
        header::USER_AGENT,
    ];
    let is_reserved = reserved.contains(&key);
    match protocol {
        Protocol::Grpc if is_reserved || key.as_str().starts_with("grpc-") => {
            Err(wrong(name, header, "set by gRPC itself"))
        }
        Protocol::Grpc if key.as_str().ends_with("-bin") => Err(wrong(
            name,
            header,
            "binary metadata (-bin) is not supported",
        )),
        Protocol::Http if is_reserved => Err(wrong(name, header, "set by HTTP itself")),
        Protocol::Grpc | Protocol::Http => Ok(key),
    }
}

fn value(name: &str, header: &str, source: &HeaderSource) -> Result<String, Error> {
    match source {
        HeaderSource::Value(value) => Ok(value.clone()),
        HeaderSource::Variable(variable) => env::var(variable).map_err(|_| Error::HeaderVariable {
            name: name.to_owned(),
            header: header.to_owned(),
            variable: variable.clone(),
        }),
        HeaderSource::File(path) => read(path).map_err(|source| Error::HeaderFile {
            name: name.to_owned(),
            header: header.to_owned(),
            path: path.clone(),
            source,
        }),
    }
}

fn read(path: &Path) -> io::Result<String> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut value = String::new();
    let mut file = File::open(path)?.take(VALUE_BYTES_MAX + 1);
    file.read_to_string(&mut value)?;
    if value.len() as u64 > VALUE_BYTES_MAX {
        return Err(io::Error::other("larger than 16 KiB"));
    }
    value.truncate(value.trim_end_matches(['\r', '\n']).len());
    Ok(value)
}

fn wrong(name: &str, header: &str, what: &'static str) -> Error {
    Error::Header {
        name: name.to_owned(),
        header: header.to_owned(),
        what,
    }
}

//! `export.destinations`: one or more, each an OTLP server or a file.

use std::path::{Path, PathBuf};

use super::{
    schema,
    settings::{Settings, at_index},
};
use crate::export::{
    DestinationConfig, DestinationKind, FileConfig, OtlpConfig, Protocol, Retry, Rotation,
    is_name_of_rotated,
};

const LIST: &str = "export.destinations";
/// An entry's bitmask of the destinations it is owed to has this many bits.
const DESTINATIONS_MAX: usize = 32;

/// Every destination; None if a problem is noted.
pub(super) fn all(s: &mut Settings) -> Option<Vec<DestinationConfig>> {
    let count = s.items(LIST);
    if count == 0 {
        let why = "logs must go to at least one destination: an otlp server or a file";
        s.missing(LIST.to_owned(), why);
    }
    if count > DESTINATIONS_MAX {
        let message =
            format!("{LIST} has {count} destinations, but at most {DESTINATIONS_MAX} are possible");
        s.conflict(&[LIST], message);
    }
    let found: Vec<_> = (0..count).map(|index| one(s, index)).collect();
    check_unique(s, &found);
    found.into_iter().collect()
}

fn one(s: &mut Settings, index: usize) -> Option<DestinationConfig> {
    let name = s.get_at(&schema::DESTINATION_NAME, index);
    let here = format!("{LIST}[{index}]");
    let is_otlp = s.has(&format!("{here}.otlp"));
    let is_file = s.has(&format!("{here}.file"));
    let kind = match (is_otlp, is_file) {
        (true, false) => otlp(s, index).map(DestinationKind::Otlp),
        (false, true) => file(s, index).map(DestinationKind::File),
        (true, true) => {
            let message = format!("{here}.otlp and {here}.file exclude each other");
            s.conflict(&[&here], message);
            None
        }
        (false, false) => {
            s.missing(here, "what it is: either otlp or file");
            None
        }
    };
    Some(DestinationConfig {
        name: name?,
        kind: kind?,
    })
}

fn otlp(s: &mut Settings, index: usize) -> Option<OtlpConfig> {
    let endpoints = endpoints(s, index);
    let balance = s.get_at(&schema::OTLP_BALANCE, index);
    let resolve_every = s.get_at(&schema::OTLP_RESOLVE_EVERY, index);
    let timeout = s.get_at(&schema::OTLP_TIMEOUT, index);
    let protocol = s.get_at(&schema::OTLP_PROTOCOL, index);
    let compression = s.get_at(&schema::OTLP_COMPRESSION, index);
    let headers = s.get_at(&schema::OTLP_HEADERS, index);
    let proxy = s.get_at(&schema::OTLP_PROXY, index);
    let retry = retry(s, index);
    let ca = s.get_at(&schema::OTLP_TLS_CA, index);
    let cert = s.get_at(&schema::OTLP_TLS_CERT, index);
    let key = s.get_at(&schema::OTLP_TLS_KEY, index);
    let insecure = s.get_at(&schema::OTLP_TLS_INSECURE, index);
    for endpoint in endpoints.iter().flatten() {
        if let Some(insecure) = insecure {
            let tls_files = ca.is_some() || cert.is_some() || key.is_some();
            check_scheme(s, index, endpoint, insecure, tls_files);
        }
        if let Some(protocol) = protocol {
            check_path(s, index, endpoint, protocol);
        }
    }
    let identity = identity(s, index, cert, key);
    Some(OtlpConfig {
        endpoints: endpoints?,
        balance: balance?,
        resolve_every: resolve_every?,
        protocol: protocol?,
        compression: compression?,
        timeout: timeout?,
        headers: headers?,
        ca,
        identity,
        insecure: insecure?,
        retry: retry?,
        proxy,
    })
}

fn endpoints(s: &mut Settings, index: usize) -> Option<Vec<String>> {
    let several_path = at_index(schema::OTLP_ENDPOINTS.entry.path, index);
    if !s.has(&several_path) && !s.is_broken(&several_path) {
        return required(s, &schema::OTLP_ENDPOINT, index).map(|endpoint| vec![endpoint]);
    }
    let one_path = at_index(schema::OTLP_ENDPOINT.entry.path, index);
    if s.has(&one_path) {
        let message = format!("{one_path} and {several_path} exclude each other");
        s.conflict(&[&one_path, &several_path], message);
    }
    s.get_at(&schema::OTLP_ENDPOINTS, index)
}

fn retry(s: &mut Settings, index: usize) -> Option<Retry> {
    let initial = s.get_at(&schema::OTLP_RETRY_INITIAL, index);
    let max = s.get_at(&schema::OTLP_RETRY_MAX, index);
    let multiplier = s.get_at(&schema::OTLP_RETRY_MULTIPLIER, index);
    let jitter = s.get_at(&schema::OTLP_RETRY_JITTER, index);
    let (initial, max) = (initial?, max?);
    if initial > max {
        let initial_path = at_index(schema::OTLP_RETRY_INITIAL.entry.path, index);
        let max_path = at_index(schema::OTLP_RETRY_MAX.entry.path, index);
        let message = format!("{initial_path} = {initial:?} is more than {max_path} = {max:?}");
        s.conflict(&[&initial_path, &max_path], message);
    }
    Some(Retry {
        initial,
        max,
        multiplier_permille: multiplier?,
        jitter_permille: jitter?,
    })
}

fn file(s: &mut Settings, index: usize) -> Option<FileConfig> {
    let path = required(s, &schema::FILE_PATH, index);
    let bytes = s.get_at(&schema::FILE_ROTATE_BYTES, index);
    let keep = s.get_at(&schema::FILE_KEEP, index);
    let format = s.get_at(&schema::FILE_FORMAT, index);
    let (path, bytes, keep, ()) = (path?, bytes?, keep?, format?);
    Some(FileConfig {
        path,
        rotation: bytes.map(|bytes| Rotation { bytes, keep }),
    })
}

/// A key that its kind of destination can't do without.
fn required<F: super::formats::Format>(
    s: &mut Settings,
    key: &schema::Key<F>,
    index: usize,
) -> Option<F::Value> {
    let value = s.get_at(key, index);
    if value.is_none() {
        let path = at_index(key.entry.path, index);
        s.missing(path, key.entry.doc);
    }
    value
}

/// Where an endpoint is written: by itself or in a list.
fn endpoint_path(s: &Settings, index: usize) -> String {
    let several = at_index(schema::OTLP_ENDPOINTS.entry.path, index);
    match s.has(&several) {
        true => several,
        false => at_index(schema::OTLP_ENDPOINT.entry.path, index),
    }
}

fn check_scheme(s: &mut Settings, index: usize, endpoint: &str, insecure: bool, tls_files: bool) {
    let path = endpoint_path(s, index);
    let switch = at_index(schema::OTLP_TLS_INSECURE.entry.path, index);
    let plaintext = endpoint.starts_with("http://");
    let message = match (plaintext, insecure) {
        (true, false) => format!("{path} = {endpoint} is plaintext, and {switch} = false"),
        (false, true) => {
            format!("{switch} = true allows plaintext, but {path} = {endpoint} is TLS: drop one")
        }
        (true, true) if tls_files => {
            format!("{path} = {endpoint} is plaintext, so tls.ca, tls.cert and tls.key are unused")
        }
        (true, true) | (false, false) => return,
    };
    s.conflict(&[&path, &switch], message);
}

fn check_path(s: &mut Settings, index: usize, endpoint: &str, protocol: Protocol) {
    let has_path = |uri: http::Uri| !matches!(uri.path(), "" | "/");
    if protocol == Protocol::Grpc && endpoint.parse().is_ok_and(has_path) {
        let path = endpoint_path(s, index);
        let switch = at_index(schema::OTLP_PROTOCOL.entry.path, index);
        let message = format!("{path} = {endpoint} has a path, and {switch} = grpc has none");
        s.conflict(&[&path, &switch], message);
    }
}

fn identity(
    s: &mut Settings,
    index: usize,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Option<(PathBuf, PathBuf)> {
    let cert_path = at_index(schema::OTLP_TLS_CERT.entry.path, index);
    let key_path = at_index(schema::OTLP_TLS_KEY.entry.path, index);
    match (cert, key) {
        (Some(cert), Some(key)) => return Some((cert, key)),
        (None, None) => {}
        (Some(cert), None) => {
            let message = format!("{cert_path} = {} needs {key_path}", cert.display());
            s.conflict(&[&cert_path], message);
        }
        (None, Some(key)) => {
            let message = format!("{key_path} = {} needs {cert_path}", key.display());
            s.conflict(&[&key_path], message);
        }
    }
    None
}

/// Names are cursors and metric labels; two writers to one file would mix their lines, or rename it under each other.
fn check_unique(s: &mut Settings, found: &[Option<DestinationConfig>]) {
    let present = || {
        found
            .iter()
            .enumerate()
            .filter_map(|(i, d)| Some((i, d.as_ref()?)))
    };
    for (index, destination) in present() {
        let earlier = || present().take_while(|(before, _)| *before < index);
        let name_key = at_index(schema::DESTINATION_NAME.entry.path, index);
        if let Some((first, _)) = earlier().find(|(_, other)| other.name == destination.name) {
            let message = format!(
                "{name_key} = {0} is the name of {LIST}[{first}] too",
                destination.name
            );
            s.conflict(&[&name_key], message);
        }
        let DestinationKind::File(file) = &destination.kind else {
            continue;
        };
        for (first, other) in earlier() {
            if let DestinationKind::File(other) = &other.kind
                && let Some(fault) = clash(file, other)
            {
                let path_key = at_index(schema::FILE_PATH.entry.path, index);
                let message = format!(
                    "{path_key} = {} {fault} {LIST}[{first}]",
                    file.path.display()
                );
                s.conflict(&[&path_key], message);
                break;
            }
        }
    }
}

/// What a file is to another one that it can't be beside.
fn clash(file: &FileConfig, other: &FileConfig) -> Option<&'static str> {
    let (path, of) = (place(&file.path), place(&other.path));
    if path == of {
        return Some("is also the file of");
    }
    if other.rotation.is_some() && is_name_of_rotated(&path, &of) {
        return Some("is a name that rotation gives to a file of");
    }
    (file.rotation.is_some() && is_name_of_rotated(&of, &path))
        .then_some("would be rotated to the name of")
}

/// The file that a path leads to, as far as that can be told before the file is there.
fn place(path: &Path) -> PathBuf {
    let of_missing = || {
        let path = std::path::absolute(path).ok()?;
        let directory = path.parent()?.canonicalize();
        Some(match directory {
            Ok(directory) => directory.join(path.file_name()?),
            Err(_) => path,
        })
    };
    path.canonicalize()
        .ok()
        .or_else(of_missing)
        .unwrap_or_else(|| path.to_owned())
}

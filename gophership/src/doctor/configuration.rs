//! The configuration: whether it is valid, its addresses free, and its certificates good.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    path::Path,
};

use nix::net::if_::if_nametoindex;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::net::TcpSocket;

use super::Check;
use crate::{
    app, config,
    control::certs,
    export::DestinationKind,
    ingest::tls::Tls,
    pressure::{self, KernelMode, missing_network_capability},
};

/// Certificates that expire sooner are warned about.
const EXPIRY_NOTICE: Duration = Duration::days(30);

pub(super) fn check(config: &Result<app::Config, config::Errors>) -> Vec<Check> {
    let name = "config.valid";
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            let remedy = "see README.md for the keys; `gophership config check` lists the same problems by line";
            return vec![Check::failed(name, errors.to_string(), remedy)];
        }
    };
    let from = match &config.file {
        Some(read) => read.display().to_string(),
        None => "built-in defaults and the environment".to_owned(),
    };
    let mut checks = vec![Check::ok(name, from)];
    checks.push(address(
        "config.ingest.grpc.listen",
        config.ingest.grpc_listen,
    ));
    checks.push(address(
        "config.ingest.http.listen",
        config.ingest.http_listen,
    ));
    checks.push(address("config.telemetry.listen", config.telemetry.listen));
    checks.push(interfaces(&config.pressure));
    checks.push(ingest_tls(config));
    checks.extend(certificates(config));
    checks
}

fn address(name: &str, address: SocketAddr) -> Check {
    match bind(address) {
        Ok(()) => Check::ok(name, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Check::warning(
            name,
            format!("{address} is in use"),
            "fine if that is the daemon; else stop what listens there, or choose another port",
        ),
        Err(error) => Check::failed(
            name,
            format!("{address}: {error}"),
            "choose an address of this machine; ports below 1024 need root or CAP_NET_BIND_SERVICE at start",
        ),
    }
}

/// As the daemon does, but without listening: no producer is to be accepted by a check.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

/// Whether the interfaces to meter are there, as the daemon asks at its start.
fn interfaces(pressure: &pressure::Config) -> Check {
    let name = "config.xdp.interface";
    let wanted = &pressure.xdp.interfaces;
    let is_missing = |wanted: &&String| if_nametoindex(wanted.as_str()).is_err();
    let missing: Vec<_> = wanted.iter().filter(is_missing).cloned().collect();
    if wanted.is_empty() {
        return Check::not_applicable(name, "no interface is metered");
    }
    if !missing.is_empty() {
        return Check::failed(
            name,
            format!("not here: {}", missing.join(", ")),
            "name interfaces that `ip link` shows, or leave xdp.interface out",
        );
    }
    let lacking = missing_network_capability();
    match (pressure.kernel, lacking) {
        (KernelMode::Off, _) => Check::warning(
            name,
            "neither metered nor guarded: pressure.kernel is off",
            "set pressure.kernel to auto, or leave xdp.interface out",
        ),
        (KernelMode::Auto | KernelMode::Required, Some(lacking)) => Check::warning(
            name,
            format!("neither metered nor guarded without {lacking}"),
            format!("start as root, or with {lacking}"),
        ),
        (KernelMode::Auto | KernelMode::Required, None) => {
            Check::ok(name, format!("here: {}", wanted.join(", ")))
        }
    }
}

/// Certificate, key and authority, read as the daemon reads them.
fn ingest_tls(config: &app::Config) -> Check {
    let name = "config.ingest.tls";
    let Some(tls) = &config.ingest.tls else {
        return Check::not_applicable(name, "plaintext, on loopback addresses");
    };
    match Tls::load(tls) {
        Ok(_) => Check::ok(name, "certificate, key and client_ca go together"),
        Err(error) => Check::failed(
            name,
            error.to_string(),
            "let the user who starts the daemon read them; `gs-ctl certs init` makes a set",
        ),
    }
}

/// The dates of every certificate the configuration names.
fn certificates(config: &app::Config) -> Vec<Check> {
    let mut named = Vec::new();
    if let Some(tls) = &config.ingest.tls {
        named.push(("ingest.tls.cert".to_owned(), tls.cert.as_path()));
        let client_ca = tls.client_ca.as_deref();
        named.extend(client_ca.map(|ca| ("ingest.tls.client_ca".to_owned(), ca)));
    }
    for destination in &config.destinations {
        if let DestinationKind::Otlp(otlp) = &destination.kind {
            let key = |leaf: &str| format!("destination.{}.tls.{leaf}", destination.name);
            named.extend(otlp.ca.as_deref().map(|ca| (key("ca"), ca)));
            let certificate = otlp.identity.as_ref().map(|(cert, _)| cert.as_path());
            named.extend(certificate.map(|cert| (key("cert"), cert)));
        }
    }
    named
        .into_iter()
        .map(|(key, path)| expiry(format!("config.{key}"), path))
        .collect()
}

fn expiry(name: String, path: &Path) -> Check {
    let shown = match certs::show(path) {
        Ok(shown) => shown,
        Err(error) => {
            let remedy = "name a PEM file that the user who starts the daemon can read";
            return Check::failed(name, error.to_string(), remedy);
        }
    };
    // The one that ends first ends the chain.
    let ends =
        |certificate: &certs::Shown| OffsetDateTime::parse(&certificate.not_after, &Rfc3339).ok();
    let first = shown.iter().filter_map(ends).min();
    let invalid = shown.iter().find(|certificate| !certificate.valid_now);
    let renew = "renew it; `gs-ctl certs show FILE` shows its dates";
    match (invalid, first) {
        (Some(invalid), _) => Check::failed(
            name,
            format!(
                "{}: {} is valid from {} until {}",
                path.display(),
                invalid.subject,
                invalid.not_before,
                invalid.not_after
            ),
            renew,
        ),
        (None, Some(end)) => {
            let left = end - OffsetDateTime::now_utc();
            let found = format!(
                "{}: valid for another {} days",
                path.display(),
                left.whole_days()
            );
            match left < EXPIRY_NOTICE {
                true => Check::warning(name, found, renew),
                false => Check::ok(name, found),
            }
        }
        (None, None) => Check::warning(
            name,
            format!("{}: its dates can't be read", path.display()),
            renew,
        ),
    }
}

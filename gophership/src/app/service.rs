//! What the service user needs of the configuration, and becoming it.

use super::{Config, Error};
use crate::{
    export::DestinationKind,
    pressure::Pressure,
    privileges::{self, Needs, Service, Written},
};

/// Finds the service user and makes what it will write to.
pub(super) fn prepare(config: &Config) -> Result<(Service, Needs), Error> {
    let service = Service::find(&config.service)?;
    let needs = needs(config);
    privileges::prepare(&needs, &service)?;
    Ok((service, needs))
}

/// What the service user writes to and reads again.
pub(super) fn needs(config: &Config) -> Needs {
    Needs {
        written: written(config),
        read: read(config),
    }
}

/// Drops the privileges, and says what is left of them.
pub(super) fn enter(service: &Service, needs: &Needs, pressure: &Pressure) -> Result<(), Error> {
    let dropped = service.enter(needs, pressure.needs_bpf_after_the_drop())?;
    for (path, error) in &dropped.unreadable {
        tracing::warn!(
            path = %path.display(),
            user = %dropped.user,
            %error,
            "the service user can't read this file: a reload would fail"
        );
    }
    let capabilities = match dropped.capabilities.as_str() {
        "" => "none",
        kept => kept,
    };
    tracing::info!(
        user = %dropped.user,
        uid = dropped.user.uid,
        gid = dropped.user.gid,
        capabilities,
        no_new_privs = true,
        landlock = %dropped.landlock,
        "privileges dropped"
    );
    Ok(())
}

fn written(config: &Config) -> Vec<Written> {
    let files = config.destinations.iter().filter_map(|destination| {
        let DestinationKind::File(file) = &destination.kind else {
            return None;
        };
        Some(Written::File {
            key: "export.destinations[].file.path",
            path: file.path.clone(),
            directory_mode: None,
        })
    });
    let own = [
        Written::Tree {
            key: "vault.dir",
            path: config.vault.dir.clone(),
        },
        Written::File {
            key: "telemetry.audit_log",
            path: config.control.audit_log.clone(),
            directory_mode: Some(0o750),
        },
        Written::File {
            key: "telemetry.events",
            path: config.telemetry.timeline.path.clone(),
            directory_mode: Some(0o750),
        },
        Written::Socket {
            key: "control.unix.path",
            path: config.control.path.clone(),
        },
    ];
    let unix = config.ingest.unix.as_ref().map(|unix| Written::Socket {
        key: "ingest.unix.path",
        path: unix.path.clone(),
    });
    own.into_iter().chain(unix).chain(files).collect()
}

fn read(config: &Config) -> Vec<std::path::PathBuf> {
    let mut read = Vec::new();
    if let Some(tls) = &config.ingest.tls {
        read.extend([tls.cert.clone(), tls.key.clone()]);
        read.extend(tls.client_ca.clone());
    }
    read.extend(config.file.clone());
    for destination in &config.destinations {
        if let DestinationKind::Otlp(otlp) = &destination.kind {
            read.extend(otlp.ca.clone());
            read.extend(
                otlp.identity
                    .clone()
                    .into_iter()
                    .flat_map(|(cert, key)| [cert, key]),
            );
        }
    }
    read
}

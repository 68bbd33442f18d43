//! What the process is confined by, and will confine itself to.

use std::fs;

use super::{Check, Verdict};
use crate::{
    app,
    privileges::{Config, Enforcement, LandlockMode, Service, probe_landlock},
};

pub(super) fn check(config: Option<&app::Config>) -> Vec<Check> {
    let service = config.map(|config| &config.service);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    vec![
        seccomp(&field("Seccomp:"), &field("Seccomp_filters:")),
        no_new_privs(&field("NoNewPrivs:")),
        landlock(service.map(|service| service.landlock)),
        user(service),
        files(config),
    ]
}

fn seccomp(mode: &str, filters: &str) -> Check {
    let name = "confinement.seccomp";
    match mode {
        "0" => Check::ok(name, "no filter"),
        "2" => Check::ok(
            name,
            format!(
                "filtered ({filters} filters); io_uring and kernel_half tell what that refuses"
            ),
        ),
        "" => Check::not_applicable(name, "this kernel doesn't say"),
        other => Check::warning(
            name,
            format!("mode {other}"),
            "run the daemon without strict seccomp",
        ),
    }
}

fn no_new_privs(value: &str) -> Check {
    let name = "confinement.no_new_privs";
    match value {
        "1" => Check::ok(name, "set already"),
        "0" => Check::ok(name, "not set here; the daemon sets it"),
        _ => Check::not_applicable(name, "this kernel doesn't say"),
    }
}

fn landlock(mode: Option<LandlockMode>) -> Check {
    let name = "confinement.landlock";
    let mode = mode.unwrap_or(LandlockMode::Auto);
    let remedy = "use Linux 5.13 or newer with landlock among its security modules (lsm=)";
    match (probe_landlock(), mode) {
        (_, LandlockMode::Off) => Check::not_applicable(name, "service.landlock is off"),
        (found @ Enforcement::Enforced { .. }, _) => Check::ok(name, found.to_string()),
        (found @ Enforcement::None(_), mode) => {
            let verdict = match mode {
                LandlockMode::Required => Verdict::Failed,
                LandlockMode::Auto | LandlockMode::Off => Verdict::Warning,
            };
            Check::new(name, verdict, found.to_string(), Some(remedy.to_owned()))
        }
    }
}

fn user(service: Option<&Config>) -> Check {
    let name = "confinement.user";
    let Some(service) = service else {
        return Check::not_applicable(name, "the configuration isn't valid");
    };
    match Service::find(service) {
        Ok(found) if found.user().uid == 0 => Check::warning(
            name,
            "the daemon stays root, without capabilities",
            "make a user gophership (useradd --system gophership), or set service.user",
        ),
        Ok(found) => Check::ok(name, format!("the daemon runs as {}", found.user())),
        Err(error) => Check::failed(
            name,
            error.to_string(),
            "set service.user to a user that exists, and start as root",
        ),
    }
}

/// Whether the service user can work with the files that are there.
fn files(config: Option<&app::Config>) -> Check {
    let name = "confinement.files";
    let Some(config) = config else {
        return Check::not_applicable(name, "the configuration isn't valid");
    };
    let Ok(service) = Service::find(&config.service) else {
        return Check::not_applicable(name, "see confinement.user");
    };
    let user = service.user();
    match service.rehearse(&config.needs()) {
        Ok(unreadable) if unreadable.is_empty() => Check::ok(
            name,
            format!("{user} can write to and read all that the configuration names"),
        ),
        Ok(unreadable) => {
            let files = unreadable
                .iter()
                .map(|(path, error)| format!("{}: {error}", path.display()));
            Check::warning(
                name,
                format!(
                    "{user} can't read again: {}",
                    files.collect::<Vec<_>>().join(", ")
                ),
                "let the service user read them, or a reload will fail",
            )
        }
        Err(error) => Check::failed(
            name,
            error.to_string(),
            "give the files to the service user: the daemon refuses to start like this",
        ),
    }
}

//! Limits of the process and its cgroup, and pressure stall information.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Check, Verdict, effective_capabilities};
use crate::{pressure::memory_limit_bytes, vault};

/// Descriptors for some thousand connections, segments and logs.
const FILES_WANTED: u64 = 8192;

pub(super) fn check(vault: Option<&vault::Config>) -> Vec<Check> {
    let mut checks = vec![memlock(vault), files(), cgroup()];
    checks.extend(["memory", "cpu", "io"].map(psi));
    checks
}

/// The daemon raises its soft limit, so the hard one counts.
fn memlock(vault: Option<&vault::Config>) -> Check {
    let name = "limits.memlock";
    let (soft, hard) = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok(limits) => limits,
        Err(error) => return Check::warning(name, error.to_string(), "the limit can't be read"),
    };
    let found = format!("{} soft, {} hard", amount(soft), amount(hard));
    let wanted = vault.map_or(0, |vault| vault.budget_bytes as u64);
    if hard >= wanted || may_raise() {
        Check::ok(name, found)
    } else {
        let remedy = format!(
            "allow {}, or the vault's buffers are pinned for each write instead of once: LimitMEMLOCK=infinity, \
             --ulimit memlock=-1",
            amount(wanted)
        );
        Check::warning(name, found, remedy)
    }
}

/// CAP_SYS_RESOURCE.
fn may_raise() -> bool {
    effective_capabilities() >> 24 & 1 == 1
}

/// The daemon raises its soft limit, so the hard one counts.
fn files() -> Check {
    let name = "limits.nofile";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => {
            let found = format!("{soft} soft, {hard} hard");
            if hard >= FILES_WANTED {
                Check::ok(name, found)
            } else {
                let remedy = format!(
                    "LimitNOFILE={FILES_WANTED} or more: each connection and segment takes one"
                );
                Check::warning(name, found, remedy)
            }
        }
        Err(error) => Check::warning(name, error.to_string(), "the limit can't be read"),
    }
}

fn cgroup() -> Check {
    let name = "limits.cgroup";
    let Ok(text) = fs::read_to_string("/proc/self/cgroup") else {
        return Check::warning(
            name,
            "/proc/self/cgroup can't be read",
            "mount /proc: the memory limit isn't known",
        );
    };
    let unified = text.lines().any(|line| line.starts_with("0::"));
    let memory_v1 = text.lines().any(|line| {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        controllers
            .split(',')
            .any(|controller| controller == "memory")
    });
    let version = match (memory_v1, unified) {
        (true, _) => "v1 for memory",
        (false, true) => "v2",
        (false, false) => "none",
    };
    let found = format!("{version}; memory limit {}", amount(memory_limit_bytes()));
    Check::ok(name, found)
}

fn psi(resource: &str) -> Check {
    let name = format!("limits.psi_{resource}");
    let path = format!("/proc/pressure/{resource}");
    match fs::read_to_string(&path) {
        Ok(text) => Check::ok(name, text.lines().next().unwrap_or_default()),
        Err(error) => Check::new(
            name,
            Verdict::Warning,
            format!("{path}: {error}"),
            Some("boot with psi=1 on a kernel with CONFIG_PSI".to_owned()),
        ),
    }
}

fn amount(bytes: u64) -> String {
    match bytes {
        RLIM_INFINITY => "unlimited".to_owned(),
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

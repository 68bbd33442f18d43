//! The configuration as the judge reads it.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use gophership_common::{
    DISKS_MAX, OVERRIDE_NONE, PORTS_MAX, Policy, Signal, Thresholds, WORKERS_MAX,
};

use super::{Config, Error, IngestScope, disks, unavailable::Unavailable};

/// The policy without an override, for a judge that measures nothing yet.
///
/// # Errors
/// If more workers or ports are asked for than fit, or the network namespace can't be told.
pub(super) fn of(config: &Config, scope: &IngestScope, workers: usize) -> Result<Policy, Error> {
    let mut ports = [0; PORTS_MAX];
    ports
        .get_mut(..scope.ports.len())
        .ok_or(Error::TooManyPorts {
            ports: scope.ports.len(),
        })?
        .copy_from_slice(&scope.ports);
    if workers > WORKERS_MAX {
        return Err(Error::TooManyWorkers { workers });
    }
    let netns = fs::metadata("/proc/self/ns/net").map_err(|source| Error::System {
        what: "/proc/self/ns/net",
        source,
    })?;
    Ok(Policy {
        tick_ns: nanos(config.tick),
        hold_ns: nanos(config.hold),
        receive_queue_for_ns: nanos(config.receive_queue_for),
        override_until_ns: 0,
        measured: 0,
        ingress_horizon_ns: nanos(config.ingress_horizon.unwrap_or_default()),
        rules: thresholds(config).rules(),
        receive_queue: config.receive_queue,
        disks: [0; DISKS_MAX],
        override_zone: OVERRIDE_NONE,
        h2_window_bytes: scope.h2_window_bytes,
        // The kernel's namespace numbers are 32 bits wide.
        netns_inum: u32::try_from(netns.ino()).unwrap_or(0),
        workers: u32::try_from(workers).unwrap_or(0),
        port_count: u32::try_from(scope.ports.len()).unwrap_or(0),
        disk_count: 0,
        ports,
    })
}

fn thresholds(config: &Config) -> Thresholds {
    let micros = |duration: Duration| nanos(duration) / 1000;
    Thresholds {
        receive_queue: config.receive_queue,
        receive_queue_for_us: micros(config.receive_queue_for),
        listen_backlog: config.listen_backlog,
        memory_stall: config.memory_stall,
        memory_available: config.memory_available,
        cpu_wait: config.cpu_wait,
        disk_latency_us: config.disk_latency.map(micros),
        ingress_horizon_us: config.ingress_horizon.map(micros),
        budget: config.budget,
        heartbeat_us: micros(config.heartbeat_limit),
    }
}

/// The judge adds to and subtracts from these: a century is forever.
fn nanos(duration: Duration) -> u64 {
    const FOREVER_NS: u64 = 100 * 365 * 86_400 * 1_000_000_000;
    u64::try_from(duration.as_nanos()).map_or(FOREVER_NS, |ns| ns.min(FOREVER_NS))
}

/// Has the kernel half follow the vault's disks, or notes why it can't.
pub(super) fn follow_disks(policy: &mut Policy, scope: &IngestScope, unavailable: &Unavailable) {
    let found = match &scope.vault_dir {
        Some(dir) => disks::below(dir),
        None => Err("there is no vault".to_owned()),
    };
    match found {
        Ok(found) => take_disks(policy, &found, unavailable),
        Err(reason) => {
            for signal in [Signal::DiskLatency, Signal::DiskDepth] {
                unavailable.set(signal, &reason);
            }
        }
    }
}

/// Follows as many disks as there is room for, and says so if there are more.
fn take_disks(policy: &mut Policy, found: &[u32], unavailable: &Unavailable) {
    for (slot, device) in policy.disks.iter_mut().zip(found) {
        *slot = *device;
        policy.disk_count += 1;
    }
    if found.len() > DISKS_MAX {
        tracing::warn!(
            disks = found.len(),
            followed = DISKS_MAX,
            "the vault lies on more disks than are followed: how long the others take isn't seen"
        );
        let note = format!(
            "{DISKS_MAX} of the vault's {} disks are followed",
            found.len()
        );
        for signal in [Signal::DiskLatency, Signal::DiskDepth] {
            unavailable.note(signal, &note);
        }
    }
}

#[cfg(test)]
mod tests {
    use gophership_common::Levels;

    use super::*;
    use crate::pressure::{KernelMode, XdpConfig};

    fn policy() -> Policy {
        let levels = Levels {
            yellow_permille: 500,
            red_permille: 800,
        };
        let config = Config {
            kernel: KernelMode::Off,
            tick: Duration::from_millis(10),
            sample_every: 1,
            hold: Duration::ZERO,
            receive_queue: levels,
            receive_queue_for: Duration::ZERO,
            listen_backlog: levels,
            memory_stall: levels,
            memory_available: levels,
            cpu_wait: levels,
            disk_latency: None,
            ingress_horizon: None,
            budget: levels,
            heartbeat_limit: Duration::from_secs(1),
            xdp: XdpConfig::default(),
        };
        let scope = IngestScope {
            ports: Vec::new(),
            h2_window_bytes: 0,
            vault_dir: None,
        };
        of(&config, &scope, 1).unwrap()
    }

    #[test]
    fn disks_beyond_those_followed_are_told_of() {
        let disks: Vec<u32> = (1..=6).collect();
        for count in 0..=disks.len() {
            let (mut policy, unavailable) = (policy(), Unavailable::default());
            take_disks(&mut policy, &disks[..count], &unavailable);
            assert_eq!(policy.disk_count as usize, count.min(DISKS_MAX));
            assert_eq!(
                policy.disks[..count.min(DISKS_MAX)],
                disks[..count.min(DISKS_MAX)]
            );
            for signal in [Signal::DiskLatency, Signal::DiskDepth] {
                let expected = if count > DISKS_MAX {
                    format!("4 of the vault's {count} disks are followed")
                } else {
                    String::new()
                };
                assert_eq!(unavailable.noted(signal), expected);
            }
        }
    }
}

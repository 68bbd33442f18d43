//! A pressure configuration for tests that load the judge without a daemon.

use std::time::Duration;

use gophership::pressure::{Config, KernelMode, Levels, XdpConfig};

/// Levels in permille.
pub(crate) const fn levels(yellow_permille: u32, red_permille: u32) -> Levels {
    Levels {
        yellow_permille,
        red_permille,
    }
}

/// Sockets, budgets and heartbeats count; what the machine around the test does never.
pub(crate) fn config(kernel: KernelMode) -> Config {
    const OFF: Levels = levels(Levels::OFF, Levels::OFF);
    Config {
        kernel,
        tick: Duration::from_millis(10),
        sample_every: 1024,
        hold: Duration::from_millis(200),
        receive_queue: levels(500, 800),
        receive_queue_for: Duration::from_millis(5),
        listen_backlog: OFF,
        memory_stall: OFF,
        memory_available: OFF,
        cpu_wait: OFF,
        disk_latency: None,
        ingress_horizon: None,
        budget: levels(800, 950),
        heartbeat_limit: Duration::from_millis(300),
        xdp: XdpConfig::default(),
    }
}

//! Pressure → how much background work the vault and the replay may do.

use std::{sync::Arc, time::Duration};

use gophership_common::Zone;

use super::daemon::Daemon;
use crate::replay::pacer;

/// How often the strain within Yellow is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Adjusts the weight as long as the daemon runs.
pub(super) async fn keep(daemon: Arc<Daemon>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        adjust(&daemon);
    }
}

/// Sets the weight that goes with the zone and its strain now.
pub(super) fn adjust(daemon: &Daemon) {
    let zone = daemon.pressure.verdict().load().zone();
    let strain = match zone {
        Zone::Yellow => pacer::strain(&daemon.pressure.snapshot().signals),
        Zone::Green | Zone::Red => 0,
    };
    daemon
        .vault
        .set_background_weight(pacer::weight(zone, strain));
}

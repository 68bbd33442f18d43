//! Tells of workers that are stuck. That they get no connections, the acceptor sees to; that it is Red, the judge.

use std::{sync::Arc, time::Duration};

use super::daemon::Daemon;

/// How often the heartbeats are looked at.
const LOOK: Duration = Duration::from_millis(500);

impl Daemon {
    /// Whether the worker's loop hasn't come round for longer than it may.
    pub(super) fn is_stuck(&self, worker: usize) -> bool {
        let age = self.pressure.engine(worker).beat_age();
        age.is_some_and(|age| age > self.config.pressure.heartbeat_limit)
    }
}

/// Logs which worker gets stuck, and when it runs again, as long as the daemon runs.
pub(super) async fn watch(daemon: Arc<Daemon>) {
    let mut told = vec![false; daemon.workers.len()];
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for (worker, was_stuck) in told.iter_mut().enumerate() {
            let is_stuck = daemon.is_stuck(worker);
            match (std::mem::replace(was_stuck, is_stuck), is_stuck) {
                (false, true) => tracing::error!(
                    worker,
                    "a worker is stuck: it gets no more connections, and those it has aren't served"
                ),
                (true, false) => tracing::warn!(worker, "the worker runs again"),
                (true, true) | (false, false) => {}
            }
        }
    }
}

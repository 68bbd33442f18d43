//! Draining: stop accepting, answer what is open, empty the pipeline; and the way back.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use super::daemon::{Daemon, lock};
use crate::ingest::Mode;

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not draining.
    Serving,
    /// Open requests are being answered and the pipeline emptied.
    Draining,
    /// Nothing is left; the daemon stays, not ready.
    Drained,
    /// The time was up first; what was left is in the vault or was not acknowledged.
    TimedOut,
}

impl Phase {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::TimedOut => "timed out",
        }
    }
}

/// How often a drain's progress is looked at.
const LOOK: Duration = Duration::from_millis(20);

impl Daemon {
    /// New connections wait in the backlog, open ones finish their requests, replay pauses.
    pub(super) fn begin_drain(&self) {
        *lock(&self.phase) = Phase::Draining;
        self.replay.order(|orders| orders.draining = true);
        self.mode.send_if_modified(|mode| {
            let changes = *mode == Mode::Serving;
            if changes {
                *mode = Mode::Draining;
            }
            changes
        });
    }

    /// Serves again. Gives whether there was a drain to take back.
    pub(super) fn cancel_drain(&self) -> bool {
        let mut phase = lock(&self.phase);
        if *phase == Phase::Serving || *self.mode.borrow() == Mode::Stopping {
            return false;
        }
        *phase = Phase::Serving;
        self.replay.order(|orders| orders.draining = false);
        self.mode.send_replace(Mode::Serving);
        true
    }

    /// Waits until nothing is left, the time is up, or the drain is taken back.
    pub(super) async fn drained_within(&self, timeout: Duration) -> Phase {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(phase) = self.drain_ended(deadline) {
                return phase;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn drain_ended(&self, deadline: Instant) -> Option<Phase> {
        let is_drained = self
            .workers
            .iter()
            .all(|worker| worker.drained.load(Relaxed));
        let mut phase = lock(&self.phase);
        match *phase {
            Phase::Draining if is_drained => *phase = Phase::Drained,
            Phase::Draining if Instant::now() >= deadline => *phase = Phase::TimedOut,
            Phase::Draining => return None,
            Phase::Serving | Phase::Drained | Phase::TimedOut => {}
        }
        Some(*phase)
    }
}

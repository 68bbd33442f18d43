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

/// The drain as it stands.
#[derive(Debug)]
pub(super) struct Drain {
    pub(super) phase: Phase,
    /// Number of the last order. An earlier one, or one that was taken back, has no further effect.
    order: u64,
    /// The daemon is on its way out, which can't be taken back.
    is_final: bool,
}

impl Drain {
    pub(super) const fn serving() -> Self {
        Self {
            phase: Phase::Serving,
            order: 0,
            is_final: false,
        }
    }
}

/// An order to drain, to be waited for with [`Daemon::drained_within`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order(u64);

/// How often a drain's progress is looked at.
const LOOK: Duration = Duration::from_millis(20);

impl Daemon {
    /// New connections wait in the backlog, open ones finish their requests, replay pauses. `None`
    /// if the daemon is stopping already.
    pub(super) fn begin_drain(&self) -> Option<Order> {
        let mut drain = lock(&self.drain);
        (!drain.is_final).then(|| self.order_drain(&mut drain))
    }

    /// As [`Self::begin_drain`], for good.
    pub(super) fn begin_last_drain(&self) -> Order {
        let mut drain = lock(&self.drain);
        drain.is_final = true;
        self.order_drain(&mut drain)
    }

    fn order_drain(&self, drain: &mut Drain) -> Order {
        drain.order += 1;
        drain.phase = Phase::Draining;
        self.replay.order(|orders| orders.draining = true);
        self.mode.send_if_modified(|mode| {
            let changes = *mode == Mode::Serving;
            if changes {
                *mode = Mode::Draining;
            }
            changes
        });
        Order(drain.order)
    }

    /// Serves again. Gives whether there was a drain that could be taken back.
    pub(super) fn cancel_drain(&self) -> bool {
        let mut drain = lock(&self.drain);
        if drain.phase == Phase::Serving || drain.is_final {
            return false;
        }
        drain.order += 1;
        drain.phase = Phase::Serving;
        self.replay.order(|orders| orders.draining = false);
        self.mode.send_replace(Mode::Serving);
        true
    }

    /// Waits until nothing is left or the time is up; `None` if another order came, or this one was
    /// taken back.
    pub(super) async fn drained_within(&self, order: Order, timeout: Duration) -> Option<Phase> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.phase_of(order, deadline)? {
                Phase::Draining => tokio::time::sleep(LOOK).await,
                ended => return Some(ended),
            }
        }
    }

    fn phase_of(&self, order: Order, deadline: Instant) -> Option<Phase> {
        let is_drained = self
            .workers
            .iter()
            .all(|worker| worker.drained.load(Relaxed));
        let mut drain = lock(&self.drain);
        if drain.order != order.0 {
            return None;
        }
        match drain.phase {
            Phase::Draining if is_drained => drain.phase = Phase::Drained,
            Phase::Draining if Instant::now() >= deadline => drain.phase = Phase::TimedOut,
            Phase::Draining | Phase::Serving | Phase::Drained | Phase::TimedOut => {}
        }
        Some(drain.phase)
    }
}

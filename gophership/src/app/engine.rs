//! The daemon as the control service steers it.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use gophership_common::Zone;

use super::{
    daemon::{Daemon, lock},
    drain::Phase,
    plan, segments, sockets,
    status::overridden,
};
use crate::{
    control::{
        ControlError, DrainSpec, Engine, OverrideSpec, PlanSpec, QuarantineSpec, ReplayCommand,
        ReplaySpec, SocketsSpec, pb,
    },
    replay::control::Orders,
    somatic::overrides::{Error, Override},
    telemetry::timeline::{Stay, Timeline},
};

/// The operators' handle on one daemon.
pub(super) struct Operated(pub(super) Arc<Daemon>);

impl Engine for Operated {
    fn status(&self) -> Result<pb::StatusReply, ControlError> {
        Ok(self.0.status_reply())
    }

    fn sockets(&self, spec: SocketsSpec) -> Result<pb::SocketsReply, ControlError> {
        let listing = self.0.pressure.sockets(spec.order, spec.limit);
        let listing = listing.map_err(|error| ControlError::Failed(error.to_string()))?;
        Ok(sockets::reply(listing))
    }

    fn vault_list(&self) -> Vec<pb::VaultListReply> {
        segments::list(&self.0.config.vault.dir, &self.0.vault)
    }

    fn vault_quarantine(&self, spec: QuarantineSpec) -> Result<pb::VaultSegment, ControlError> {
        segments::quarantine(&self.0.vault, spec)
    }

    fn timeline(&self) -> Timeline {
        self.0.chronicle.timeline.clone()
    }

    fn present_stay(&self) -> (u64, Stay) {
        self.0.present_stay()
    }

    fn set_override(&self, spec: OverrideSpec) -> Result<pb::Override, ControlError> {
        let zone = match spec.zone {
            pb::Zone::Green => Zone::Green,
            pb::Zone::Yellow => Zone::Yellow,
            pb::Zone::Red => Zone::Red,
            pb::Zone::Unspecified => {
                return Err(ControlError::Invalid("no zone was named".to_owned()));
            }
        };
        let _turn = lock(&self.0.override_turn);
        let kept = Override::starting_now(zone, spec.duration, spec.by, spec.reason);
        // Durable first: an override that is in force survives a restart.
        kept.store(&self.0.config.vault.dir).map_err(failed)?;
        self.0.tell_override(&kept);
        self.0.apply_override(Some(&kept));
        tracing::warn!(
            zone = zone.as_str(),
            by = kept.by,
            reason = kept.reason,
            "override set"
        );
        Ok(overridden(&kept))
    }

    fn clear_override(&self, by: &str) -> Result<Option<pb::Override>, ControlError> {
        let _turn = lock(&self.0.override_turn);
        let cleared = self.0.current_override();
        Override::forget(&self.0.config.vault.dir).map_err(failed)?;
        if let Some(cleared) = &cleared {
            self.0.tell_cleared(cleared, by);
        }
        self.0.apply_override(None);
        if let Some(cleared) = &cleared {
            tracing::warn!(zone = cleared.zone.as_str(), by, "override cleared");
        }
        Ok(cleared.as_ref().map(overridden))
    }

    fn replay(&self, spec: ReplaySpec) -> Result<pb::ReplayProgress, ControlError> {
        let change = |orders: &mut Orders| match spec.command {
            ReplayCommand::Start {
                max_bytes_per_second,
                selection,
            } => {
                (orders.now, orders.paused) = (true, false);
                (orders.rate, orders.selection) = (max_bytes_per_second, selection);
            }
            ReplayCommand::Pause => orders.paused = true,
            ReplayCommand::Resume => orders.paused = false,
        };
        match &spec.destination {
            None => self.0.replay.order(change),
            Some(name) if self.0.replay.order_for(name, change) => {}
            Some(name) => return Err(plan::unknown(name)),
        }
        Ok(self.0.replay_reply())
    }

    fn plan_replay(
        &self,
        spec: PlanSpec,
        tell: &mut dyn FnMut(pb::ReplayPlan) -> bool,
    ) -> Result<(), ControlError> {
        plan::plan(&self.0, &spec, tell)
    }

    fn replay_status(&self) -> pb::ReplayProgress {
        self.0.replay_reply()
    }

    fn drain(&self, spec: DrainSpec) -> Result<pb::DrainProgress, ControlError> {
        match spec {
            DrainSpec::Start { timeout, exit } => {
                let order = self
                    .0
                    .begin_drain()
                    .ok_or_else(|| ControlError::NotNow("the daemon is stopping".to_owned()))?;
                let daemon = Arc::clone(&self.0);
                tokio::spawn(async move {
                    let Some(phase) = daemon.drained_within(order, timeout).await else {
                        return;
                    };
                    tracing::info!(phase = phase.as_str(), exit, "drain");
                    if exit {
                        daemon.exit.notify_one();
                    }
                });
            }
            DrainSpec::Cancel => {
                if !self.0.cancel_drain() {
                    return Err(ControlError::NotNow(
                        "there is no drain to take back".to_owned(),
                    ));
                }
            }
        }
        Ok(self.drain_progress())
    }

    fn drain_progress(&self) -> pb::DrainProgress {
        let totals = self.0.totals();
        let [_, (_, pipeline_bytes, _), _] = self.0.memory();
        let phase = match lock(&self.0.drain).phase {
            Phase::Serving => pb::DrainPhase::Accepting,
            Phase::Draining if totals.connections > 0 => pb::DrainPhase::Closing,
            Phase::Draining => pb::DrainPhase::Emptying,
            Phase::Drained => pb::DrainPhase::Drained,
            Phase::TimedOut => pb::DrainPhase::TimedOut,
        };
        pb::DrainProgress {
            phase: phase.into(),
            connections: totals.connections,
            requests: self
                .0
                .workers
                .iter()
                .map(|worker| worker.requests.load(Relaxed))
                .sum(),
            pipeline_bytes,
            records_pending: self.0.vault.stats().records_pending,
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a function for map_err")]
fn failed(error: Error) -> ControlError {
    ControlError::Failed(error.to_string())
}

//! What the control service needs from the daemon.

use std::time::Duration;

use super::pb;
use crate::{
    pressure::SocketOrder,
    telemetry::timeline::{Stay, Timeline},
    vault::Selection,
};

/// A zone to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverrideSpec {
    /// Green, Yellow or Red; never unspecified.
    pub zone: pb::Zone,
    /// For how long; none: until it is cleared.
    pub duration: Option<Duration>,
    /// Why; may be empty.
    pub reason: String,
    /// Who, such as `uid 0`.
    pub by: String,
}

/// What to do with the replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayCommand {
    /// Start now, without waiting for `replay.after`.
    Start {
        /// Limit in message bytes a second; none: as configured.
        max_bytes_per_second: Option<u64>,
        /// What to send.
        selection: Selection,
    },
    /// Stop until resumed.
    Pause,
    /// Go on after a pause.
    Resume,
}

/// What to do with the replay to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplaySpec {
    /// Name of the destination; none: all of them.
    pub destination: Option<String>,
    /// What to do.
    pub command: ReplayCommand,
}

/// The replay whose extent is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanSpec {
    /// Name of the destination; none: all of them.
    pub destination: Option<String>,
    /// What would be sent.
    pub selection: Selection,
}

/// How to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainSpec {
    /// Stop accepting, empty the pipeline, sync and seal the vault.
    Start {
        /// Longest to wait for the pipeline.
        timeout: Duration,
        /// Exit afterwards.
        exit: bool,
    },
    /// Accept again.
    Cancel,
}

/// Which of the ingest sockets to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketsSpec {
    /// At most this many connections; at least 1.
    pub limit: usize,
    /// What comes first.
    pub order: SocketOrder,
}

/// What to do with a segment of the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineSpec {
    /// Its number.
    pub number: u64,
    /// Why it is taken out of replay, may be empty; none: put it back.
    pub reason: Option<String>,
    /// Who, such as `uid 0`.
    pub by: String,
}

/// Why the daemon didn't do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It can never do that; ask for something else.
    #[error("{0}")]
    Invalid(String),
    /// It can't do that in its present state; ask again later.
    #[error("{0}")]
    NotNow(String),
    /// It tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// The daemon, as operators see it.
///
/// But for [`Engine::sockets`], [`Engine::vault_list`] and [`Engine::plan_replay`], the methods are called on the control service's thread and must not block for long: they start
/// things, and report how far these are.
pub trait Engine: Send + Sync + 'static {
    /// Everything, at one moment.
    ///
    /// # Errors
    /// If the figures can't be had.
    fn status(&self) -> Result<pb::StatusReply, ControlError>;

    /// The ingest sockets. It may take a while, and is called on a thread for blocking work.
    ///
    /// # Errors
    /// If they can't be listed.
    fn sockets(&self, spec: SocketsSpec) -> Result<pb::SocketsReply, ControlError>;

    /// The vault's directory and segments, in parts of bounded size. It may take a while, and is called on a
    /// thread for blocking work.
    fn vault_list(&self) -> Vec<pb::VaultListReply>;

    /// Takes a segment out of replay, or puts it back, and returns it as it is then.
    ///
    /// # Errors
    /// There is no such segment, it can't be done now, or not durably.
    fn vault_quarantine(&self, spec: QuarantineSpec) -> Result<pb::VaultSegment, ControlError>;

    /// The event timeline.
    fn timeline(&self) -> Timeline;

    /// Since when the present stay in a zone lasts (`CLOCK_MONOTONIC` nanoseconds), and what it has
    /// come to.
    fn present_stay(&self) -> (u64, Stay);

    /// Holds a zone, in place of any other override, and returns it as it is in force.
    ///
    /// # Errors
    /// If it can't be put in force.
    fn set_override(&self, spec: OverrideSpec) -> Result<pb::Override, ControlError>;

    /// Ends the override, if there is one, and returns it.
    ///
    /// # Errors
    /// If it can't be ended.
    fn clear_override(&self, by: &str) -> Result<Option<pb::Override>, ControlError>;

    /// Steers the replay and returns how it is afterwards.
    ///
    /// # Errors
    /// If there is no such destination.
    fn replay(&self, spec: ReplaySpec) -> Result<pb::ReplayProgress, ControlError>;

    /// Counts what a replay would send, and tells growing sums, the last of which are complete, for as long as
    /// `tell` gives true. It may take a while, and is called on a thread for blocking work.
    ///
    /// # Errors
    /// There is no such destination, or it can't be counted, or not yet.
    fn plan_replay(
        &self,
        spec: PlanSpec,
        tell: &mut dyn FnMut(pb::ReplayPlan) -> bool,
    ) -> Result<(), ControlError>;

    /// How the replay is.
    fn replay_status(&self) -> pb::ReplayProgress;

    /// Starts a drain or takes it back, and returns how it is afterwards.
    ///
    /// # Errors
    /// If that is impossible now.
    fn drain(&self, spec: DrainSpec) -> Result<pb::DrainProgress, ControlError>;

    /// How the drain is.
    fn drain_progress(&self) -> pb::DrainProgress;
}

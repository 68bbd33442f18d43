//! Builds the subsystems from their configurations, runs them, and drains them.

/// Everything the daemon needs to know, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The front door.
    pub ingest: crate::ingest::Config,
    /// The verdict.
    pub pressure: crate::pressure::Config,
    /// The way of Green.
    pub pipeline: crate::pipeline::Config,
    /// Where logs go.
    pub destinations: Vec<crate::export::DestinationConfig>,
    /// The vault.
    pub vault: crate::vault::Config,
    /// Vault → destinations.
    pub replay: crate::replay::Config,
    /// Operators' socket.
    pub control: crate::control::Config,
    /// Metrics, health, own log.
    pub telemetry: crate::telemetry::Config,
    /// Bytes that all budgets add up to.
    pub memory_total_bytes: u64,
}

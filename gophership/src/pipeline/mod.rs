//! The way of Green: requests are batched by concatenation and handed to the destinations.

use std::time::Duration;

/// Batching and the wait for destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A request waits this long for its destinations, then the vault acknowledges it.
    pub ack_within: Duration,
    /// Most message bytes of one batch; a larger request goes by way of the vault.
    pub batch_max_bytes: usize,
    /// Longest a request waits for others while an export is in flight.
    pub batch_linger: Duration,
    /// Bytes of batch buffers over all workers.
    pub budget_bytes: usize,
}

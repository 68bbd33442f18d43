//! Vault → destinations, when the pressure is gone.

use std::time::Duration;

/// When and how fast the vault is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Start by itself.
    pub auto: bool,
    /// Only after Green has held for this long.
    pub after: Duration,
    /// Rate limit, in stored message bytes a second.
    pub max_bytes_per_second: u64,
}

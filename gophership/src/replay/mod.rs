//! Vault → destinations, when the pressure is gone.
//!
//! One thread with its own connections reads the vault for each destination, oldest first, at a rate that suits the
//! zone and the destination, and settles an entry for a destination only when that destination has accepted it. What a destination will never take
//! becomes a dead letter, durable before the entry is settled. While none can be written, such entries stay
//! owed and aren't tried again. One entry that always fails holds up no other.

use std::{sync::Arc, time::Duration};

mod aimd;
mod aside;
pub mod control;
mod course;
pub mod dead_letter;
mod group;
mod identity;
mod meter;
mod pace;
pub mod pacer;
mod run;
mod source;
mod suspects;

pub use run::{Parts, spawn};

/// When and how fast the vault is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Start by itself.
    pub auto: bool,
    /// Only after Green has held for this long.
    pub after: Duration,
    /// Rate limit of each destination, in stored message bytes a second.
    pub max_bytes_per_second: u64,
    /// Whether records get an attribute that names them.
    pub identity: bool,
    /// Most bytes of dead letters.
    pub dead_letters_max_bytes: u64,
}

/// The replay can't be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread or its runtime can't be made.
    #[error("replay: {0}")]
    Thread(#[from] std::io::Error),
    /// The directory of dead letters can't be used.
    #[error(transparent)]
    DeadLetters(#[from] dead_letter::Error),
}

/// The replay as the rest of the daemon sees it.
pub type Handle = Arc<control::Control>;

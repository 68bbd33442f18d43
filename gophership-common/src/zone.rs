//! The verdict: zone, cause and the one 64-bit word that carries them.
//!
//! ```text
//! bit 63        32 31        16 15      8 7       0
//!     │   epoch   │   flags    │  cause  │  zone   │
//! ```

/// How much pressure the engine is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Zone {
    /// Requests go through the pipeline.
    Green = 0,
    /// Requests go through the pipeline; background work slows down.
    Yellow = 1,
    /// Requests go to the vault.
    Red = 2,
}

impl Zone {
    /// Decodes a zone; a value nobody writes reads as Red, the zone that loses nothing.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Green,
            1 => Self::Yellow,
            2..=u8::MAX => Self::Red,
        }
    }

    /// The lower-case name used by commands, metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Yellow => "yellow",
            Self::Red => "red",
        }
    }
}

/// What a zone is due to, in rising precedence: where several signals enter the same zone, the
/// greatest names it.
///
/// A full receive queue outranks a stale heartbeat because it says what the stall does to producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cause {
    /// Nothing: the zone is Green.
    None = 0,
    /// Little memory is available.
    MemoryAvailable = 1,
    /// A byte budget is nearly spent.
    Budget = 2,
    /// A worker hasn't beaten for longer than the limit.
    Heartbeat = 3,
    /// An ingest socket's receive queue fills up.
    ReceiveQueue = 4,
    /// The operator said so.
    Override = 5,
}

impl Cause {
    /// Every cause, by rising precedence.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::MemoryAvailable,
        Self::Budget,
        Self::Heartbeat,
        Self::ReceiveQueue,
        Self::Override,
    ];

    /// Decodes a cause; a value nobody writes reads as `None`.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::MemoryAvailable,
            2 => Self::Budget,
            3 => Self::Heartbeat,
            4 => Self::ReceiveQueue,
            5 => Self::Override,
            0 | 6..=u8::MAX => Self::None,
        }
    }

    /// The snake-case name used by commands, metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::MemoryAvailable => "memory_available",
            Self::Budget => "budget",
            Self::Heartbeat => "heartbeat",
            Self::ReceiveQueue => "receive_queue",
            Self::Override => "override",
        }
    }
}

/// Flag of [`Word`]: the zone is the operator's, not the signals'.
pub const FLAG_OVERRIDE: u16 = 1;

/// The verdict as stored: written only when it changes, read with one atomic load.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Word(pub u64);

impl Word {
    /// Packs a verdict.
    #[must_use]
    pub const fn new(zone: Zone, cause: Cause, flags: u16, epoch: u32) -> Self {
        Self(zone as u64 | (cause as u64) << 8 | (flags as u64) << 16 | (epoch as u64) << 32)
    }

    /// The zone.
    #[must_use]
    pub const fn zone(self) -> Zone {
        Zone::from_bits(self.0.to_le_bytes()[0])
    }

    /// What the zone is due to.
    #[must_use]
    pub const fn cause(self) -> Cause {
        Cause::from_bits(self.0.to_le_bytes()[1])
    }

    /// Flag bits, see [`FLAG_OVERRIDE`].
    #[must_use]
    pub const fn flags(self) -> u16 {
        let bytes = self.0.to_le_bytes();
        u16::from_le_bytes([bytes[2], bytes[3]])
    }

    /// Whether the operator's override is in force.
    #[must_use]
    pub const fn overridden(self) -> bool {
        self.flags() & FLAG_OVERRIDE != 0
    }

    /// Counts the changes of the word; wraps.
    #[must_use]
    pub const fn epoch(self) -> u32 {
        let bytes = self.0.to_le_bytes();
        u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]])
    }

    /// The same verdict, whatever the epoch.
    #[must_use]
    pub const fn same_verdict(self, other: Self) -> bool {
        self.0 & 0xffff_ffff == other.0 & 0xffff_ffff
    }
}

impl core::fmt::Debug for Word {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Word")
            .field("zone", &self.zone())
            .field("cause", &self.cause())
            .field("flags", &self.flags())
            .field("epoch", &self.epoch())
            .finish()
    }
}

#[cfg(feature = "user")]
// SAFETY: `repr(transparent)` over `u64`; any bit pattern is valid.
unsafe impl aya::Pod for Word {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_round_trips_every_field() {
        for zone in [Zone::Green, Zone::Yellow, Zone::Red] {
            for cause in 0..=6 {
                let cause = Cause::from_bits(cause);
                let word = Word::new(zone, cause, FLAG_OVERRIDE, u32::MAX - 1);
                assert_eq!(
                    (word.zone(), word.cause(), word.flags(), word.epoch()),
                    (zone, cause, FLAG_OVERRIDE, u32::MAX - 1)
                );
            }
        }
    }

    #[test]
    fn zeroed_memory_reads_as_green() {
        assert_eq!(Word::default(), Word::new(Zone::Green, Cause::None, 0, 0));
    }

    #[test]
    fn unknown_zone_reads_as_red() {
        assert_eq!(Word(0xff).zone(), Zone::Red);
    }
}

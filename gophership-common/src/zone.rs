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

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// What a zone is due to, in rising precedence: where several signals enter the same zone,
        /// the greatest names it.
        ///
        /// What says most about what happens to producers outranks what explains it: a full receive
        /// queue counts more than a stale heartbeat, and that more than a lack of CPU.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Cause {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Cause {
            /// Every cause, by rising precedence.
            pub const ALL: [Self; [$($number),+].len()] = [$(Self::$variant),+];

            /// Decodes a cause; a value nobody writes reads as `None`.
            #[must_use]
            pub const fn from_bits(bits: u8) -> Self {
                match bits {
                    $($number => Self::$variant,)+
                    _ => Self::None,
                }
            }

            /// The snake-case name used by commands, metrics and events.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

causes! {
    /// Nothing: the zone is Green.
    None = 0, "none";
    /// The ingest budget would be spent soon, if what arrives goes on growing as now.
    Ingress = 1, "ingress";
    /// The vault's disk is slow.
    DiskLatency = 2, "disk_latency";
    /// The workers wait for a CPU.
    CpuWait = 3, "cpu_wait";
    /// Little memory is available.
    MemoryAvailable = 4, "memory_available";
    /// Time is lost to reclaiming memory.
    MemoryStall = 5, "memory_stall";
    /// A process was killed because memory had run out.
    OomKill = 6, "oom_kill";
    /// A byte budget is nearly spent.
    Budget = 7, "budget";
    /// Connections wait to be accepted.
    ListenBacklog = 8, "listen_backlog";
    /// A worker hasn't beaten for longer than the limit.
    Heartbeat = 9, "heartbeat";
    /// An ingest socket's receive queue fills up.
    ReceiveQueue = 10, "receive_queue";
    /// The operator said so.
    Override = 11, "override";
}

/// Flag of [`Word`]: the zone is the operator's, not the signals'.
pub const FLAG_OVERRIDE: u16 = 1;
/// Flag of [`Word`]: the vault's disk is slow, whatever the zone is due to.
pub const FLAG_SLOW_DISK: u16 = 1 << 1;

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

    /// Flag bits, see [`FLAG_OVERRIDE`] and [`FLAG_SLOW_DISK`].
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

    /// Whether the vault's disk is slow.
    #[must_use]
    pub const fn slow_disk(self) -> bool {
        self.flags() & FLAG_SLOW_DISK != 0
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
            for cause in Cause::ALL {
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
    fn causes_decode_to_themselves() {
        for cause in Cause::ALL {
            assert_eq!(Cause::from_bits(cause as u8), cause);
        }
        assert_eq!(Cause::from_bits(u8::MAX), Cause::None);
    }

    #[test]
    fn unknown_zone_reads_as_red() {
        assert_eq!(Word(0xff).zone(), Zone::Red);
    }
}

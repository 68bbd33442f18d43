//! The signals: what is measured, and one reading of all of them.

use crate::zone::{Cause, FLAG_SLOW_DISK};

/// What a signal counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Thousandths of the signal's full scale.
    Permille,
    /// Microseconds.
    Microseconds,
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSecond,
    /// Things.
    Count,
}

macro_rules! signals {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $unit:ident, $cause:ident;)+) => {
        /// One thing that is measured. Its number is its place in [`Signals`] and its bit in
        /// [`Signals::available`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Signal {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Signal {
            /// Every signal, by its number.
            pub const ALL: [Self; SIGNALS] = [$(Self::$variant),+];

            /// The snake-case name used by commands, metrics and events.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What its value counts in.
            #[must_use]
            pub const fn unit(self) -> Unit {
                match self { $(Self::$variant => Unit::$unit),+ }
            }

            /// What a zone that it enters is due to; [`Cause::None`]: it is shown, not judged.
            #[must_use]
            pub const fn cause(self) -> Cause {
                match self { $(Self::$variant => Cause::$cause),+ }
            }
        }

        /// Variants of [`Signal`].
        pub const SIGNALS: usize = [$(stringify!($variant)),+].len();
    };
}

signals! {
    /// Fullest ingest socket since the last tick, of its capacity.
    ReceiveQueue = "receive_queue", Permille, ReceiveQueue;
    /// Longest time an ingest socket has been above its Red level without a dequeue.
    ReceiveQueueStalled = "receive_queue_stalled", Microseconds, ReceiveQueue;
    /// Ingest sockets above Yellow and not yet below its exit.
    SocketsAboveYellow = "sockets_above_yellow", Count, ReceiveQueue;
    /// Ingest sockets above Red and not yet below its exit.
    SocketsAboveRed = "sockets_above_red", Count, None;
    /// Unread bytes of all ingest sockets.
    ReceiveQueueBytes = "receive_queue_bytes", Bytes, None;
    /// Fullest accept queue of the ingest listeners, of its limit.
    ListenBacklog = "listen_backlog", Permille, ListenBacklog;
    /// Share of the last second in which some task of the host was in direct reclaim.
    MemoryStall = "memory_stall", Permille, MemoryStall;
    /// Share of the last second in which some task of the engine's cgroup was reclaiming under its
    /// cgroup's limit.
    MemoryStallCgroup = "memory_stall_cgroup", Permille, MemoryStall;
    /// PSI: share of the last second in which every task of the host was stalled for memory; 0 while
    /// a quarter of the host's memory or more is available, since such stalls are cgroups' own.
    MemoryPressure = "memory_pressure", Permille, MemoryStall;
    /// PSI: share of the last second in which some task of the engine's cgroup was stalled for
    /// memory.
    MemoryPressureCgroup = "memory_pressure_cgroup", Permille, MemoryStall;
    /// Wake-ups of the kernel's reclaim threads in the last second.
    KswapdWakeups = "kswapd_wakeups", Count, None;
    /// Processes killed in the last 10 s because the host, or the engine's cgroup, was out of
    /// memory.
    OomKills = "oom_kills", Count, OomKill;
    /// Memory that can still be had, of the smallest limit; low is bad.
    MemoryAvailable = "memory_available", Permille, MemoryAvailable;
    /// Share of the last second that the worker which waited longest was runnable without a CPU.
    CpuWait = "cpu_wait", Permille, CpuWait;
    /// PSI: share of the last second in which some task of the host waited for a CPU.
    CpuPressure = "cpu_pressure", Permille, None;
    /// PSI: share of the last second in which some task of the host was stalled for I/O.
    IoPressure = "io_pressure", Permille, None;
    /// Mean time the vault's block device took for what it completed in the last second; the age of
    /// its oldest request if it completed nothing.
    DiskLatency = "disk_latency", Microseconds, DiskLatency;
    /// Requests the vault's block device is working on.
    DiskDepth = "disk_depth", Count, None;
    /// Slowest worker's time for a synced vault write, as the workers see it: the mean of those that
    /// ended within the last one to two seconds, or the age of the oldest one under way if that is
    /// more. Unavailable while none of them writes.
    VaultWrite = "vault_write", Microseconds, DiskLatency;
    /// Bytes that arrived for the ingest ports, a second, over the last second.
    IngressRate = "ingress_rate", BytesPerSecond, None;
    /// The same over the last 10 s.
    IngressRateLong = "ingress_rate_10s", BytesPerSecond, None;
    /// How much the rate grows, in bytes a second for each second; 0 while it falls.
    IngressSlope = "ingress_slope", BytesPerSecond, None;
    /// Until the ingest budget is spent if what is unread and unanswered goes on growing as now; low
    /// is bad. At most [`TIME_TO_FULL_MAX_US`].
    TimeToFull = "time_to_full", Microseconds, Ingress;
    /// Age of the oldest heartbeat of a worker that has started.
    HeartbeatAge = "heartbeat_age", Microseconds, Heartbeat;
    /// Ingest budget in use, of its limit.
    BudgetIngest = "budget_ingest", Permille, Budget;
    /// Export budget in use, of its limit.
    BudgetExport = "budget_export", Permille, Budget;
    /// Vault budget in use, of its limit.
    BudgetVault = "budget_vault", Permille, Budget;
}

/// [`Signal::TimeToFull`]: an hour or more.
pub const TIME_TO_FULL_MAX_US: u64 = 3_600_000_000;

impl Signal {
    /// Its bit in [`Signals::available`].
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self as u32
    }

    /// Whether low is bad.
    #[must_use]
    pub const fn falling(self) -> bool {
        matches!(self, Self::MemoryAvailable | Self::TimeToFull)
    }

    /// The flag of the word that it raises with Yellow.
    #[must_use]
    pub const fn flag(self) -> u16 {
        match self.cause() {
            Cause::DiskLatency => FLAG_SLOW_DISK,
            _ => 0,
        }
    }
}

/// What the judge sees: one reading of every signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Signals {
    /// [`Signal::bit`]s; a signal without its bit is neither a cause nor a reason to stay.
    pub available: u64,
    /// Values in each signal's [`Unit`], by the signal's number; below 2^62.
    pub values: [u64; SIGNALS],
}

impl Signals {
    /// Nothing is measured.
    pub const NONE: Self = Self {
        available: 0,
        values: [0; SIGNALS],
    };

    /// The value of a signal; `None` if it isn't available.
    #[must_use]
    pub const fn get(&self, signal: Signal) -> Option<u64> {
        if self.available & signal.bit() == 0 {
            return None;
        }
        Some(self.values[signal as usize])
    }

    /// Sets the value of a signal, and that it is available.
    #[inline(always)]
    pub const fn set(&mut self, signal: Signal, value: u64) {
        self.values[signal as usize] = value;
        self.available |= signal.bit();
    }
}

const _: () = assert!(SIGNALS <= 64, "one bit a signal");

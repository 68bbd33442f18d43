//! From thresholds to the judge's table: one [`Rule`] a signal.
//!
//! This table is the truth, and a test compares the code with it. *Entry* is at or beyond the
//! threshold; *exit* is below entry × 0.8, or above entry ÷ 0.8 where low is bad (marked ↓). "shown"
//! signals are not judged.
//!
//! | signal | cause | Yellow | Red |
//! |---|---|---|---|
//! | `receive_queue` | `receive_queue` | `receive_queue.yellow` | never |
//! | `receive_queue_stalled` | `receive_queue` | at once | `receive_queue.for` |
//! | `sockets_above_yellow` | `receive_queue` | 1 | never |
//! | `sockets_above_red` | shown | never | never |
//! | `receive_queue_bytes` | shown | never | never |
//! | `listen_backlog` | `listen_backlog` | `listen_backlog.yellow` | `listen_backlog.red` |
//! | `memory_stall` | `memory_stall` | `memory_stall.yellow` | `memory_stall.red` |
//! | `memory_stall_cgroup` | `memory_stall` | `memory_stall.yellow` | `memory_stall.red` |
//! | `memory_pressure` | `memory_stall` | `memory_stall.yellow` | `memory_stall.red` |
//! | `memory_pressure_cgroup` | `memory_stall` | `memory_stall.yellow` | `memory_stall.red` |
//! | `kswapd_wakeups` | shown | never | never |
//! | `oom_kills` | `oom_kill` | never | 1 |
//! | `memory_available` ↓ | `memory_available` | `memory_available.yellow` | `memory_available.red` |
//! | `cpu_wait` | `cpu_wait` | `cpu_wait.yellow` | `cpu_wait.red` |
//! | `cpu_pressure` | shown | never | never |
//! | `io_pressure` | shown | never | never |
//! | `disk_latency` | `disk_latency` | `disk_latency.yellow` | never |
//! | `disk_depth` | shown | never | never |
//! | `vault_write` | `disk_latency` | `disk_latency.yellow` | never |
//! | `ingress_rate` | shown | never | never |
//! | `ingress_rate_10s` | shown | never | never |
//! | `ingress_slope` | shown | never | never |
//! | `time_to_full` ↓ | `ingress` | `ingress.horizon` | never |
//! | `heartbeat_age` | `heartbeat` | never | beyond `heartbeat` |
//! | `budget_ingest` | `budget` | `budget.yellow` | `budget.red` |
//! | `budget_export` | `budget` | `budget.yellow` | `budget.red` |
//! | `budget_vault` | `budget` | `budget.yellow` | `budget.red` |
//!
//! Why a full queue alone is never Red: a burst fills a healthy queue for an instant. Why a slow disk
//! is never Red: Red sends everything to that disk.

use crate::{
    pages::Levels,
    signal::{SIGNALS, Signal},
};

/// A threshold that no value reaches.
pub const NEVER: u64 = 1 << 62;

/// One signal as the judge compares it: `value ^ flip` with each threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// All ones below [`NEVER`] where low is bad, so that greater is worse for every signal; else 0.
    pub flip: u64,
    /// Enters Yellow at or above this, or [`NEVER`].
    pub yellow: u64,
    /// Enters Red at or above this, or [`NEVER`].
    pub red: u64,
    /// Holds Yellow at or above this; at most `yellow`.
    pub yellow_exit: u64,
    /// Holds Red at or above this; at most `red`.
    pub red_exit: u64,
    /// [`crate::Cause`], and from bit 16 the flag that comes with Yellow.
    pub says: u64,
}

/// What a flip flips: a value stays below [`NEVER`].
const FLIP: u64 = NEVER - 1;

impl Rule {
    /// Shown, not judged.
    pub const SHOWN: Self = Self {
        flip: 0,
        yellow: NEVER,
        red: NEVER,
        yellow_exit: NEVER,
        red_exit: NEVER,
        says: 0,
    };

    /// The rule of a signal that enters Yellow and Red at these values of its unit; `None`: never.
    #[must_use]
    pub fn entering(signal: Signal, yellow: Option<u64>, red: Option<u64>) -> Self {
        let flip = if signal.falling() { FLIP } else { 0 };
        let entry = |at: Option<u64>| at.map_or(NEVER, |at| at ^ flip);
        let exit = |at: Option<u64>| {
            at.map_or(NEVER, |at| {
                if signal.falling() {
                    falling_exit(at) ^ flip
                } else {
                    rising_exit(at)
                }
            })
        };
        Self {
            flip,
            yellow: entry(yellow),
            red: entry(red),
            yellow_exit: exit(yellow),
            red_exit: exit(red),
            says: signal.cause() as u64 | u64::from(signal.flag()) << 16,
        }
    }

    /// The entry thresholds in the signal's unit; `None`: never.
    #[must_use]
    pub fn entries(&self) -> (Option<u64>, Option<u64>) {
        let at = |threshold: u64| (threshold < NEVER).then_some(threshold ^ self.flip);
        (at(self.yellow), at(self.red))
    }
}

/// The least value that still holds what `entry` entered; at least 1, or nothing would ever leave.
#[must_use]
pub const fn rising_exit(entry: u64) -> u64 {
    let exit = entry / 10 * 8 + entry % 10 * 8 / 10;
    if exit == 0 { 1 } else { exit }
}

/// The greatest value that still holds what `entry` entered, where low is bad.
const fn falling_exit(entry: u64) -> u64 {
    entry + entry / 4
}

/// What the configuration says about when the zone turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Depth of an ingest socket over its capacity. Red is the level of "above Red" that the time
    /// below counts from.
    pub receive_queue: Levels,
    /// Red needs an ingest socket above its Red level for this long without a dequeue.
    pub receive_queue_for_us: u64,
    /// Accept queue of an ingest listener over its limit.
    pub listen_backlog: Levels,
    /// Share of a second lost to reclaim.
    pub memory_stall: Levels,
    /// Available memory over its limit; low is bad.
    pub memory_available: Levels,
    /// Share of a second that a worker waits for a CPU.
    pub cpu_wait: Levels,
    /// Time for a disk request, microseconds; `None`: never.
    pub disk_latency_us: Option<u64>,
    /// Yellow when the ingest budget would be spent within this, microseconds; `None`: never.
    pub ingress_horizon_us: Option<u64>,
    /// Bytes in use over budget.
    pub budget: Levels,
    /// A heartbeat older than this is a cause of Red, microseconds.
    pub heartbeat_us: u64,
}

impl Thresholds {
    /// The judge's table.
    #[must_use]
    pub fn rules(&self) -> [Rule; SIGNALS] {
        Signal::ALL.map(|signal| {
            let (yellow, red) = self.entries(signal);
            if signal.cause() as u8 == 0 {
                return Rule::SHOWN;
            }
            Rule::entering(signal, yellow, red)
        })
    }

    /// Where a signal enters Yellow and Red, in its unit.
    fn entries(&self, signal: Signal) -> (Option<u64>, Option<u64>) {
        let permille = |levels: Levels| {
            let at = |level: u32| (level != Levels::OFF).then_some(u64::from(level));
            (at(levels.yellow_permille), at(levels.red_permille))
        };
        match signal {
            Signal::ReceiveQueue => (permille(self.receive_queue).0, None),
            Signal::ReceiveQueueStalled => (Some(1), Some(self.receive_queue_for_us.max(1))),
            Signal::SocketsAboveYellow => (Some(1), None),
            Signal::ListenBacklog => permille(self.listen_backlog),
            Signal::MemoryStall
            | Signal::MemoryStallCgroup
            | Signal::MemoryPressure
            | Signal::MemoryPressureCgroup => permille(self.memory_stall),
            Signal::OomKills => (None, Some(1)),
            Signal::MemoryAvailable => permille(self.memory_available),
            Signal::CpuWait => permille(self.cpu_wait),
            Signal::DiskLatency | Signal::VaultWrite => (self.disk_latency_us, None),
            Signal::TimeToFull => (self.ingress_horizon_us, None),
            Signal::HeartbeatAge => (None, Some(self.heartbeat_us + 1)),
            Signal::BudgetIngest | Signal::BudgetExport | Signal::BudgetVault => {
                permille(self.budget)
            }
            Signal::SocketsAboveRed
            | Signal::ReceiveQueueBytes
            | Signal::KswapdWakeups
            | Signal::CpuPressure
            | Signal::IoPressure
            | Signal::DiskDepth
            | Signal::IngressRate
            | Signal::IngressRateLong
            | Signal::IngressSlope => (None, None),
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

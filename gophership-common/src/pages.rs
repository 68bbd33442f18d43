//! Memory layout of the maps that both halves map.
//!
//! All times are `CLOCK_MONOTONIC` nanoseconds (`bpf_ktime_get_ns` in the kernel).

use crate::limits::{DISKS_MAX, PORTS_MAX, WATCH_SLOTS, WORKERS_MAX};
use crate::rules::Rule;
use crate::signal::{SIGNALS, Signals};
use crate::zone::Word;

/// `VERDICT`: line 0 is written only when the verdict changes, line 1 at each tick.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct VerdictPage {
    /// The verdict.
    pub word: Word,
    /// Keeps the word alone on its cache line.
    pub line0: [u64; 7],
    /// When the word last changed.
    pub since_ns: u64,
    /// When the tick last judged: its age tells whether it is alive.
    pub judged_at_ns: u64,
    /// The next period; a CPU claims it by compare-and-swap.
    pub next_tick_ns: u64,
    /// The natural verdict (zone, cause and flags; what the signals say without the override).
    pub natural: Word,
    /// Since when every signal has been below its Yellow exit; 0: it isn't.
    pub below_yellow_since_ns: u64,
    /// Since when every signal has been below its Red exit; 0: it isn't.
    pub below_red_since_ns: u64,
    /// Events that found the ring buffer full.
    pub events_lost: u64,
    /// Changes of the word since the map was made.
    pub transitions: u64,
    /// Since when every disk signal has been below its exit; 0: it isn't.
    pub disk_calm_since_ns: u64,
    /// Fills the line.
    pub line2: [u64; 7],
}

/// Entry thresholds of a signal, in permille of its full scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Levels {
    /// Yellow at or beyond this, or [`Levels::OFF`].
    pub yellow_permille: u32,
    /// Red at or beyond this, or [`Levels::OFF`].
    pub red_permille: u32,
}

impl Levels {
    /// Never.
    pub const OFF: u32 = u32::MAX;
}

/// [`Policy::override_zone`]: no override.
pub const OVERRIDE_NONE: u32 = u32::MAX;
/// [`Policy::override_until_ns`]: until cleared.
pub const OVERRIDE_FOREVER: u64 = u64::MAX;

/// What the judge is told by the configuration and the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// Period of the tick.
    pub tick_ns: u64,
    /// De-escalate after this long below every exit threshold.
    pub hold_ns: u64,
    /// Red by the receive queue needs this long above the Red level without a dequeue.
    pub receive_queue_for_ns: u64,
    /// When the override ends, or [`OVERRIDE_FOREVER`].
    pub override_until_ns: u64,
    /// [`Signal::bit`](crate::Signal::bit)s of what the kernel half can measure.
    pub measured: u64,
    /// How far ahead [`Signal::TimeToFull`](crate::Signal::TimeToFull) takes the growth of the
    /// ingress into account.
    pub ingress_horizon_ns: u64,
    /// The judge's table, by [`Signal`](crate::Signal).
    pub rules: [Rule; SIGNALS],
    /// Depth of an ingest socket over its capacity, for the probes.
    pub receive_queue: Levels,
    /// Block devices below the vault, as `major << 20 | minor`, the kernel's own `dev_t`.
    pub disks: [u32; DISKS_MAX],
    /// The override's zone, or [`OVERRIDE_NONE`].
    pub override_zone: u32,
    /// Bytes an HTTP/2 peer can have in flight before it must stop; 0: not HTTP/2.
    pub h2_window_bytes: u32,
    /// Inode number of the network namespace whose sockets count.
    pub netns_inum: u32,
    /// Worker lines in use.
    pub workers: u32,
    /// Ports in use.
    pub port_count: u32,
    /// Entries of `disks` in use.
    pub disk_count: u32,
    /// Local ports of the ingest listeners, host order.
    pub ports: [u16; PORTS_MAX],
}

/// `POLICY`: the slot `generation & 1` is in force; the other one is free to write.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct PolicyPage {
    /// Counts the policies published.
    pub generation: u64,
    /// The two slots.
    pub slots: [Policy; 2],
}

/// A byte budget that workers account for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Budget {
    /// Requests being received.
    Ingest = 0,
    /// Requests in the pipeline and on their way out.
    Export = 1,
    /// Vault blocks.
    Vault = 2,
}

/// Variants of [`Budget`].
pub const BUDGETS: usize = 3;

/// `SIGNALS`: line 0 is written by the probes, line 1 by the tick.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SignalsPage {
    /// Counts kept by the probes, by atomic addition.
    pub aggregates: Aggregates,
    /// The tick's last reading.
    pub last: Signals,
    /// Worst value of each signal over the last one to two seconds.
    pub worst: [u64; SIGNALS],
    /// Worst values of the second that is under way, and of the one before.
    pub windows: [[u64; SIGNALS]; 2],
    /// Number of the second under way: which of `windows` it is.
    pub window: u64,
    /// Keeps the slots on their own lines.
    pub padding: [u64; 2],
    /// Sockets that the tick must look after because they may fall silent.
    pub watch: [WatchSlot; WATCH_SLOTS],
}

/// Sums over the ingest sockets, undone when a socket closes; at the end what the tick keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Aggregates {
    /// Sockets above Yellow and not yet below its exit.
    pub above_yellow: u64,
    /// Sockets above Red and not yet below its exit.
    pub above_red: u64,
    /// Deepest queue since the last tick, permille.
    pub window_permille: u64,
    /// Sockets being followed.
    pub tracked: u64,
    /// Sockets that found the table full, counted once per segment.
    pub untracked: u64,
    /// Sockets above a level that found no free watch slot, counted once per event.
    pub unwatched: u64,
    /// Watch slots that the tick has looked at for owners that are gone; wraps.
    pub swept: u64,
    /// Fills the line.
    pub padding: u64,
}

/// One watched socket. `socket` is claimed and freed by compare-and-swap; the rest is written under
/// that socket's lock, but for `suspect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct WatchSlot {
    /// Kernel address of the socket, 0: free.
    pub socket: u64,
    /// Above Red without a dequeue since then; 0: not above Red.
    pub stalled_since_ns: u64,
    /// Depth over capacity.
    pub permille: u64,
    /// The owner, if the tick's last look found no ingest socket there; 0 otherwise.
    pub suspect: u64,
}

/// `ENGINE`: what user space reports.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct EnginePage {
    /// Samples of the host.
    pub posted: Posted,
    /// One line a worker.
    pub workers: [WorkerLine; WORKERS_MAX],
}

/// Samples that only user space can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Posted {
    /// When they were taken; 0: never.
    pub at_ns: u64,
    /// [`Signal::bit`](crate::Signal::bit)s of what could be sampled.
    pub available: u64,
    /// The values, by [`POSTED`](crate::POSTED).
    pub values: [u64; crate::tally::POSTED.len()],
    /// Fills the line.
    pub padding: [u64; 1],
}

/// One worker's report; only that worker writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct WorkerLine {
    /// Last heartbeat; 0: not started yet.
    pub heartbeat_ns: u64,
    /// Bytes in use, by [`Budget`].
    pub used: [u64; BUDGETS],
    /// Bytes allowed, by [`Budget`]; 0: not reported.
    pub limit: [u64; BUDGETS],
    /// Operations since the start, for the fallback's counted sampling.
    pub operations: u64,
    /// Time that the worker's synced vault writes take now, microseconds.
    pub vault_write_us: u64,
    /// When `vault_write_us` was last known; 0: the worker writes nothing.
    pub vault_write_at_ns: u64,
    /// Fills the line.
    pub line1: [u64; 6],
}

/// [`Event::kind`]: the word has changed.
pub const EVENT_TRANSITION: u64 = 0;
/// [`Event::kind`]: a process was killed for lack of memory, somewhere where it doesn't concern the
/// engine.
pub const EVENT_OOM_ELSEWHERE: u64 = 1;
/// [`Event::kind`]: a process was killed for lack of memory of the host or of the engine's cgroup.
pub const EVENT_OOM: u64 = 2;

/// What the kernel half has to tell.
///
/// `from` and `to` have the same zone when only the cause or a flag changed (see [`crate::judge`]);
/// they are equal where nothing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// [`EVENT_TRANSITION`] and its siblings.
    pub kind: u64,
    /// The word before.
    pub from: Word,
    /// The word after.
    pub to: Word,
    /// When.
    pub ktime_ns: u64,
    /// The readings it was decided on; a raising probe fills in its own socket's only.
    pub values: Signals,
}

const _: () = {
    assert!(size_of::<VerdictPage>() == 192);
    assert!(core::mem::offset_of!(VerdictPage, since_ns) == 64);
    assert!(size_of::<Policy>() == 6 * 8 + SIGNALS * 48 + 8 + 4 * DISKS_MAX + 24 + 2 * PORTS_MAX);
    assert!(size_of::<Signals>() == 8 + 8 * SIGNALS);
    assert!(size_of::<Aggregates>() == 64);
    assert!(size_of::<WatchSlot>() == 32);
    assert!(core::mem::offset_of!(SignalsPage, watch).is_multiple_of(64));
    assert!(size_of::<WorkerLine>() == 128);
    assert!(size_of::<Posted>() == 64);
    assert!(size_of::<Event>() == 32 + size_of::<Signals>());
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Aggregates, EnginePage, Event, Policy, PolicyPage, Posted, Signals, SignalsPage,
        VerdictPage, WatchSlot, WorkerLine,
    };

    macro_rules! pod {
        ($($name:ty),+ $(,)?) => {$(
            // SAFETY: `repr(C)`, integer fields only, no implicit padding (sizes asserted above),
            // any bit pattern is valid.
            unsafe impl aya::Pod for $name {}
        )+};
    }

    pod!(
        Aggregates,
        EnginePage,
        Event,
        Policy,
        PolicyPage,
        Posted,
        Signals,
        SignalsPage,
        VerdictPage,
        WatchSlot,
        WorkerLine,
    );
}

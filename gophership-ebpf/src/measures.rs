//! What the probes count, private to the kernel half: totals that only grow, states of what is under
//! way, and what the totals were a while ago.

use gophership_common::{PORTS_MAX, WORKERS_MAX};

/// Lines of [`Traffic`]; a CPU beyond shares one, which its atomics allow.
pub(crate) const TRAFFIC_LINES: usize = 256;
/// Requests followed on the vault's devices; a power of two.
pub(crate) const REQUESTS: usize = 256;
/// Samples kept; a power of two, and more than the ten that a second takes.
pub(crate) const SAMPLES: usize = 16;

/// The only element of `MEASURES`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Measures {
    /// Process id of the engine, as the kernel counts; 0: not enlisted.
    pub(crate) tgid: u64,
    /// Its memory cgroup, see [`crate::reclaim::memory_cgroup`].
    pub(crate) memory_cgroup: u64,
    /// 1 once a worker is.
    pub(crate) enlisted: u64,
    /// Stalls by [`crate::reclaim`]'s kinds.
    pub(crate) stalls: [Stall; 2],
    /// Wake-ups of reclaim threads.
    pub(crate) kswapd: u64,
    /// Processes killed for lack of memory that concerns the engine.
    pub(crate) oom: u64,
    /// The vault's devices.
    pub(crate) disk: Disk,
    /// Kernel addresses of the ingest listeners, 0: free.
    pub(crate) listeners: [u64; PORTS_MAX],
    /// Signals that the last sample could measure.
    pub(crate) sampled: u64,
    /// Samples taken.
    pub(crate) samples: u64,
    /// When the next is due.
    pub(crate) next_sample_ns: u64,
    /// The last samples, ten a second.
    pub(crate) recent: [Sample; SAMPLES],
    /// One sample a second.
    pub(crate) long: [Sample; SAMPLES],
    /// Requests under way.
    pub(crate) requests: [Request; REQUESTS],
    /// The workers' waits for a CPU.
    pub(crate) waits: [Wait; WORKERS_MAX],
    /// Their totals at the times of `recent`.
    pub(crate) waited_ns: [[u64; WORKERS_MAX]; SAMPLES],
    /// By CPU.
    pub(crate) traffic: [Traffic; TRAFFIC_LINES],
}

/// Time during which some task was stalled.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Stall {
    /// Tasks that are, in the low 16 bits; above them since when the first one is, microseconds. One
    /// word, so that both change at once.
    pub(crate) state: u64,
    /// Of all that have ended.
    pub(crate) total_us: u64,
}

/// Totals of the vault's devices.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Disk {
    /// Requests completed.
    pub(crate) completed: u64,
    /// What they took together.
    pub(crate) latency_us: u64,
    /// Requests under way.
    pub(crate) depth: u64,
}

/// One request under way.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Request {
    /// Kernel address of the request, 0: free.
    pub(crate) address: u64,
    /// When it was issued.
    pub(crate) issued_ns: u64,
}

/// One worker's waits.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Wait {
    /// Runnable without a CPU since then; 0: it sleeps; [`crate::sched::RUNNING`].
    pub(crate) since_ns: u64,
    /// Of all waits that have ended.
    pub(crate) total_ns: u64,
}

/// What one CPU has seen arrive; on a cache line of its own.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Traffic {
    /// Payload bytes that arrived for the ingest ports.
    pub(crate) bytes: u64,
    /// Unread bytes added less unread bytes taken: only the sum over all CPUs says something.
    pub(crate) unread: u64,
    /// Fills the line.
    pub(crate) padding: [u64; 6],
}

/// The totals at one moment.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Sample {
    pub(crate) at_ns: u64,
    pub(crate) stall_us: [u64; 2],
    pub(crate) kswapd: u64,
    pub(crate) oom: u64,
    pub(crate) disk_completed: u64,
    pub(crate) disk_latency_us: u64,
    pub(crate) bytes: u64,
    pub(crate) backlog: u64,
}

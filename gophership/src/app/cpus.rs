//! Which worker runs on which CPU, if they are pinned.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process may use, in the order of their numbers; none if the system doesn't tell, as where
/// there are more than [`CpuSet::MAX_CPU`].
pub(super) fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|error| {
        tracing::warn!(%error, "the workers aren't pinned: the allowed CPUs aren't known");
        CpuSet::new()
    });
    (0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect()
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// As `sched_setaffinity(2)`: the CPU has gone, or isn't allowed any more.
pub(super) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

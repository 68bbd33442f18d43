//! Learning who the engine is. Process and thread ids differ between pid namespaces, so the engine
//! doesn't say: it runs this on its own threads.

use gophership_common::WORKERS_MAX;

use crate::{atomic, maps, measures::Wait, reclaim, sched};

/// Notes the current process as the engine and, if `worker` is one's number, the current thread as
/// that worker. Returns 0, or 1 if there is no room.
#[inline(always)]
pub(crate) fn run(worker: u64) -> i32 {
    let Some(page) = maps::measures() else {
        return 1;
    };
    let (thread, tgid) = reclaim::current();
    // SAFETY: the MEASURES map's only element.
    unsafe {
        atomic::store(&raw mut (*page).memory_cgroup, reclaim::memory_cgroup());
        atomic::store(&raw mut (*page).tgid, u64::from(tgid));
    }
    if worker >= WORKERS_MAX as u64 {
        return 0;
    }
    if maps::WORKERS.insert(thread, worker as u32, 0).is_err() {
        return 1;
    }
    // SAFETY: as above; the index is masked.
    unsafe {
        let wait = (&raw mut (*page).waits)
            .cast::<Wait>()
            .add(worker as usize & (WORKERS_MAX - 1));
        // This is the worker, so it runs.
        atomic::store(&raw mut (*wait).since_ns, sched::RUNNING);
        atomic::store(&raw mut (*page).enlisted, 1);
    }
    0
}

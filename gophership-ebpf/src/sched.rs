//! How long the workers wait for a CPU: from runnable to running.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use gophership_common::{WORKERS_MAX, greatest, reached};

use crate::{
    atomic,
    maps::{self, offset_in_kernel},
    measures::{Measures, SAMPLES, Wait},
};

/// [`Wait::since_ns`]: the worker has a CPU. Later than any time, so that the wait is none.
pub(crate) const RUNNING: u64 = 1 << 62;

/// A `u32` of a task.
///
/// # Safety
/// `task` is a probe's argument: the verifier refuses any other.
#[inline(always)]
unsafe fn field(task: *const c_void, offset: u32) -> u32 {
    // SAFETY: a live task, says the caller. The loader has fixed the offset before the verifier sees
    // this load, so that it can check it.
    unsafe {
        task.wrapping_byte_add(offset as usize)
            .cast::<u32>()
            .read_volatile()
    }
}

/// The waits of a task, if it is a worker. Everything else on the host costs two loads and a
/// comparison.
///
/// # Safety
/// As for [`field`].
#[inline(always)]
unsafe fn waits_of(page: *mut Measures, task: *const c_void) -> Option<*mut Wait> {
    // SAFETY: says the caller; the MEASURES map's only element.
    unsafe {
        let tgid = u64::from(field(task, offset_in_kernel!(task_tgid)));
        if tgid == 0 || tgid != atomic::load(&raw const (*page).tgid) {
            return None;
        }
        let thread = field(task, offset_in_kernel!(task_pid));
        let worker = *maps::WORKERS.get(thread)? as usize & (WORKERS_MAX - 1);
        Some((&raw mut (*page).waits).cast::<Wait>().add(worker))
    }
}

/// A task has become runnable; or is woken just before it would have slept, and goes on running.
///
/// # Safety
/// As for [`field`].
#[inline(always)]
pub(crate) unsafe fn wakeup(task: *const c_void) {
    let Some(page) = maps::measures() else {
        return;
    };
    // SAFETY: says the caller; waits point into the MEASURES map.
    unsafe {
        if let Some(wait) = waits_of(page, task) {
            let since = &raw mut (*wait).since_ns;
            if atomic::load(since) == 0 {
                atomic::store(since, bpf_ktime_get_ns());
            }
        }
    }
}

/// A CPU goes from one task to the next; `previous` waits if it could have gone on: it was
/// preempted, about to sleep perhaps, or is runnable.
///
/// # Safety
/// As for [`field`], for both.
#[inline(always)]
pub(crate) unsafe fn switch(preempted: bool, previous: *const c_void, next: *const c_void) {
    /// `TASK_RUNNING` of `include/linux/sched.h`: runnable.
    const TASK_RUNNING: u32 = 0;
    let Some(page) = maps::measures() else {
        return;
    };
    // SAFETY: says the caller; waits point into the MEASURES map.
    unsafe {
        if let Some(wait) = waits_of(page, previous) {
            let state = field(previous, offset_in_kernel!(task_state));
            let since_ns = if preempted || state == TASK_RUNNING {
                bpf_ktime_get_ns()
            } else {
                0
            };
            atomic::store(&raw mut (*wait).since_ns, since_ns);
        }
        if let Some(wait) = waits_of(page, next) {
            let since_ns = atomic::load(&raw const (*wait).since_ns);
            atomic::store(&raw mut (*wait).since_ns, RUNNING);
            if since_ns != 0 {
                let waited_ns = bpf_ktime_get_ns().saturating_sub(since_ns);
                atomic::add(&raw mut (*wait).total_ns, waited_ns);
            }
        }
    }
}

/// Longest wait of a worker between two samples, nanoseconds, with what is under way; notes the
/// totals of this one.
///
/// # Safety
/// `page` is the MEASURES map's only element.
#[inline(always)]
pub(crate) unsafe fn longest_ns(page: *mut Measures, now: usize, then: usize, now_ns: u64) -> u64 {
    let mut longest = 0;
    let mut worker = 0;
    while worker < WORKERS_MAX {
        // SAFETY: all indices are below their arrays' lengths.
        unsafe {
            let wait = (&raw const (*page).waits).cast::<Wait>().add(worker);
            let totals = (&raw mut (*page).waited_ns).cast::<u64>();
            let since_ns = atomic::load(&raw const (*wait).since_ns);
            // Without branches: 0 if it isn't waiting, or has begun after `now_ns`.
            let waiting = (greatest(now_ns, since_ns) - since_ns) * reached(since_ns, 1);
            let total = atomic::load(&raw const (*wait).total_ns) + waiting;
            let before = totals.add((then & (SAMPLES - 1)) * WORKERS_MAX + worker);
            // A wait that ends between our two loads is missing once: never less than before.
            let total = greatest(total, atomic::load(before));
            longest = greatest(longest, total - atomic::load(before));
            atomic::store(
                totals.add((now & (SAMPLES - 1)) * WORKERS_MAX + worker),
                total,
            );
        }
        worker += 1;
    }
    longest
}

//! Time lost to reclaiming memory: during which some task was at it.
//!
//! A begin counts only if it could be noted for its thread, and an end only if its begin was: what
//! was under way when we attached, or moved to another cgroup meanwhile, can't leave a task behind
//! that never ends.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel,
    generated::bpf_get_current_task,
};
use gophership_common::OFFSET_ABSENT;

use crate::{
    atomic,
    maps::{self, offset_in_kernel},
    measures::{Measures, Stall},
};

/// For the host: no memory is left anywhere.
pub(crate) const HOST: u32 = 0;
/// Under a limit of the engine's cgroup.
pub(crate) const OURS: u32 = 1;
/// Under another cgroup's limit.
pub(crate) const FOREIGN: u32 = 2;

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const ONLY_NEW: u64 = 1;
/// Bits of [`Stall::state`] that count tasks.
const COUNT_BITS: u32 = 16;
/// Thread and process of the current task.
#[inline(always)]
pub(crate) fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    (both as u32, (both >> 32) as u32)
}

/// This task reclaims for the host.
#[inline(always)]
pub(crate) fn begin_for_host() {
    begin(HOST);
}

/// The memory cgroup of the current task, by the address of its state in the kernel; 0: not known.
/// Whatever the version of the hierarchy, tasks under the same limits have the same.
#[inline(always)]
pub(crate) fn memory_cgroup() -> u64 {
    if offset_in_kernel!(memory_css) == OFFSET_ABSENT {
        return 0;
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let read = |base: u64, offset: u32| {
        let field = base.wrapping_add(u64::from(offset)) as *const u64;
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(field) }.unwrap_or(0)
    };
    let set = read(task, offset_in_kernel!(task_cgroups));
    read(set, offset_in_kernel!(memory_css))
}

/// This task reclaims under a cgroup's limit: which, nobody says, so it is the task's own.
#[inline(always)]
pub(crate) fn begin_for_cgroup() {
    let Some(page) = maps::measures() else {
        return;
    };
    let (_, tgid) = current();
    // SAFETY: the MEASURES map's only element.
    let (engine, cgroup) = unsafe {
        (
            atomic::load(&raw const (*page).tgid),
            atomic::load(&raw const (*page).memory_cgroup),
        )
    };
    let ours = u64::from(tgid) == engine || cgroup != 0 && memory_cgroup() == cgroup;
    begin(if ours { OURS } else { FOREIGN });
}

#[inline(always)]
fn begin(kind: u32) {
    let (thread, _) = current();
    if maps::RECLAIMING.insert(thread, kind, ONLY_NEW).is_ok() {
        shift(kind, true);
    }
}

/// This task has done with reclaiming.
#[inline(always)]
pub(crate) fn end() {
    let (thread, _) = current();
    // SAFETY: only this thread changes its element.
    let Some(kind) = (unsafe { maps::RECLAIMING.get(thread) }).copied() else {
        return;
    };
    let _ = maps::RECLAIMING.remove(thread);
    let _ = maps::RECLAIMED.insert(thread, kind, 0);
    shift(kind, false);
}

/// Counts a task in or out.
#[inline(always)]
fn shift(kind: u32, enters: bool) {
    let Some(page) = maps::measures() else {
        return;
    };
    if kind >= FOREIGN {
        return;
    }
    // SAFETY: the MEASURES map's only element; `kind` is 0 or 1.
    let stall = unsafe { (&raw mut (*page).stalls).cast::<Stall>().add(kind as usize) };
    // Each loss of a compare-and-swap means that another task has come or gone. Written out, for the
    // verifiers before 6.3 refuse the loop that the compiler makes of it.
    let once = || swap(stall, enters);
    let four = || once() || once() || once() || once();
    let _ = four() || four() || four() || four();
}

/// Tries once; says whether that's it.
#[inline(always)]
fn swap(stall: *mut Stall, enters: bool) -> bool {
    // SAFETY: `stall` points into the MEASURES map; the helper has no preconditions.
    unsafe {
        let state = &raw mut (*stall).state;
        let seen = atomic::load(state);
        let now_us = bpf_ktime_get_ns() / 1000;
        let next = after(seen, enters, now_us);
        if atomic::compare_exchange(state, seen, next) != seen {
            return false;
        }
        // An end without a begin ends nothing: its begin was given up.
        if next == 0 && seen != 0 {
            let ended_us = now_us.saturating_sub(seen >> COUNT_BITS);
            atomic::add(&raw mut (*stall).total_us, ended_us);
        }
        true
    }
}

/// The state with one task more or less; the first one sets the time.
#[inline(always)]
fn after(seen: u64, enters: bool, now_us: u64) -> u64 {
    let count = seen & ((1 << COUNT_BITS) - 1);
    match (enters, count) {
        (true, 0) => now_us << COUNT_BITS | 1,
        (true, _) => seen + 1,
        (false, 0 | 1) => 0,
        (false, _) => seen - 1,
    }
}

/// Microseconds lost so far, with what is under way.
///
/// # Safety
/// `page` is the MEASURES map's only element; `kind` is [`HOST`] or [`OURS`].
#[inline(always)]
pub(crate) unsafe fn stalled_us(page: *const Measures, kind: u32, now_ns: u64) -> u64 {
    // SAFETY: says the caller.
    unsafe {
        let stall = (&raw const (*page).stalls)
            .cast::<Stall>()
            .add(kind as usize);
        let total_us = atomic::load(&raw const (*stall).total_us);
        match atomic::load(&raw const (*stall).state) {
            0 => total_us,
            state => total_us + (now_ns / 1000).saturating_sub(state >> COUNT_BITS),
        }
    }
}

/// A reclaim thread is woken.
#[inline(always)]
pub(crate) fn kswapd() {
    if let Some(page) = maps::measures() {
        // SAFETY: the MEASURES map's only element.
        unsafe { atomic::add(&raw mut (*page).kswapd, 1) };
    }
}

//! Processes killed for lack of memory: whose lack?
//!
//! The tracepoint names the victim only. The task that found no memory has been reclaiming just
//! before: for the host, under the engine's limit, or under somebody else's.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel};
use gophership_common::{EVENT_OOM, EVENT_OOM_ELSEWHERE};

use crate::{
    atomic, event,
    maps::{self, offset_in_kernel},
    reclaim,
};

/// A victim is chosen; `victim` is its task's address or its process id, as the kernel has it.
#[inline(always)]
pub(crate) fn victim(victim: u64) {
    let (Some(page), Some(verdict), Some(signals)) =
        (maps::measures(), maps::verdict(), maps::signals())
    else {
        return;
    };
    let tgid = if offset_in_kernel!(victim_is_task) == 0 {
        victim as u32
    } else {
        let field = victim.wrapping_add(u64::from(offset_in_kernel!(task_tgid)));
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(field as *const u32) }.unwrap_or(0)
    };
    let (thread, _) = reclaim::current();
    // SAFETY: only this thread changes its element.
    let lack = unsafe { maps::RECLAIMED.get(thread) }.copied();
    // SAFETY: the MEASURES map's only element; the helper has no preconditions.
    let (ours, now_ns) = unsafe {
        (
            u64::from(tgid) == atomic::load(&raw const (*page).tgid),
            bpf_ktime_get_ns(),
        )
    };
    let kind = match lack {
        Some(reclaim::HOST | reclaim::OURS) => EVENT_OOM,
        _ if ours => EVENT_OOM,
        _ => EVENT_OOM_ELSEWHERE,
    };
    if kind == EVENT_OOM {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*page).oom, 1) };
    }
    let word = event::word(verdict);
    // SAFETY: the SIGNALS map's only element.
    let values = event::Values::Reading(unsafe { &raw const (*signals).last });
    event::send(verdict, kind, word, word, &values, now_ns);
}

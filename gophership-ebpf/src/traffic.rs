//! Bytes that arrive for the ingest ports, and bytes unread, on one line a CPU.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;

use crate::{
    atomic, maps,
    measures::{Measures, TRAFFIC_LINES, Traffic},
};

#[inline(always)]
fn line() -> Option<*mut Traffic> {
    let page = maps::measures()?;
    // SAFETY: the helper has no preconditions; the index is masked.
    unsafe {
        let cpu = bpf_get_smp_processor_id() as usize & (TRAFFIC_LINES - 1);
        Some((&raw mut (*page).traffic).cast::<Traffic>().add(cpu))
    }
}

/// A segment has arrived.
#[inline(always)]
pub(crate) fn arrived(bytes: u32) {
    if let Some(line) = line() {
        // SAFETY: `line` points into the MEASURES map. Atomic, because a segment may be worked off in
        // a task's context, where a soft interrupt brings the next one.
        unsafe { atomic::add(&raw mut (*line).bytes, u64::from(bytes)) };
    }
}

/// A socket's unread bytes have changed.
#[inline(always)]
pub(crate) fn unread(before: u32, now: u32) {
    if before == now {
        return;
    }
    if let Some(line) = line() {
        let delta = u64::from(now).wrapping_sub(u64::from(before));
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*line).unread, delta) };
    }
}

/// Bytes arrived and bytes unread, over all CPUs.
///
/// # Safety
/// `page` is the MEASURES map's only element.
#[inline(always)]
pub(crate) unsafe fn sums(page: *const Measures) -> (u64, u64) {
    let (mut bytes, mut unread) = (0_u64, 0_u64);
    let mut cpu = 0;
    while cpu < TRAFFIC_LINES {
        // SAFETY: the index is below TRAFFIC_LINES.
        unsafe {
            let line = (&raw const (*page).traffic).cast::<Traffic>().add(cpu);
            bytes = bytes.wrapping_add(atomic::load(&raw const (*line).bytes));
            unread = unread.wrapping_add(atomic::load(&raw const (*line).unread));
        }
        cpu += 1;
    }
    // Read while it changes, the sum may be of a byte taken but not yet of the byte added.
    let unread = if unread >> 63 == 0 { unread } else { 0 };
    (bytes, unread)
}

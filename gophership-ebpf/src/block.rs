//! How long the vault's block devices take, from issuing a request to its completion.
//!
//! A completion may go unseen: the kernel skips a program that would interrupt itself, and there are
//! kernels that run none, and count none as missed, in what interrupts certain processes. So a request
//! counts as under way only as long as its own state says so.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
    programs::BtfTracePointContext,
};
use gophership_common::{DISKS_MAX, Earliest, OFFSET_ABSENT, Policy};

use crate::{
    atomic,
    maps::{self, offset_in_kernel},
    measures::{Measures, REQUESTS, Request},
};

/// A request still under way after this is none any more: the memory of one whose device is gone may
/// say anything. Drivers give a request up after 30 s.
const LOST_NS: u64 = 120 * 1_000_000_000;

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails on a bad one; `T` is an integer.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(u64::from(offset)) as *const T) }.ok()
}

/// The address of a program's first argument as a plain number: the verifier lets nobody calculate
/// with a pointer that it knows.
#[inline(always)]
fn request_of(ctx: &BtfTracePointContext) -> Option<u64> {
    read(ctx.as_ptr() as u64, 0)
}

/// Whether a request is for one of the vault's devices.
#[inline(always)]
fn is_ours(request: u64, policy: &Policy) -> Option<bool> {
    let disk: u64 = if offset_in_kernel!(queue_disk) == OFFSET_ABSENT {
        read(request, offset_in_kernel!(request_disk))?
    } else {
        let queue: u64 = read(request, offset_in_kernel!(request_queue))?;
        read(queue, offset_in_kernel!(queue_disk))?
    };
    let major: u32 = read(disk, offset_in_kernel!(disk_major))?;
    let minor: u32 = read(disk, offset_in_kernel!(disk_minor))?;
    let device = major << 20 | minor;
    let mut index = 0;
    while index < DISKS_MAX {
        if index as u32 >= policy.disk_count {
            return Some(false);
        }
        if policy.disks[index] == device {
            return Some(true);
        }
        index += 1;
    }
    Some(false)
}

/// The slot of a request; another one may be in it. Requests lie in arrays, some hundred bytes
/// each.
#[inline(always)]
fn slot(page: *mut Measures, request: u64) -> *mut Request {
    let index = (request >> 6 ^ request >> 14) as usize & (REQUESTS - 1);
    // SAFETY: `page` is the MEASURES map's only element; the index is masked.
    unsafe { (&raw mut (*page).requests).cast::<Request>().add(index) }
}

/// A request goes to its device.
#[inline(always)]
pub(crate) fn issue(ctx: &BtfTracePointContext) {
    let (Some(policy), Some(page), Some(request)) =
        (maps::policy_in_force(), maps::measures(), request_of(ctx))
    else {
        return;
    };
    if policy.disk_count == 0 || is_ours(request, policy) != Some(true) {
        return;
    }
    let slot = slot(page, request);
    // SAFETY: `slot` points into the MEASURES map; the helper has no preconditions.
    unsafe {
        let owner = atomic::compare_exchange(&raw mut (*slot).address, 0, request);
        if owner == 0 {
            atomic::add(&raw mut (*page).disk.depth, 1);
        } else if owner != request {
            // Followed is one in each slot: enough to know the device by.
            return;
        }
        atomic::store(&raw mut (*slot).issued_ns, bpf_ktime_get_ns());
    }
}

/// A device has completed a request, or part of it.
#[inline(always)]
pub(crate) fn complete(ctx: &BtfTracePointContext) {
    let (Some(page), Some(request)) = (maps::measures(), request_of(ctx)) else {
        return;
    };
    let slot = slot(page, request);
    // SAFETY: `slot` points into the MEASURES map; the helper has no preconditions.
    unsafe {
        if atomic::load(&raw const (*slot).address) != request {
            return;
        }
        let issued_ns = atomic::load(&raw const (*slot).issued_ns);
        atomic::store(&raw mut (*slot).issued_ns, 0);
        if atomic::compare_exchange(&raw mut (*slot).address, request, 0) != request {
            return;
        }
        let latency_us = bpf_ktime_get_ns().saturating_sub(issued_ns) / 1000;
        let disk = &raw mut (*page).disk;
        atomic::add(&raw mut (*disk).depth, u64::MAX);
        if issued_ns != 0 {
            atomic::add(&raw mut (*disk).completed, 1);
            atomic::add(&raw mut (*disk).latency_us, latency_us);
        }
    }
}

/// Age of the oldest request under way, microseconds; 0 if there is none. Gives up those that are
/// over.
///
/// # Safety
/// `page` is the MEASURES map's only element, and only the tick calls this.
#[inline(always)]
pub(crate) unsafe fn oldest_us(page: *mut Measures, now_ns: u64) -> u64 {
    let mut oldest = Earliest::default();
    let mut index = 0;
    while index < REQUESTS {
        // SAFETY: the index is below REQUESTS.
        unsafe {
            let slot = (&raw mut (*page).requests).cast::<Request>().add(index);
            oldest.add(under_way_since_ns(page, slot, now_ns));
        }
        index += 1;
    }
    oldest.age_ns(now_ns).unwrap_or(0) / 1000
}

/// When the request in a slot was issued; 0 if there is none, or it is over, which frees the slot.
///
/// # Safety
/// As for [`oldest_us`]; `slot` is one of the page's.
#[inline(always)]
unsafe fn under_way_since_ns(page: *mut Measures, slot: *mut Request, now_ns: u64) -> u64 {
    // SAFETY: says the caller.
    unsafe {
        // In this order, a time goes with its own request or an earlier one, never with a later one.
        let issued_ns = atomic::load(&raw const (*slot).issued_ns);
        let owner = atomic::load_after(&raw const (*slot).address, issued_ns);
        // A time of 0: it is being issued right now.
        if owner == 0 || issued_ns == 0 {
            return 0;
        }
        if is_under_way(owner) && now_ns.saturating_sub(issued_ns) <= LOST_NS {
            return issued_ns;
        }
        // Unless it was issued anew meanwhile, or another one is in the slot.
        if atomic::compare_exchange(&raw mut (*slot).issued_ns, issued_ns, 0) == issued_ns
            && atomic::compare_exchange(&raw mut (*slot).address, owner, 0) == owner
        {
            atomic::add(&raw mut (*page).disk.depth, u64::MAX);
        }
        0
    }
}

/// Whether a request's state is that of one under way. It isn't if the request is over, or waits
/// because its driver has sent it back: issued anew, it is followed anew.
#[inline(always)]
fn is_under_way(request: u64) -> bool {
    /// `MQ_RQ_IN_FLIGHT` of `enum mq_rq_state`, `include/linux/blk-mq.h`.
    const IN_FLIGHT: u32 = 1;
    /// `MQ_RQ_COMPLETE`: the device has done with it, the completion is still to come.
    const COMPLETE: u32 = 2;
    let state: Option<u32> = read(request, offset_in_kernel!(request_state));
    matches!(state, Some(IN_FLIGHT | COMPLETE))
}

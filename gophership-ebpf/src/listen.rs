//! The accept queues of the ingest listeners: connections that wait for the engine to take them.
//!
//! No tracepoint tells of their growth, so the tick looks at them.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use gophership_common::{PORTS_MAX, greatest};

use crate::{
    atomic,
    maps::{self, offset_in_kernel},
    measures::Measures,
    socket::Socket,
};

/// A socket begins to listen.
#[inline(always)]
pub(crate) fn open(socket: Socket) {
    let (Some(policy), Some(page)) = (maps::policy_in_force(), maps::measures()) else {
        return;
    };
    if socket.is_still_ours(policy) {
        replace(page, 0, socket.key());
    }
}

/// A socket is closed, a listener perhaps.
#[inline(always)]
pub(crate) fn close(socket: Socket) {
    if let Some(page) = maps::measures() {
        replace(page, socket.key(), 0);
    }
}

#[inline(always)]
fn replace(page: *mut Measures, old: u64, new: u64) {
    let mut index = 0;
    while index < PORTS_MAX {
        // SAFETY: `page` is the MEASURES map's only element; the index is below PORTS_MAX.
        unsafe {
            let slot = (&raw mut (*page).listeners).cast::<u64>().add(index);
            if atomic::load(slot) == old && atomic::compare_exchange(slot, old, new) == old {
                return;
            }
        }
        index += 1;
    }
}

/// The fullest accept queue, permille of what it takes; and whether there is a listener at all.
///
/// # Safety
/// `page` is the MEASURES map's only element.
#[inline(always)]
pub(crate) unsafe fn fullest(page: *const Measures) -> (u64, bool) {
    let (mut fullest, mut listeners) = (0, 0);
    let mut index = 0;
    while index < PORTS_MAX {
        // SAFETY: the index is below PORTS_MAX; the helper checks the address, and 0 is a bad one.
        unsafe {
            let socket = atomic::load((&raw const (*page).listeners).cast::<u64>().add(index));
            let read = |offset: u32| {
                let field = socket.wrapping_add(u64::from(offset)) as *const u32;
                u64::from(bpf_probe_read_kernel(field).unwrap_or(0))
            };
            let waiting = read(offset_in_kernel!(accept_queue));
            // `sk_acceptq_is_full` of include/net/sock.h: one more than the backlog fits.
            let room = read(offset_in_kernel!(accept_queue_max)) + 1;
            fullest = greatest(fullest, waiting * 1000 / room);
            listeners |= socket;
        }
        index += 1;
    }
    (fullest, listeners != 0)
}

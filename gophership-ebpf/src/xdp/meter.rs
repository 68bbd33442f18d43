//! Counts by CPU and interface.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, programs::XdpContext};
use gophership_common::xdp::{GuardPage, INTERFACES_MAX, RxLine};

use super::{guard::Decision, parse::Segment};
use crate::{atomic, maps};

/// Whether the port is one of the ingest listeners'.
#[inline(always)]
pub(super) fn is_ingest(port: u16, settings: &GuardPage) -> bool {
    let mut i = 0;
    while i < settings.ports.len() {
        if i as u32 >= settings.port_count {
            return false;
        }
        if settings.ports[i] == port {
            return true;
        }
        i += 1;
    }
    false
}

/// This CPU's line of the frame's interface.
#[inline(always)]
pub(super) fn line(ctx: &XdpContext, settings: &GuardPage) -> Option<*mut RxLine> {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let lines = maps::RX.get_ptr_mut(cpu)?.cast::<RxLine>();
    let interface = ctx.ingress_ifindex() as u32;
    let mut slot = 0;
    while slot < INTERFACES_MAX {
        if settings.interfaces[slot] == interface {
            // SAFETY: the slot is below INTERFACES_MAX, as many lines as there are.
            return Some(unsafe { lines.add(slot) });
        }
        slot += 1;
    }
    None
}

/// Counts one segment and what became of it.
#[inline(always)]
pub(super) fn count(line: *mut RxLine, segment: &Segment, decision: Decision) {
    // SAFETY: a line of this CPU's element. Atomic, though no other CPU writes it: on a real-time
    // kernel one run may interrupt another.
    unsafe {
        atomic::add(&raw mut (*line).packets, 1);
        atomic::add(&raw mut (*line).bytes, segment.bytes);
        if segment.opens {
            atomic::add(&raw mut (*line).opens, 1);
            match decision {
                Decision::Pass => {}
                Decision::Denied => atomic::add(&raw mut (*line).denied, 1),
                Decision::Limited => atomic::add(&raw mut (*line).limited, 1),
            }
        }
    }
}

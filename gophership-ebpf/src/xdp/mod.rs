//! The meter and guard of an interface: counts what comes in for the ingest ports, and drops new
//! connections that the operator denies, or limits in Red.
//!
//! Only a SYN without ACK can be dropped, so that an established connection never notices. Whatever
//! isn't understood (malformed, truncated, a fragment, tagged too often) goes to the stack uncounted.

mod guard;
mod locals;
mod meter;
mod parse;

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use gophership_common::xdp::GuardPage;

use self::{guard::Decision, locals::Locality, parse::Frame};
use crate::maps;

/// Runs for one frame of `length` bytes, of which the first buffer may hold a part.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext, length: usize) -> u32 {
    match meet(ctx, length) {
        Some(Decision::Denied | Decision::Limited) => xdp_action::XDP_DROP,
        Some(Decision::Pass) | None => xdp_action::XDP_PASS,
    }
}

/// Counts a segment to an ingest port and decides about it; `None` for all others.
#[inline(always)]
fn meet(ctx: &XdpContext, length: usize) -> Option<Decision> {
    let frame = Frame::of(ctx, length);
    let segment = parse::segment(&frame)?;
    let settings = maps::guard()?;
    // SAFETY: the GUARD map's only element, written before the program is attached.
    let settings: &GuardPage = unsafe { &*settings };
    if !meter::is_ingest(segment.port, settings) {
        return None;
    }
    let (source, destination) = parse::addresses(&frame, &segment)?;
    let to_us = locals::locality(destination);
    if to_us == Locality::Remote {
        // Routed through this host to another one's port of that number.
        return None;
    }
    let line = meter::line(ctx, settings)?;
    let decision = if segment.opens && to_us == Locality::Local {
        guard::decide(source, settings)
    } else {
        Decision::Pass
    };
    meter::count(line, &segment, decision);
    Some(decision)
}

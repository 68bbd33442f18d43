//! Receive-queue depth of one ingest socket: arrivals, dequeues, close.
//!
//! A full socket falls silent: its peer has no window left, so nothing arrives, and nobody reads.
//! So a socket above a level claims a watch slot, which the tick scans.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::BtfTracePointContext};
use aya_log_ebpf::{debug, warn};
use gophership_common::{
    ABOVE_RED, BELOW, Cause, Policy, SignalsPage, WATCH_SLOTS, WATCH_SLOTS_YELLOW, WatchSlot, Zone,
    capacity_when_closed, level, permille,
};

use crate::{
    atomic, event, maps,
    socket::{self, Followed, Socket, TcpSocket},
    traffic,
};

/// One socket's depth at an event.
struct Depth {
    bytes: u32,
    capacity_bytes: u32,
    copied_seq: u32,
    dequeued: bool,
}

/// A segment arrives.
#[inline(always)]
pub(crate) fn arrival(ctx: &BtfTracePointContext, socket: Socket, skb: *const c_void) {
    let Some(policy) = maps::policy_in_force() else {
        return;
    };
    // SAFETY: the caller passes its argument on.
    if !unsafe { socket.on_ingest_port(policy) } {
        return;
    }
    let Some(followed) = follow(ctx, socket, policy) else {
        return;
    };
    // SAFETY: as above.
    let (Some(tcp), Some((seq, end_seq))) =
        (unsafe { TcpSocket::of(socket) }, socket::segment(skb))
    else {
        return;
    };
    let rcv_nxt = tcp.rcv_nxt();
    // The probe fires before the segment is queued. What starts beyond rcv_nxt goes to the
    // out-of-order queue, which the application can't read; what ends before it is a duplicate.
    let arriving = end_seq.wrapping_sub(rcv_nxt);
    let in_order = rcv_nxt.wrapping_sub(seq) as i32 >= 0 && arriving as i32 > 0;
    let end = if in_order { end_seq } else { rcv_nxt };
    traffic::arrived(end_seq.wrapping_sub(seq));
    // Here the peer probes a closed window.
    let full = tcp.is_window_closed();
    observe(ctx, socket, tcp, policy, followed, end, full);
}

/// The application has read, or peeked.
#[inline(always)]
pub(crate) fn dequeue(ctx: &BtfTracePointContext, socket: Socket) {
    let Some(policy) = maps::policy_in_force() else {
        return;
    };
    // SAFETY: the caller passes its argument on.
    if !unsafe { socket.on_ingest_port(policy) } {
        return;
    }
    // A socket that never had a segment while we watched, or isn't ours, isn't followed.
    let Some(followed) = maps::SOCKETS.get_ptr_mut(socket.key()) else {
        return;
    };
    // SAFETY: the caller passes its argument on.
    let Some(tcp) = (unsafe { TcpSocket::of(socket) }) else {
        return;
    };
    // SAFETY: the element lives until this socket closes, and we hold the socket's lock.
    let followed = unsafe { &mut *followed };
    if followed.level == BELOW {
        drain(followed, tcp.copied_seq());
        return;
    }
    // The window isn't offered anew until the application has done with reading.
    observe(ctx, socket, tcp, policy, followed, tcp.rcv_nxt(), false);
}

/// A read of a socket that is below the levels takes it no nearer to them: only the sums change. It
/// comes several times for each request, so it is kept short. What a late segment has made readable
/// beyond itself shows at the next arrival.
#[inline(always)]
fn drain(followed: &mut Followed, copied_seq: u32) {
    let taken = copied_seq.wrapping_sub(followed.copied_seq);
    if taken == 0 {
        return;
    }
    let left = followed.depth_bytes.saturating_sub(taken);
    traffic::unread(followed.depth_bytes, left);
    followed.depth_bytes = left;
    followed.copied_seq = copied_seq;
    // SAFETY: the helper has no preconditions.
    followed.dequeued_at_ns = unsafe { bpf_ktime_get_ns() };
}

/// The socket is gone: its share of the aggregates too, whatever was still unread. The caller holds
/// the socket's lock, or knows that nobody else can.
#[inline(always)]
pub(crate) fn close(socket: Socket) {
    let Some(followed) = maps::SOCKETS.get_ptr_mut(socket.key()) else {
        return;
    };
    let Some(page) = maps::signals() else {
        return;
    };
    // SAFETY: the element lives until it is removed below, and nobody else uses it.
    let followed = unsafe { &mut *followed };
    count(page, followed.level, BELOW);
    release(page, followed);
    traffic::unread(followed.depth_bytes, 0);
    if maps::SOCKETS.remove(socket.key()).is_ok() {
        // SAFETY: `page` is the SIGNALS map's only element.
        unsafe { atomic::add(&raw mut (*page).aggregates.tracked, u64::MAX) };
    }
}

#[inline(always)]
fn follow<'a>(
    ctx: &BtfTracePointContext,
    socket: Socket,
    policy: &Policy,
) -> Option<&'a mut Followed> {
    let key = socket.key();
    if let Some(followed) = maps::SOCKETS.get_ptr_mut(key) {
        // SAFETY: the element lives until this socket closes, and we hold the socket's lock.
        return Some(unsafe { &mut *followed });
    }
    if !socket.in_netns(policy) {
        return None;
    }
    let page = maps::signals()?;
    if maps::SOCKETS.insert(key, Followed::NEW, 0).is_err() {
        // SAFETY: `page` is the SIGNALS map's only element.
        unsafe { atomic::add(&raw mut (*page).aggregates.untracked, 1) };
        warn!(ctx, "socket table full: a socket is not followed");
        return None;
    }
    // SAFETY: as above.
    unsafe { atomic::add(&raw mut (*page).aggregates.tracked, 1) };
    let followed = maps::SOCKETS.get_ptr_mut(key)?;
    // SAFETY: as above.
    let followed = unsafe { &mut *followed };
    // What was taken before doesn't count as taken now.
    followed.copied_seq = socket.copied_seq()?;
    Some(followed)
}

/// Measures, and settles what follows from it. `end` is the first byte that isn't here yet; `full`
/// says that what is here is all that fits.
#[inline(always)]
fn observe(
    ctx: &BtfTracePointContext,
    socket: Socket,
    tcp: TcpSocket,
    policy: &Policy,
    followed: &mut Followed,
    end: u32,
    full: bool,
) {
    let (copied_seq, capacity_bytes) = (tcp.copied_seq(), tcp.capacity_bytes(policy));
    let unread = end.wrapping_sub(copied_seq);
    let bytes = if unread as i32 > 0 { unread } else { 0 };
    let depth = Depth {
        bytes,
        capacity_bytes: if full {
            capacity_when_closed(capacity_bytes, bytes)
        } else {
            capacity_bytes
        },
        copied_seq,
        // A peek fires the dequeue probe as well, but takes nothing.
        dequeued: copied_seq != followed.copied_seq,
    };
    settle(ctx, socket, policy, followed, &depth);
}

#[inline(always)]
fn settle(
    ctx: &BtfTracePointContext,
    socket: Socket,
    policy: &Policy,
    followed: &mut Followed,
    depth: &Depth,
) {
    let Some(page) = maps::signals() else {
        return;
    };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let value = permille(u64::from(depth.bytes), u64::from(depth.capacity_bytes));
    let was = followed.level;
    let level = level(policy.receive_queue, value, was);

    traffic::unread(followed.depth_bytes, depth.bytes);
    followed.depth_bytes = depth.bytes;
    followed.capacity_bytes = depth.capacity_bytes;
    followed.copied_seq = depth.copied_seq;
    followed.level = level;
    if depth.bytes > followed.high_water_bytes {
        followed.high_water_bytes = depth.bytes;
    }
    if depth.dequeued {
        followed.dequeued_at_ns = now_ns;
    }
    count(page, was, level);
    widen(page, value);
    if level == BELOW {
        release(page, followed);
        return;
    }
    let restart = was != ABOVE_RED || depth.dequeued;
    let stalled_since_ns = watch(page, socket, followed, value, restart, now_ns);
    raise(ctx, policy, value, stalled_since_ns, now_ns);
}

#[inline(always)]
fn count(page: *mut SignalsPage, was: u32, is: u32) {
    // SAFETY: `page` is the SIGNALS map's only element.
    unsafe {
        let above_yellow = &raw mut (*page).aggregates.above_yellow;
        let above_red = &raw mut (*page).aggregates.above_red;
        if was == BELOW && is != BELOW {
            atomic::add(above_yellow, 1);
        } else if was != BELOW && is == BELOW {
            atomic::add(above_yellow, u64::MAX);
        }
        if was != ABOVE_RED && is == ABOVE_RED {
            atomic::add(above_red, 1);
        } else if was == ABOVE_RED && is != ABOVE_RED {
            atomic::add(above_red, u64::MAX);
        }
    }
}

/// Raises the window's maximum. One attempt: whoever wins wrote a depth that was real.
#[inline(always)]
fn widen(page: *mut SignalsPage, value: u32) {
    // SAFETY: `page` is the SIGNALS map's only element.
    unsafe {
        let maximum = &raw mut (*page).aggregates.window_permille;
        let seen = atomic::load(maximum);
        if u64::from(value) > seen {
            atomic::compare_exchange(maximum, seen, u64::from(value));
        }
    }
}

/// Updates the socket's watch slot, claiming one if it has none; returns since when it has been
/// above Red without a dequeue (0: it isn't).
#[inline(always)]
fn watch(
    page: *mut SignalsPage,
    socket: Socket,
    followed: &mut Followed,
    value: u32,
    restart: bool,
    now_ns: u64,
) -> u64 {
    let red = followed.level == ABOVE_RED;
    let fresh = followed.slot == 0;
    if fresh && !claim(page, socket, followed) {
        // SAFETY: `page` is the SIGNALS map's only element.
        unsafe { atomic::add(&raw mut (*page).aggregates.unwatched, 1) };
        return 0;
    }
    let slot = slot(page, followed.slot);
    // SAFETY: `slot` points into the SIGNALS map; its fields are ours while it is claimed.
    unsafe {
        atomic::store(&raw mut (*slot).permille, u64::from(value));
        if !red {
            atomic::store(&raw mut (*slot).stalled_since_ns, 0);
            return 0;
        }
        if restart || fresh {
            atomic::store(&raw mut (*slot).stalled_since_ns, now_ns);
            return now_ns;
        }
        atomic::load(&raw const (*slot).stalled_since_ns)
    }
}

/// The slot of a claim (index plus one); masked, so that the verifier knows the bound.
#[inline(always)]
fn slot(page: *mut SignalsPage, claim: u32) -> *mut WatchSlot {
    let index = (claim.wrapping_sub(1) as usize) & (WATCH_SLOTS - 1);
    // SAFETY: `page` is the SIGNALS map's only element, the index is below WATCH_SLOTS.
    unsafe { (&raw mut (*page).watch).cast::<WatchSlot>().add(index) }
}

#[inline(always)]
fn claim(page: *mut SignalsPage, socket: Socket, followed: &mut Followed) -> bool {
    let bound = if followed.level == ABOVE_RED {
        WATCH_SLOTS as u32
    } else {
        WATCH_SLOTS_YELLOW as u32
    };
    let mut index = 0;
    while index < WATCH_SLOTS as u32 {
        if index >= bound {
            return false;
        }
        let candidate = slot(page, index + 1);
        // SAFETY: `candidate` points into the SIGNALS map.
        let won = unsafe {
            let owner = &raw mut (*candidate).socket;
            atomic::load(owner) == 0 && atomic::compare_exchange(owner, 0, socket.key()) == 0
        };
        if won {
            followed.slot = index + 1;
            return true;
        }
        index += 1;
    }
    false
}

#[inline(always)]
fn release(page: *mut SignalsPage, followed: &mut Followed) {
    if followed.slot == 0 {
        return;
    }
    let slot = slot(page, followed.slot);
    followed.slot = 0;
    // SAFETY: `slot` points into the SIGNALS map and is ours. The owner goes last, by an operation
    // that no CPU moves before the stores: they would hit the next owner.
    unsafe {
        atomic::store(&raw mut (*slot).stalled_since_ns, 0);
        atomic::store(&raw mut (*slot).permille, 0);
        let owner = &raw mut (*slot).socket;
        atomic::compare_exchange(owner, atomic::load(owner), 0);
    }
}

#[inline(always)]
fn raise(
    ctx: &BtfTracePointContext,
    policy: &Policy,
    value: u32,
    stalled_since_ns: u64,
    now_ns: u64,
) {
    let stalled_ns = if stalled_since_ns == 0 {
        0
    } else {
        now_ns.saturating_sub(stalled_since_ns)
    };
    let zone = if stalled_ns >= policy.receive_queue_for_ns && stalled_ns > 0 {
        Zone::Red
    } else if value >= policy.receive_queue.yellow_permille {
        Zone::Yellow
    } else {
        return;
    };
    let values = event::Values::Queue(u64::from(value), stalled_ns / 1000);
    if event::raise(zone, Cause::ReceiveQueue, &values, now_ns) {
        debug!(
            ctx,
            "raised to {} by a queue at {} permille", zone as u8, value
        );
    }
}

//! `iter/tcp`: the ingest sockets of the reader's network namespace.
//!
//! A full snapshot: depth and capacity are read from the socket itself, so that sockets are listed
//! that no probe has seen; only what took watching comes from `SOCKETS`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use gophership_common::{Policy, SocketRecord};

use super::{Meta, emit, ends, list_offset};
use crate::{
    maps,
    socket::{Socket, read},
};

/// States of `include/net/tcp_states.h`.
const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;

/// `struct bpf_iter__tcp` of `net/ipv4/tcp_ipv4.c`, as far as it is used.
#[repr(C)]
struct Context {
    meta: *const Meta,
    /// Null at the end of the walk.
    socket: *const c_void,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn list_sockets(ctx: *const c_void) -> i32 {
    // SAFETY: the kernel's context for this section; the verifier checks each access.
    let (meta, socket) = unsafe {
        let ctx = ctx.cast::<Context>();
        ((*ctx).meta, (*ctx).socket)
    };
    if socket.is_null() {
        return 0;
    }
    let Some(policy) = maps::policy_in_force() else {
        return 0;
    };
    if let Some(mut found) = record(Socket::at(socket), policy) {
        // SAFETY: a socket the kernel has handed to this program.
        found.cookie = unsafe { bpf_get_socket_cookie(socket.cast_mut()) };
        // SAFETY: the context's own.
        unsafe { emit(meta, &found) };
    }
    0
}

#[inline(always)]
fn record(socket: Socket, policy: &Policy) -> Option<SocketRecord> {
    let state = read::<u8>(socket.address(), list_offset!(state))?;
    // These are smaller structures than `struct sock`, without a queue.
    if state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || !socket.is_still_ours(policy) {
        return None;
    }
    let (local, peer) = ends(socket)?;
    let listens = state == TCP_LISTEN;
    let (depth, capacity) = if listens {
        (
            read(socket.address(), list_offset!(backlog))?,
            read(socket.address(), list_offset!(backlog_max))?,
        )
    } else {
        let unread = socket.rcv_nxt()?.wrapping_sub(socket.copied_seq()?);
        let depth = if unread as i32 > 0 { unread } else { 0 };
        (depth, socket.capacity_bytes(policy)?)
    };
    let mut record = SocketRecord {
        local,
        peer,
        state: u32::from(state),
        depth,
        capacity,
        ..SocketRecord::default()
    };
    if let Some(followed) = maps::SOCKETS.get_ptr(socket.key()) {
        // SAFETY: the element stays mapped while the program runs; each field is read once, since
        // a probe may write at the same time.
        unsafe {
            record.dequeued_at_ns = (&raw const (*followed).dequeued_at_ns).read_volatile();
            record.high_water_bytes = (&raw const (*followed).high_water_bytes).read_volatile();
            record.level = (&raw const (*followed).level).read_volatile();
        }
        record.followed = 1;
        // The last segment may have been queued since the probe has seen the one before.
        record.high_water_bytes = record.high_water_bytes.max(depth);
    }
    Some(record)
}

//! The kernel half: measures the receive queues of the ingest sockets and judges the zone; meters
//! and guards interfaces.
//!
//! A probe compares its own socket only and may only *raise* the verdict; the full [`judge`] and
//! every lowering run in the tick. The probes and the closing of a socket run under that socket's
//! lock, so a socket's own state needs no atomics; what is shared (counts, watch slots, the word)
//! is changed by 64-bit atomics, see [`atomic`].
//!
//! [`judge`]: gophership_common::judge
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the program macros pass the context by value"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "counts, shares and indices fit 32 bits; a conversion that can panic doesn't link here"
)]

mod atomic;
mod event;
mod maps;
mod queue;
mod socket;
mod sweep;
mod tick;
mod xdp;

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_xdp_get_buff_len,
    macros::{btf_tracepoint, perf_event, xdp},
    programs::{BtfTracePointContext, PerfEventContext, XdpContext},
};

use crate::socket::Socket;

/// `tp_btf/tcp_probe(sk, skb)`: a segment arrives on an established socket, not yet queued.
#[btf_tracepoint(function = "tcp_probe")]
fn tcp_probe(ctx: BtfTracePointContext) -> i32 {
    queue::arrival(&ctx, Socket::at(ctx.arg(0)), ctx.arg(1));
    0
}

/// `tp_btf/tcp_rcv_space_adjust(sk)`: the application has read; `copied_seq` is already advanced.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn tcp_rcv_space_adjust(ctx: BtfTracePointContext) -> i32 {
    queue::dequeue(&ctx, Socket::at(ctx.arg(0)));
    0
}

/// `tp_btf/inet_sock_set_state(sk, old, new)`: a closed socket leaves the aggregates. What it
/// misses, [`sweep`] finds.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    /// `TCP_CLOSE` of `include/net/tcp_states.h`.
    const TCP_CLOSE: i32 = 7;
    if ctx.arg::<i32>(2) == TCP_CLOSE {
        queue::close(Socket::at(ctx.arg(0)));
    }
    0
}

/// Software CPU clock, on every CPU: one of them judges each period.
#[perf_event]
fn tick(ctx: PerfEventContext) -> u32 {
    tick::run(&ctx);
    0
}

/// A frame comes in on a metered interface, in one buffer.
#[xdp]
fn xdp_ingress(ctx: XdpContext) -> u32 {
    xdp::run(&ctx, ctx.data_end() - ctx.data())
}

/// The same where frames may come in several buffers.
#[xdp(frags)]
fn xdp_frags(ctx: XdpContext) -> u32 {
    // SAFETY: the context is this program's own.
    let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) };
    xdp::run(&ctx, length as usize)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier refuses a program in which this loop can be reached.
    loop {}
}

/// The helpers used (`probe_read_kernel`, ring buffer) are for GPL-compatible programs, and the
/// kernel knows no "Apache-2.0 OR GPL-2.0-only": it is told the half that it knows.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

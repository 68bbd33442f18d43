//! The kernel half: measures what presses on the engine and judges the zone; meters and guards
//! interfaces.
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
mod block;
mod enlist;
mod event;
mod iter;
mod listen;
mod maps;
mod measures;
mod oom;
mod queue;
mod reclaim;
mod sample;
mod sched;
mod socket;
mod sweep;
mod tick;
mod traffic;
mod worst;
mod xdp;

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_xdp_get_buff_len,
    macros::{btf_tracepoint, perf_event, raw_tracepoint, xdp},
    programs::{BtfTracePointContext, PerfEventContext, RawTracePointContext, XdpContext},
};
use gophership_common::{State, judge};

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

/// `tp_btf/inet_sock_set_state(sk, old, new)`: a closed socket leaves the aggregates (what it misses,
/// its end and [`sweep`] find), a listening one shows its accept queue.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    /// `TCP_CLOSE` of `include/net/tcp_states.h`.
    const TCP_CLOSE: i32 = 7;
    /// `TCP_LISTEN` of `include/net/tcp_states.h`.
    const TCP_LISTEN: i32 = 10;
    let socket = Socket::at(ctx.arg(0));
    match ctx.arg::<i32>(2) {
        TCP_CLOSE => {
            queue::close(socket);
            listen::close(socket);
        }
        TCP_LISTEN => listen::open(socket),
        _ => {}
    }
    0
}

/// `tp_btf/tcp_destroy_sock(sk)`: the second witness of a close. The kernel skips a program that
/// would interrupt itself, but not another one.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let socket = Socket::at(ctx.arg(0));
    queue::close(socket);
    listen::close(socket);
    0
}

/// `tp_btf/mm_vmscan_direct_reclaim_begin`: this task reclaims, for want of memory in the host.
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
fn mm_vmscan_direct_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    reclaim::begin_for_host();
    0
}

/// `tp_btf/mm_vmscan_direct_reclaim_end`.
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
fn mm_vmscan_direct_reclaim_end(_ctx: BtfTracePointContext) -> i32 {
    reclaim::end();
    0
}

/// `tp_btf/mm_vmscan_memcg_reclaim_begin`: this task reclaims, under a cgroup's limit.
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
fn mm_vmscan_memcg_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    reclaim::begin_for_cgroup();
    0
}

/// `tp_btf/mm_vmscan_memcg_reclaim_end`.
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
fn mm_vmscan_memcg_reclaim_end(_ctx: BtfTracePointContext) -> i32 {
    reclaim::end();
    0
}

/// `tp_btf/mm_vmscan_wakeup_kswapd`.
#[btf_tracepoint(function = "mm_vmscan_wakeup_kswapd")]
fn mm_vmscan_wakeup_kswapd(_ctx: BtfTracePointContext) -> i32 {
    reclaim::kswapd();
    0
}

/// `tp_btf/mark_victim(task, …)`, or `(pid)` before Linux 6.8.
#[btf_tracepoint(function = "mark_victim")]
fn mark_victim(ctx: BtfTracePointContext) -> i32 {
    oom::victim(ctx.arg(0));
    0
}

/// `tp_btf/sched_wakeup(task)`.
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is a task.
    unsafe { sched::wakeup(ctx.arg(0)) };
    0
}

/// `tp_btf/sched_wakeup_new(task)`.
#[btf_tracepoint(function = "sched_wakeup_new")]
fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is a task.
    unsafe { sched::wakeup(ctx.arg(0)) };
    0
}

/// `tp_btf/sched_switch(preempt, previous, next, …)`.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are tasks.
    unsafe { sched::switch(ctx.arg::<u64>(0) != 0, ctx.arg(1), ctx.arg(2)) };
    0
}

/// `tp_btf/block_rq_issue(request)`.
#[btf_tracepoint(function = "block_rq_issue")]
fn block_rq_issue(ctx: BtfTracePointContext) -> i32 {
    block::issue(&ctx);
    0
}

/// `tp_btf/block_rq_complete(request, …)`.
#[btf_tracepoint(function = "block_rq_complete")]
fn block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    block::complete(&ctx);
    0
}

/// Run by the engine on its own threads: learns who it is.
#[raw_tracepoint]
fn enlist(ctx: RawTracePointContext) -> i32 {
    // SAFETY: the caller passes one word of context.
    let worker = unsafe { ctx.as_ptr().cast::<u64>().read() };
    enlist::run(worker)
}

/// Attached by a measurement alone: what the kernel says of its cost is the cost of saying so.
#[btf_tracepoint]
fn nothing(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// Run by a test: judges what is recorded, with the code of the tick.
#[raw_tracepoint]
fn judge_recorded(_ctx: RawTracePointContext) -> i32 {
    let Some(page) = maps::recorded() else {
        return 1;
    };
    // SAFETY: the RECORDED map's only element; the test waits for the program to end.
    let page = unsafe { &mut *page };
    let before = State::of(page.before, page.clocks_before_ns);
    let judgement = judge(&page.policy, &page.signals, &before, page.now_ns);
    page.conclude(&judgement);
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

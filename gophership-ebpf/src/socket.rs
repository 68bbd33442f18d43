//! Reads of `struct sock`, `struct tcp_sock` and `struct sk_buff`, by BTF offset.
//!
//! By helper, because the fields of `struct tcp_sock` lie beyond the `struct sock` that the verifier
//! knows; but for the local port, which is read for every segment on the host.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated::bpf_skc_to_tcp_sock};
use gophership_common::{OFFSET_ABSENT, Policy, capacity_bytes};

use crate::maps::offset_in_kernel;

/// What is remembered of one ingest socket, under its lock.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Followed {
    /// Last time the application took bytes from it; 0: never yet.
    pub(crate) dequeued_at_ns: u64,
    /// Bytes not read by the application at the last event.
    pub(crate) depth_bytes: u32,
    /// Greatest `depth_bytes`.
    pub(crate) high_water_bytes: u32,
    /// Bytes that fit.
    pub(crate) capacity_bytes: u32,
    /// `tcp_sock.copied_seq` at the last event.
    pub(crate) copied_seq: u32,
    /// 0 below Yellow, 1 above Yellow, 2 above Red, with hysteresis.
    pub(crate) level: u32,
    /// Index of its watch slot plus one; 0: none.
    pub(crate) slot: u32,
}

impl Followed {
    /// Nothing seen yet.
    pub(crate) const NEW: Self = Self {
        dequeued_at_ns: 0,
        depth_bytes: 0,
        high_water_bytes: 0,
        capacity_bytes: 0,
        copied_seq: 0,
        level: 0,
        slot: 0,
    };
}

/// A `struct sock` the kernel has handed to a probe.
#[derive(Clone, Copy)]
pub(crate) struct Socket(*const c_void);

/// One field, by helper; `None` if the address is bad.
#[inline(always)]
pub(crate) fn read<T>(base: *const c_void, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails on a bad one; `T` is an integer or an array
    // of bytes.
    unsafe { bpf_probe_read_kernel(base.byte_add(offset as usize).cast::<T>()) }.ok()
}

impl Socket {
    /// Wraps a probe's argument.
    #[inline(always)]
    pub(crate) fn at(address: *const c_void) -> Self {
        Self(address)
    }

    /// Where it is.
    #[inline(always)]
    pub(crate) fn address(self) -> *const c_void {
        self.0
    }

    /// The key in `SOCKETS`.
    #[inline(always)]
    pub(crate) fn key(self) -> u64 {
        self.0 as u64
    }

    /// Whether the local port is one of the ingest ports.
    ///
    /// # Safety
    /// The address is a probe's argument: the verifier refuses any other.
    #[inline(always)]
    pub(crate) unsafe fn on_ingest_port(self, policy: &Policy) -> bool {
        let field = self
            .0
            .wrapping_byte_add(offset_in_kernel!(local_port) as usize);
        // SAFETY: a live `struct sock`, says the caller. The loader has fixed the offset before the
        // verifier sees this load, so that it can check it.
        is_ingest(unsafe { field.cast::<u16>().read_volatile() }, policy)
    }

    /// The local port, host order.
    #[inline(always)]
    pub(crate) fn local_port(self) -> Option<u16> {
        read(self.0, offset_in_kernel!(local_port))
    }

    /// Whether an ingest socket lives at this address, if any.
    #[inline(always)]
    pub(crate) fn is_still_ours(self, policy: &Policy) -> bool {
        self.local_port()
            .is_some_and(|port| is_ingest(port, policy))
            && self.in_netns(policy)
    }

    /// Whether it lives in the engine's network namespace: ports alone aren't ours alone.
    #[inline(always)]
    pub(crate) fn in_netns(self, policy: &Policy) -> bool {
        self.netns() == Some(policy.netns_inum)
    }

    /// Inode number of its network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> Option<u32> {
        let net = read::<u64>(self.0, offset_in_kernel!(net))?;
        read(net as *const c_void, offset_in_kernel!(net_inum))
    }

    /// `rcv_nxt`: the next byte expected from the peer.
    #[inline(always)]
    pub(crate) fn rcv_nxt(self) -> Option<u32> {
        read(self.0, offset_in_kernel!(rcv_nxt))
    }

    /// `copied_seq`: the next byte the application will read.
    #[inline(always)]
    pub(crate) fn copied_seq(self) -> Option<u32> {
        read(self.0, offset_in_kernel!(copied_seq))
    }

    /// Unread bytes that stop the peer.
    #[inline(always)]
    pub(crate) fn capacity_bytes(self, policy: &Policy) -> Option<u32> {
        let buffer = read::<u32>(self.0, offset_in_kernel!(receive_buffer))?;
        let ratio = if offset_in_kernel!(scaling_ratio) == OFFSET_ABSENT {
            RATIO_BEFORE_6_6
        } else {
            read::<u8>(self.0, offset_in_kernel!(scaling_ratio))?
        };
        Some(capacity_bytes(buffer, ratio, policy.h2_window_bytes))
    }
}

/// The same socket as a `struct tcp_sock`, whose fields the verifier knows: they are loads, where a
/// [`read`] is a call. What a probe does for each segment and each read of the application is made of
/// these.
#[derive(Clone, Copy)]
pub(crate) struct TcpSocket(*const c_void);

impl TcpSocket {
    /// # Safety
    /// The socket is a probe's argument: the verifier refuses any other.
    #[inline(always)]
    pub(crate) unsafe fn of(socket: Socket) -> Option<Self> {
        // SAFETY: a live `struct sock`, says the caller.
        let tcp = unsafe { bpf_skc_to_tcp_sock(socket.0.cast_mut()) };
        if tcp.is_null() {
            return None;
        }
        Some(Self(tcp.cast_const().cast()))
    }

    #[inline(always)]
    fn load<T>(self, offset: u32) -> T {
        // SAFETY: a live `struct tcp_sock`. The loader has fixed the offset before the verifier sees
        // this load, so that it can check it.
        unsafe {
            self.0
                .wrapping_byte_add(offset as usize)
                .cast::<T>()
                .read_volatile()
        }
    }

    /// `rcv_nxt`: the next byte expected from the peer.
    #[inline(always)]
    pub(crate) fn rcv_nxt(self) -> u32 {
        self.load(offset_in_kernel!(rcv_nxt))
    }

    /// `copied_seq`: the next byte the application will read.
    #[inline(always)]
    pub(crate) fn copied_seq(self) -> u32 {
        self.load(offset_in_kernel!(copied_seq))
    }

    /// Whether the window last offered to the peer was zero.
    #[inline(always)]
    pub(crate) fn is_window_closed(self) -> bool {
        self.load::<u32>(offset_in_kernel!(receive_window)) == 0
    }

    /// Unread bytes that stop the peer.
    #[inline(always)]
    pub(crate) fn capacity_bytes(self, policy: &Policy) -> u32 {
        // `struct tcp_sock` begins with its `struct sock`.
        let buffer = self.load(offset_in_kernel!(receive_buffer));
        let ratio = if offset_in_kernel!(scaling_ratio) == OFFSET_ABSENT {
            RATIO_BEFORE_6_6
        } else {
            self.load(offset_in_kernel!(scaling_ratio))
        };
        capacity_bytes(buffer, ratio, policy.h2_window_bytes)
    }
}

/// Before 6.6: `tcp_adv_win_scale` = 1, half of the buffer is window.
const RATIO_BEFORE_6_6: u8 = 128;

/// Whether it is one of the ingest ports.
#[inline(always)]
pub(crate) fn is_ingest(port: u16, policy: &Policy) -> bool {
    let mut i = 0;
    while i < policy.ports.len() {
        if i as u32 >= policy.port_count {
            return false;
        }
        if policy.ports[i] == port {
            return true;
        }
        i += 1;
    }
    false
}

/// `seq` and `end_seq` of an arriving segment; the caller has filled its control block.
#[inline(always)]
pub(crate) fn segment(skb: *const c_void) -> Option<(u32, u32)> {
    Some((
        read(skb, offset_in_kernel!(segment_seq))?,
        read(skb, offset_in_kernel!(segment_end_seq))?,
    ))
}

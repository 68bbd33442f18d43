//! What the kernel half's iterators write, for `gs-ctl sockets`: a stream of fixed records.
//!
//! Addresses are IPv6, IPv4 ones mapped (`::ffff:a.b.c.d`), in network order; ports are in host order.

use crate::limits::OFFSET_ABSENT;

/// `iter/tcp` program: one [`SocketRecord`] for each ingest socket and listener.
pub const PROGRAM_LIST_SOCKETS: &str = "list_sockets";
/// `iter/task_file` program: one [`ProcessRecord`] for each descriptor that is connected to an
/// ingest port.
pub const PROGRAM_LIST_PROCESSES: &str = "list_processes";

/// Read-only global of the kernel half: [`ListOffsets`] of the running kernel.
pub const GLOBAL_LIST_OFFSETS: &str = "LIST_OFFSETS";

/// Bytes of a process's name, as the kernel keeps it (`TASK_COMM_LEN`).
pub const NAME_BYTES: usize = 16;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct End {
    /// IPv6 address, or an IPv4 one mapped.
    pub address: [u8; 16],
    /// Port, host order.
    pub port: u16,
    /// Keeps the size a multiple of four.
    pub padding: u16,
}

/// One TCP socket on an ingest port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SocketRecord {
    /// The kernel's cookie, which `ss -e` shows as `sk:`.
    pub cookie: u64,
    /// When the application last took bytes from it, `CLOCK_MONOTONIC`; 0: not since it is followed.
    pub dequeued_at_ns: u64,
    /// Our end.
    pub local: End,
    /// The producer's end; zero for a listener.
    pub peer: End,
    /// TCP state, of `include/net/tcp_states.h`.
    pub state: u32,
    /// Bytes the application hasn't read, as `ss` shows them (an unread FIN counts one); for a
    /// listener, connections it hasn't accepted.
    pub depth: u32,
    /// What stops the peer at that depth; for a listener, its backlog.
    pub capacity: u32,
    /// Greatest depth seen at an event, bytes.
    pub high_water_bytes: u32,
    /// 0 below Yellow, 1 above Yellow, 2 above Red, with hysteresis.
    pub level: u32,
    /// 1 if the probes follow it: else `high_water_bytes`, `dequeued_at_ns` and `level` say nothing.
    pub followed: u32,
}

/// One descriptor of a process that is a TCP connection to an ingest port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ProcessRecord {
    /// The process's end: the peer of ours.
    pub local: End,
    /// Our end.
    pub peer: End,
    /// The process, as numbered in the reader's pid namespace.
    pub pid: u32,
    /// Inode number of the socket's network namespace.
    pub netns_inum: u32,
    /// Its name, padded with zeros.
    pub name: [u8; NAME_BYTES],
}

/// Byte offsets of the kernel fields that only the iterators read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ListOffsets {
    /// `struct sock`: `__sk_common.skc_family`.
    pub family: u32,
    /// `struct sock`: `__sk_common.skc_state`.
    pub state: u32,
    /// `struct sock`: `__sk_common.skc_dport`, network order.
    pub peer_port: u32,
    /// `struct sock`: `__sk_common.skc_rcv_saddr`.
    pub local_ipv4: u32,
    /// `struct sock`: `__sk_common.skc_daddr`.
    pub peer_ipv4: u32,
    /// `struct sock`: `__sk_common.skc_v6_rcv_saddr`; [`OFFSET_ABSENT`] without IPv6.
    pub local_ipv6: u32,
    /// `struct sock`: `__sk_common.skc_v6_daddr`; [`OFFSET_ABSENT`] without IPv6.
    pub peer_ipv6: u32,
    /// `struct sock`: `sk_protocol`.
    pub protocol: u32,
    /// `struct sock`: `sk_ack_backlog`, connections waiting to be accepted.
    pub backlog: u32,
    /// `struct sock`: `sk_max_ack_backlog`.
    pub backlog_max: u32,
    /// `struct socket`: `sk`.
    pub socket_sock: u32,
    /// `struct task_struct`: `group_leader`.
    pub group_leader: u32,
    /// `struct task_struct`: `comm`.
    pub name: u32,
    /// `struct task_struct`: `thread_pid`.
    pub thread_pid: u32,
    /// `struct pid`: `level`, of the innermost pid namespace that knows it.
    pub pid_level: u32,
    /// `struct pid`: `numbers`, one `struct upid` a level, whose first field is the number.
    pub pid_numbers: u32,
}

impl ListOffsets {
    /// Nothing known: what the object holds until the loader overrides it.
    pub const UNKNOWN: Self = Self {
        family: OFFSET_ABSENT,
        state: OFFSET_ABSENT,
        peer_port: OFFSET_ABSENT,
        local_ipv4: OFFSET_ABSENT,
        peer_ipv4: OFFSET_ABSENT,
        local_ipv6: OFFSET_ABSENT,
        peer_ipv6: OFFSET_ABSENT,
        protocol: OFFSET_ABSENT,
        backlog: OFFSET_ABSENT,
        backlog_max: OFFSET_ABSENT,
        socket_sock: OFFSET_ABSENT,
        group_leader: OFFSET_ABSENT,
        name: OFFSET_ABSENT,
        thread_pid: OFFSET_ABSENT,
        pid_level: OFFSET_ABSENT,
        pid_numbers: OFFSET_ABSENT,
    };
}

const _: () = {
    assert!(size_of::<End>() == 20);
    assert!(size_of::<SocketRecord>() == 80);
    assert!(size_of::<ProcessRecord>() == 64);
};

#[cfg(feature = "user")]
mod pod {
    use super::{End, ListOffsets, ProcessRecord, SocketRecord};

    // SAFETY: each is `repr(C)` of integers, without implicit padding (sizes asserted above; the
    // offsets are all `u32`), and any bit pattern is valid.
    unsafe impl aya::Pod for End {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProcessRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListOffsets {}
}

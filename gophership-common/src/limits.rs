//! Names and capacities that both halves must agree on.

/// Array map, one [`crate::VerdictPage`].
pub const MAP_VERDICT: &str = "VERDICT";
/// Array map, one [`crate::SignalsPage`].
pub const MAP_SIGNALS: &str = "SIGNALS";
/// Array map, one [`crate::PolicyPage`].
pub const MAP_POLICY: &str = "POLICY";
/// Array map, one [`crate::EnginePage`].
pub const MAP_ENGINE: &str = "ENGINE";
/// Hash map of the ingest sockets, private to the kernel half.
pub const MAP_SOCKETS: &str = "SOCKETS";
/// Ring buffer of [`crate::Event`].
pub const MAP_EVENTS: &str = "EVENTS";
/// Array map, one [`crate::xdp::RxCpu`] a CPU.
pub const MAP_RX: &str = "RX";
/// Array map, one [`crate::xdp::GuardPage`].
pub const MAP_GUARD: &str = "GUARD";
/// Array map, one [`crate::xdp::LocalsPage`].
pub const MAP_LOCALS: &str = "LOCALS";
/// Trie of the guard's two lists: [`crate::xdp::TrieKey`] → `u32`.
pub const MAP_PREFIXES: &str = "PREFIXES";
/// LRU hash of token buckets: [`crate::xdp::Address::bucket`] → `u64`, private to the kernel half.
pub const MAP_BUCKETS: &str = "BUCKETS";

/// `tp_btf` program: a segment arrives on an established socket.
pub const PROGRAM_TCP_PROBE: &str = "tcp_probe";
/// `tp_btf` program: the application has read from a socket.
pub const PROGRAM_TCP_DEQUEUE: &str = "tcp_rcv_space_adjust";
/// `tp_btf` program: a socket changes state; closing undoes its aggregates.
pub const PROGRAM_SOCKET_STATE: &str = "inet_sock_set_state";
/// `perf_event` program: the tick.
pub const PROGRAM_TICK: &str = "tick";
/// XDP program: the meter and guard of an interface.
pub const PROGRAM_XDP: &str = "xdp_ingress";
/// The same for frames in several buffers (jumbo frames, veth's large segments), Linux 5.18.
pub const PROGRAM_XDP_FRAGS: &str = "xdp_frags";

/// Read-only global of the kernel half: [`Offsets`] of the running kernel.
pub const GLOBAL_OFFSETS: &str = "OFFSETS";

/// Workers that fit [`crate::EnginePage`].
pub const WORKERS_MAX: usize = 128;
/// Ingest ports that fit one [`crate::Policy`].
pub const PORTS_MAX: usize = 8;
/// Sockets the kernel half follows at once; more are counted as untracked.
pub const SOCKETS_MAX: u32 = 16_384;
/// Slots the tick scans for sockets that are full and silent.
pub const WATCH_SLOTS: usize = 256;
/// Slots a socket above Yellow may claim; the rest are kept for sockets above Red.
pub const WATCH_SLOTS_YELLOW: usize = WATCH_SLOTS / 2;
/// Bytes of the `EVENTS` ring buffer: about 700 transitions.
pub const EVENTS_BYTES: u32 = 64 * 1024;

/// An offset that the running kernel's BTF doesn't know.
pub const OFFSET_ABSENT: u32 = u32::MAX;

/// Byte offsets of kernel fields, read from BTF and set before the programs are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    /// `struct sock`: `__sk_common.skc_num`, local port in host order.
    pub local_port: u32,
    /// `struct sock`: `__sk_common.skc_net.net`, pointer to `struct net`.
    pub net: u32,
    /// `struct net`: `ns.inum`.
    pub net_inum: u32,
    /// `struct sock`: `sk_rcvbuf`, bytes.
    pub receive_buffer: u32,
    /// `struct tcp_sock`: `rcv_nxt`.
    pub rcv_nxt: u32,
    /// `struct tcp_sock`: `copied_seq`.
    pub copied_seq: u32,
    /// `struct tcp_sock`: `scaling_ratio` (6.6 and later), or [`OFFSET_ABSENT`].
    pub scaling_ratio: u32,
    /// `struct sk_buff`: `cb` plus `struct tcp_skb_cb`'s `seq`.
    pub segment_seq: u32,
    /// `struct sk_buff`: `cb` plus `struct tcp_skb_cb`'s `end_seq`.
    pub segment_end_seq: u32,
    /// `struct tcp_sock`: `rcv_wnd`, the window last offered to the peer, bytes.
    pub receive_window: u32,
}

impl Offsets {
    /// Nothing known: what the object holds until the loader overrides it.
    pub const UNKNOWN: Self = Self {
        local_port: OFFSET_ABSENT,
        net: OFFSET_ABSENT,
        net_inum: OFFSET_ABSENT,
        receive_buffer: OFFSET_ABSENT,
        rcv_nxt: OFFSET_ABSENT,
        copied_seq: OFFSET_ABSENT,
        scaling_ratio: OFFSET_ABSENT,
        segment_seq: OFFSET_ABSENT,
        segment_end_seq: OFFSET_ABSENT,
        receive_window: OFFSET_ABSENT,
    };
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, only `u32` fields, no padding, any bit pattern is valid.
unsafe impl aya::Pod for Offsets {}

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
/// Array map, one [`crate::RecordedPage`]: readings to judge in a test.
pub const MAP_RECORDED: &str = "RECORDED";
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
/// `tp_btf` program: a socket is destroyed; a second witness of its closing.
pub const PROGRAM_SOCKET_END: &str = "tcp_destroy_sock";
/// `perf_event` program: the tick.
pub const PROGRAM_TICK: &str = "tick";
/// XDP program: the meter and guard of an interface.
pub const PROGRAM_XDP: &str = "xdp_ingress";
/// The same for frames in several buffers (jumbo frames, veth's large segments), Linux 5.18.
pub const PROGRAM_XDP_FRAGS: &str = "xdp_frags";

/// `tp_btf` programs: a task enters and leaves direct reclaim, for the host or under its cgroup's limit.
pub const PROGRAM_RECLAIM_BEGIN: &str = "mm_vmscan_direct_reclaim_begin";
/// See [`PROGRAM_RECLAIM_BEGIN`].
pub const PROGRAM_RECLAIM_END: &str = "mm_vmscan_direct_reclaim_end";
/// See [`PROGRAM_RECLAIM_BEGIN`].
pub const PROGRAM_CGROUP_RECLAIM_BEGIN: &str = "mm_vmscan_memcg_reclaim_begin";
/// See [`PROGRAM_RECLAIM_BEGIN`].
pub const PROGRAM_CGROUP_RECLAIM_END: &str = "mm_vmscan_memcg_reclaim_end";
/// `tp_btf` program: a reclaim thread is woken.
pub const PROGRAM_KSWAPD: &str = "mm_vmscan_wakeup_kswapd";
/// `tp_btf` program: a process is chosen to be killed for lack of memory.
pub const PROGRAM_OOM: &str = "mark_victim";
/// `tp_btf` program: a task has become runnable.
pub const PROGRAM_WAKEUP: &str = "sched_wakeup";
/// `tp_btf` program: a new task has become runnable.
pub const PROGRAM_WAKEUP_NEW: &str = "sched_wakeup_new";
/// `tp_btf` program: a CPU changes tasks.
pub const PROGRAM_SWITCH: &str = "sched_switch";
/// `tp_btf` program: a request goes to a block device.
pub const PROGRAM_BLOCK_ISSUE: &str = "block_rq_issue";
/// `tp_btf` program: a block device has completed a request.
pub const PROGRAM_BLOCK_COMPLETE: &str = "block_rq_complete";
/// Raw tracepoint program, run by `BPF_PROG_TEST_RUN` on a worker's own thread: learns who it is.
/// Its context is the worker's number.
pub const PROGRAM_ENLIST: &str = "enlist";
/// Raw tracepoint program, run by `BPF_PROG_TEST_RUN`: judges what is recorded, for the tests.
pub const PROGRAM_JUDGE_RECORDED: &str = "judge_recorded";
/// `tp_btf` program that does nothing, which the daemon doesn't load: beside another one it tells what
/// the kernel's statistics themselves cost.
pub const PROGRAM_NOTHING: &str = "nothing";

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
/// Block devices below the vault that fit one [`crate::Policy`].
pub const DISKS_MAX: usize = 4;
/// Bytes of the `EVENTS` ring buffer: about 1,000 events.
pub const EVENTS_BYTES: u32 = 256 * 1024;

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
    /// `struct sock`: `sk_ack_backlog`, connections waiting to be accepted.
    pub accept_queue: u32,
    /// `struct sock`: `sk_max_ack_backlog`.
    pub accept_queue_max: u32,
    /// `struct task_struct`: `tgid`.
    pub task_tgid: u32,
    /// `struct task_struct`: `pid`.
    pub task_pid: u32,
    /// `struct task_struct`: `__state` (`state` before 5.14).
    pub task_state: u32,
    /// `struct request`: `q`.
    pub request_queue: u32,
    /// `struct request`: `state`.
    pub request_state: u32,
    /// `struct request_queue`: `disk` (5.15 and later), or [`OFFSET_ABSENT`].
    pub queue_disk: u32,
    /// `struct request`: `rq_disk` (before 5.17), or [`OFFSET_ABSENT`].
    pub request_disk: u32,
    /// `struct gendisk`: `major`.
    pub disk_major: u32,
    /// `struct gendisk`: `first_minor`.
    pub disk_minor: u32,
    /// `struct task_struct`: `cgroups`.
    pub task_cgroups: u32,
    /// `struct css_set`: `subsys`, at the memory controller's place; or [`OFFSET_ABSENT`].
    pub memory_css: u32,
    /// 1 if `mark_victim` hands over the victim's `struct task_struct` (6.8 and later), 0 if its
    /// process id.
    pub victim_is_task: u32,
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
        accept_queue: OFFSET_ABSENT,
        accept_queue_max: OFFSET_ABSENT,
        task_tgid: OFFSET_ABSENT,
        task_pid: OFFSET_ABSENT,
        task_state: OFFSET_ABSENT,
        request_queue: OFFSET_ABSENT,
        request_state: OFFSET_ABSENT,
        queue_disk: OFFSET_ABSENT,
        request_disk: OFFSET_ABSENT,
        disk_major: OFFSET_ABSENT,
        disk_minor: OFFSET_ABSENT,
        task_cgroups: OFFSET_ABSENT,
        memory_css: OFFSET_ABSENT,
        victim_is_task: 0,
    };
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, only `u32` fields, no padding, any bit pattern is valid.
unsafe impl aya::Pod for Offsets {}

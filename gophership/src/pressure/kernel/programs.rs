//! Which programs measure which signals.

use gophership_common::{
    PROGRAM_BLOCK_COMPLETE, PROGRAM_BLOCK_ISSUE, PROGRAM_CGROUP_RECLAIM_BEGIN,
    PROGRAM_CGROUP_RECLAIM_END, PROGRAM_ENLIST, PROGRAM_KSWAPD, PROGRAM_OOM, PROGRAM_RECLAIM_BEGIN,
    PROGRAM_RECLAIM_END, PROGRAM_SOCKET_STATE, PROGRAM_SWITCH, PROGRAM_TCP_DEQUEUE,
    PROGRAM_TCP_PROBE, PROGRAM_WAKEUP, PROGRAM_WAKEUP_NEW, Signal,
};

/// The tracepoint programs, in the order of attaching: what ends something before what begins it,
/// so that nothing begins unseen to end. All but the last are optional.
pub(super) const TRACEPOINTS: [&str; 14] = [
    // A socket followed without its close would never leave the aggregates.
    PROGRAM_SOCKET_STATE,
    PROGRAM_TCP_DEQUEUE,
    PROGRAM_RECLAIM_END,
    PROGRAM_RECLAIM_BEGIN,
    PROGRAM_CGROUP_RECLAIM_END,
    PROGRAM_CGROUP_RECLAIM_BEGIN,
    PROGRAM_KSWAPD,
    PROGRAM_OOM,
    PROGRAM_SWITCH,
    PROGRAM_WAKEUP,
    PROGRAM_WAKEUP_NEW,
    PROGRAM_BLOCK_COMPLETE,
    PROGRAM_BLOCK_ISSUE,
    PROGRAM_TCP_PROBE,
];

/// What must be attached for signals to be measured.
pub(super) const MEASURES: [(&[&str], &[Signal]); 9] = [
    (
        &[PROGRAM_SOCKET_STATE, PROGRAM_TCP_DEQUEUE],
        &[
            Signal::ReceiveQueue,
            Signal::ReceiveQueueStalled,
            Signal::SocketsAboveYellow,
            Signal::SocketsAboveRed,
            Signal::ReceiveQueueBytes,
            Signal::TimeToFull,
        ],
    ),
    (
        &[],
        &[
            Signal::IngressRate,
            Signal::IngressRateLong,
            Signal::IngressSlope,
        ],
    ),
    (&[PROGRAM_SOCKET_STATE], &[Signal::ListenBacklog]),
    (
        &[PROGRAM_RECLAIM_END, PROGRAM_RECLAIM_BEGIN],
        &[Signal::MemoryStall],
    ),
    (
        &[
            PROGRAM_ENLIST,
            PROGRAM_CGROUP_RECLAIM_END,
            PROGRAM_CGROUP_RECLAIM_BEGIN,
        ],
        &[Signal::MemoryStallCgroup],
    ),
    (&[PROGRAM_KSWAPD], &[Signal::KswapdWakeups]),
    // Whose lack of memory it was, the reclaim before it tells.
    (
        &[PROGRAM_OOM, PROGRAM_RECLAIM_END, PROGRAM_RECLAIM_BEGIN],
        &[Signal::OomKills],
    ),
    (
        &[
            PROGRAM_ENLIST,
            PROGRAM_SWITCH,
            PROGRAM_WAKEUP,
            PROGRAM_WAKEUP_NEW,
        ],
        &[Signal::CpuWait],
    ),
    (
        &[PROGRAM_BLOCK_COMPLETE, PROGRAM_BLOCK_ISSUE],
        &[Signal::DiskLatency, Signal::DiskDepth],
    ),
];

//! Which programs measure which signals.

use std::collections::BTreeMap;

use gophership_common::{
    PROGRAM_BLOCK_COMPLETE, PROGRAM_BLOCK_ISSUE, PROGRAM_CGROUP_RECLAIM_BEGIN,
    PROGRAM_CGROUP_RECLAIM_END, PROGRAM_ENLIST, PROGRAM_KSWAPD, PROGRAM_OOM, PROGRAM_RECLAIM_BEGIN,
    PROGRAM_RECLAIM_END, PROGRAM_SOCKET_END, PROGRAM_SOCKET_STATE, PROGRAM_SWITCH,
    PROGRAM_TCP_DEQUEUE, PROGRAM_TCP_PROBE, PROGRAM_WAKEUP, PROGRAM_WAKEUP_NEW, Signal,
};

/// The tracepoint programs, in the order of attaching: what ends something before what begins it,
/// so that nothing begins unseen to end. All but the last are optional.
pub(super) const TRACEPOINTS: [&str; 15] = [
    // A socket followed without its close would never leave the aggregates.
    PROGRAM_SOCKET_STATE,
    PROGRAM_SOCKET_END,
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
const MEASURES: [(&[&str], &[Signal]); 9] = [
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

/// What is measured without the `refused` programs, as [`Signal::bit`]s; and why the rest isn't.
pub(super) fn measured<'a>(
    refused: &'a BTreeMap<&'static str, String>,
) -> (u64, Vec<(Signal, &'a str)>) {
    let (mut measured, mut missing) = (0, Vec::new());
    for (needed, signals) in MEASURES {
        let reason = needed.iter().find_map(|name| refused.get(name));
        for &signal in signals {
            match reason {
                Some(reason) => missing.push((signal, reason.as_str())),
                None => measured |= signal.bit(),
            }
        }
    }
    (measured, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(program: &'static str) -> Vec<Signal> {
        let refused = BTreeMap::from([(program, format!("{program}: EPERM"))]);
        let (measured_bits, missing) = measured(&refused);
        for (signal, reason) in &missing {
            assert_eq!(*reason, format!("{program}: EPERM"));
            assert_eq!(measured_bits & signal.bit(), 0, "{signal:?}");
        }
        let (all, _) = measured(&BTreeMap::new());
        let lost = missing
            .iter()
            .fold(0, |bits, (signal, _)| bits | signal.bit());
        assert_eq!(measured_bits | lost, all, "without {program}");
        missing.into_iter().map(|(signal, _)| signal).collect()
    }

    #[test]
    fn a_refused_program_takes_its_signals_along_and_no_others() {
        let queues = [
            Signal::ReceiveQueue,
            Signal::ReceiveQueueStalled,
            Signal::SocketsAboveYellow,
            Signal::SocketsAboveRed,
            Signal::ReceiveQueueBytes,
            Signal::TimeToFull,
        ];
        let table: [(&'static str, &[Signal]); 13] = [
            (
                PROGRAM_SOCKET_STATE,
                &[&queues[..], &[Signal::ListenBacklog]].concat(),
            ),
            (PROGRAM_TCP_DEQUEUE, &queues),
            (
                PROGRAM_RECLAIM_BEGIN,
                &[Signal::MemoryStall, Signal::OomKills],
            ),
            (
                PROGRAM_RECLAIM_END,
                &[Signal::MemoryStall, Signal::OomKills],
            ),
            (PROGRAM_CGROUP_RECLAIM_BEGIN, &[Signal::MemoryStallCgroup]),
            (PROGRAM_CGROUP_RECLAIM_END, &[Signal::MemoryStallCgroup]),
            (PROGRAM_KSWAPD, &[Signal::KswapdWakeups]),
            (PROGRAM_OOM, &[Signal::OomKills]),
            (PROGRAM_SWITCH, &[Signal::CpuWait]),
            (PROGRAM_WAKEUP, &[Signal::CpuWait]),
            (PROGRAM_WAKEUP_NEW, &[Signal::CpuWait]),
            (
                PROGRAM_BLOCK_ISSUE,
                &[Signal::DiskLatency, Signal::DiskDepth],
            ),
            (
                PROGRAM_ENLIST,
                &[Signal::MemoryStallCgroup, Signal::CpuWait],
            ),
        ];
        for (program, signals) in table {
            assert_eq!(without(program), signals, "without {program}");
        }
    }
}

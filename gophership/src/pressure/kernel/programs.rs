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
const MEASURES: [(&[&str], &[Signal]); 7] = [
    // Without queues no port is followed, and nothing of what arrives there or listens.
    (
        &[PROGRAM_SOCKET_STATE, PROGRAM_TCP_DEQUEUE],
        &[
            Signal::ReceiveQueue,
            Signal::ReceiveQueueStalled,
            Signal::SocketsAboveYellow,
            Signal::SocketsAboveRed,
            Signal::ReceiveQueueBytes,
            Signal::TimeToFull,
            Signal::IngressRate,
            Signal::IngressRateLong,
            Signal::IngressSlope,
            Signal::ListenBacklog,
        ],
    ),
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

/// Whether a program measures nothing without the `refused` ones, such as what begins something whose
/// end nobody sees: it would cost, and count for nothing. Never `tcp_probe`, which must run.
pub(super) fn is_idle(name: &str, refused: &BTreeMap<&'static str, String>) -> bool {
    let mut measures = MEASURES
        .iter()
        .filter(|(needed, _)| needed.contains(&name))
        .peekable();
    measures.peek().is_some()
        && measures.all(|(needed, _)| needed.iter().any(|name| refused.contains_key(name)))
}

#[cfg(test)]
mod tests {
    use gophership_common::POSTED;

    use super::*;

    #[test]
    fn all_is_measured_that_nobody_reports() {
        let (measured_bits, _) = measured(&BTreeMap::new());
        for signal in Signal::ALL {
            let is_reported = POSTED.contains(&signal)
                || matches!(
                    signal,
                    Signal::VaultWrite
                        | Signal::HeartbeatAge
                        | Signal::BudgetIngest
                        | Signal::BudgetExport
                        | Signal::BudgetVault
                );
            let is_measured = measured_bits & signal.bit() != 0;
            assert_ne!(is_measured, is_reported, "{signal:?}");
        }
    }

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
            Signal::IngressRate,
            Signal::IngressRateLong,
            Signal::IngressSlope,
            Signal::ListenBacklog,
        ];
        let table: [(&'static str, &[Signal]); 13] = [
            (PROGRAM_SOCKET_STATE, &queues),
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

    #[test]
    fn half_a_pair_is_idle_and_what_still_measures_is_not() {
        let idle = |refused: &'static str| -> Vec<&str> {
            let refused = BTreeMap::from([(refused, "EPERM".to_owned())]);
            let is_idle = |name: &&str| is_idle(name, &refused);
            let others = |name: &&str| !refused.contains_key(name);
            let all = TRACEPOINTS.into_iter();
            all.filter(others).filter(is_idle).collect()
        };
        let table: [(&'static str, &[&str]); 7] = [
            // A kill needs them too.
            (PROGRAM_RECLAIM_END, &[PROGRAM_RECLAIM_BEGIN, PROGRAM_OOM]),
            (PROGRAM_RECLAIM_BEGIN, &[PROGRAM_RECLAIM_END, PROGRAM_OOM]),
            (PROGRAM_CGROUP_RECLAIM_END, &[PROGRAM_CGROUP_RECLAIM_BEGIN]),
            (PROGRAM_OOM, &[]),
            (PROGRAM_WAKEUP, &[PROGRAM_SWITCH, PROGRAM_WAKEUP_NEW]),
            (PROGRAM_BLOCK_ISSUE, &[PROGRAM_BLOCK_COMPLETE]),
            (PROGRAM_SOCKET_STATE, &[PROGRAM_TCP_DEQUEUE]),
        ];
        for (refused, expected) in table {
            assert_eq!(idle(refused), expected, "without {refused}");
        }
    }
}

//! Which programs measure which signals.

use std::collections::BTreeMap;

use gophership_common::{
    PROGRAM_BLOCK_COMPLETE, PROGRAM_BLOCK_ISSUE, PROGRAM_CGROUP_RECLAIM_BEGIN,
    PROGRAM_CGROUP_RECLAIM_END, PROGRAM_ENLIST, PROGRAM_KSWAPD, PROGRAM_OOM, PROGRAM_RECLAIM_BEGIN,
    PROGRAM_RECLAIM_END, PROGRAM_SOCKET_END, PROGRAM_SOCKET_STATE, PROGRAM_SWITCH,
    PROGRAM_TCP_DEQUEUE, PROGRAM_TCP_PROBE, PROGRAM_WAKEUP, PROGRAM_WAKEUP_NEW, Signal,
};

use crate::pressure::unavailable::Unavailable;

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

/// [`Signal::bit`]s of what is measured where these programs were `refused`, and these signals are
/// `lacking` a field of the kernel's; notes why the rest isn't.
pub(super) fn measured(
    refused: &BTreeMap<&'static str, String>,
    lacking: &[(Signal, String)],
    unavailable: &Unavailable,
) -> u64 {
    let mut measured = 0;
    for (needed, signals) in MEASURES {
        let refusal = needed.iter().find_map(|name| refused.get(name));
        for &signal in signals {
            // What is lacking says more than what the verifier makes of it.
            let lack = lacking.iter().find(|(lacking, _)| *lacking == signal);
            match lack.map(|(_, reason)| reason).or(refusal) {
                Some(reason) => unavailable.set(signal, reason),
                None => measured |= signal.bit(),
            }
        }
    }
    measured
}

#[cfg(test)]
mod tests {
    use gophership_common::POSTED;

    use super::*;

    /// What the workers report and what is sampled in user space.
    fn is_reported(signal: Signal) -> bool {
        POSTED.contains(&signal)
            || matches!(
                signal,
                Signal::VaultWrite
                    | Signal::HeartbeatAge
                    | Signal::BudgetIngest
                    | Signal::BudgetExport
                    | Signal::BudgetVault
            )
    }

    fn measured_without(
        refused: &[&'static str],
        lacking: &[Signal],
        unavailable: &Unavailable,
    ) -> u64 {
        let refused = refused.iter().map(|name| (*name, format!("no {name}")));
        let lacking: Vec<_> = lacking
            .iter()
            .map(|signal| (*signal, "no such field".to_owned()))
            .collect();
        measured(&refused.collect(), &lacking, unavailable)
    }

    #[test]
    fn all_that_nobody_else_reports_is_measured() {
        let measured = measured_without(&[], &[], &Unavailable::default());
        for signal in Signal::ALL {
            let is_measured = measured & signal.bit() != 0;
            assert_ne!(is_measured, is_reported(signal), "{signal:?}");
        }
    }

    /// Without them no port is followed ([`crate::pressure`]'s `start_kernel`): what is counted by
    /// port would read 0.
    #[test]
    fn without_queues_nothing_counted_by_port_is_measured() {
        for name in [PROGRAM_SOCKET_STATE, PROGRAM_TCP_DEQUEUE] {
            let unavailable = Unavailable::default();
            let measured = measured_without(&[name], &[], &unavailable);
            for signal in [
                Signal::ReceiveQueue,
                Signal::IngressRate,
                Signal::IngressRateLong,
                Signal::IngressSlope,
                Signal::TimeToFull,
                Signal::ListenBacklog,
            ] {
                assert_eq!(measured & signal.bit(), 0, "{signal:?} without {name}");
                assert_eq!(unavailable.reason(signal), format!("no {name}"));
            }
            assert_ne!(measured & Signal::CpuWait.bit(), 0);
        }
    }

    #[test]
    fn a_lack_is_the_reason_rather_than_the_refusal_that_follows() {
        let unavailable = Unavailable::default();
        let measured = measured_without(&[PROGRAM_SWITCH], &[Signal::CpuWait], &unavailable);
        assert_eq!(measured & Signal::CpuWait.bit(), 0);
        assert_eq!(unavailable.reason(Signal::CpuWait), "no such field");
    }
}

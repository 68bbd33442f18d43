//! Why signals aren't available: shown wherever their values would be.

use std::{collections::BTreeMap, sync::Mutex};

use gophership_common::{POSTED, Signal};

use super::lock;

/// The reasons known.
#[derive(Debug, Default)]
pub(super) struct Unavailable(Mutex<Reasons>);

#[derive(Debug, Default)]
struct Reasons {
    /// Of this machine and configuration.
    lasting: BTreeMap<Signal, String>,
    /// Of a sample that failed, until one succeeds.
    passing: BTreeMap<Signal, String>,
    /// What the values of available ones leave out.
    notes: BTreeMap<Signal, String>,
}

impl Unavailable {
    /// What the kernel half alone measures, without it.
    pub(super) fn without_kernel(why: &str) -> Self {
        let reasons = Self::default();
        for signal in KERNEL_ONLY {
            reasons.set(signal, &format!("needs the kernel half: {why}"));
        }
        reasons
    }

    /// A signal can't be had for this reason, now and later.
    pub(super) fn set(&self, signal: Signal, reason: &str) {
        lock(&self.0).lasting.insert(signal, reason.to_owned());
    }

    /// A signal is available, but its value leaves something out.
    pub(super) fn note(&self, signal: Signal, note: &str) {
        lock(&self.0).notes.insert(signal, note.to_owned());
    }

    /// What an available signal's value leaves out; empty if nothing.
    pub(super) fn noted(&self, signal: Signal) -> String {
        lock(&self.0)
            .notes
            .get(&signal)
            .cloned()
            .unwrap_or_default()
    }

    /// Samples of these failed.
    pub(super) fn fail(&self, signals: &[Signal], reason: &str) {
        let passing = &mut lock(&self.0).passing;
        passing.extend(signals.iter().map(|signal| (*signal, reason.to_owned())));
    }

    /// Samples of these succeeded: a failure before is no reason any more.
    pub(super) fn succeed(&self, signals: &[Signal]) {
        let passing = &mut lock(&self.0).passing;
        passing.retain(|signal, _| !signals.contains(signal));
    }

    /// Everything that lasts.
    pub(super) fn all(&self) -> Vec<(Signal, String)> {
        let reasons = &lock(&self.0).lasting;
        reasons
            .iter()
            .map(|(signal, reason)| (*signal, reason.clone()))
            .collect()
    }

    /// Why, if anything has said so.
    pub(super) fn known(&self, signal: Signal) -> Option<String> {
        let Reasons {
            lasting, passing, ..
        } = &*lock(&self.0);
        passing.get(&signal).or(lasting.get(&signal)).cloned()
    }

    /// Why a signal that reads unavailable does.
    pub(super) fn reason(&self, signal: Signal) -> String {
        self.known(signal).unwrap_or_else(|| {
            match signal {
                Signal::HeartbeatAge
                | Signal::BudgetIngest
                | Signal::BudgetExport
                | Signal::BudgetVault => "no worker has reported yet",
                Signal::VaultWrite => {
                    "as of the workers' last heartbeats, nothing was written to the vault for a second"
                }
                Signal::TimeToFull => "no worker has reported the ingest budget yet",
                Signal::CpuWait => "no worker is enlisted yet",
                Signal::ListenBacklog => "no listener is known",
                signal if POSTED.contains(&signal) => "not sampled within the last 2 s",
                _ => "not measured yet",
            }
            .to_owned()
        })
    }
}

/// What only the kernel half can measure: nobody else tells when a task reclaims, or why.
pub(super) const KERNEL_ONLY: [Signal; 3] = [
    Signal::MemoryStall,
    Signal::MemoryStallCgroup,
    Signal::KswapdWakeups,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_the_reason_until_the_next_success() {
        let unavailable = Unavailable::default();
        let reason = || unavailable.reason(Signal::ListenBacklog);
        let unknown = reason();
        unavailable.fail(&[Signal::ListenBacklog, Signal::CpuWait], "no memory");
        assert_eq!(reason(), "no memory");
        unavailable.succeed(&[Signal::ListenBacklog]);
        assert_eq!(reason(), unknown);
        assert_eq!(unavailable.reason(Signal::CpuWait), "no memory");

        unavailable.set(Signal::ListenBacklog, "refused");
        unavailable.fail(&[Signal::ListenBacklog], "no memory");
        assert_eq!(reason(), "no memory");
        unavailable.succeed(&[Signal::ListenBacklog]);
        assert_eq!(reason(), "refused", "that lasts");
    }
}

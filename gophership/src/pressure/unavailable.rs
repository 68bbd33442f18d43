//! Why signals aren't available: shown wherever their values would be.

use std::{collections::BTreeMap, sync::Mutex};

use gophership_common::{POSTED, Signal};

use super::lock;

/// The reasons known so far.
#[derive(Debug, Default)]
pub(super) struct Unavailable(Mutex<BTreeMap<Signal, String>>);

impl Unavailable {
    /// What the kernel half alone measures, without it.
    pub(super) fn without_kernel(why: &str) -> Self {
        let reasons = Self::default();
        for signal in KERNEL_ONLY {
            reasons.set(signal, &format!("needs the kernel half: {why}"));
        }
        reasons
    }

    pub(super) fn set(&self, signal: Signal, reason: &str) {
        lock(&self.0).insert(signal, reason.to_owned());
    }

    /// Everything known to be unavailable.
    pub(super) fn all(&self) -> Vec<(Signal, String)> {
        let reasons = lock(&self.0);
        reasons
            .iter()
            .map(|(signal, reason)| (*signal, reason.clone()))
            .collect()
    }

    /// Why, if anything has said so.
    pub(super) fn known(&self, signal: Signal) -> Option<String> {
        lock(&self.0).get(&signal).cloned()
    }

    /// Why a signal that reads unavailable does.
    pub(super) fn reason(&self, signal: Signal) -> String {
        self.known(signal).unwrap_or_else(|| {
            match signal {
                Signal::HeartbeatAge
                | Signal::BudgetIngest
                | Signal::BudgetExport
                | Signal::BudgetVault => "no worker has reported yet",
                Signal::VaultWrite => "nothing was written to the vault within the last second",
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

//! Shared parts of the integration tests: the daemon as a child process, producers, sinks, the oracle.
//!
//! The tests are black-box: they know the commands, the configuration keys, the status and the
//! metrics, and nothing of the daemon's inside. Every wait is bounded and on a condition.

#![expect(dead_code, reason = "each test binary uses its part of the harness")]

pub(crate) mod authority;
pub(crate) mod certs;
pub(crate) mod cgroup;
pub(crate) mod daemon;
pub(crate) mod http;
pub(crate) mod jsonl;
pub(crate) mod judged_listener;
pub(crate) mod judging;
pub(crate) mod load;
pub(crate) mod loop_disk;
pub(crate) mod messages;
pub(crate) mod node;
pub(crate) mod oracle;
pub(crate) mod process;
pub(crate) mod producer;
pub(crate) mod python;
pub(crate) mod sdk;
pub(crate) mod settings;
pub(crate) mod sink;
pub(crate) mod telemetry;
pub(crate) mod verdict;
pub(crate) mod wire;

use std::time::{Duration, Instant};

/// Long enough for a loaded machine, even one that is translated on another one; a condition that
/// holds ends the wait at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `holds`, and panics naming `what` if it doesn't in time.
#[track_caller]
pub(crate) fn eventually(what: &str, within: Duration, holds: impl FnMut() -> bool) {
    assert!(holds_within(within, holds), "waited {within:?} for: {what}");
}

/// Waits until `poll` gives a value, and panics naming `what` if it doesn't in time.
#[track_caller]
pub(crate) fn await_some<T>(
    what: &str,
    within: Duration,
    mut poll: impl FnMut() -> Option<T>,
) -> T {
    let mut value = None;
    eventually(what, within, || {
        value = poll();
        value.is_some()
    });
    value.expect("the wait ended with a value")
}

/// Whether `holds` becomes true in time.
pub(crate) fn holds_within(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    true
}

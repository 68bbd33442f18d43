//! The kernel half in the running kernel: real sockets, real probes, a real tick.

mod common;
#[path = "common/pressure.rs"]
mod judged;

#[path = "pressure_kernel/behind.rs"]
mod behind;
#[path = "pressure_kernel/receive_queue.rs"]
mod receive_queue;
#[path = "pressure_kernel/socket_ends.rs"]
mod socket_ends;
#[path = "pressure_kernel/tick.rs"]
mod tick;
#[path = "pressure_kernel/verdict.rs"]
mod verdict;
#[path = "pressure_kernel/which_sockets.rs"]
mod which_sockets;

use std::time::Duration;

use gophership::pressure::{Config, KernelMode};

/// As in [`config`].
const HOLD: Duration = Duration::from_millis(200);

fn config() -> Config {
    judged::config(KernelMode::Required)
}

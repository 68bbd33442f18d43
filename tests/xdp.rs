//! The XDP meter and guard: the program on frames by hand, and a daemon on real interfaces.
//!
//! Needs root and a build with `GOPHERSHIP_EBPF_OBJ`; the interfaces need iproute2. Otherwise each
//! test says why it did nothing and passes, unless `GOPHERSHIP_REQUIRE_KERNEL=1`.

mod common;

#[path = "xdp/frames.rs"]
mod frames;
#[path = "xdp/interfaces.rs"]
mod interfaces;
#[path = "xdp/network.rs"]
mod network;
#[path = "xdp/program.rs"]
mod program;
#[path = "xdp/shapes.rs"]
mod shapes;

use std::time::Duration;

/// The kernel half, as it is in the daemon.
#[cfg(gophership_ebpf)]
fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gophership-ebpf.o"))
}

#[cfg(not(gophership_ebpf))]
fn object() -> &'static [u8] {
    &[]
}

/// Whether this machine can run them; says so where it needn't, and panics where it must.
#[track_caller]
fn kernel_tests_run() -> bool {
    let why_not = if object().is_empty() {
        "the build was given no GOPHERSHIP_EBPF_OBJ"
    } else if !nix::unistd::geteuid().is_root() {
        "only root may load programs"
    } else {
        return true;
    };
    let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|v| v == "1");
    assert!(!required, "GOPHERSHIP_REQUIRE_KERNEL=1, but {why_not}");
    eprintln!("nothing tested: {why_not}");
    false
}

/// Most new connections that one prefix may have made in a time.
fn tokens(rate: u64, within: Duration) -> u64 {
    rate + u64::try_from(within.as_millis()).unwrap_or(u64::MAX / rate) * rate / 1000 + 1
}

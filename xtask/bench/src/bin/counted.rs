//! The daemon with an allocator that counts: `xtask-bench-counted run --config FILE`. The number of allocations so far is at
//! the beginning of standard output, a file, as eight bytes, little-endian; at most [`EVERY`] too low.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::{Context as _, Result};
use gophership::{app, config, telemetry};

/// Seldom, since it is a system call, and often against what is measured.
const EVERY: u64 = 256;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// A thread that would answer can't be had: the daemon drops its privileges while there is one.
fn count() {
    let count = ALLOCATIONS.fetch_add(1, Relaxed) + 1;
    if count.is_multiple_of(EVERY) {
        // Whoever reads it misses it.
        let _ = rustix::io::pwrite(io::stdout(), &count.to_le_bytes(), 0);
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn main() -> Result<()> {
    let file = std::env::args_os().nth(3).context("run --config FILE")?;
    let config = config::load(Some(&PathBuf::from(file)), std::iter::empty())?;
    telemetry::log::install(&config.telemetry)?;
    Ok(app::run(config)?)
}

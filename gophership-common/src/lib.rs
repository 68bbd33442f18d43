//! What crosses between the kernel half and user space, and the one decision both compile.
//!
//! Every type here is fixed-width, `repr(C)`, without implicit padding and a multiple of eight
//! bytes, so that user space can read and write the mapped maps word by word. [`judge`] is pure: the
//! eBPF tick, the user-space fallback and the property tests call the same function.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod branchless;
mod judge;
mod limits;
mod pages;
mod tally;
pub mod xdp;
mod zone;

pub use branchless::{Earliest, greatest, is_zero};
pub use judge::{Judgement, State, exit_permille, judge};
pub use limits::*;
pub use pages::{
    Aggregates, BUDGETS, Budget, EnginePage, Event, Levels, OVERRIDE_FOREVER, OVERRIDE_NONE,
    Policy, PolicyPage, Posted, Signals, SignalsPage, VerdictPage, WatchSlot, WorkerLine,
    available,
};
pub use tally::{POSTED_MAX_AGE_NS, Tally, permille};
pub use zone::{Cause, FLAG_OVERRIDE, Word, Zone};

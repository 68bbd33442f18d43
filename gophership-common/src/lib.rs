//! What crosses between the kernel half and user space, and the one decision both compile.
//!
//! Every type here is fixed-width, `repr(C)`, without implicit padding and a multiple of eight
//! bytes, so that user space can read and write the mapped maps word by word. [`judge`] is pure: the
//! eBPF tick, the user-space fallback and the property tests call the same function.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod branchless;
mod depth;
mod forecast;
mod judge;
mod limits;
mod listing;
mod pages;
mod recorded;
mod rules;
mod signal;
mod tally;
pub mod xdp;
mod zone;

pub use branchless::{Earliest, greatest, is_zero, opaque, reached};
pub use depth::{ABOVE_RED, ABOVE_YELLOW, BELOW, capacity_bytes, capacity_when_closed, level};
pub use forecast::{Ingress, rate_per_second, share_permille};
pub use judge::{Judgement, State, judge};
pub use limits::*;
pub use listing::*;
pub use pages::{
    Aggregates, BUDGETS, Budget, EVENT_OOM, EVENT_OOM_ELSEWHERE, EVENT_TRANSITION, EnginePage,
    Event, Levels, OVERRIDE_FOREVER, OVERRIDE_NONE, Policy, PolicyPage, Posted, SignalsPage,
    VerdictPage, WatchSlot, WorkerLine,
};
pub use recorded::RecordedPage;
pub use rules::{NEVER, Rule, Thresholds, rising_exit};
pub use signal::{SIGNALS, Signal, Signals, TIME_TO_FULL_MAX_US, Unit};
pub use tally::{POSTED, POSTED_MAX_AGE_NS, Tally, permille};
pub use zone::{Cause, FLAG_OVERRIDE, FLAG_SLOW_DISK, Word, Zone};

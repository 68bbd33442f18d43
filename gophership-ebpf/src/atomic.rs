//! 64-bit atomics on map memory. `core`'s don't select on this target (`fetch_add` is missing,
//! atomic stores don't lower), the instructions exist from Linux 5.12.

use core::arch::asm;

/// Stores `new` if `*target` is `expected`; returns what was there.
///
/// # Safety
/// `target` is an aligned, writable `u64` of map memory.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(target: *mut u64, expected: u64, new: u64) -> u64 {
    let observed: u64;
    // SAFETY: the caller vouches for `target`; the instruction touches nothing else but r0.
    unsafe {
        asm!(
            "r0 = cmpxchg_64(r1 + 0, r0, r2)",
            inlateout("r0") expected => observed,
            in("r1") target,
            in("r2") new,
        );
    }
    observed
}

/// Adds `delta` (two's complement, so it subtracts too).
///
/// # Safety
/// `target` is an aligned, writable `u64` of map memory.
#[inline(always)]
pub(crate) unsafe fn add(target: *mut u64, delta: u64) {
    // SAFETY: the caller vouches for `target`.
    unsafe {
        asm!("lock *(u64 *)(r1 + 0) += r2", in("r1") target, in("r2") delta);
    }
}

/// One load instruction.
///
/// # Safety
/// `source` is an aligned, readable `u64` of map memory.
#[inline(always)]
pub(crate) unsafe fn load(source: *const u64) -> u64 {
    // SAFETY: the caller vouches for `source`; aligned volatile eight-byte accesses are one
    // instruction on this target.
    unsafe { source.read_volatile() }
}

/// One load instruction, that no CPU moves before the loads which `seen` was computed from: its
/// address depends on them, which orders loads on weakly ordered CPUs too, for no barrier's cost.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn load_after(source: *const u64, seen: u64) -> u64 {
    let zero: u64;
    // SAFETY: changes one register, to 0, which the compiler doesn't know but the verifier does.
    unsafe { asm!("{0} &= 0", inlateout(reg) seen => zero) };
    // SAFETY: as in `load`.
    unsafe { load(source.byte_add(zero as usize)) }
}

/// One store instruction.
///
/// # Safety
/// `target` is an aligned, writable `u64` of map memory.
#[inline(always)]
pub(crate) unsafe fn store(target: *mut u64, value: u64) {
    // SAFETY: as in `load`.
    unsafe { target.write_volatile(value) }
}

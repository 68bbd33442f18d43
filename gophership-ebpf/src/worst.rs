//! The worst value of each signal over the last one to two seconds: what a reader that looks once a
//! second would miss otherwise.

use gophership_common::{Policy, SIGNALS, SignalsPage, greatest};

use crate::atomic;

const WINDOW_NS: u64 = 1_000_000_000;

/// Takes the reading into account.
///
/// # Safety
/// `page` is the SIGNALS map's only element, and only the tick calls this.
#[inline(always)]
pub(crate) unsafe fn keep(page: *mut SignalsPage, policy: &Policy, now_ns: u64) {
    // SAFETY: says the caller; the indices are below 2 and SIGNALS.
    unsafe {
        let number = now_ns / WINDOW_NS;
        // 0 where this window goes on, else all ones off.
        let goes_on = if atomic::load(&raw const (*page).window) == number {
            u64::MAX
        } else {
            0
        };
        atomic::store(&raw mut (*page).window, number);
        let windows = (&raw mut (*page).windows).cast::<u64>();
        let now = windows.add((number & 1) as usize * SIGNALS);
        let before = windows.add((number & 1 ^ 1) as usize * SIGNALS);
        let values = (&raw const (*page).last.values).cast::<u64>();
        let available = atomic::load(&raw const (*page).last.available);
        let worst = (&raw mut (*page).worst).cast::<u64>();
        let mut index = 0;
        while index < SIGNALS {
            // Kept flipped where low is bad: then 0 is the best for all, and what isn't available
            // is no worse. All ones if it is available, else 0.
            let known = (available >> index & 1).wrapping_neg();
            let flip = policy.rules[index].flip;
            let value = (atomic::load(values.add(index)) ^ flip) & known;
            let kept = atomic::load(now.add(index)) & goes_on;
            let kept = greatest(kept, value);
            atomic::store(now.add(index), kept);
            let both = greatest(kept, atomic::load(before.add(index)));
            atomic::store(worst.add(index), both ^ flip);
            index += 1;
        }
    }
}

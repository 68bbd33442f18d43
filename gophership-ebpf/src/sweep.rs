//! Closes the watched sockets whose closing no probe has seen.
//!
//! The kernel skips a tracing program that would interrupt itself (`recursion_misses`): a
//! connection reset by a soft interrupt, just while the same CPU notes another socket's state, goes
//! unseen. Its end is seen by another program, but may be long in coming: the application holds the
//! descriptor. Until then its count and its watch slot would hold the zone. So each tick looks at one
//! slot, and closes the owner in the probe's place.

use gophership_common::{Policy, SignalsPage, WATCH_SLOTS, WatchSlot};

use crate::{atomic, queue, socket::Socket};

/// Looks at the next slot.
///
/// The owner is gone if its memory isn't an ingest socket's any more, twice in a row: a socket that
/// is being closed right now has lost its port, too, and its probe is at work. A round takes as many
/// ticks as there are slots, and no probe that long. If another ingest socket lives at that address
/// by now, its events settle what is left of the old one.
#[inline(always)]
pub(crate) fn next_slot(page: *mut SignalsPage, policy: &Policy) {
    // SAFETY: `page` is the SIGNALS map's only element; the index is below WATCH_SLOTS, which is a
    // power of two. Only the tick writes `swept` and `suspect`.
    unsafe {
        let swept = &raw mut (*page).aggregates.swept;
        let turn = atomic::load(swept);
        atomic::store(swept, turn.wrapping_add(1));
        let slot = (&raw mut (*page).watch)
            .cast::<WatchSlot>()
            .add((turn as usize) & (WATCH_SLOTS - 1));
        let suspect = &raw mut (*slot).suspect;
        let owner = atomic::load(&raw const (*slot).socket);
        let socket = Socket::at(owner as *const _);
        if owner == 0 || socket.is_still_ours(policy) {
            atomic::store(suspect, 0);
        } else if atomic::load(suspect) == owner {
            queue::close(socket);
        } else {
            atomic::store(suspect, owner);
        }
    }
}

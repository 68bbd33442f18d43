//! Changing the word, and telling user space about it.

use gophership_common::{Cause, Event, Signals, VerdictPage, Word, Zone};

use crate::{atomic, maps};

/// Attempts at a compare-and-swap that others keep winning; each loss means another one raised.
const ATTEMPTS: u32 = 3;

/// The current word.
#[inline(always)]
pub(crate) fn word(page: *mut VerdictPage) -> Word {
    // SAFETY: `page` is the VERDICT map's only element.
    Word(unsafe { atomic::load((&raw const (*page).word).cast()) })
}

/// Replaces `from` by `to` unless somebody else was faster; records when, and sends the event.
#[inline(always)]
pub(crate) fn change(
    page: *mut VerdictPage,
    from: Word,
    to: Word,
    values: &Signals,
    now_ns: u64,
) -> bool {
    // SAFETY: `page` is the VERDICT map's only element; every field is an aligned u64.
    unsafe {
        let word = (&raw mut (*page).word).cast::<u64>();
        if atomic::compare_exchange(word, from.0, to.0) != from.0 {
            return false;
        }
        atomic::store(&raw mut (*page).since_ns, now_ns);
        atomic::add(&raw mut (*page).transitions, 1);
    }
    let event = Event {
        from,
        to,
        ktime_ns: now_ns,
        values: *values,
    };
    if maps::EVENTS.output::<Event>(&event, 0).is_err() {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*page).events_lost, 1) };
    }
    true
}

/// A probe's raise: up only, and never against the operator.
#[inline(always)]
pub(crate) fn raise(zone: Zone, cause: Cause, values: &Signals, now_ns: u64) -> bool {
    let Some(page) = maps::verdict() else {
        return false;
    };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let from = word(page);
        if from.overridden() || from.zone() as u8 >= zone as u8 {
            return false;
        }
        let to = Word::new(zone, cause, 0, from.epoch().wrapping_add(1));
        if change(page, from, to, values, now_ns) {
            return true;
        }
        attempt += 1;
    }
    false
}

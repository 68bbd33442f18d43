//! Changing the word, and telling user space about it.

use gophership_common::{Cause, EVENT_TRANSITION, Event, Signal, Signals, VerdictPage, Word, Zone};

use crate::{atomic, maps};

/// Attempts at a compare-and-swap that others keep winning; each loss means another one raised.
const ATTEMPTS: u32 = 3;

/// The current word.
#[inline(always)]
pub(crate) fn word(page: *mut VerdictPage) -> Word {
    // SAFETY: `page` is the VERDICT map's only element.
    Word(unsafe { atomic::load((&raw const (*page).word).cast()) })
}

/// What an event says it was decided on.
pub(crate) enum Values {
    /// All of the tick's last reading, in the SIGNALS map.
    Reading(*const Signals),
    /// One socket's queue: permille of its capacity, and microseconds above Red without a dequeue.
    Queue(u64, u64),
}

impl Values {
    /// # Safety
    /// `target` is writable; a reading is the SIGNALS map's.
    #[inline(always)]
    unsafe fn write(&self, target: *mut Signals) {
        // SAFETY: says the caller.
        unsafe {
            match *self {
                Self::Reading(source) => target.copy_from_nonoverlapping(source, 1),
                Self::Queue(permille, stalled_us) => {
                    target.write_bytes(0, 1);
                    (*target).set(Signal::ReceiveQueue, permille);
                    (*target).set(Signal::ReceiveQueueStalled, stalled_us);
                }
            }
        }
    }
}

/// Replaces `from` by `to` unless somebody else was faster; records when, and sends the event.
#[inline(always)]
pub(crate) fn change(
    page: *mut VerdictPage,
    from: Word,
    to: Word,
    values: &Values,
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
    send(page, EVENT_TRANSITION, from, to, values, now_ns);
    true
}

/// Tells user space, or counts what it couldn't be told.
#[inline(always)]
pub(crate) fn send(
    page: *mut VerdictPage,
    kind: u64,
    from: Word,
    to: Word,
    values: &Values,
    now_ns: u64,
) {
    let Some(mut entry) = maps::EVENTS.reserve::<Event>(0) else {
        // SAFETY: `page` is the VERDICT map's only element.
        unsafe { atomic::add(&raw mut (*page).events_lost, 1) };
        return;
    };
    let event = entry.as_mut_ptr();
    // Field by field: a whole event is half of a program's stack.
    // SAFETY: the ring's own memory, as large as an event.
    unsafe {
        (&raw mut (*event).kind).write(kind);
        (&raw mut (*event).from).write(from);
        (&raw mut (*event).to).write(to);
        (&raw mut (*event).ktime_ns).write(now_ns);
        values.write(&raw mut (*event).values);
    }
    entry.submit(0);
}

/// A probe's raise: up only, and never against the operator.
#[inline(always)]
pub(crate) fn raise(zone: Zone, cause: Cause, values: &Values, now_ns: u64) -> bool {
    let Some(page) = maps::verdict() else {
        return false;
    };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let from = word(page);
        if from.overridden() || from.zone() as u8 >= zone as u8 {
            return false;
        }
        let to = Word::new(zone, cause, from.flags(), from.epoch().wrapping_add(1));
        if change(page, from, to, values, now_ns) {
            return true;
        }
        attempt += 1;
    }
    false
}

//! The fallback judge: the same `judge()` in user space, into the same word.
//!
//! It runs on the watch thread, at least every 100 ms and whenever a worker's operation count
//! says so, on what user space measures by itself ([`own`]). Standing in for a kernel half whose tick
//! has died, it goes by what the probes still count where they do.
//!
//! What it can't do: judge while user space is stalled, and see what happens between two looks. Red
//! by a receive queue takes two looks at least.

mod diag;
mod disk;
mod oom;
mod own;
mod past;
mod queues;

use std::{mem::offset_of, sync::atomic::Ordering};

use gophership_common::{
    Aggregates, EVENT_TRANSITION, Event, Policy, Signal, Signals, SignalsPage, Tally, VerdictPage,
    WATCH_SLOTS, Word, judge,
};

use super::pages::Pages;

pub(super) use own::Own;

/// What the workers have reported, added up.
pub(super) fn tally(pages: &Pages, policy: &Policy) -> Tally {
    let mut tally = Tally::default();
    for worker in 0..policy.workers as usize {
        tally.add(&pages.report(worker));
    }
    tally
}

/// The whole reading: what user space measures by itself, what the workers report, and where probes
/// count (`probed`), what those do.
pub(super) fn reading(
    pages: &Pages,
    own: Signals,
    tally: &Tally,
    probed: bool,
    now_ns: u64,
) -> Signals {
    let mut signals = own;
    signals.available |= tally.report(&pages.posted(), now_ns, &mut signals.values);
    if probed {
        measure(pages, &mut signals, now_ns);
    }
    signals
}

/// Judges a reading. Returns the change of the word, if it changed.
pub(super) fn judge_once(
    pages: &Pages,
    policy: &Policy,
    signals: &Signals,
    now_ns: u64,
) -> Option<Event> {
    pages.record(signals);
    let word = Word(pages.word().load(Ordering::Acquire));
    let judgement = judge(policy, signals, &pages.state().adopt(word), now_ns);
    let next = judgement.word_after(word);
    if next.same_verdict(word) {
        pages.remember(&judgement.state);
        return None;
    }
    // A probe may raise at the same time: then the next judgement starts from there.
    pages
        .word()
        .compare_exchange(word.0, next.0, Ordering::AcqRel, Ordering::Acquire)
        .ok()?;
    pages
        .verdict
        .word(offset_of!(VerdictPage, since_ns))
        .store(now_ns, Ordering::Release);
    pages
        .verdict
        .word(offset_of!(VerdictPage, transitions))
        .fetch_add(1, Ordering::AcqRel);
    pages.remember(&judgement.state);
    Some(Event {
        kind: EVENT_TRANSITION,
        from: word,
        to: next,
        ktime_ns: now_ns,
        values: *signals,
    })
}

/// What the probes have counted: they go on when the tick is dead.
fn measure(pages: &Pages, signals: &mut Signals, now_ns: u64) {
    let counts = pages.aggregates();
    signals.set(Signal::SocketsAboveYellow, counts.above_yellow);
    signals.set(Signal::SocketsAboveRed, counts.above_red);
    // Starts a new window, as the tick does.
    let window = offset_of!(SignalsPage, aggregates) + offset_of!(Aggregates, window_permille);
    let mut deepest = pages.signals.word(window).swap(0, Ordering::AcqRel);
    let mut stalled_ns = 0;
    for slot in 0..WATCH_SLOTS {
        let watched = pages.watched(slot);
        deepest = deepest.max(watched.permille);
        if watched.stalled_since_ns != 0 {
            stalled_ns = stalled_ns.max(now_ns.saturating_sub(watched.stalled_since_ns));
        }
    }
    signals.set(Signal::ReceiveQueue, deepest);
    signals.set(Signal::ReceiveQueueStalled, stalled_ns / 1000);
}

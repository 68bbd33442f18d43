//! The fallback judge: the same `judge()` in user space, into the same word.
//!
//! It runs on the watch thread, at least every 100 ms and whenever a worker's operation count
//! says so. Alone it can't see receive queues, which then read "unavailable"; standing in for a
//! kernel half whose tick has died it still reads what the probes count.

use std::{mem::offset_of, sync::atomic::Ordering};

use gophership_common::{
    Aggregates, EVENT_TRANSITION, Event, Policy, Signal, Signals, SignalsPage, Tally, VerdictPage,
    WATCH_SLOTS, Word, judge,
};

use super::pages::Pages;

/// Judges once. Returns the change of the word, if it changed.
pub(super) fn judge_once(pages: &Pages, policy: &Policy, now_ns: u64) -> Option<Event> {
    let signals = sample(pages, policy, now_ns);
    pages.record(&signals);
    let word = Word(pages.word().load(Ordering::Acquire));
    let judgement = judge(policy, &signals, &pages.state().adopt(word), now_ns);
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
        values: signals,
    })
}

fn sample(pages: &Pages, policy: &Policy, now_ns: u64) -> Signals {
    let mut tally = Tally::default();
    for worker in 0..policy.workers as usize {
        tally.add(&pages.report(worker));
    }
    let mut signals = Signals::NONE;
    signals.available = tally.report(&pages.posted(), now_ns, &mut signals.values);
    if policy.measured & Signal::ReceiveQueue.bit() != 0 {
        measure(pages, &mut signals, now_ns);
    }
    signals
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

//! The tick: the only place that judges everything, and the only one that lowers.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::PerfEventContext};
use aya_log_ebpf::debug;
use gophership_common::{
    Earliest, EnginePage, Policy, Posted, Signals, SignalsPage, State, Tally, VerdictPage,
    WATCH_SLOTS, WORKERS_MAX, WatchSlot, Word, WorkerLine, greatest, judge,
};

use crate::{atomic, event, maps, sweep};

/// Judges this period, unless another CPU has claimed it.
#[inline(always)]
pub(crate) fn run(ctx: &PerfEventContext) {
    let (Some(verdict), Some(signals), Some(engine), Some(policies)) = (
        maps::verdict(),
        maps::signals(),
        maps::engine(),
        maps::policy(),
    ) else {
        return;
    };
    // SAFETY: the POLICY map's only element; the slot index is masked to 0 or 1.
    let (generation, policy) = unsafe {
        let generation = atomic::load(&raw const (*policies).generation);
        let slots = (&raw const (*policies).slots).cast::<Policy>();
        (generation, &*slots.add((generation & 1) as usize))
    };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // Generation 0: user space hasn't published a policy yet.
    if generation == 0 || !claim(verdict, policy.tick_ns, now_ns) {
        return;
    }
    let mut reading = report(engine, policy, now_ns);
    measure(signals, &mut reading, now_ns);
    // SAFETY: the SIGNALS map's only element, written by the tick only. Read back, every value is
    // unknown to the verifier: the paths that led here become one.
    let reading = unsafe {
        (&raw mut (*signals).last).write_volatile(reading);
        (&raw const (*signals).last).read_volatile()
    };

    let previous = previous(verdict);
    let word = event::word(verdict);
    let judgement = judge(policy, &reading, &previous.adopt(word), now_ns);
    // SAFETY: as above.
    let (after, due_ns) = unsafe {
        (
            atomic::load(&raw const (*policies).generation),
            atomic::load(&raw const (*verdict).next_tick_ns),
        )
    };
    if after != generation || due_ns != now_ns + policy.tick_ns {
        // A newer policy is in force, and the slot we read may be the next one written: this
        // judgement may be of two policies. Or the hypervisor held this CPU up and another one has
        // claimed the next period: this reading is older than that one's. The next tick judges.
        return;
    }
    let next = judgement.word_after(word);
    if !next.same_verdict(word) {
        if !event::change(verdict, word, next, &reading, now_ns) {
            // A probe has raised meanwhile: the next tick starts from there.
            return;
        }
        debug!(
            ctx,
            "zone {} to {} by cause {}",
            word.zone() as u8,
            next.zone() as u8,
            next.cause() as u8
        );
    }
    remember(verdict, &judgement.state, now_ns);
    sweep::next_slot(signals, policy);
}

/// Whether this CPU is the one to judge now.
#[inline(always)]
fn claim(page: *mut VerdictPage, tick_ns: u64, now_ns: u64) -> bool {
    // SAFETY: `page` is the VERDICT map's only element.
    unsafe {
        let next = &raw mut (*page).next_tick_ns;
        let due_ns = atomic::load(next);
        // A quarter early is in time: the CPUs' clocks tick with jitter, and a period missed by a
        // microsecond would wait for the next one.
        now_ns + tick_ns / 4 >= due_ns
            && atomic::compare_exchange(next, due_ns, now_ns + tick_ns) == due_ns
    }
}

#[inline(always)]
fn report(engine: *const EnginePage, policy: &Policy, now_ns: u64) -> Signals {
    let mut tally = Tally::default();
    let lines = unsafe {
        // SAFETY: `engine` is the ENGINE map's only element.
        (&raw const (*engine).workers).cast::<WorkerLine>()
    };
    // All lines, used or not: a bound read from the policy would be a branch in every round.
    let mut worker = 0;
    while worker < WORKERS_MAX {
        // SAFETY: the index is below WORKERS_MAX; a torn line is a line between two reports.
        tally.add(unsafe { &*lines.add(worker) });
        worker += 1;
    }
    // SAFETY: as above.
    let posted: Posted = unsafe { (&raw const (*engine).posted).read_volatile() };
    tally.signals(policy, &posted, now_ns)
}

/// The receive queues: the window's maximum and the watched sockets, which may have been silent.
#[inline(always)]
fn measure(page: *mut SignalsPage, reading: &mut Signals, now_ns: u64) {
    // SAFETY: `page` is the SIGNALS map's only element; indices are below WATCH_SLOTS.
    unsafe {
        let aggregates = &raw mut (*page).aggregates;
        reading.sockets_above_yellow = atomic::load(&raw const (*aggregates).above_yellow) as u32;
        reading.sockets_above_red = atomic::load(&raw const (*aggregates).above_red) as u32;
        let mut deepest = atomic::load(&raw const (*aggregates).window_permille);
        atomic::store(&raw mut (*aggregates).window_permille, 0);
        let mut stalled = Earliest::default();
        let slots = (&raw const (*page).watch).cast::<WatchSlot>();
        let mut index = 0;
        while index < WATCH_SLOTS {
            let slot = slots.add(index);
            deepest = greatest(deepest, atomic::load(&raw const (*slot).permille));
            stalled.add(atomic::load(&raw const (*slot).stalled_since_ns));
            index += 1;
        }
        reading.receive_queue_permille = deepest as u32;
        reading.receive_queue_stalled_ns = stalled.age_ns(now_ns).unwrap_or(0);
    }
}

#[inline(always)]
fn previous(page: *mut VerdictPage) -> State {
    // SAFETY: `page` is the VERDICT map's only element.
    unsafe {
        let natural = Word(atomic::load((&raw const (*page).natural).cast()));
        State {
            zone: natural.zone(),
            cause: natural.cause(),
            below_yellow_since_ns: atomic::load(&raw const (*page).below_yellow_since_ns),
            below_red_since_ns: atomic::load(&raw const (*page).below_red_since_ns),
        }
    }
}

#[inline(always)]
fn remember(page: *mut VerdictPage, state: &State, now_ns: u64) {
    // SAFETY: `page` is the VERDICT map's only element.
    unsafe {
        let natural = Word::new(state.zone, state.cause, 0, 0);
        atomic::store((&raw mut (*page).natural).cast(), natural.0);
        atomic::store(
            &raw mut (*page).below_yellow_since_ns,
            state.below_yellow_since_ns,
        );
        atomic::store(
            &raw mut (*page).below_red_since_ns,
            state.below_red_since_ns,
        );
        atomic::store(&raw mut (*page).judged_at_ns, now_ns);
    }
}

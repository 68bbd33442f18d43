//! The tick: the only place that judges everything, and the only one that lowers.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::PerfEventContext};
use aya_log_ebpf::debug;
use gophership_common::{
    Earliest, EnginePage, Policy, Posted, Signal, SignalsPage, State, Tally, VerdictPage,
    WATCH_SLOTS, WORKERS_MAX, WatchSlot, Word, WorkerLine, greatest, judge,
};

use crate::{atomic, event, maps, sample, sweep, worst};

/// Judges this period, unless another CPU has claimed it.
#[inline(always)]
pub(crate) fn run(ctx: &PerfEventContext) {
    let (Some(verdict), Some(signals), Some(engine), Some(policies), Some(measures)) = (
        maps::verdict(),
        maps::signals(),
        maps::engine(),
        maps::policy(),
        maps::measures(),
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
    let tally = tally(engine);
    // SAFETY: the maps' only elements, and this is the tick. The reading is put together in place,
    // and what is available of it stored last; read back from there, every value is unknown to the
    // verifier, so that the paths which led here become one.
    let reading = unsafe {
        sample::take(measures, signals, &tally, policy, now_ns);
        queues(signals, now_ns);
        let posted: Posted = (&raw const (*engine).posted).read_volatile();
        let last = &raw mut (*signals).last;
        let reported = tally.report(&posted, now_ns, &mut (*last).values);
        let sampled = atomic::load(&raw const (*measures).sampled);
        let available = policy.measured & sampled | reported;
        atomic::store(&raw mut (*last).available, available);
        worst::keep(signals, policy, now_ns);
        &*last
    };

    let previous = previous(verdict);
    let word = event::word(verdict);
    let judgement = judge(policy, reading, &previous.adopt(word), now_ns);
    // SAFETY: as above.
    let (due_ns, after) = unsafe {
        // A compare-and-swap that swaps nothing: no CPU moves the reads of the policy behind it, so
        // that the generation is of a moment after them.
        let due_ns = now_ns + policy.tick_ns;
        let seen_ns = atomic::compare_exchange(&raw mut (*verdict).next_tick_ns, due_ns, due_ns);
        let after = atomic::load(&raw const (*policies).generation);
        (seen_ns, after)
    };
    if after != generation || due_ns != now_ns + policy.tick_ns {
        // A newer policy is in force, and the slot we read may be the next one written: this
        // judgement may be of two policies. Or the hypervisor held this CPU up and another one has
        // claimed the next period: this reading is older than that one's. The next tick judges.
        return;
    }
    let next = judgement.word_after(word);
    if !next.same_verdict(word) {
        if !event::change(
            verdict,
            word,
            next,
            &event::Values::Reading(reading),
            now_ns,
        ) {
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
fn tally(engine: *const EnginePage) -> Tally {
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
    tally
}

/// The receive queues: the window's maximum and the watched sockets, which may have been silent.
///
/// # Safety
/// `page` is the SIGNALS map's only element, and only the tick calls this.
#[inline(always)]
unsafe fn queues(page: *mut SignalsPage, now_ns: u64) {
    // SAFETY: says the caller; indices are below WATCH_SLOTS and SIGNALS.
    unsafe {
        let aggregates = &raw mut (*page).aggregates;
        let window = &raw mut (*aggregates).window_permille;
        let mut deepest = atomic::load(window);
        // What a probe has raised it to meanwhile is of the next window.
        atomic::compare_exchange(window, deepest, 0);
        let mut stalled = Earliest::default();
        let slots = (&raw const (*page).watch).cast::<WatchSlot>();
        let mut index = 0;
        while index < WATCH_SLOTS {
            let slot = slots.add(index);
            deepest = greatest(deepest, atomic::load(&raw const (*slot).permille));
            stalled.add(atomic::load(&raw const (*slot).stalled_since_ns));
            index += 1;
        }
        let set = |signal: Signal, value: u64| {
            let values = (&raw mut (*page).last.values).cast::<u64>();
            atomic::store(values.add(signal as usize), value);
        };
        set(Signal::ReceiveQueue, deepest);
        set(
            Signal::ReceiveQueueStalled,
            stalled.age_ns(now_ns).unwrap_or(0) / 1000,
        );
        set(
            Signal::SocketsAboveYellow,
            atomic::load(&raw const (*aggregates).above_yellow),
        );
        set(
            Signal::SocketsAboveRed,
            atomic::load(&raw const (*aggregates).above_red),
        );
    }
}

#[inline(always)]
fn previous(page: *mut VerdictPage) -> State {
    // SAFETY: `page` is the VERDICT map's only element.
    unsafe {
        let natural = Word(atomic::load((&raw const (*page).natural).cast()));
        State::of(
            natural,
            [
                atomic::load(&raw const (*page).below_yellow_since_ns),
                atomic::load(&raw const (*page).below_red_since_ns),
                atomic::load(&raw const (*page).disk_calm_since_ns),
            ],
        )
    }
}

#[inline(always)]
fn remember(page: *mut VerdictPage, state: &State, now_ns: u64) {
    // SAFETY: `page` is the VERDICT map's only element.
    unsafe {
        let [below_yellow, below_red, disk_calm] = state.clocks_ns();
        atomic::store((&raw mut (*page).natural).cast(), state.word().0);
        atomic::store(&raw mut (*page).below_yellow_since_ns, below_yellow);
        atomic::store(&raw mut (*page).below_red_since_ns, below_red);
        atomic::store(&raw mut (*page).disk_calm_since_ns, disk_calm);
        atomic::store(&raw mut (*page).judged_at_ns, now_ns);
    }
}

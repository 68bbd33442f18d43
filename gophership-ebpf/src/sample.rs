//! Ten times a second: from totals to shares and rates over the last second.

use gophership_common::{
    Ingress, Policy, Signal, SignalsPage, Tally, greatest, rate_per_second, share_permille,
};

use crate::{
    atomic, block, listen,
    measures::{Measures, SAMPLES, Sample},
    reclaim, sched, traffic,
};

const PERIOD_NS: u64 = 100_000_000;
/// A second.
const RECENT: u64 = 10;
/// Ten seconds.
const LONG: u64 = 10;
/// The least time that shares and rates are of: what happens in the first moments would look like a
/// second full of it.
const WINDOW_NS: u64 = 1_000_000_000;

/// Takes a sample if one is due, and writes the signals that follow from it.
///
/// # Safety
/// The pointers are the MEASURES and the SIGNALS map's only elements; only the tick calls this.
#[inline(always)]
pub(crate) unsafe fn take(
    page: *mut Measures,
    signals: *mut SignalsPage,
    tally: &Tally,
    policy: &Policy,
    now_ns: u64,
) {
    // SAFETY: says the caller; the indices are masked.
    unsafe {
        if now_ns < atomic::load(&raw const (*page).next_sample_ns) {
            return;
        }
        atomic::store(&raw mut (*page).next_sample_ns, now_ns + PERIOD_NS);
        let number = atomic::load(&raw const (*page).samples);
        atomic::store(&raw mut (*page).samples, number.wrapping_add(1));
        let then = number.wrapping_sub(RECENT) as usize;
        let wait_ns = sched::longest_ns(page, number as usize, then, now_ns);
        let (used, limit) = tally.ingest_budget();
        let (bytes, unread) = traffic::sums(page);

        let recent = (&raw mut (*page).recent).cast::<Sample>();
        let now = recent.add(number as usize & (SAMPLES - 1));
        fill(page, now, bytes, unread + used, now_ns);
        let long = (&raw mut (*page).long).cast::<Sample>();
        let second = number / RECENT;
        if number == 0 {
            // Before the first sample there was nothing: what has no second yet looks back to here.
            let mut index = 0;
            while index < SAMPLES {
                *recent.add(index) = *now;
                *long.add(index) = *now;
                index += 1;
            }
        }
        if number.is_multiple_of(RECENT) {
            *long.add(second as usize & (SAMPLES - 1)) = *now;
        }
        let span = Span {
            now,
            then: recent.add(then & (SAMPLES - 1)),
            long: long.add(second.wrapping_sub(LONG) as usize & (SAMPLES - 1)),
        };
        let out = (&raw mut (*signals).last.values).cast::<u64>();
        memory(out, &span);
        reclaim::sweep(page, reclaim::HOST, now_ns);
        reclaim::sweep(page, reclaim::OURS, now_ns);
        let elapsed_ns = span.elapsed_ns();
        set(
            out,
            Signal::CpuWait,
            share_permille(wait_ns / 1000, elapsed_ns),
        );
        disk(page, out, &span);
        set(out, Signal::ReceiveQueueBytes, unread);
        ingress(out, &span, limit, policy);
        let (backlog, listens) = listen::fullest(page);
        set(out, Signal::ListenBacklog, backlog);
        // What needs a listener, a worker, a budget.
        let mut sampled = u64::MAX;
        if !listens {
            sampled &= !Signal::ListenBacklog.bit();
        }
        if atomic::load(&raw const (*page).enlisted) == 0 {
            sampled &= !Signal::CpuWait.bit();
        }
        if limit == 0 {
            sampled &= !Signal::TimeToFull.bit();
        }
        atomic::store(&raw mut (*page).sampled, sampled);
    }
}

/// This sample, the one a second ago and the one ten seconds ago; the first one where there was none
/// yet.
struct Span {
    now: *mut Sample,
    then: *const Sample,
    long: *const Sample,
}

impl Span {
    /// Time from `then` to `now`.
    ///
    /// # Safety
    /// The pointers point into the MEASURES map.
    #[inline(always)]
    unsafe fn elapsed_ns(&self) -> u64 {
        // SAFETY: says the caller.
        unsafe { self.since(self.then) }
    }

    /// Time from `long` to `now`.
    ///
    /// # Safety
    /// As for [`Self::elapsed_ns`].
    #[inline(always)]
    unsafe fn long_ns(&self) -> u64 {
        // SAFETY: says the caller.
        unsafe { self.since(self.long) }
    }

    /// # Safety
    /// As for [`Self::elapsed_ns`].
    #[inline(always)]
    unsafe fn since(&self, before: *const Sample) -> u64 {
        // SAFETY: says the caller.
        let elapsed_ns = unsafe { (*self.now).at_ns.saturating_sub((*before).at_ns) };
        greatest(elapsed_ns, WINDOW_NS)
    }
}

/// # Safety
/// `values` are those of the SIGNALS map.
#[inline(always)]
unsafe fn set(values: *mut u64, signal: Signal, value: u64) {
    // SAFETY: says the caller; a signal's number is an index.
    unsafe { atomic::store(values.add(signal as usize), value) };
}

/// Writes down the totals.
///
/// # Safety
/// As for [`take`].
#[inline(always)]
unsafe fn fill(page: *const Measures, now: *mut Sample, bytes: u64, backlog: u64, now_ns: u64) {
    // SAFETY: says the caller.
    unsafe {
        (*now).at_ns = now_ns;
        (*now).stall_us = [
            reclaim::stalled_us(page, reclaim::HOST, now_ns),
            reclaim::stalled_us(page, reclaim::OURS, now_ns),
        ];
        (*now).kswapd = atomic::load(&raw const (*page).kswapd);
        (*now).oom = atomic::load(&raw const (*page).oom);
        (*now).disk_completed = atomic::load(&raw const (*page).disk.completed);
        (*now).disk_latency_us = atomic::load(&raw const (*page).disk.latency_us);
        (*now).bytes = bytes;
        (*now).backlog = backlog;
    }
}

/// Memory: reclaim, its threads, kills.
///
/// # Safety
/// As for [`take`].
#[inline(always)]
unsafe fn memory(out: *mut u64, span: &Span) {
    // SAFETY: says the caller.
    unsafe {
        let (now, then, long) = (&*span.now, &*span.then, &*span.long);
        let elapsed_ns = span.elapsed_ns();
        let stalled = |kind: u32| {
            let kind = kind as usize;
            // A stall that ends while it is read may be missing once.
            let lost_us = now.stall_us[kind].saturating_sub(then.stall_us[kind]);
            share_permille(lost_us, elapsed_ns)
        };
        set(out, Signal::MemoryStall, stalled(reclaim::HOST));
        set(out, Signal::MemoryStallCgroup, stalled(reclaim::OURS));
        set(out, Signal::KswapdWakeups, now.kswapd - then.kswapd);
        set(out, Signal::OomKills, now.oom - long.oom);
    }
}

/// The vault's devices: the mean of what was completed, or the age of the oldest request if nothing
/// was.
///
/// # Safety
/// As for [`take`].
#[inline(always)]
unsafe fn disk(page: *mut Measures, out: *mut u64, span: &Span) {
    // SAFETY: says the caller.
    unsafe {
        let (now, then) = (&*span.now, &*span.then);
        // In any case, because it also gives up what is over.
        let oldest_us = block::oldest_us(page, now.at_ns);
        let completed = now.disk_completed - then.disk_completed;
        let latency_us = now.disk_latency_us - then.disk_latency_us;
        let latency_us = latency_us.checked_div(completed).unwrap_or(oldest_us);
        set(out, Signal::DiskLatency, latency_us);
        set(
            out,
            Signal::DiskDepth,
            atomic::load(&raw const (*page).disk.depth),
        );
    }
}

/// What arrives, and where it leads.
///
/// # Safety
/// As for [`take`].
#[inline(always)]
unsafe fn ingress(out: *mut u64, span: &Span, limit: u64, policy: &Policy) {
    // SAFETY: says the caller.
    unsafe {
        let (now, then, long) = (&*span.now, &*span.then, &*span.long);
        let elapsed_ns = span.elapsed_ns();
        let ingress = Ingress {
            backlog_bytes: now.backlog,
            backlog_before_bytes: then.backlog,
            elapsed_ns,
            limit_bytes: limit,
            rate: rate_per_second(now.bytes - then.bytes, elapsed_ns),
            rate_long: rate_per_second(now.bytes - long.bytes, span.long_ns()),
        };
        set(out, Signal::IngressRate, ingress.rate);
        set(out, Signal::IngressRateLong, ingress.rate_long);
        set(out, Signal::IngressSlope, ingress.slope());
        let time_us = ingress.time_to_full_us(policy.ingress_horizon_ns);
        set(out, Signal::TimeToFull, time_us);
    }
}

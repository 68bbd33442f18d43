//! Ten times a second: from totals to shares and rates over the last second.

use gophership_common::{
    Ingress, Policy, Signal, SignalsPage, Tally, rate_per_second, share_permille,
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
    // SAFETY: says the caller.
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
        (*now).backlog = unread + used;
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
        let then = recent.add(then & (SAMPLES - 1));
        let long = long.add(second.wrapping_sub(LONG) as usize & (SAMPLES - 1));

        let set = |signal: Signal, value: u64| {
            let values = (&raw mut (*signals).last.values).cast::<u64>();
            atomic::store(values.add(signal as usize), value);
        };
        let elapsed_ns = now_ns.saturating_sub((*then).at_ns);
        let stalled = |kind: u32| {
            let kind = kind as usize;
            share_permille((*now).stall_us[kind] - (*then).stall_us[kind], elapsed_ns)
        };
        set(Signal::MemoryStall, stalled(reclaim::HOST));
        set(Signal::MemoryStallCgroup, stalled(reclaim::OURS));
        set(Signal::KswapdWakeups, (*now).kswapd - (*then).kswapd);
        set(Signal::OomKills, (*now).oom - (*long).oom);
        set(Signal::CpuWait, share_permille(wait_ns / 1000, elapsed_ns));
        set(
            Signal::DiskDepth,
            atomic::load(&raw const (*page).disk.depth),
        );
        set(
            Signal::DiskLatency,
            disk_latency_us(page, now, then, now_ns),
        );
        block::sweep(page, now_ns);

        let ingress = Ingress {
            backlog_bytes: (*now).backlog,
            backlog_before_bytes: (*then).backlog,
            elapsed_ns,
            limit_bytes: limit,
            rate: rate_per_second(bytes - (*then).bytes, elapsed_ns),
            rate_long: rate_per_second(bytes - (*long).bytes, now_ns.saturating_sub((*long).at_ns)),
        };
        set(Signal::ReceiveQueueBytes, unread);
        set(Signal::IngressRate, ingress.rate);
        set(Signal::IngressRateLong, ingress.rate_long);
        set(Signal::IngressSlope, ingress.slope());
        set(
            Signal::TimeToFull,
            ingress.time_to_full_us(policy.ingress_horizon_ns),
        );
        let (backlog, listens) = listen::fullest(page);
        set(Signal::ListenBacklog, backlog);
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

/// Mean of what was completed between two samples; the age of the oldest request if nothing was.
///
/// # Safety
/// As for [`take`].
#[inline(always)]
unsafe fn disk_latency_us(
    page: *const Measures,
    now: *const Sample,
    then: *const Sample,
    now_ns: u64,
) -> u64 {
    // SAFETY: says the caller.
    unsafe {
        let completed = (*now).disk_completed - (*then).disk_completed;
        let latency_us = (*now).disk_latency_us - (*then).disk_latency_us;
        match latency_us.checked_div(completed) {
            Some(mean_us) => mean_us,
            None => block::oldest_us(page, now_ns),
        }
    }
}

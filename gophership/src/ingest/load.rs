//! How much each worker has to do, by which connections are spread.
//!
//! A connection may bring anything from nothing to a core's worth. So a worker says with its heartbeat how many bytes it
//! has lately answered for, and how many connections it has lately had, both smoothed alike: those that it has beyond
//! them haven't shown yet what they bring, and count as much as all connections do on the average. So a burst spreads
//! evenly, and what it brings corrects that soon.

use std::{sync::atomic::Ordering::Relaxed, time::Instant};

use crate::telemetry::counters::WorkerCounters;

/// What an idle connection counts for, in bytes a second: it may bring something later. What is less makes no difference
/// between workers.
const IDLE_BYTES: u64 = 64 * 1024;

/// Connections are smoothed in these parts.
const PARTS: u64 = 1024;

/// What a heartbeat has of the past: with ten of them a second, most of what was a second ago is forgotten.
const SMOOTHING: u64 = 8;

/// Measures a worker, on its own thread.
#[derive(Debug)]
pub struct Meter {
    looked: Instant,
    bytes: u64,
}

impl Meter {
    /// Nothing was done yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            looked: now,
            bytes: 0,
        }
    }

    /// Notes in the counters what was lately done; with each heartbeat.
    pub fn look(&mut self, counters: &WorkerCounters, now: Instant) {
        let bytes = counters.answered_bytes();
        let us = now.saturating_duration_since(self.looked).as_micros();
        let us = u64::try_from(us).unwrap_or(u64::MAX).max(1);
        let rate = (bytes - self.bytes).saturating_mul(1_000_000) / us;
        (self.looked, self.bytes) = (now, bytes);
        let connections = counters.connections.load(Relaxed) * PARTS;
        for (recent, seen) in [
            (&counters.recent_bytes, rate),
            (&counters.recent_connections, connections),
        ] {
            let before = recent.load(Relaxed);
            recent.store(smoothed(before, seen), Relaxed);
        }
    }
}

/// Comes to rest at `seen`.
const fn smoothed(before: u64, seen: u64) -> u64 {
    if seen > before {
        before + (seen - before).div_ceil(SMOOTHING)
    } else {
        before - (before - seen).div_ceil(SMOOTHING)
    }
}

/// What each worker has to expect, in idle connections; for those with the same, by all that they have.
pub fn expected<'a>(
    workers: impl Iterator<Item = &'a WorkerCounters> + Clone,
) -> impl Iterator<Item = (u64, u64)> {
    let sum = |of: fn(&WorkerCounters) -> u64| workers.clone().map(of).sum::<u64>();
    let bytes = sum(|worker| worker.recent_bytes.load(Relaxed));
    let connections = sum(|worker| worker.recent_connections.load(Relaxed));
    let each = bytes.saturating_mul(PARTS) / connections.max(PARTS);
    workers.map(move |worker| {
        let open = worker.connections.load(Relaxed);
        let known = worker.recent_connections.load(Relaxed);
        let unknown = (open * PARTS).saturating_sub(known);
        let to_come = unknown.saturating_mul(each) / PARTS;
        let work = worker.recent_bytes.load(Relaxed).saturating_add(to_come);
        (open + work / IDLE_BYTES, open)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::counters::{Fate, Protocol};

    const BEAT: Duration = Duration::from_millis(100);

    struct Bench {
        workers: [WorkerCounters; 2],
        meters: [Meter; 2],
        now: Instant,
    }

    impl Bench {
        fn new(connections: [u64; 2]) -> Self {
            let now = Instant::now();
            let workers = <[WorkerCounters; 2]>::default();
            for (worker, open) in workers.iter().zip(connections) {
                worker.connections.store(open, Relaxed);
            }
            Self {
                workers,
                meters: [Meter::new(now), Meter::new(now)],
                now,
            }
        }

        /// With so many bytes for each in each of ten beats.
        fn second(&mut self, bytes: [u64; 2]) {
            for _ in 0..10 {
                self.now += BEAT;
                for ((worker, meter), bytes) in self.workers.iter().zip(&mut self.meters).zip(bytes)
                {
                    worker.finished(Protocol::Grpc, Fate::Vaulted, 1, bytes, 1);
                    meter.look(worker, self.now);
                }
            }
        }

        /// So many come at once; what each worker has then.
        fn burst(&self, count: usize) -> [u64; 2] {
            for _ in 0..count {
                let loads: Vec<_> = expected(self.workers.iter()).collect();
                let to = usize::from(loads[1] < loads[0]);
                self.workers[to].connections.fetch_add(1, Relaxed);
            }
            self.workers
                .each_ref()
                .map(|worker| worker.connections.load(Relaxed))
        }
    }

    #[test]
    fn without_work_the_fewest_connections_count() {
        assert_eq!(Bench::new([0, 0]).burst(101), [51, 50]);
        assert_eq!(Bench::new([7, 3]).burst(5), [8, 7]);
        let mut bench = Bench::new([2, 0]);
        bench.second([100, 2_000]);
        assert_eq!(
            bench.burst(3),
            [3, 2],
            "next to nothing makes no difference"
        );
    }

    #[test]
    fn work_counts_more_than_connections_and_is_forgotten() {
        let mut bench = Bench::new([1, 20]);
        for _ in 0..5 {
            bench.second([10_000_000, 0]);
        }
        assert_eq!(bench.burst(1), [1, 21]);
        for _ in 0..10 {
            bench.second([0, 0]);
        }
        assert_eq!(bench.burst(1), [2, 21]);
    }

    #[test]
    fn those_who_come_count_as_the_average_until_they_show_what_they_bring() {
        let mut bench = Bench::new([10, 8]);
        for _ in 0..5 {
            bench.second([10_000_000, 8_000_000]);
        }
        let [first, second] = bench.burst(32);
        assert_eq!(first + second, 50);
        assert!(first.abs_diff(second) <= 2, "{first} and {second}");
        // They bring nothing: whoever comes then goes to the one that has less to do.
        for _ in 0..10 {
            bench.second([10_000_000, 8_000_000]);
        }
        assert_eq!(bench.burst(1), [first, second + 1]);
    }
}

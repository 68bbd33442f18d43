//! Two workers against one, and against two daemons.
//!
//! Daemon and generator are kept on one CPU, with one worker and one generator thread, then on another (which may have more
//! or less of the interrupts to serve), and then on both, with two of each; a thread's connections are those of the worker
//! on its own CPU. So the generator does the same for a record in all of them. Two CPUs of one machine still share what
//! they share: memory, the disk and its interrupts. Two daemons of one worker each, side by side, have that in common and
//! nothing else: what two workers of one daemon do less than those is what they cost each other.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use gophership::ingest::budget::Budget;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

use super::{
    Bench,
    case::{Case, LARGE_FRAMES, MEMORY_OF_TWO, Measured, Route, Running},
};
use crate::{daemon::Site, load::Protocol, report::Spread};

const LEAST_OVER_ONE: f64 = 1.9;
const LEAST_OVER_APART: f64 = 0.95;

const CASE: Case = Case {
    route: Route::Red,
    protocol: Protocol::Grpc,
    tls: true,
    records: 100,
    frame_bytes: LARGE_FRAMES,
    // The disk is no limit.
    compression: "lz4",
};

/// What a round measured.
struct Round {
    /// On each CPU alone.
    one: [Measured; 2],
    /// On both, a daemon on each.
    apart: [Measured; 2],
    /// On both, one daemon.
    two: Measured,
}

impl Round {
    /// Two workers over the mean of one and the other.
    fn over_one(&self) -> f64 {
        2.0 * per_second(&self.two) / sum(&self.one)
    }

    fn apart_over_one(&self) -> f64 {
        2.0 * sum(&self.apart) / sum(&self.one)
    }

    fn over_apart(&self) -> f64 {
        per_second(&self.two) / sum(&self.apart)
    }
}

fn per_second(measured: &Measured) -> f64 {
    measured.window.records_per_second()
}

fn sum(measured: &[Measured; 2]) -> f64 {
    measured.iter().map(per_second).sum()
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let all = sched_getaffinity(None)?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
    let (Some(first), Some(second)) = (allowed.next(), allowed.next()) else {
        eprintln!("workers: this needs two CPUs");
        return Ok(());
    };
    let (rounds, window) = match bench.quick {
        true => (1, Duration::from_secs(2)),
        false => (3, Duration::from_secs(4)),
    };
    eprintln!("workers: {rounds} rounds of {window:?} on one CPU, on another, and on both");
    let beside = bench.site.beside()?;
    let mut measured = Vec::new();
    for round in 0..rounds {
        let alone = |cpus: &[usize]| start(bench.site, cpus)?.measure(window);
        let turns = || -> Result<Round> {
            let first_alone = alone(&[first])?;
            let second_alone = alone(&[second])?;
            let apart = {
                let one = start(bench.site, &[first])?;
                apart(&one, &start(&beside, &[second])?, window)?
            };
            Ok(Round {
                one: [first_alone, second_alone],
                apart,
                two: alone(&[first, second])?,
            })
        };
        let result = turns();
        sched_setaffinity(None, &all)?;
        let result = result.with_context(|| format!("round {round}"))?;
        eprintln!(
            "    one {:.2} and {:.2}, two daemons {:.2}, two workers {:.2} M records a second; {:.0}, {:.0}, {:.0} and {:.0} ns of CPU a record",
            per_second(&result.one[0]) / 1e6,
            per_second(&result.one[1]) / 1e6,
            sum(&result.apart) / 1e6,
            per_second(&result.two) / 1e6,
            1e9 / result.one[0].records_per_cpu_second(),
            1e9 / result.one[1].records_per_cpu_second(),
            1e9 / result.apart[0].records_per_cpu_second(),
            1e9 / result.two.records_per_cpu_second(),
        );
        measured.push(result);
    }
    let budget = [budget_ns(&[first]), budget_ns(&[first, second])];
    tell(bench, &measured, budget)
}

/// Nanoseconds in which a thread takes a request's bytes of the ingest budget and gives them back, which is all that workers
/// write together for a request; so many threads do it at once.
fn budget_ns(cpus: &[usize]) -> f64 {
    const TIMES: u32 = 2_000_000;
    let budget = Budget::new(64 << 20);
    let work = |cpu: usize| {
        let mut set = CpuSet::new();
        set.set(cpu);
        // Where it isn't allowed, it runs anywhere.
        let _ = sched_setaffinity(None, &set);
        let started = Instant::now();
        for _ in 0..TIMES {
            drop(budget.take_at_once(black_box(58_700)));
        }
        started.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
    };
    let times: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = cpus
            .iter()
            .map(|&cpu| scope.spawn(move || work(cpu)))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    times.iter().sum::<f64>() / times.len().max(1) as f64
}

/// A daemon with a worker on each of these CPUs, and a generator thread for each.
fn start(site: &Site, cpus: &[usize]) -> Result<Running> {
    // Whatever this thread starts inherits it.
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    sched_setaffinity(None, &set)?;
    let ingest = format!("\n  workers: {}\n  pin_workers: true", cpus.len());
    CASE.start(
        site,
        &ingest,
        // As much for each worker, and its connections.
        |settings| {
            if cpus.len() > 1 {
                settings.memory = MEMORY_OF_TWO;
            }
        },
        |plan| {
            plan.threads = cpus.len();
            plan.cpus = cpus.to_vec();
            plan.connections = 4 * cpus.len();
            plan.in_flight = 8;
        },
    )
}

fn apart(first: &Running, second: &Running, window: Duration) -> Result<[Measured; 2]> {
    thread::scope(|scope| {
        let other = scope.spawn(|| second.measure(window));
        let one = first.measure(window)?;
        let other = other.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok([one, other])
    })
}

fn tell(bench: &mut Bench<'_>, rounds: &[Round], budget_ns: [f64; 2]) -> Result<()> {
    let of = |figure: fn(&Round) -> f64| {
        Spread::of(rounds.iter().map(figure).collect()).context("no round was measured")
    };
    let over_one = of(Round::over_one)?;
    let apart_over_one = of(Round::apart_over_one)?;
    let over_apart = of(Round::over_apart)?;
    eprintln!(
        "    two workers over one {:.3}; two daemons over one {:.3}; two workers over two daemons {:.3}",
        over_one.p50, apart_over_one.p50, over_apart.p50
    );
    let [alone, shared] = budget_ns;
    eprintln!(
        "    a request's bytes of the budget, taken and given back: {alone:.0} ns, {shared:.0} ns by two at once"
    );
    let figures_of = |round: &Round| {
        json!({
            "one": round.one.each_ref().map(Measured::json),
            "two_daemons": round.apart.each_ref().map(Measured::json),
            "two": round.two.json(),
        })
    };
    let mut figures = json!({ "rounds": rounds.iter().map(figures_of).collect::<Vec<_>>() });
    over_one.add_to(&mut figures, "throughput_two_over_one", "ratio");
    apart_over_one.add_to(&mut figures, "throughput_two_daemons_over_one", "ratio");
    over_apart.add_to(&mut figures, "throughput_two_over_two_daemons", "ratio");
    figures["budget_taken_and_given_back_alone_ns"] = alone.into();
    figures["budget_taken_and_given_back_by_two_ns"] = shared.into();
    figures["bars"] = json!([
        bench.report.bar(
            "two workers on two CPUs do at least 1.9 times as much as one on one (median)",
            over_one.p50 >= LEAST_OVER_ONE,
        ),
        bench.report.bar(
            "two workers do at least 95 % of what two daemons do side by side (median)",
            over_apart.p50 >= LEAST_OVER_APART,
        ),
    ]);
    bench.report.emit("ingest.workers", &figures);
    Ok(())
}

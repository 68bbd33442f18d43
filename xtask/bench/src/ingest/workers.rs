//! Two workers against one.
//!
//! Daemon and generator are kept on one CPU, with one worker and one generator thread, and then on two, with two of
//! each; a thread's connections are those of the worker on its own CPU. The generator's threads share nothing either and do the same for a record in both, so it is no more of a limit with
//! two than with one: the ratio of the records a second is that of the whole, and the CPU time a record tells whose it is. What
//! the machine itself gives for two CPUs is measured beside it, by threads that share nothing at all.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

use super::{
    Bench,
    case::{Case, LARGE_FRAMES, Measured, Route},
};
use crate::{
    load::{Corpus, Protocol},
    report::Spread,
};

const LEAST: f64 = 1.9;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let all = sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&cpu| all.is_set(cpu))
        .take(2)
        .collect();
    let &[first, _] = cpus.as_slice() else {
        eprintln!("workers: this needs two CPUs");
        return Ok(());
    };
    let (rounds, window) = match bench.quick {
        true => (1, Duration::from_secs(2)),
        false => (7, Duration::from_secs(4)),
    };
    eprintln!("workers: {rounds} rounds of {window:?} on one CPU and on two");
    let measured = on_one_and_two(bench, rounds, window, first, &cpus);
    sched_setaffinity(None, &all)?;
    tell(bench, &measured?)
}

/// What a round measured, on one CPU and on two.
struct Round {
    daemon: [Measured; 2],
    /// Checksums a second of threads that share nothing.
    machine: [f64; 2],
}

fn on_one_and_two(
    bench: &Bench<'_>,
    rounds: usize,
    window: Duration,
    first: usize,
    cpus: &[usize],
) -> Result<Vec<Round>> {
    let case = Case {
        route: Route::Red,
        protocol: Protocol::Grpc,
        tls: true,
        records: 100,
        frame_bytes: LARGE_FRAMES,
        // The disk is no limit either.
        compression: "lz4",
    };
    let on = |cpus: &[usize]| -> Result<(Measured, f64)> {
        // Whatever this thread starts inherits it.
        let mut set = CpuSet::new();
        for &cpu in cpus {
            set.set(cpu);
        }
        sched_setaffinity(None, &set)?;
        let machine = checksums_per_second(cpus.len());
        let ingest = format!("\n  workers: {}\n  pin_workers: true", cpus.len());
        let running = case.start(
            bench.site,
            |settings| settings.ingest = ingest.clone().leak(),
            |plan| {
                plan.threads = cpus.len();
                plan.cpus = cpus.to_vec();
                plan.connections = 4 * cpus.len();
                plan.in_flight = 8;
            },
        )?;
        Ok((running.measure(window)?, machine))
    };
    let mut measured = Vec::new();
    for round in 0..rounds {
        let (one, two) = if round % 2 == 0 {
            let one = on(&[first])?;
            (one, on(cpus)?)
        } else {
            let two = on(cpus)?;
            (on(&[first])?, two)
        };
        eprintln!(
            "    {:.2} and {:.2} M records a second, {:.0} and {:.0} ns of the daemon's CPU a record, machine {:.3}",
            one.0.window.records_per_second() / 1e6,
            two.0.window.records_per_second() / 1e6,
            1e9 / one.0.records_per_cpu_second(),
            1e9 / two.0.records_per_cpu_second(),
            two.1 / one.1,
        );
        measured.push(Round {
            daemon: [one.0, two.0],
            machine: [one.1, two.1],
        });
    }
    Ok(measured)
}

/// What so many threads do, each with its own memory.
fn checksums_per_second(threads: usize) -> f64 {
    let work = || {
        let corpus = Corpus::new(100);
        let started = Instant::now();
        let mut made = 0_u32;
        while started.elapsed() < Duration::from_secs(1) {
            for message in corpus.messages() {
                black_box(lz4_flex::compress(message));
                made += 1;
            }
        }
        f64::from(made) / started.elapsed().as_secs_f64()
    };
    let threads: Vec<_> = (0..threads).map(|_| thread::spawn(work)).collect();
    threads
        .into_iter()
        .filter_map(|thread| thread.join().ok())
        .sum()
}

fn tell(bench: &mut Bench<'_>, rounds: &[Round]) -> Result<()> {
    let of = |figure: fn(&Round) -> f64| {
        Spread::of(rounds.iter().map(figure).collect()).context("no round was measured")
    };
    let throughput = of(|round| {
        let [one, two] = &round.daemon;
        two.window.records_per_second() / one.window.records_per_second()
    })?;
    let per_cpu = of(|round| {
        let [one, two] = &round.daemon;
        two.records_per_cpu_second() / one.records_per_cpu_second()
    })?;
    let machine = of(|round| round.machine[1] / round.machine[0])?;
    eprintln!(
        "    two over one: records a second {:.3}, records a CPU second {:.3}; the machine itself {:.3}",
        throughput.p50, per_cpu.p50, machine.p50
    );
    let figures_of =
        |round: &Round| json!({ "one": round.daemon[0].json(), "two": round.daemon[1].json() });
    let mut figures = json!({ "rounds": rounds.iter().map(figures_of).collect::<Vec<_>>() });
    throughput.add_to(&mut figures, "throughput_two_over_one", "ratio");
    per_cpu.add_to(
        &mut figures,
        "records_per_daemon_cpu_second_two_over_one",
        "ratio",
    );
    machine.add_to(&mut figures, "machine_two_over_one", "ratio");
    let what = "two workers on two CPUs do at least 1.9 times as much as one on one (median)";
    figures["bars"] = json!([bench.report.bar(what, throughput.p50 >= LEAST)]);
    bench.report.emit("ingest.workers", &figures);
    Ok(())
}

//! Throughput with the kernel half on against off, in one run.
//!
//! First one daemon, which user space judges for, saturated all the time, while this process attaches the
//! kernel half for its port and lets go of it again, window by window. Nothing else differs between the
//! windows, and they lie close together: the probes' cost, whoever's thread they run on.
//!
//! Then rounds of two: a daemon with it and one without, each saturated for a while over TLS on loopback,
//! in turns that alternate, so that what drifts hits both. Both must take the same way: pipeline, one
//! OTLP destination that accepts everything. So what the machine does is no cause of Red, and a queue
//! only after a time that no turn lasts. Without the kernel half user space judges; it does so as seldom
//! as it can, because that costs time, too.
//! Generator, daemon and destination share the CPUs, so all that the probes cost is in the figure,
//! whoever's thread they run on.

use std::time::Duration;

use anyhow::{Context as _, Result};
use gophership::pressure::{IngestScope, Pressure};
use serde_json::{Value, json};

use super::{Bench, cost, plan};
use crate::{
    daemon::{CpuTime, Daemon, Settings, UNDISTURBED, cpu_ns},
    load::Load,
    report::Spread,
};

/// glibc gives memory back to the system in sizes that it learns from what was freed before. Loading the
/// kernel half frees megabytes, so that a daemon with it would have fewer page faults under load, which
/// has nothing to do with judging. Set, these sizes are the same with and without.
const SAME_HEAP: [(&str, &str); 1] = [(
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864",
)];
/// A window with the probes, or without.
const PROBES_WINDOW: Duration = Duration::from_millis(1000);
/// The most that the kernel half may cost.
const WITHIN_PER_CENT: f64 = 2.0;

struct Turn {
    records_per_second: f64,
    daemon_cpu_ns_per_record: f64,
    all_cpu_ns_per_record: f64,
    transitions: usize,
    /// How the CPUs spent the window: idle, taken by the host, and on what isn't ours, per cent.
    idle_per_cent: f64,
    stolen_per_cent: f64,
    others_per_cent: f64,
    figures: Value,
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    attached_against_not(bench)?;
    daemon_against_daemon(bench)
}

/// Windows of one daemon with the kernel half and without.
fn attached_against_not(bench: &mut Bench<'_>) -> Result<()> {
    // An odd number has a median that was measured.
    let pairs = if bench.quick { 5 } else { 41 };
    eprintln!("probes: {pairs} windows with the kernel half attached, and as many without");
    let daemon = start(bench, "off")?;
    let load = Load::start(plan(bench, daemon.grpc())?)?;
    load.measure(Duration::ZERO, Duration::from_secs(2))?;
    let scope = IngestScope {
        ports: vec![daemon.grpc().port()],
        h2_window_bytes: 0,
        vault_dir: None,
    };
    let mut windows = Vec::new();
    for pair in 0..pairs {
        let on = || -> Result<Turn> {
            let _kernel_half = Pressure::start(&cost::config(), &scope, 1)?;
            measure(&daemon, &load, PROBES_WINDOW)
        };
        let off = || measure(&daemon, &load, PROBES_WINDOW);
        windows.push(if pair % 2 == 0 {
            let on = on()?;
            (on, off()?)
        } else {
            let off = off()?;
            (on()?, off)
        });
    }
    let throughput = ratio(&windows, |turn| turn.records_per_second)?;
    let cpu = ratio(&windows, |turn| turn.all_cpu_ns_per_record)?;
    eprintln!(
        "    on / off: records a second {:.4} (from {:.4} to {:.4}), CPU a record {:.4} (from {:.4} to {:.4})",
        throughput.p50, throughput.min, throughput.max, cpu.p50, cpu.min, cpu.max
    );
    let mut all = json!({ "windows": figures_of(&windows) });
    throughput.add_to(&mut all, "throughput_on_over_off", "ratio");
    cpu.add_to(&mut all, "all_cpu_on_over_off", "ratio");
    all["bars"] = json!([
        bench.report.bar(
            "throughput with the probes attached at most 2 % below that without (median)",
            (1.0 - throughput.p50) * 100.0 <= WITHIN_PER_CENT,
        ),
        bench.report.bar(
            "CPU time a record with the probes attached at most 2 % above that without (median)",
            (cpu.p50 - 1.0) * 100.0 <= WITHIN_PER_CENT,
        ),
    ]);
    bench.report.emit("kernel.probes", &all);
    Ok(())
}

fn daemon_against_daemon(bench: &mut Bench<'_>) -> Result<()> {
    let (rounds, window) = match bench.quick {
        true => (3, Duration::from_secs(2)),
        false => (9, Duration::from_secs(5)),
    };
    eprintln!("throughput: {rounds} rounds of {window:?} with the kernel half and as long without");
    let mut turns = Vec::new();
    for round in 0..rounds {
        let (on, off) = if round % 2 == 0 {
            let on = turn(bench, "required", window)?;
            (on, turn(bench, "off", window)?)
        } else {
            let off = turn(bench, "off", window)?;
            (turn(bench, "required", window)?, off)
        };
        eprintln!(
            "    round {}: on {:.0}, off {:.0} records a second; others had {:.0} % and {:.0} % of the CPUs",
            round + 1,
            on.records_per_second,
            off.records_per_second,
            on.others_per_cent + on.stolen_per_cent,
            off.others_per_cent + off.stolen_per_cent
        );
        turns.push((on, off));
    }
    tell(bench, &turns)
}

fn turn(bench: &Bench<'_>, kernel: &str, window: Duration) -> Result<Turn> {
    let daemon = start(bench, kernel)?;
    let load = Load::start(plan(bench, daemon.grpc())?)?;
    load.measure(Duration::ZERO, Duration::from_millis(1000))?;
    measure(&daemon, &load, window)
}

fn start(bench: &Bench<'_>, kernel: &str) -> Result<Daemon> {
    let pressure = format!("{UNDISTURBED}\n  receive_queue: {{ yellow: 50%, red: 80%, for: 30s }}");
    Daemon::start(
        bench.site,
        &Settings {
            kernel,
            pressure: &pressure,
            env: &SAME_HEAP,
            ..Settings::new(bench.sink.address())
        },
    )
}

fn measure(daemon: &Daemon, load: &Load, window: Duration) -> Result<Turn> {
    let machine = CpuTime::now()?;
    let before = (cpu_ns(daemon.pid()), cpu_ns(std::process::id()));
    let measured = load.measure(Duration::ZERO, window)?;
    let daemon_ns = cpu_ns(daemon.pid()).saturating_sub(before.0);
    let own_ns = cpu_ns(std::process::id()).saturating_sub(before.1);
    let records = measured.records as f64;
    let machine = CpuTime::now()?.since(&machine);
    let per_cent = |ns: u64| ns as f64 * 100.0 / machine.all_ns.max(1) as f64;
    let others_ns = machine.busy_ns.saturating_sub(daemon_ns + own_ns);
    Ok(Turn {
        records_per_second: measured.records_per_second(),
        daemon_cpu_ns_per_record: daemon_ns as f64 / records,
        all_cpu_ns_per_record: (daemon_ns + own_ns) as f64 / records,
        transitions: daemon.log_events("zone").count(),
        idle_per_cent: per_cent(machine.idle_ns),
        stolen_per_cent: per_cent(machine.stolen_ns),
        others_per_cent: per_cent(others_ns),
        figures: measured.json(),
    })
}

fn ratio(turns: &[(Turn, Turn)], of: fn(&Turn) -> f64) -> Result<Spread<f64>> {
    let ratios = turns.iter().map(|(on, off)| of(on) / of(off));
    Spread::of(ratios.collect()).context("no round was measured")
}

fn figures_of(turns: &[(Turn, Turn)]) -> Vec<Value> {
    turns
        .iter()
        .map(|(on, off)| json!({ "on": figures(on), "off": figures(off) }))
        .collect()
}

fn tell(bench: &mut Bench<'_>, turns: &[(Turn, Turn)]) -> Result<()> {
    let throughput = ratio(turns, |turn| turn.records_per_second)?;
    let daemon_cpu = ratio(turns, |turn| turn.daemon_cpu_ns_per_record)?;
    let all_cpu = ratio(turns, |turn| turn.all_cpu_ns_per_record)?;
    let cost_per_cent = (1.0 - throughput.p50) * 100.0;
    eprintln!(
        "    on / off: records a second {:.4} (from {:.4} to {:.4}), CPU a record {:.4} (daemon {:.4})",
        throughput.p50, throughput.min, throughput.max, all_cpu.p50, daemon_cpu.p50
    );
    let mut all = json!({ "rounds": figures_of(turns) });
    throughput.add_to(&mut all, "throughput_on_over_off", "ratio");
    all_cpu.add_to(&mut all, "all_cpu_on_over_off", "ratio");
    daemon_cpu.add_to(&mut all, "daemon_cpu_on_over_off", "ratio");
    all["bars"] = json!([
        bench.report.bar(
            "throughput with the kernel half at most 2 % below that without (median of the rounds)",
            cost_per_cent <= WITHIN_PER_CENT,
        ),
        bench.report.bar(
            "CPU time a record with the kernel half at most 2 % above that without (median)",
            (all_cpu.p50 - 1.0) * 100.0 <= WITHIN_PER_CENT,
        ),
    ]);
    bench.report.emit("kernel.throughput", &all);
    Ok(())
}

fn figures(turn: &Turn) -> Value {
    let mut figures = turn.figures.clone();
    figures["daemon_cpu_ns_per_record"] = turn.daemon_cpu_ns_per_record.into();
    figures["all_cpu_ns_per_record"] = turn.all_cpu_ns_per_record.into();
    figures["machine_idle_per_cent"] = turn.idle_per_cent.into();
    figures["machine_stolen_per_cent"] = turn.stolen_per_cent.into();
    figures["machine_others_per_cent"] = turn.others_per_cent.into();
    figures["transitions_count"] = turn.transitions.into();
    figures
}

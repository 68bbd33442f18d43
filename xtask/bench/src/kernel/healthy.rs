//! A healthy daemon under as much load as it takes: how often and why the zone changes, how long it
//! stays, and what the kernel half's programs cost meanwhile.
//!
//! Once with the default thresholds. On a machine with few CPUs the generator takes them from the
//! workers, which is a shortage that `cpu_wait` is right to tell; and in Red requests go another way.
//! So once more with the machine's own shortages left out. A receive queue that is said to stand still
//! would be a false alarm in both.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};
use gophership_common::{Cause, Signal, Unit, Zone};
use serde_json::{Value, json};

use super::{
    Bench,
    loaded::{Cost, Costs, Maps, reading},
    plan,
};
use crate::{
    daemon::{Daemon, Settings, UNDISTURBED},
    load::Load,
};

/// Between looks at the zone.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The signals whose worst reading is told.
const SHOWN: [Signal; 7] = [
    Signal::ReceiveQueue,
    Signal::ReceiveQueueStalled,
    Signal::ListenBacklog,
    Signal::CpuWait,
    Signal::DiskLatency,
    Signal::BudgetIngest,
    Signal::HeartbeatAge,
];

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let (defaults, queues, counted) = match bench.quick {
        true => (4, 4, 2),
        false => (60, 30, 10),
    };
    {
        let (daemon, load) = start(bench, "")?;
        observe(bench, "defaults", &daemon, &load, defaults)?;
    }
    let (daemon, load) = start(bench, UNDISTURBED)?;
    observe(bench, "queues_only", &daemon, &load, queues)?;
    // Apart, because statistics cost time themselves.
    programs(bench, &daemon, &load, Duration::from_secs(counted))
}

fn start(bench: &Bench<'_>, pressure: &str) -> Result<(Daemon, Load)> {
    let daemon = Daemon::start(
        bench.site,
        &Settings {
            kernel: "required",
            pressure,
            ack_within: "20ms",
            ..Settings::new(bench.sink.address())
        },
    )?;
    let load = Load::start(plan(bench, daemon.grpc())?)?;
    Ok((daemon, load))
}

/// What was seen of the zone and the signals.
#[derive(Default)]
struct Observed {
    /// Time in each zone, by its number.
    in_zone: [Duration; 3],
    /// The greatest reading of each signal, by its name and unit.
    worst: BTreeMap<String, u64>,
}

fn look(maps: &Maps, window: Duration) -> Result<Observed> {
    let mut observed = Observed::default();
    let started = Instant::now();
    let mut last = started;
    while started.elapsed() < window {
        thread::sleep(LOOK_EVERY);
        let zone = maps.word()?.zone();
        let now = Instant::now();
        observed.in_zone[zone as usize] += now - last;
        last = now;
        let page = maps.signals()?;
        for signal in SHOWN {
            if let Some(value) = reading(&page, signal) {
                let name = format!("{}_{}", signal.as_str(), unit(signal));
                let worst = observed.worst.entry(name).or_default();
                *worst = value.max(*worst);
            }
        }
    }
    Ok(observed)
}

fn unit(signal: Signal) -> &'static str {
    match signal.unit() {
        Unit::Permille => "permille",
        Unit::Microseconds => "us",
        Unit::Bytes => "bytes",
        Unit::BytesPerSecond => "bytes_per_second",
        Unit::Count => "count",
    }
}

/// Changes of the verdict as the daemon was told them, counted by from, to and cause. The cause may
/// change within a zone, too.
fn transitions(daemon: &Daemon) -> BTreeMap<[String; 3], u64> {
    let mut counted = BTreeMap::new();
    for event in daemon.log_events("zone") {
        let text = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
        let key = [text("from"), text("to"), text("cause")];
        *counted.entry(key).or_default() += 1;
    }
    counted
}

fn observe(
    bench: &mut Bench<'_>,
    thresholds: &str,
    daemon: &Daemon,
    load: &Load,
    seconds: u64,
) -> Result<()> {
    eprintln!("healthy: {seconds} s of a saturating load, thresholds: {thresholds}");
    let maps = Maps::of(daemon.pid())?;
    let before = load.read();
    let observed = look(&maps, Duration::from_secs(seconds))?;
    let measured = load.read().since(&before);
    let transitions = transitions(daemon);
    let [green, yellow, red] = observed.in_zone.map(|time| time.as_secs_f64());
    eprintln!(
        "    {:.0} records a second, {} requests refused; Green {green:.1} s, Yellow {yellow:.1} s, Red {red:.1} s",
        measured.records_per_second(),
        measured.refused
    );
    for ([from, to, cause], times) in &transitions {
        eprintln!("    {times} x {from} -> {to} by {cause}");
    }
    let false_alarms: u64 = transitions
        .iter()
        .filter(|([_, to, cause], _)| {
            to == Zone::Red.as_str() && cause == Cause::ReceiveQueue.as_str()
        })
        .map(|(_, times)| times)
        .sum();
    let counted: Vec<Value> = transitions
        .iter()
        .map(|([from, to, cause], times)| {
            json!({ "from": from, "to": to, "cause": cause, "times_count": times })
        })
        .collect();
    let bar = bench.report.bar(
        "no Red by receive_queue under a saturating healthy load",
        false_alarms == 0,
    );
    bench.report.emit(
        "kernel.healthy",
        &json!({
            "thresholds": thresholds,
            "load": measured.json(),
            "green_seconds": green,
            "yellow_seconds": yellow,
            "red_seconds": red,
            "transitions": counted,
            "red_by_receive_queue_count": false_alarms,
            "worst_readings": observed.worst,
            "bars": [bar],
        }),
    );
    Ok(())
}

/// What the programs cost under this load.
fn programs(bench: &Bench<'_>, daemon: &Daemon, load: &Load, window: Duration) -> Result<()> {
    let _statistics = enable_stats(Stats::RunTime).context("the kernel keeps no statistics")?;
    let before = Costs::of(daemon.pid());
    let load = load.measure(Duration::ZERO, window)?;
    let costs = Costs::of(daemon.pid()).since(&before);
    // Without a measurement of it, nothing is subtracted.
    let empty_ns = bench.empty_ns.unwrap_or_default();
    let seconds = load.took.as_secs_f64();
    let records = load.records as f64;
    let net_ns = |cost: &Cost| cost.ns as f64 - empty_ns * cost.runs as f64;
    let mut by_name = json!({});
    for (name, cost) in costs.0.iter().filter(|(_, cost)| cost.runs > 0) {
        by_name[name] = json!({
            "run_ns": net_ns(cost) / cost.runs as f64,
            "runs_per_second": cost.runs as f64 / seconds,
            "ns_per_record": net_ns(cost) / records,
        });
    }
    let total_ns: f64 = costs.0.values().map(net_ns).sum();
    let ns_per_record = total_ns / records;
    let share_per_cent = total_ns / (seconds * 1e9) * 100.0;
    eprintln!(
        "    all programs of the kernel half: {ns_per_record:.1} ns a record, {share_per_cent:.2} % of one CPU"
    );
    bench.report.emit(
        "kernel.cost_under_load",
        &json!({
            "programs": by_name,
            "all_programs_ns_per_record": ns_per_record,
            "all_programs_share_of_one_cpu_per_cent": share_per_cent,
            "statistics_run_ns": empty_ns,
            "load": load.json(),
        }),
    );
    Ok(())
}

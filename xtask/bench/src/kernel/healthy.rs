//! A healthy daemon under as much load as it takes, with the default thresholds: how often and why the
//! zone changes, how long it stays, and what the kernel half's programs cost meanwhile.
//!
//! On a machine with few CPUs the generator takes them from the workers, which is a shortage that
//! `cpu_wait` is right to tell. A receive queue that nobody reads would be a false alarm.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};
use gophership_common::{Signal, Zone};
use serde_json::{Value, json};

use super::{
    Bench,
    loaded::{Cost, Costs, Maps, reading},
    plan,
};
use crate::{
    daemon::{Daemon, Settings},
    load::{Load, Window},
};

/// Between looks at the zone.
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let (window, counted) = match bench.quick {
        true => (Duration::from_secs(6), Duration::from_secs(2)),
        false => (Duration::from_secs(60), Duration::from_secs(10)),
    };
    eprintln!("healthy: {window:?} of a saturating load with the default thresholds");
    let daemon = Daemon::start(
        bench.site,
        &Settings {
            kernel: "required",
            pressure: "",
            ack_within: "20ms",
            sink: bench.sink.address(),
        },
    )?;
    let maps = Maps::of(daemon.pid())?;
    let load = Load::start(plan(bench, daemon.grpc())?)?;
    let before = load.read();
    let observed = observe(&maps, window)?;
    let measured = load.read().since(&before);
    let transitions = transitions(&daemon);
    // Apart, because statistics cost time themselves.
    let costs = programs(&daemon, &load, counted)?;
    tell(bench, &observed, &measured, &transitions, &costs);
    Ok(())
}

/// What was seen of the zone and the signals.
#[derive(Default)]
struct Observed {
    /// Time in each zone, by its number.
    in_zone: [Duration; 3],
    /// The greatest reading of each signal.
    worst: BTreeMap<&'static str, u64>,
}

fn observe(maps: &Maps, window: Duration) -> Result<Observed> {
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
        for signal in [
            Signal::ReceiveQueue,
            Signal::ReceiveQueueStalled,
            Signal::ListenBacklog,
            Signal::CpuWait,
            Signal::DiskLatency,
            Signal::BudgetIngest,
            Signal::HeartbeatAge,
        ] {
            if let Some(value) = reading(&page, signal) {
                let worst = observed.worst.entry(signal.as_str()).or_default();
                *worst = value.max(*worst);
            }
        }
    }
    Ok(observed)
}

/// The zone's changes as the daemon was told them, counted by from, to and cause.
fn transitions(daemon: &Daemon) -> BTreeMap<[String; 3], u64> {
    let mut counted = BTreeMap::new();
    for event in daemon.log_events("zone") {
        let text = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
        let key = [text("from"), text("to"), text("cause")];
        // Within a zone the cause may rise.
        if key[0] != key[1] {
            *counted.entry(key).or_default() += 1;
        }
    }
    counted
}

/// What the programs cost under this load.
struct Programs {
    costs: Costs,
    load: Window,
}

fn programs(daemon: &Daemon, load: &Load, window: Duration) -> Result<Programs> {
    let _statistics = enable_stats(Stats::RunTime).context("the kernel keeps no statistics")?;
    let before = Costs::of(daemon.pid());
    let load = load.measure(Duration::ZERO, window)?;
    let costs = Costs::of(daemon.pid()).since(&before);
    Ok(Programs { costs, load })
}

impl Programs {
    fn json(&self, empty_ns: f64) -> Value {
        let seconds = self.load.took.as_secs_f64();
        let records = self.load.records as f64;
        let net_ns = |cost: &Cost| cost.ns as f64 - empty_ns * cost.runs as f64;
        let mut by_name = json!({});
        for (name, cost) in self.costs.0.iter().filter(|(_, cost)| cost.runs > 0) {
            by_name[name] = json!({
                "run_ns": net_ns(cost) / cost.runs as f64,
                "runs_per_second": cost.runs as f64 / seconds,
                "ns_per_record": net_ns(cost) / records,
            });
        }
        let total_ns: f64 = self.costs.0.values().map(net_ns).sum();
        json!({
            "programs": by_name,
            "all_programs_ns_per_record": total_ns / records,
            "all_programs_share_of_one_cpu_per_cent": total_ns / (seconds * 1e9) * 100.0,
            "statistics_run_ns": empty_ns,
            "load": self.load.json(),
        })
    }
}

fn tell(
    bench: &mut Bench<'_>,
    observed: &Observed,
    measured: &Window,
    transitions: &BTreeMap<[String; 3], u64>,
    programs: &Programs,
) {
    let [green, yellow, red] = observed.in_zone.map(|time| time.as_secs_f64());
    eprintln!(
        "    {:.0} records a second; Green {green:.1} s, Yellow {yellow:.1} s, Red {red:.1} s; {} refused",
        measured.records_per_second(),
        measured.refused
    );
    for ([from, to, cause], times) in transitions {
        eprintln!("    {times} x {from} -> {to} by {cause}");
    }
    let false_alarms: u64 = transitions
        .iter()
        .filter(|([_, to, cause], _)| to == Zone::Red.as_str() && cause == "receive_queue")
        .map(|(_, times)| times)
        .sum();
    let counted: Vec<Value> = transitions
        .iter()
        .map(|([from, to, cause], times)| {
            json!({ "from": from, "to": to, "cause": cause, "times_count": times })
        })
        .collect();
    // Without a measurement of it, nothing is subtracted.
    let empty_ns = bench.empty_ns.unwrap_or_default();
    let costs = programs.json(empty_ns);
    eprintln!(
        "    all programs of the kernel half: {:.1} ns a record, {:.2} % of one CPU",
        costs["all_programs_ns_per_record"]
            .as_f64()
            .unwrap_or_default(),
        costs["all_programs_share_of_one_cpu_per_cent"]
            .as_f64()
            .unwrap_or_default()
    );
    let bar = bench.report.bar(
        "no Red by receive_queue under a saturating healthy load",
        false_alarms == 0,
    );
    bench.report.emit(
        "kernel.healthy",
        &json!({
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
    bench.report.emit("kernel.cost_under_load", &costs);
}

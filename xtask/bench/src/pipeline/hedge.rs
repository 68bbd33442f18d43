//! What producers notice of a destination that is far away: which should be nothing beyond the vault's own time.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::Bench;
use crate::{
    ingest::case::{Case, LARGE_FRAMES, Route},
    load::{Plan, Protocol, Window},
    sink::Sink,
};

/// The default of `export.ack_within`.
const ACK_WITHIN: &str = "20ms";
const ACK_P99_MAX: Duration = Duration::from_millis(30);
const FAR: Duration = Duration::from_millis(300);
/// No way at all, just within `ack_within`, which is waited for, just beyond, and far.
const AWAY: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(15),
    Duration::from_millis(25),
    FAR,
];
/// Least of what a client gets done whose destination is just beyond `ack_within`.
const OF_NEARER_MIN: f64 = 0.9;
/// As the schedule has it, 50,000 records a second.
const REQUESTS_PER_SECOND: u64 = 500;

const CASE: Case = Case {
    route: Route::Green,
    protocol: Protocol::Grpc,
    tls: true,
    records: 100,
    frame_bytes: LARGE_FRAMES,
    compression: "lz4",
};

fn measure(bench: &Bench<'_>, away: Duration, plan: impl FnOnce(&mut Plan)) -> Result<Window> {
    let sink = Sink::start_away(away)?;
    let address = sink.address();
    let running = CASE.start(
        bench.site,
        "",
        |settings| (settings.sink, settings.ack_within) = (address, ACK_WITHIN),
        plan,
    )?;
    let window = running.load.measure(Duration::ZERO, bench.window(10, 3))?;
    let lost = window.refused + window.broken;
    ensure!(lost == 0, "{lost} requests weren't acknowledged");
    Ok(window)
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    paced(bench)?;
    one_at_a_time(bench)
}

fn paced(bench: &mut Bench<'_>) -> Result<()> {
    eprintln!("hedge: a destination {FAR:?} away, {REQUESTS_PER_SECOND} requests a second");
    let window = measure(bench, FAR, |plan| {
        plan.requests_per_second = Some(REQUESTS_PER_SECOND);
    })?;
    let p99 = Duration::from_nanos(window.ack_ns.quantile_ns(990));
    eprintln!("    ack p99 {:.2} ms", p99.as_secs_f64() * 1e3);
    let bar = bench.report.bar(
        "a destination 300 ms away: acknowledged within ack_within and 10 ms (p99)",
        p99 < ACK_P99_MAX,
    );
    let mut figures = window.json();
    figures["away_ms"] = json!(FAR.as_millis());
    figures["bars"] = json!([bar]);
    bench.report.emit("pipeline.hedge", &figures);
    Ok(())
}

fn one_at_a_time(bench: &mut Bench<'_>) -> Result<()> {
    eprintln!("hedge: one request at a time, 100 records each");
    let mut windows = Vec::new();
    for away in AWAY {
        let window = measure(bench, away, |plan| {
            (plan.connections, plan.in_flight) = (1, 1);
        })?;
        eprintln!(
            "    {away:>6?} away: {:.0} requests a second, ack p50 {:.2}, p99 {:.2} ms",
            rate(&window),
            window.ack_ns.quantile_ns(500) as f64 / 1e6,
            window.ack_ns.quantile_ns(990) as f64 / 1e6
        );
        windows.push(window);
    }
    let [near, beyond, far] = [0, 2, 3].map(|at| rate(&windows[at]));
    let ratio = far / beyond;
    let bar = bench.report.bar(
        "one request at a time: as many with a destination 300 ms away as with one 25 ms away",
        ratio >= OF_NEARER_MIN,
    );
    let by_distance = AWAY.iter().zip(&windows).map(|(away, window)| {
        let mut figures = window.json();
        figures["away_ms"] = json!(away.as_millis());
        figures
    });
    let figures = json!({
        "far_over_just_beyond": ratio,
        "far_over_near": far / near,
        "windows": by_distance.collect::<Vec<_>>(),
        "bars": [bar],
    });
    bench.report.emit("pipeline.one_at_a_time", &figures);
    Ok(())
}

fn rate(window: &Window) -> f64 {
    window.requests as f64 / window.took.as_secs_f64()
}

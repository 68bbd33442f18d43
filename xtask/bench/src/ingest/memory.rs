//! Resident memory, with budgets of 64 MiB: of an idle daemon, and at the most that loads have it take.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{
    Bench,
    case::{Case, LARGE_FRAMES, MEMORY, Route},
};
use crate::{
    daemon::{Daemon, Settings},
    load::Protocol,
    sink::Sink,
};

const IDLE_RSS_BYTES_MAX: u64 = 24 << 20;
const PEAK_RSS_BYTES_MAX: u64 = 96 << 20;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let sink = Sink::start()?;
    let daemon = Daemon::start(
        bench.site,
        &Settings {
            memory: MEMORY,
            ..Settings::new(sink.address())
        },
    )?;
    let idle = daemon.memory("VmRSS")?;
    drop(daemon);
    eprintln!("memory: idle {:.1} MiB", idle as f64 / f64::from(1 << 20));
    let bar = bench
        .report
        .bar("idle memory at most 24 MiB", idle <= IDLE_RSS_BYTES_MAX);
    let figures = json!({ "idle_rss_bytes": idle, "bars": [bar] });
    bench.report.emit("ingest.memory_idle", &figures);

    let window = Duration::from_secs(if bench.quick { 2 } else { 10 });
    for (route, connections) in [
        (Route::Red, 2),
        (Route::Red, 16),
        (Route::Green, 2),
        (Route::Green, 16),
    ] {
        let case = Case {
            route,
            protocol: Protocol::Grpc,
            tls: true,
            records: 1000,
            frame_bytes: LARGE_FRAMES,
            compression: "lz4",
        };
        let running = case.start(
            bench.site,
            "",
            |_| (),
            |plan| plan.connections = connections,
        )?;
        let measured = running.measure_whatever_becomes(window)?;
        let peak = measured.peak_rss_bytes;
        let what = format!(
            "{} over {connections} connections: peak memory at most 96 MiB",
            case.name()
        );
        eprintln!("    {:.1} MiB", peak as f64 / f64::from(1 << 20));
        let bar = bench.report.bar(&what, peak <= PEAK_RSS_BYTES_MAX);
        let mut figures = measured.json();
        figures["case"] = case.name().into();
        figures["connections"] = connections.into();
        figures["bars"] = json!([bar]);
        bench.report.emit("ingest.memory_peak", &figures);
    }
    Ok(())
}

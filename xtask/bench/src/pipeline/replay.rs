//! The replay of a backlog: as fast as it goes, in Yellow, and beside live traffic.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;

use super::Bench;
use crate::{
    daemon::{Daemon, cpu_ns},
    ingest::case::{Case, LARGE_FRAMES, Route, Running},
    load::{Load, Protocol, RECORD_BYTES},
    sink::Sink,
};

/// Least of what live Green reaches.
const OF_LIVE_MIN: f64 = 0.8;
/// Of one CPU.
const YELLOW_CPU_MAX: f64 = 0.1;
const ACK_P99_RATIO_MAX: f64 = 1.5;
/// Longest wait for a backlog.
const WITHIN: Duration = Duration::from_secs(120);
/// As fast as it goes.
const NO_LIMIT: &str = "1024GiB";
/// Replay waits to be told.
const MANUAL: &[(&str, &str)] = &[("GOPHERSHIP_REPLAY__AUTO", "false")];
const PENDING: &str = "gophership_vault_records_pending";
const REPLAYED: &str = "gophership_replay_records_total";

const CASE: Case = Case {
    route: Route::Green,
    protocol: Protocol::Grpc,
    tls: false,
    records: 1000,
    frame_bytes: LARGE_FRAMES,
    compression: "none",
};

/// A daemon with records that its destination is owed, in Red, and no load.
fn backlog(bench: &Bench<'_>, compression: &'static str, records: f64) -> Result<(Daemon, Sink)> {
    let case = Case {
        route: Route::Red,
        compression,
        ..CASE
    };
    let sink = Sink::start()?;
    let address = sink.address();
    let running = case.start(
        bench.site,
        "",
        |settings| (settings.sink, settings.env) = (address, MANUAL),
        |_| (),
    )?;
    let Running { load, daemon, .. } = running;
    let started = Instant::now();
    while daemon.metric(PENDING)? < records {
        ensure!(
            started.elapsed() < WITHIN,
            "no backlog of {records} within {WITHIN:?}"
        );
        thread::sleep(Duration::from_millis(100));
    }
    drop(load);
    Ok((daemon, sink))
}

/// Records a second over `window`, or until little is left.
fn replayed_per_second(daemon: &Daemon, window: Duration) -> Result<f64> {
    let (before, started) = (daemon.metric(REPLAYED)?, Instant::now());
    let little = daemon.metric(PENDING)? / 20.0;
    while started.elapsed() < window && daemon.metric(PENDING)? > little {
        thread::sleep(Duration::from_millis(20));
    }
    let records = daemon.metric(REPLAYED)? - before;
    let took = started.elapsed();
    ensure!(
        took >= window / 4 && daemon.metric(PENDING)? > 0.0,
        "the backlog was too small for {window:?}"
    );
    Ok(records / took.as_secs_f64())
}

pub(super) fn alone(bench: &mut Bench<'_>) -> Result<()> {
    let window = bench.window(5, 2);
    eprintln!("replay: live Green, then backlogs by themselves, {window:?} each");
    let live = {
        let running = CASE.start(bench.site, "", |_| (), |_| ())?;
        let measured = running.measure(window)?;
        measured.window.records as f64 / measured.window.took.as_secs_f64()
    };
    for compression in ["lz4", "none"] {
        alone_of(bench, compression, live, window)?;
    }
    Ok(())
}

fn alone_of(
    bench: &mut Bench<'_>,
    compression: &'static str,
    live: f64,
    window: Duration,
) -> Result<()> {
    // More than the window and what is before it need, so that there is always something left.
    let records = live * (window.as_secs_f64() + 2.0) * 1.5;
    let (daemon, _sink) = backlog(bench, compression, records)?;
    daemon.hold("green")?;
    daemon.ctl(&["replay", "--rate", NO_LIMIT])?;
    thread::sleep(Duration::from_secs(1));
    let (cpu, started) = (cpu_ns(daemon.pid()), Instant::now());
    let replayed = replayed_per_second(&daemon, window)?;
    let cpu = cpu_ns(daemon.pid()).saturating_sub(cpu);
    let cpu_share = cpu as f64 / started.elapsed().as_nanos() as f64;
    let ratio = replayed / live;
    eprintln!(
        "    {compression}: live {live:.0}, replay {replayed:.0} records a second ({:.0} %, {:.2} GB/s of messages), the daemon {:.0} % of a CPU",
        ratio * 100.0,
        replayed * RECORD_BYTES as f64 / 1e9,
        cpu_share * 100.0
    );
    let mut figures = json!({
        "compression": compression,
        "live_records_per_second": live,
        "replay_records_per_second": replayed,
        "replay_over_live": ratio,
        "daemon_cpu_share": cpu_share,
    });
    // What isn't compressed is as fast as the disk reads, which may be less.
    if compression == "lz4" {
        let bar = bench.report.bar(
            "replay of LZ4 blocks on an idle daemon: at least 80 % of live Green",
            ratio >= OF_LIVE_MIN,
        );
        figures["bars"] = json!([bar]);
    }
    bench.report.emit("pipeline.replay", &figures);
    Ok(())
}

pub(super) fn in_yellow(bench: &mut Bench<'_>) -> Result<()> {
    let window = bench.window(20, 4);
    eprintln!("yellow: a backlog at replay.max_bytes_per_second, {window:?}");
    let (daemon, _sink) = backlog(bench, "lz4", 4e6)?;
    daemon.hold("yellow")?;
    daemon.ctl(&["replay"])?;
    thread::sleep(Duration::from_secs(1));
    let (cpu, started) = (cpu_ns(daemon.pid()), Instant::now());
    let replayed = replayed_per_second(&daemon, window)?;
    let cpu = cpu_ns(daemon.pid()).saturating_sub(cpu);
    let share = cpu as f64 / started.elapsed().as_nanos() as f64;
    eprintln!(
        "    {replayed:.0} records a second, {:.1} % of a CPU",
        share * 100.0
    );
    let bar = bench.report.bar(
        "replay in Yellow: less than 10 % of a CPU",
        share < YELLOW_CPU_MAX && replayed > 0.0,
    );
    let figures = json!({
        "replay_records_per_second": replayed,
        "daemon_cpu_share": share,
        "bars": [bar],
    });
    bench.report.emit("pipeline.yellow", &figures);
    Ok(())
}

pub(super) fn beside_live(bench: &mut Bench<'_>) -> Result<()> {
    let window = bench.window(15, 3);
    eprintln!(
        "beside: live traffic at half of the most load, without and with replay, {window:?} each"
    );
    let half = {
        let running = CASE.start(bench.site, "", |_| (), |_| ())?;
        let most = running.measure(window)?.window;
        u64::try_from(u128::from(most.requests) * 500_000 / most.took.as_micros().max(1))?
    };
    let (daemon, _sink) = backlog(bench, "lz4", 6e6)?;
    daemon.hold("green")?;
    let load = Load::start(CASE.plan(bench.site, &daemon, |plan| {
        plan.requests_per_second = Some(half);
    })?)?;
    let second = Duration::from_secs(1);
    let without = load.measure(second, window)?;
    daemon.ctl(&["replay"])?;
    let before = daemon.metric(REPLAYED)?;
    let with = load.measure(second, window)?;
    let replayed = daemon.metric(REPLAYED)? - before;
    ensure!(daemon.metric(PENDING)? > 0.0, "the backlog was too small");
    let p99_ns = [&without, &with].map(|window| window.ack_ns.quantile_ns(990));
    let ratio = p99_ns[1] as f64 / p99_ns[0].max(1) as f64;
    eprintln!(
        "    {half} requests a second: ack p99 {:.2} ms without, {:.2} ms with replay of {replayed:.0} records",
        p99_ns[0] as f64 / 1e6,
        p99_ns[1] as f64 / 1e6
    );
    let bar = bench.report.bar(
        "ack p99 beside replay: at most 1.5 times that without",
        ratio <= ACK_P99_RATIO_MAX && replayed > 0.0,
    );
    let figures = json!({
        "scheduled_requests_per_second": half,
        "ack_p99_without_ns": p99_ns[0],
        "ack_p99_with_ns": p99_ns[1],
        "ack_p99_ratio": ratio,
        "replayed_records": replayed,
        "without": without.json(),
        "with": with.json(),
        "bars": [bar],
    });
    bench.report.emit("pipeline.beside", &figures);
    Ok(())
}

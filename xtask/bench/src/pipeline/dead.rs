//! Resident memory, second by second, at full load to a destination that is dead: everything goes to the vault, and the
//! budgets of 64 MiB must hold.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::Bench;
use crate::{
    daemon::Daemon,
    ingest::case::{Case, LARGE_FRAMES, MEMORY, Route, Running},
    load::Protocol,
};

/// What comes to the budgets: code, stacks, what the allocator keeps.
const PEAK_RSS_BYTES_MAX: u64 = 96 << 20;
/// From the second third of the time, when the first batches that nobody answered have been given up, to the last: of the least
/// in each, for a batch that is put together comes and goes.
const GROWTH_BYTES_MAX: u64 = 4 << 20;
const BUDGETS_BYTES: f64 = 64.0 * 1024.0 * 1024.0;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let silent = TcpListener::bind(("127.0.0.1", 0))?;
    let refusing = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    // Nobody accepts there: connections are made, and what is sent isn't answered.
    let silent_address = silent.local_addr()?;
    for (how, address) in [("refusing", refusing), ("silent", silent_address)] {
        one(bench, how, address).context(how)?;
    }
    Ok(())
}

fn one(bench: &mut Bench<'_>, how: &str, address: SocketAddr) -> Result<()> {
    let case = Case {
        route: Route::Green,
        protocol: Protocol::Grpc,
        tls: true,
        records: 100,
        frame_bytes: LARGE_FRAMES,
        compression: "lz4",
    };
    let window = bench.window(60, 10);
    eprintln!("dead: {how}, full load for {window:?}");
    let running = case.start(
        bench.site,
        "",
        |settings| (settings.sink, settings.ack_within) = (address, "20ms"),
        |_| (),
    )?;
    let Running { load, daemon, .. } = running;
    let before = load.read();
    let (mut resident, mut budgets) = (Vec::new(), Vec::new());
    for _ in 0..window.as_secs() {
        thread::sleep(Duration::from_secs(1));
        resident.push(daemon.memory("VmRSS")?);
        budgets.push(daemon.metric("gophership_memory_used_bytes")?);
    }
    let measured = load.read().since(&before);
    ensure!(
        measured.requests > 0 && measured.refused == 0,
        "{} requests acknowledged, {} refused",
        measured.requests,
        measured.refused
    );
    drop(load);
    report(bench, how, &daemon, (&resident, &budgets), measured.json())
}

fn report(
    bench: &mut Bench<'_>,
    how: &str,
    daemon: &Daemon,
    (resident, budgets): (&[u64], &[f64]),
    mut figures: serde_json::Value,
) -> Result<()> {
    let third = (resident.len() / 3).max(1);
    let least = |values: &[u64]| values.iter().copied().min().context("no samples");
    let first = least(&resident[third..2 * third])?;
    let last = least(&resident[resident.len() - third..])?;
    let peak = daemon.memory("VmHWM")?;
    let used = budgets.iter().copied().fold(0.0, f64::max);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    eprintln!(
        "    resident {:.1} MiB at least in the second third, {:.1} in the last, {:.1} at most; budgets {:.1} MiB at most",
        mib(first),
        mib(last),
        mib(peak),
        used / f64::from(1 << 20)
    );
    let growth = last.saturating_sub(first);
    let bars = [
        (
            format!("{how}: memory flat within 4 MiB"),
            growth <= GROWTH_BYTES_MAX,
        ),
        (
            format!("{how}: peak memory at most 96 MiB"),
            peak <= PEAK_RSS_BYTES_MAX,
        ),
        (format!("{how}: budgets kept"), used <= BUDGETS_BYTES),
    ];
    let bars: Vec<_> = bars
        .iter()
        .map(|(what, held)| bench.report.bar(what, *held))
        .collect();
    figures["destination"] = how.into();
    figures["memory_total"] = MEMORY.into();
    figures["rss_bytes"] = json!(resident);
    figures["budgets_used_most_bytes"] = used.into();
    figures["peak_rss_bytes"] = peak.into();
    figures["growth_bytes"] = growth.into();
    figures["bars"] = json!(bars);
    bench.report.emit("pipeline.dead", &figures);
    Ok(())
}

//! As fast as it goes, over protocols, transports, sizes and ways.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    Bench,
    case::{Case, LARGE_FRAMES, Measured, Route, SMALL_FRAMES},
};
use crate::{load::Protocol, report::Spread};

/// Of the daemon's peak, with budgets of 64 MiB.
const PEAK_RSS_BYTES_MAX: u64 = 96 << 20;
/// Small requests do at least so much of what large ones have to.
const SMALL_REQUESTS: f64 = 0.8;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let (rounds, window) = match bench.quick {
        true => (1, Duration::from_secs(2)),
        false => (3, Duration::from_secs(2)),
    };
    let cases: Vec<Case> = cases()
        .into_iter()
        .filter(|case| case.name().contains(bench.case))
        .collect();
    eprintln!(
        "throughput: {} cases, {rounds} rounds of {window:?}",
        cases.len()
    );
    let mut all: Vec<Vec<Measured>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (case, measured) in cases.iter().zip(&mut all) {
            let running = case.start(bench.site, "", |_| (), |_| ())?;
            let round = running.measure(window).with_context(|| case.name())?;
            eprintln!(
                "    {:<36} {:>5.2} M records a CPU second, {:>5.2} M a second, ack p50 {:>6.2} p99 {:>6.2} p99.9 {:>6.2} ms, peak {:>3} MiB",
                case.name(),
                round.records_per_cpu_second() / 1e6,
                round.window.records_per_second() / 1e6,
                round.window.ack_ns.quantile_ns(500) as f64 / 1e6,
                round.window.ack_ns.quantile_ns(990) as f64 / 1e6,
                round.window.ack_ns.quantile_ns(999) as f64 / 1e6,
                round.peak_rss_bytes >> 20,
            );
            measured.push(round);
        }
    }
    for (case, rounds) in cases.iter().zip(&all) {
        tell(bench, case, rounds)?;
    }
    Ok(())
}

fn tell(bench: &mut Bench<'_>, case: &Case, rounds: &[Measured]) -> Result<()> {
    let of = |figure: fn(&Measured) -> f64| {
        Spread::of(rounds.iter().map(figure).collect()).context("no round was measured")
    };
    let per_cpu = of(Measured::records_per_cpu_second)?;
    let name = case.name();
    let mut figures = json!({
        "case": name,
        "records_per_request_count": case.records,
        "frame_bytes_max": case.frame_bytes,
        "rounds": rounds.iter().map(Measured::json).collect::<Vec<_>>(),
    });
    per_cpu.add_to(&mut figures, "records_per_daemon_cpu_second", "count");
    of(|round| round.window.records_per_second())?.add_to(
        &mut figures,
        "records_per_second",
        "count",
    );
    let mut bars = Vec::new();
    if let Some(least) = least(case) {
        let what = format!("{name}: at least {least:.2} M records a CPU second (median)");
        bars.push(bench.report.bar(&what, per_cpu.p50 >= least * 1e6));
    }
    let peak = rounds.iter().map(|round| round.peak_rss_bytes).max();
    bars.push(bench.report.bar(
        &format!("{name}: peak memory at most 96 MiB"),
        peak.is_some_and(|peak| peak <= PEAK_RSS_BYTES_MAX),
    ));
    figures["bars"] = bars.into();
    bench.report.emit("ingest.throughput", &figures);
    Ok(())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for route in [Route::Red, Route::Green] {
        for protocol in [Protocol::Grpc, Protocol::Http] {
            for tls in [false, true] {
                for records in [1000, 100] {
                    for frame_bytes in [LARGE_FRAMES, SMALL_FRAMES] {
                        if protocol == Protocol::Http && frame_bytes == SMALL_FRAMES {
                            continue;
                        }
                        cases.push(Case {
                            route,
                            protocol,
                            tls,
                            records,
                            frame_bytes,
                            compression: "none",
                        });
                    }
                }
            }
        }
    }
    for records in [1000, 100] {
        cases.push(Case {
            route: Route::Red,
            protocol: Protocol::Grpc,
            tls: true,
            records,
            frame_bytes: LARGE_FRAMES,
            compression: "lz4",
        });
    }
    cases
}

/// Least records a CPU second, in millions, where there is a promise.
fn least(case: &Case) -> Option<f64> {
    if case.protocol == Protocol::Http {
        return None;
    }
    let of_large = match (case.route, case.compression, case.frame_bytes, case.tls) {
        (Route::Red, "lz4", ..) => 0.8,
        (Route::Red, _, SMALL_FRAMES, true) => 1.9,
        (Route::Red, _, SMALL_FRAMES, false) => 2.2,
        (Route::Red, _, _, true) => 2.4,
        (Route::Red, _, _, false) => 3.8,
        (Route::Green, _, LARGE_FRAMES, true) if case.records == 1000 => 1.8,
        (Route::Green, _, LARGE_FRAMES, false) if case.records == 1000 => 2.4,
        (Route::Green, ..) => return None,
    };
    Some(match case.records {
        1000 => of_large,
        _ => of_large * SMALL_REQUESTS,
    })
}

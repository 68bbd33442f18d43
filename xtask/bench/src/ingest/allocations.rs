//! Heap allocations a request, of a daemon with an allocator that counts: hyper's, since the reflex has none.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{
    Bench,
    case::{Case, LARGE_FRAMES, Route},
};
use crate::load::Protocol;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let window = Duration::from_secs(if bench.quick { 1 } else { 3 });
    eprintln!("allocations: {window:?} each");
    for (route, protocol, tls, records) in [
        (Route::Red, Protocol::Grpc, false, 1000),
        (Route::Red, Protocol::Grpc, false, 100),
        (Route::Red, Protocol::Grpc, true, 1000),
        (Route::Red, Protocol::Grpc, true, 100),
        (Route::Red, Protocol::Http, false, 1000),
        (Route::Red, Protocol::Http, false, 100),
        (Route::Red, Protocol::Http, true, 1000),
        (Route::Red, Protocol::Http, true, 100),
        (Route::Green, Protocol::Grpc, false, 1000),
        (Route::Green, Protocol::Grpc, false, 100),
        (Route::Green, Protocol::Grpc, true, 1000),
        (Route::Green, Protocol::Grpc, true, 100),
        (Route::Green, Protocol::Http, false, 100),
        (Route::Green, Protocol::Http, true, 100),
    ] {
        let case = Case {
            route,
            protocol,
            tls,
            records,
            frame_bytes: LARGE_FRAMES,
            compression: "none",
        };
        let running = case.start(
            bench.site,
            "",
            |settings| settings.program = "xtask-bench-counted",
            |_| (),
        )?;
        let before = running.daemon.number()?;
        let measured = running.measure(window)?;
        let made = running.daemon.number()? - before;
        let each = made as f64 / measured.window.requests as f64;
        eprintln!("    {:<36} {each:.1} a request", case.name());
        let figures = json!({
            "case": case.name(),
            "requests": measured.window.requests,
            "allocations": made,
            "allocations_per_request_count": each,
        });
        bench.report.emit("ingest.allocations", &figures);
    }
    Ok(())
}

//! How long a synced write and an acknowledgement take with 1, 16 and 256 requests in flight.

use std::time::Duration;

use anyhow::Result;
use gophership::vault::Compression;
use serde_json::json;

use super::{
    Bench,
    disk::{Job, Pattern},
    lane::{self, Load},
};

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let seconds = if bench.quick { 1 } else { 5 };
    eprintln!("latency: requests of 100 records, {seconds} s each");
    let disk = Job {
        pattern: Pattern::Overwrite,
        block_bytes: 64 << 10,
        depth: 1,
        file_bytes: 256 << 20,
        seconds,
    }
    .run(bench.scratch)?;
    eprintln!(
        "    fio, 64 KiB, one at a time: p50 {:.0} us, p99 {:.0} us",
        disk.p50_us, disk.p99_us
    );
    let mut all = Vec::new();
    for in_flight in [1, 16, 256] {
        let measured = lane::measure(
            bench.scratch,
            Load {
                compression: Compression::None,
                in_flight,
                records: 100,
                recycled: true,
                window: Duration::from_secs(seconds),
            },
        )?;
        eprintln!(
            "    {in_flight} in flight: ack p50 {:.0}, p99 {:.0}, p99.9 {:.0} us; sync p50 at most {:.0}, p99 at most {:.0} us; {:.2} GB/s",
            measured.ack_p50_us,
            measured.ack_p99_us,
            measured.ack_p999_us,
            measured.sync_p50_us,
            measured.sync_p99_us,
            measured.bytes_per_second() / 1e9,
        );
        let mut figures = measured.json();
        figures["in_flight_count"] = in_flight.into();
        all.push(figures);
    }
    let figures = json!({ "disk_64_kib_depth_1": disk.json(), "lanes": all });
    bench.report.emit("vault.latency", &figures);
    Ok(())
}

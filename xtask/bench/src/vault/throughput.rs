//! A lane's throughput against the disk's own, in turns, and what a gigabyte costs of the CPU.

use anyhow::{Context as _, Result};
use gophership::vault::Compression;
use serde_json::json;

use super::{
    Bench,
    disk::{Disk, Job, Pattern},
    lane::{self, Load, Measured},
};
use crate::report::Spread;

/// Least share of the disk's own throughput.
const LEAST_OF_DISK: f64 = 0.9;
/// Most CPU seconds of the lane's thread for 10^9 bytes, without compression.
const CPU_S_PER_GB_MAX: f64 = 0.12;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    for (name, compression) in [("none", Compression::None), ("auto", Compression::Auto)] {
        against_disk(bench, name, compression)?;
    }
    Ok(())
}

fn against_disk(bench: &mut Bench<'_>, name: &str, compression: Compression) -> Result<()> {
    let (rounds, seconds) = if bench.quick { (2, 2) } else { (7, 4) };
    eprintln!("throughput: {rounds} rounds of fio and of a lane, compression {name}");
    let mut turns = Vec::new();
    for round in 0..rounds {
        let disk = || {
            Job {
                pattern: Pattern::Overwrite,
                block_bytes: lane::BLOCK_BYTES,
                depth: lane::BLOCKS,
                file_bytes: 512 << 20,
                seconds,
            }
            .run(bench.scratch)
        };
        let lane = || lane::measure(bench.scratch, saturating(compression, seconds));
        let (disk, lane) = if round % 2 == 0 {
            let disk = disk()?;
            (disk, lane()?)
        } else {
            let lane = lane()?;
            (disk()?, lane)
        };
        eprintln!(
            "    fio {:.2} GB/s, lane {:.2} GB/s ({:.2} to the disk), lane's CPU {:.3} s/GB, LZ4 {:.0} % of blocks",
            disk.bytes_per_second / 1e9,
            lane.bytes_per_second() / 1e9,
            lane.stored_per_second() / 1e9,
            lane.lane_cpu_per_gb(),
            lane.lz4_blocks as f64 * 100.0 / lane.blocks as f64,
        );
        turns.push((disk, lane));
    }
    tell(bench, name, &turns)
}

pub(super) fn saturating(compression: Compression, seconds: u64) -> Load {
    Load {
        compression,
        // More than fill the blocks, seventeen requests each.
        in_flight: lane::BLOCKS * 20,
        records: 100,
        recycled: true,
        window: std::time::Duration::from_secs(seconds),
    }
}

fn tell(bench: &mut Bench<'_>, name: &str, turns: &[(Disk, Measured)]) -> Result<()> {
    let of = |figure: fn(&(Disk, Measured)) -> f64| {
        Spread::of(turns.iter().map(figure).collect()).context("no round was measured")
    };
    let ratio = of(|(disk, lane)| lane.bytes_per_second() / disk.bytes_per_second)?;
    let cpu = of(|(_, lane)| lane.lane_cpu_per_gb())?;
    let rounds: Vec<_> = turns
        .iter()
        .map(|(disk, lane)| json!({ "disk": disk.json(), "lane": lane.json() }))
        .collect();
    let mut all = json!({
        "compression": name,
        "block_bytes": lane::BLOCK_BYTES,
        "depth_count": lane::BLOCKS,
        "rounds": rounds,
    });
    ratio.add_to(&mut all, "lane_over_disk", "ratio");
    cpu.add_to(&mut all, "lane_cpu", "s_per_gb");
    let mut bars = vec![bench.report.bar(
        &format!("a lane with compression {name} at least 90 % of fio (median of the rounds)"),
        ratio.p50 >= LEAST_OF_DISK,
    )];
    if name == "none" {
        bars.push(bench.report.bar(
            "CPU of a lane without compression at most 0.12 s a GB (median of the rounds)",
            cpu.p50 <= CPU_S_PER_GB_MAX,
        ));
    }
    all["bars"] = bars.into();
    bench.report.emit("vault.throughput", &all);
    Ok(())
}

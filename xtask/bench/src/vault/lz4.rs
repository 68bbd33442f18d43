//! A lane that compresses everything, against lz4_flex alone on the same bytes, in turns. What counts is
//! bytes a CPU second, since one core is what both have: the wall clock has other work in it.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use gophership::vault::Compression;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use serde_json::json;

use super::{Bench, lane, throughput::saturating};
use crate::{load::Corpus, report::Spread};

/// Least share of LZ4's own throughput.
const LEAST_OF_LZ4: f64 = 0.95;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let (rounds, seconds) = if bench.quick { (2, 2) } else { (7, 4) };
    eprintln!("lz4: {rounds} rounds of lz4_flex alone and of a lane");
    let blocks = blocks();
    let mut turns = Vec::new();
    for _ in 0..rounds {
        // On both sides of the lane's turn, so that what drifts hits both.
        let before = alone(&blocks, Duration::from_secs(seconds) / 2)?;
        let lane = lane::measure(bench.scratch, saturating(Compression::Lz4, seconds))?;
        let after = alone(&blocks, Duration::from_secs(seconds) / 2)?;
        let alone = f64::midpoint(before, after);
        eprintln!(
            "    lz4_flex {:.3} GB a CPU second, lane {:.3}; {:.3} GB/s with {:.0} % of a core",
            alone / 1e9,
            1.0 / lane.lane_cpu_per_gb(),
            lane.bytes_per_second() / 1e9,
            lane.lane_cpu.as_secs_f64() * 100.0 / lane.wall.as_secs_f64(),
        );
        turns.push((alone, lane));
    }
    let ratios = turns
        .iter()
        .map(|(alone, lane)| 1e9 / lane.lane_cpu_per_gb() / alone);
    let ratio = Spread::of(ratios.collect()).context("no round was measured")?;
    let rounds: Vec<_> = turns
        .iter()
        .map(|(alone, lane)| json!({ "lz4_flex_bytes_per_cpu_second": alone, "lane": lane.json() }))
        .collect();
    let mut all = json!({ "block_bytes": lane::BLOCK_BYTES, "rounds": rounds });
    ratio.add_to(&mut all, "lane_over_lz4_flex", "ratio");
    all["bars"] = json!([bench.report.bar(
        "a lane with compression lz4 at least 95 % of lz4_flex alone (median of the rounds)",
        ratio.p50 >= LEAST_OF_LZ4,
    )]);
    bench.report.emit("vault.lz4", &all);
    Ok(())
}

/// What a lane would compress: requests one after the other, as many as fit into a block.
fn blocks() -> Vec<Vec<u8>> {
    let corpus = Corpus::new(100);
    let mut blocks = vec![Vec::with_capacity(lane::BLOCK_BYTES)];
    for message in corpus.messages() {
        let open = blocks.last().map_or(0, Vec::len);
        if open + message.len() > lane::BLOCK_BYTES {
            blocks.push(Vec::with_capacity(lane::BLOCK_BYTES));
        }
        if let Some(block) = blocks.last_mut() {
            block.extend_from_slice(message);
        }
    }
    blocks
}

/// Bytes a CPU second that lz4_flex compresses on this thread, its table and output made once.
fn alone(blocks: &[Vec<u8>], window: Duration) -> Result<f64> {
    let mut table = CompressTable::large();
    let mut output = vec![0; get_maximum_output_size(lane::BLOCK_BYTES)];
    let (began, cpu) = (Instant::now(), lane::thread_cpu()?);
    let mut bytes = 0_u64;
    for block in blocks.iter().cycle() {
        black_box(compress_into_with_table(
            black_box(block),
            &mut output,
            &mut table,
        )?);
        bytes += block.len() as u64;
        if began.elapsed() >= window {
            break;
        }
    }
    let cpu = lane::thread_cpu()? - cpu;
    Ok(bytes as f64 / cpu.as_secs_f64())
}

//! Recovery of a vault that was left full: bytes a second against the disk's own reading, and memory.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use gophership::vault::{Compression, ContentEncoding, EntryMeta, Kind, Vault};
use serde_json::{Value, json};

use super::{
    Bench,
    disk::{Job, Pattern},
    lane::{self, DESTINATION, Directory},
};
use crate::{load::Corpus, report::Spread};

/// Least bytes a second, unless the disk reads slower.
const LEAST_PER_SECOND: f64 = 1e9;
/// Longest wait for a recovery.
const WITHIN: Duration = Duration::from_secs(120);

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let (rounds, bytes) = if bench.quick {
        (1, 512 << 20)
    } else {
        (5, 3 << 30)
    };
    for (name, compression) in [("none", Compression::None), ("lz4", Compression::Lz4)] {
        recover(bench, name, compression, rounds, bytes)?;
    }
    Ok(())
}

fn recover(
    bench: &mut Bench<'_>,
    name: &str,
    compression: Compression,
    rounds: usize,
    bytes: u64,
) -> Result<()> {
    eprintln!(
        "recovery: {rounds} rounds of {} MiB on disk, compression {name}",
        bytes >> 20
    );
    let dir = Directory::new(bench.scratch)?;
    let mut config = lane::config(&dir.0, compression);
    config.max_bytes = bytes * 2;
    let entries = fill(&config, bytes)?;
    let mut turns = Vec::new();
    for _ in 0..rounds {
        let disk = Job {
            pattern: Pattern::Read,
            block_bytes: 1 << 20,
            depth: 1,
            file_bytes: 512 << 20,
            seconds: 2,
        }
        .run(bench.scratch)?;
        let turn = reopen(&config, entries)?;
        eprintln!(
            "    {:.2} GB/s of the disk's {:.2} GB/s (1 MiB, one at a time); {:.1} MiB more memory at the peak",
            turn.bytes_per_second() / 1e9,
            disk.bytes_per_second / 1e9,
            turn.peak_bytes as f64 / f64::from(1 << 20),
        );
        turns.push((disk.bytes_per_second, turn));
    }
    let spread = |values: Vec<f64>| Spread::of(values).context("no round was measured");
    let speed = spread(
        turns
            .iter()
            .map(|(_, turn)| turn.bytes_per_second())
            .collect(),
    )?;
    let of_disk = spread(
        turns
            .iter()
            .map(|(disk, turn)| turn.bytes_per_second() / disk)
            .collect(),
    )?;
    let rounds: Vec<_> = turns
        .iter()
        .map(|(disk, turn)| json!({ "disk_bytes_per_second": disk, "recovery": turn.json() }))
        .collect();
    let mut all = json!({ "compression": name, "rounds": rounds });
    speed.add_to(&mut all, "recovery", "bytes_per_second");
    of_disk.add_to(&mut all, "recovery_over_disk", "ratio");
    all["bars"] = json!([bench.report.bar(
        &format!("recovery, compression {name}, at least 1 GB/s or 90 % of the disk (median)"),
        speed.p50 >= LEAST_PER_SECOND || of_disk.p50 >= 0.9,
    )]);
    bench.report.emit("vault.recovery", &all);
    Ok(())
}

/// Stores requests that stay owed until segments of `bytes` are on the disk; returns how many.
fn fill(config: &gophership::vault::Config, bytes: u64) -> Result<u64> {
    let vault = Vault::open(config, &[DESTINATION.to_owned()])?;
    let entries = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            lane::on_worker(async {
                let lane = vault.lane(0)?;
                let owed = vault.mask_of(DESTINATION).context("no such destination")?;
                let meta = EntryMeta {
                    kind: Kind::OtlpLogs,
                    encoding: ContentEncoding::Identity,
                    owed,
                    arrival_unix_ns: 1_700_000_000_000_000_000,
                    records: 100,
                    held: false,
                };
                let corpus = Corpus::new(100);
                let mut entries = 0;
                while vault.stats().stored_bytes_total < bytes {
                    for four in corpus.messages().chunks_exact(4) {
                        let stored = tokio::join!(
                            lane.append(meta, &four[..1]),
                            lane.append(meta, &four[1..2]),
                            lane.append(meta, &four[2..3]),
                            lane.append(meta, &four[3..]),
                        );
                        for stored in [stored.0, stored.1, stored.2, stored.3] {
                            stored?;
                        }
                        entries += 4;
                    }
                }
                lane.shutdown().await?;
                Ok(entries)
            })
        });
        worker
            .join()
            .unwrap_or_else(|_| bail!("the worker panicked"))
    })?;
    vault.close()?;
    Ok(entries)
}

/// One recovery.
struct Turn {
    took: Duration,
    /// Of all segment files.
    bytes: u64,
    /// Most memory while it ran, above what the process had before.
    peak_bytes: u64,
}

impl Turn {
    fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64()
    }

    fn json(&self) -> Value {
        json!({
            "took_s": self.took.as_secs_f64(),
            "bytes": self.bytes,
            "bytes_per_second": self.bytes_per_second(),
            "peak_memory_bytes": self.peak_bytes,
        })
    }
}

fn reopen(config: &gophership::vault::Config, entries: u64) -> Result<Turn> {
    let bytes = segment_bytes(&config.dir)?;
    // Nothing of it in the page cache, as after a power cut. Recovery reads past it anyway.
    fs::write("/proc/sys/vm/drop_caches", "1").context("emptying the page cache needs root")?;
    // "Reset the peak resident set size": proc(5), clear_refs.
    fs::write("/proc/self/clear_refs", "5")?;
    let before = peak_bytes()?;
    let began = Instant::now();
    let vault = Vault::open(config, &[DESTINATION.to_owned()])?;
    while vault.stats().recovering {
        if began.elapsed() > WITHIN {
            bail!("recovery isn't through after {WITHIN:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
    let took = began.elapsed();
    let peak_bytes = peak_bytes()?.saturating_sub(before);
    let found = vault.stats().entries_pending;
    vault.close()?;
    if found != entries {
        bail!("recovery found {found} of {entries} entries");
    }
    Ok(Turn {
        took,
        bytes,
        peak_bytes,
    })
}

fn segment_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for file in fs::read_dir(dir.join("lane-00"))? {
        bytes += file?.metadata()?.len();
    }
    Ok(bytes)
}

/// Peak resident set of this process.
fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib: u64 = kib
        .context("/proc/self/status has no VmHWM")?
        .trim()
        .parse()?;
    Ok(kib * 1024)
}

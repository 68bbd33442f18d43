//! The disk itself, as fio sees it: the same block size, depth, O_DIRECT and dsync as the vault's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Bench;

/// One run of fio.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) pattern: Pattern,
    pub(super) block_bytes: usize,
    pub(super) depth: usize,
    pub(super) file_bytes: u64,
    pub(super) seconds: u64,
}

/// What a run does with its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Writes one block after the other into a file that was written before, each with dsync.
    Overwrite,
    /// The same into a file that only has its blocks reserved.
    Reserved,
    /// Reads one block after the other.
    Read,
}

/// What fio reports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub(super) bytes_per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl Job {
    pub(super) fn run(self, dir: &Path) -> Result<Disk> {
        let file = Removed(dir.join("fio"));
        if self.pattern == Pattern::Overwrite {
            // Without dsync, which would take a while.
            self.fio(&file.0, &["--rw=write", "--end_fsync=1", "--overwrite=0"])?;
        }
        let seconds = format!("--runtime={}", self.seconds);
        let timed = ["--time_based", seconds.as_str()];
        let report = match self.pattern {
            Pattern::Overwrite => {
                let how = ["--rw=write", "--sync=dsync", "--overwrite=1"];
                self.fio(&file.0, &[&timed[..], &how].concat())
            }
            // Once through the file: after that it was written before.
            Pattern::Reserved => self.fio(
                &file.0,
                &["--rw=write", "--sync=dsync", "--fallocate=native"],
            ),
            Pattern::Read => self.fio(&file.0, &[&timed[..], &["--rw=read"]].concat()),
        }?;
        let kind = match self.pattern {
            Pattern::Overwrite | Pattern::Reserved => "write",
            Pattern::Read => "read",
        };
        let figures = &report["jobs"][0][kind];
        let number = |value: &Value, name: &str| {
            value
                .as_f64()
                .with_context(|| format!("fio's report has no {name}: {figures}"))
        };
        let percentile = |which: &str| {
            let at = &figures["clat_ns"]["percentile"][which];
            number(at, which).map(|nanos| nanos / 1e3)
        };
        Ok(Disk {
            bytes_per_second: number(&figures["bw_bytes"], "bw_bytes")?,
            p50_us: percentile("50.000000")?,
            p99_us: percentile("99.000000")?,
        })
    }

    fn fio(&self, file: &Path, more: &[&str]) -> Result<Value> {
        let mut fio = Command::new("fio");
        fio.args(["--name=disk", "--output-format=json", "--direct=1"]);
        fio.args(["--ioengine=io_uring", "--fixedbufs=1"]);
        fio.arg(format!("--filename={}", file.display()));
        fio.arg(format!("--size={}", self.file_bytes));
        fio.arg(format!("--bs={}", self.block_bytes));
        fio.arg(format!("--iodepth={}", self.depth));
        let output = fio.args(more).output().context("running fio")?;
        if !output.status.success() {
            bail!("{fio:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        // Notes may stand before the report.
        let report = text.find('{').map_or("", |at| &text[at..]);
        serde_json::from_str(report).with_context(|| format!("reading fio's report: {text}"))
    }
}

impl Disk {
    pub(super) fn json(&self) -> Value {
        json!({
            "bytes_per_second": self.bytes_per_second,
            "latency_p50_us": self.p50_us,
            "latency_p99_us": self.p99_us,
        })
    }
}

/// A file that doesn't stay.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // There may be none, if fio failed before it made it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Synced writes into written blocks against reserved ones: why segments are filled with zeros.
pub(super) fn prepared(bench: &mut Bench<'_>) -> Result<()> {
    let rounds = if bench.quick { 1 } else { 3 };
    eprintln!(
        "prepared: {rounds} rounds of synced writes into written blocks and into reserved ones"
    );
    let mut all = Vec::new();
    for (block_bytes, depth) in [(64 << 10, 1), (256 << 10, 4)] {
        for _ in 0..rounds {
            let run = |pattern| {
                Job {
                    pattern,
                    block_bytes,
                    depth,
                    file_bytes: 256 << 20,
                    seconds: 2,
                }
                .run(bench.scratch)
            };
            let (written, reserved) = (run(Pattern::Overwrite)?, run(Pattern::Reserved)?);
            eprintln!(
                "    {} KiB, {depth} at once: written {:.2} GB/s (p50 {:.0} us), reserved {:.2} GB/s (p50 {:.0} us)",
                block_bytes >> 10,
                written.bytes_per_second / 1e9,
                written.p50_us,
                reserved.bytes_per_second / 1e9,
                reserved.p50_us,
            );
            all.push(json!({
                "block_bytes": block_bytes,
                "depth_count": depth,
                "written": written.json(),
                "reserved": reserved.json(),
                "written_over_reserved_ratio": written.bytes_per_second / reserved.bytes_per_second,
            }));
        }
    }
    bench
        .report
        .emit("vault.prepared", &json!({ "rounds": all }));
    Ok(())
}

//! One lane of a vault in this process, with more to store than it can, or with a few requests at a time.

use std::{
    cell::{Cell, RefCell},
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use gophership::vault::{
    AppendError, Compression, Config, ContentEncoding, EntryMeta, Kind, Lane, OnFull, Stats, Sync,
    Vault,
};
use nix::{
    sys::{
        resource::{Usage, UsageWho, getrusage},
        time::TimeValLike as _,
    },
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};
use tokio::{runtime, task::LocalSet};

use crate::load::{Corpus, Histogram};

/// The destination that everything is owed to.
pub(super) const DESTINATION: &str = "main";
/// Enough that a lane has all the buffers it wants.
const BUDGET_BYTES: usize = 32 << 20;
const SEGMENT_BYTES: u64 = 64 << 20;
/// Segments that take turns.
const SEGMENTS: u64 = 12;
/// Longest wait for a vault to get to where every segment was used before.
const WARM_WITHIN: Duration = Duration::from_secs(60);

/// Bytes of a block, and how many can be in flight, as `vault/lane/geometry.rs` makes them of the above.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
pub(super) const BLOCKS: usize = 16;

/// What is stored, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) compression: Compression,
    /// Requests that wait for their acknowledgement at any time.
    pub(super) in_flight: usize,
    /// Records of a request.
    pub(super) records: u64,
    /// Let segments be used again before it is measured, as they are where destinations keep up.
    pub(super) recycled: bool,
    pub(super) window: Duration,
}

/// What a window shows.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) wall: Duration,
    pub(super) requests: u64,
    /// Bytes of the requests.
    pub(super) bytes: u64,
    /// Bytes of blocks, before and after compression.
    pub(super) raw_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) lz4_blocks: u64,
    pub(super) blocks: u64,
    /// CPU time of the lane's thread, and of it in the kernel.
    pub(super) lane_cpu: Duration,
    pub(super) lane_kernel: Duration,
    /// CPU time of the whole process.
    pub(super) process_cpu: Duration,
    pub(super) ack_p50_us: f64,
    pub(super) ack_p99_us: f64,
    pub(super) ack_p999_us: f64,
    /// Durable writes by bucket.
    pub(super) sync_p50_us: f64,
    pub(super) sync_p99_us: f64,
    pub(super) recycled_segments: u64,
}

/// A vault of one lane in a directory of its own.
pub(super) fn config(dir: &Path, compression: Compression) -> Config {
    Config {
        dir: dir.to_path_buf(),
        max_bytes: SEGMENT_BYTES * SEGMENTS,
        segment_bytes: SEGMENT_BYTES,
        segment_max_age: Duration::from_secs(600),
        on_full: OnFull::Refuse,
        retain: Duration::ZERO,
        linger: Duration::from_micros(500),
        compression,
        sync: Sync::Always,
        cursor_interval: Duration::from_secs(1),
        lanes: 1,
        budget_bytes: BUDGET_BYTES,
        max_entry_bytes: 16 << 20,
        rung: None,
    }
}

/// A directory that doesn't stay.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    /// An empty one.
    pub(super) fn new(scratch: &Path) -> Result<Self> {
        let path = scratch.join("vault");
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("warning: {} stays: {error}", self.0.display());
        }
    }
}

/// Runs `load` on an empty vault in `scratch`; everything is settled as soon as it is acknowledged.
pub(super) fn measure(scratch: &Path, load: Load) -> Result<Measured> {
    let dir = Directory::new(scratch)?;
    let vault = Vault::open(&config(&dir.0, load.compression), &[DESTINATION.to_owned()])?;
    let measured = thread::scope(|scope| {
        let worker = scope.spawn(|| on_worker(drive(&vault, load)));
        worker
            .join()
            .unwrap_or_else(|_| bail!("the worker panicked"))
    });
    vault.close()?;
    measured
}

/// A worker as the daemon has it.
pub(super) fn on_worker<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, work)
}

/// What the requests of one lane share.
struct Shared {
    vault: Vault,
    lane: Lane,
    owed: u32,
    messages: Vec<Bytes>,
    records: u32,
    acks: Histogram,
    requests: Cell<u64>,
    bytes: Cell<u64>,
    ending: Cell<bool>,
    failure: RefCell<Option<AppendError>>,
}

async fn drive(vault: &Vault, load: Load) -> Result<Measured> {
    let shared = Rc::new(Shared {
        lane: vault.lane(0)?,
        owed: vault
            .mask_of(DESTINATION)
            .context("the destination has no bit")?,
        vault: vault.clone(),
        messages: Corpus::new(load.records).messages().to_vec(),
        records: u32::try_from(load.records)?,
        acks: Histogram::new(),
        requests: Cell::new(0),
        bytes: Cell::new(0),
        ending: Cell::new(false),
        failure: RefCell::new(None),
    });
    let producers: Vec<_> = (0..load.in_flight)
        .map(|first| tokio::task::spawn_local(produce(Rc::clone(&shared), first)))
        .collect();
    warm_up(&shared, load).await?;
    let before = Reading::take(&shared)?;
    let acks = shared.acks.read();
    tokio::time::sleep(load.window).await;
    let after = Reading::take(&shared)?;
    let acks = shared.acks.read().since(&acks);
    shared.ending.set(true);
    for producer in producers {
        producer.await?;
    }
    if let Some(failure) = shared.failure.take() {
        bail!("the vault refused a request: {failure}");
    }
    shared.lane.shutdown().await?;
    let us = |per_mille| acks.quantile_ns(per_mille) as f64 / 1e3;
    Ok(Measured {
        ack_p50_us: us(500),
        ack_p99_us: us(990),
        ack_p999_us: us(999),
        ..after.since(&before)
    })
}

/// Waits until caches are warm and, if the load wants it, until segments are used again.
async fn warm_up(shared: &Shared, load: Load) -> Result<()> {
    let began = Instant::now();
    let least = load.window / 4;
    loop {
        tokio::time::sleep(least).await;
        let stats = shared.vault.stats();
        if !load.recycled || stats.recycled_segments_total >= SEGMENTS / 2 {
            return Ok(());
        }
        if shared.failure.borrow().is_some() {
            return Ok(());
        }
        if began.elapsed() > WARM_WITHIN {
            bail!(
                "after {WARM_WITHIN:?} only {} segments were used again",
                stats.recycled_segments_total
            );
        }
    }
}

/// One request after the other, each settled when it is acknowledged.
async fn produce(shared: Rc<Shared>, first: usize) {
    let meta = EntryMeta {
        kind: Kind::OtlpLogs,
        encoding: ContentEncoding::Identity,
        owed: shared.owed,
        arrival_unix_ns: 1_700_000_000_000_000_000,
        records: shared.records,
        held: true,
    };
    for message in shared.messages.iter().cycle().skip(first) {
        if shared.ending.get() {
            return;
        }
        let began = Instant::now();
        match shared.lane.append(meta, &[message]).await {
            Ok(id) => {
                let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                shared.acks.add(took);
                shared.requests.set(shared.requests.get() + 1);
                shared.bytes.set(shared.bytes.get() + message.len() as u64);
                shared.vault.settle(id, shared.owed);
            }
            Err(error) => {
                *shared.failure.borrow_mut() = Some(error);
                return;
            }
        }
    }
}

/// Everything that grows, at one moment.
struct Reading {
    at: Instant,
    requests: u64,
    bytes: u64,
    stats: Stats,
    lane_cpu: Duration,
    lane_kernel: Duration,
    process_cpu: Duration,
}

impl Reading {
    fn take(shared: &Shared) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            requests: shared.requests.get(),
            bytes: shared.bytes.get(),
            stats: shared.vault.stats(),
            lane_cpu: thread_cpu()?,
            lane_kernel: kernel_time(&getrusage(UsageWho::RUSAGE_THREAD)?),
            process_cpu: clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into(),
        })
    }

    fn since(&self, before: &Self) -> Measured {
        let (now, then) = (&self.stats, &before.stats);
        let mut syncs = now.sync.buckets;
        for (sync, then) in syncs.iter_mut().zip(then.sync.buckets) {
            *sync -= then;
        }
        Measured {
            wall: self.at - before.at,
            requests: self.requests - before.requests,
            bytes: self.bytes - before.bytes,
            raw_bytes: now.raw_bytes_total - then.raw_bytes_total,
            stored_bytes: now.stored_bytes_total - then.stored_bytes_total,
            lz4_blocks: now.lz4_blocks_total - then.lz4_blocks_total,
            blocks: now.blocks_total - then.blocks_total,
            lane_cpu: self.lane_cpu - before.lane_cpu,
            lane_kernel: self.lane_kernel.saturating_sub(before.lane_kernel),
            process_cpu: self.process_cpu - before.process_cpu,
            ack_p50_us: 0.0,
            ack_p99_us: 0.0,
            ack_p999_us: 0.0,
            sync_p50_us: bucket_bound(&syncs, 500),
            sync_p99_us: bucket_bound(&syncs, 990),
            recycled_segments: now.recycled_segments_total - then.recycled_segments_total,
        }
    }
}

/// CPU time of this thread.
pub(crate) fn thread_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn kernel_time(usage: &Usage) -> Duration {
    let micros = usage.system_time().num_microseconds();
    Duration::from_micros(micros.try_into().unwrap_or(0))
}

/// The upper bound of the bucket that has the value which `per_mille` of a thousand don't exceed.
fn bucket_bound(buckets: &[u64], per_mille: u64) -> f64 {
    let total: u64 = buckets.iter().sum();
    let rank = (total * per_mille).div_ceil(1000).max(1);
    let mut seen = 0;
    for (bucket, count) in buckets.iter().enumerate() {
        seen += count;
        if seen >= rank {
            let bound = gophership::vault::SYNC_BOUNDS_US.get(bucket);
            return bound.map_or(f64::INFINITY, |&bound| bound as f64);
        }
    }
    0.0
}

impl Measured {
    /// Request bytes a second.
    pub(super) fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.wall.as_secs_f64()
    }

    /// Bytes that reached the disk a second.
    pub(super) fn stored_per_second(&self) -> f64 {
        self.stored_bytes as f64 / self.wall.as_secs_f64()
    }

    /// CPU seconds of the lane's thread for 10^9 bytes of requests.
    pub(super) fn lane_cpu_per_gb(&self) -> f64 {
        self.lane_cpu.as_secs_f64() * 1e9 / self.bytes as f64
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "wall_s": self.wall.as_secs_f64(),
            "requests_count": self.requests,
            "bytes_per_second": self.bytes_per_second(),
            "stored_bytes_per_second": self.stored_per_second(),
            "blocks_count": self.blocks,
            "lz4_blocks_count": self.lz4_blocks,
            "raw_over_stored_ratio": self.raw_bytes as f64 / self.stored_bytes as f64,
            "lane_cpu_s_per_gb": self.lane_cpu_per_gb(),
            "lane_kernel_cpu_s_per_gb": self.lane_kernel.as_secs_f64() * 1e9 / self.bytes as f64,
            "process_cpu_s_per_gb": self.process_cpu.as_secs_f64() * 1e9 / self.bytes as f64,
            "ack_p50_us": self.ack_p50_us,
            "ack_p99_us": self.ack_p99_us,
            "ack_p999_us": self.ack_p999_us,
            "sync_p50_at_most_us": self.sync_p50_us,
            "sync_p99_at_most_us": self.sync_p99_us,
            "recycled_segments_count": self.recycled_segments,
        })
    }
}

//! Common ground of the vault's tests: a real directory, a worker to append on, seeded content.

pub(crate) mod segment;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gophership::vault::{
    AppendError, Compression, Config, ContentEncoding, DestMask, Entry, EntryId, EntryMeta, Kind,
    Lane, OnFull, Sync, Vault,
};
use tokio::{runtime, task::LocalSet};

/// Longest a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory on the real disk: /tmp may be a tmpfs, which knows no O_DIRECT.
pub(crate) fn real_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A small vault in `dir`.
pub(crate) fn small(dir: &Path) -> Config {
    Config {
        dir: dir.to_path_buf(),
        max_bytes: 64 << 20,
        segment_bytes: 2 << 20,
        segment_max_age: Duration::from_secs(600),
        on_full: OnFull::Refuse,
        retain: Duration::ZERO,
        linger: Duration::from_micros(500),
        compression: Compression::Lz4,
        sync: Sync::Always,
        cursor_interval: Duration::from_millis(20),
        lanes: 1,
        budget_bytes: 1 << 20,
        max_entry_bytes: 512 << 10,
        rung: None,
    }
}

/// Opens a vault with the destination `main`.
pub(crate) fn open(config: &Config) -> Vault {
    Vault::open(config, &["main".to_owned()]).unwrap()
}

/// An entry of one record, owed to `owed`.
pub(crate) fn meta(owed: DestMask, number: u64) -> EntryMeta {
    EntryMeta {
        kind: Kind::OtlpLogs,
        encoding: ContentEncoding::Identity,
        owed,
        arrival_unix_ns: number,
        records: 1,
        held: false,
    }
}

/// Runs `work` on a worker: a current-thread runtime with a `LocalSet`, and ends the lane's task with it.
pub(crate) fn on_worker<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async { tokio::time::timeout(PATIENCE, work).await.unwrap() }))
}

/// Appends each of `contents` at the same time; the results in the same order.
pub(crate) async fn append_all(
    lane: &Lane,
    owed: DestMask,
    contents: &[Vec<u8>],
) -> Vec<Result<EntryId, AppendError>> {
    let tasks: Vec<_> = contents
        .iter()
        .cloned()
        .enumerate()
        .map(|(number, content)| {
            let lane = lane.clone();
            tokio::task::spawn_local(async move {
                lane.append(meta(owed, number as u64), &[content]).await
            })
        })
        .collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

/// Everything a reader gives from the start on, in batches of `max_bytes`.
pub(crate) fn read_all(vault: &Vault, max_bytes: usize) -> Vec<Entry> {
    wait_until("recovery is through", || !vault.stats().recovering);
    let mut reader = vault.reader();
    let mut entries = Vec::new();
    loop {
        let batch = reader.next(max_bytes, u32::MAX).unwrap();
        if batch.is_empty() {
            return entries;
        }
        entries.extend(batch);
    }
}

/// Lets the vault scrub until it has nothing left to do.
pub(crate) fn scrub(vault: &Vault) {
    vault.set_background_weight(1000);
    wait_until("all is scrubbed", || {
        vault.stats().last_scrub_unix_ns.is_some()
    });
}

/// Waits for a condition, with a limit.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// All segment files, in order of their numbers.
pub(crate) fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for lane in std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
    {
        files.extend(
            std::fs::read_dir(lane)
                .unwrap()
                .map(|entry| entry.unwrap().path()),
        );
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gsv"));
    files.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    files
}

/// SplitMix64: the same numbers for the same seed.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    /// `len` bytes, compressible or not.
    pub(crate) fn content(&mut self, len: usize) -> Vec<u8> {
        let alphabet = if self.next().is_multiple_of(2) {
            4
        } else {
            256
        };
        (0..len)
            .map(|_| u8::try_from(self.below(alphabet)).unwrap())
            .collect()
    }
}

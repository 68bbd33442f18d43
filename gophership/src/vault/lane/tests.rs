//! What a lane does when the disk refuses. The refusing disk is a memory file that can't grow.

use std::{
    collections::HashSet,
    fs::File,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use tokio::{runtime, task::LocalSet};

use super::Lane;
use crate::vault::{
    AppendError, Compression, Config, ContentEncoding, EntryId, EntryMeta, Error, Kind, OnFull,
    Sync, Vault, ledger::Ledger, port::Ready, segment::Segment,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: PathBuf) -> Config {
    Config {
        dir,
        max_bytes: 64 << 20,
        segment_bytes: 2 << 20,
        segment_max_age: Duration::from_secs(600),
        on_full: OnFull::Refuse,
        retain: Duration::ZERO,
        linger: Duration::from_micros(500),
        compression: Compression::None,
        sync: Sync::Always,
        cursor_interval: Duration::from_secs(1),
        lanes: 1,
        budget_bytes: 1 << 20,
        max_entry_bytes: 512 << 10,
        rung: None,
    }
}

fn open() -> (tempfile::TempDir, Vault) {
    // Beside the test's binary: /tmp may be a tmpfs, which knows no O_DIRECT.
    let binary = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
    let vault = Vault::open(&config(dir.path().to_path_buf()), &["main".into()]).unwrap();
    (dir, vault)
}

/// Makes the lane's next segment refuse every write beyond its first `bytes`; it can be read as long
/// as the result lives.
#[must_use]
fn plant(vault: &Vault, number: u64, bytes: i64) -> File {
    let shared = &vault.inner.shared;
    let memory = memfd_create(
        c"segment",
        MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC,
    )
    .unwrap();
    nix::unistd::ftruncate(&memory, bytes).unwrap();
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    let segment = Arc::new(Segment::new(
        number,
        0,
        number,
        path,
        2 << 20,
        Ledger::preallocated(1),
    ));
    shared.catalog.insert(Arc::clone(&segment));
    let memory = File::from(memory);
    let file = Arc::new(memory.try_clone().unwrap());
    shared.ports[0]
        .planted
        .lock()
        .unwrap()
        .push(Ready { segment, file });
    memory
}

fn content(number: u64) -> Vec<u8> {
    let len = if number % 10 == 7 { 150_000 } else { 4_000 };
    (0..len)
        .map(|at: u64| u8::try_from((at * 7 + number) % 251).unwrap())
        .collect()
}

async fn append(lane: &Lane, number: u64) -> Result<EntryId, AppendError> {
    let meta = EntryMeta {
        kind: Kind::OtlpLogs,
        encoding: ContentEncoding::Identity,
        owed: 1,
        arrival_unix_ns: number,
        records: 1,
        held: false,
    };
    lane.append(meta, &[content(number)]).await
}

/// Appends 60 entries at once; the numbers acknowledged, with their ids.
async fn append_many(lane: &Lane) -> Vec<(u64, Result<EntryId, AppendError>)> {
    let tasks: Vec<_> = (0..60)
        .map(|number| {
            let lane = lane.clone();
            tokio::task::spawn_local(async move { (number, append(&lane, number).await) })
        })
        .collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

fn on_worker<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async { tokio::time::timeout(PATIENCE, work).await.unwrap() }))
}

fn read(vault: &Vault) -> Vec<(u64, EntryId)> {
    let mut reader = vault.reader();
    let mut read = Vec::new();
    loop {
        let batch = reader.next(1 << 20, u32::MAX).unwrap();
        if batch.is_empty() {
            return read;
        }
        for entry in batch {
            assert!(
                entry.bytes == content(entry.arrival_unix_ns),
                "{:?} differs",
                entry.id
            );
            read.push((entry.arrival_unix_ns, entry.id));
        }
    }
}

#[test]
fn after_a_write_error_everything_goes_on_in_a_new_segment() {
    for bytes in [0, 4096, 16 << 10, 100 << 10, 300 << 10] {
        let (_dir, vault) = open();
        let _memory = plant(&vault, 1000, bytes);
        let results = on_worker(async {
            let lane = vault.lane(0).unwrap();
            let results = append_many(&lane).await;
            lane.shutdown().await.unwrap();
            results
        });
        let stored: Vec<_> = results
            .into_iter()
            .map(|(number, result)| (number, result.unwrap()))
            .collect();
        let mut read = read(&vault);
        read.sort_unstable();
        assert_eq!(
            read, stored,
            "{bytes} bytes: each entry once, where its id says"
        );
        let stats = vault.stats();
        assert!(stats.write_errors_total > 0);
        assert_eq!(
            (stats.entries_pending, stats.checksum_errors_total),
            (60, 0)
        );
        let segments: HashSet<_> = stored.iter().map(|(_, id)| id.segment).collect();
        assert!(segments.iter().any(|segment| *segment != 1000));
    }
}

#[test]
fn when_the_new_segment_fails_too_appends_are_refused_for_a_while() {
    let (_dir, vault) = open();
    let _memory = [plant(&vault, 1001, 0), plant(&vault, 1000, 16 << 10)];
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let results = append_many(&lane).await;
        let mut stored = results
            .iter()
            .filter_map(|(number, result)| result.clone().ok().map(|id| (*number, id)))
            .collect::<Vec<_>>();
        assert!(
            results
                .iter()
                .any(|(_, result)| matches!(result, Err(AppendError::Failed { .. })))
        );
        assert!(
            results
                .iter()
                .all(|(_, result)| matches!(result, Ok(_) | Err(AppendError::Failed { .. })))
        );
        assert_eq!(
            read(&vault),
            stored,
            "what was acknowledged before is readable"
        );
        assert!(
            matches!(append(&lane, 99).await, Err(AppendError::Failed { .. })),
            "refused at once"
        );
        let id = loop {
            match append(&lane, 100).await {
                Ok(id) => break id,
                Err(AppendError::Failed { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(other) => panic!("{other}"),
            }
        };
        stored.push((100, id));
        assert_eq!(lane.bytes_in_use(), 0);
        lane.shutdown().await.unwrap();
        let mut read = read(&vault);
        read.sort_unstable();
        assert_eq!(read, stored);
    });
}

#[test]
fn when_nobody_makes_segments_any_more_appends_are_refused_with_the_reason() {
    let (_dir, vault) = open();
    let shared = &vault.inner.shared;
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        append(&lane, 1).await.unwrap();
        assert_eq!(vault.stats().fault, None);
        shared.fail_keeper.store(true, Ordering::Release);
        shared.segments_wanted.raise();
        let refused = loop {
            match append(&lane, 7).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        let AppendError::Failed { reason } = &refused else {
            panic!("{refused}")
        };
        assert!(reason.contains("panicked"), "{reason}");
        assert_eq!(vault.stats().fault.as_ref(), Some(reason));
        assert_eq!(vault.refusal().as_ref(), Some(reason));
    });
    assert!(matches!(vault.close(), Err(Error::Panicked)));
}

//! Appending to the vault and reading back, on a real disk.

#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::time::Duration;

use gophership::vault::{
    AppendError, Compression, Config, ContentEncoding, EntryMeta, Error, Vault, platform::Rung,
};
use vault_support::{
    Random, append_all, meta, on_worker, open, read_all, real_disk, segment_files, small,
    wait_until,
};

fn mixed_contents(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    (0..count)
        .map(|number| {
            let len = match number % 10 {
                0 => 0,
                1 => 1 + random.below(16),
                2 => 100_000 + random.below(400_000),
                3 => 30_000 + random.below(40_000),
                _ => random.below(3_000),
            };
            random.content(len)
        })
        .collect()
}

fn round_trip(compression: Compression, rung: Rung) {
    let dir = real_disk();
    let config = Config {
        compression,
        rung: Some(rung),
        ..small(dir.path())
    };
    let vault = open(&config);
    assert_eq!(vault.stats().rung, rung.as_str());
    let contents = mixed_contents(7, 100);
    let ids = on_worker(async {
        let lane = vault.lane(0).unwrap();
        let ids = append_all(&lane, 1, &contents).await;
        lane.shutdown().await.unwrap();
        ids
    });
    let ids: Vec<_> = ids.into_iter().map(Result::unwrap).collect();
    assert!(ids.is_sorted(), "appended in order, so numbered in order");
    for max_bytes in [1, 10_000, usize::MAX] {
        let entries = read_all(&vault, max_bytes);
        assert_eq!(entries.len(), contents.len());
        for ((entry, content), id) in entries.iter().zip(&contents).zip(&ids) {
            assert_eq!(entry.id, *id);
            assert!(
                entry.bytes == *content,
                "entry {id:?} of {} bytes differs",
                content.len()
            );
        }
    }
    vault.close().unwrap();
    let reopened = open(&config);
    let entries = read_all(&reopened, 50_000);
    assert!(entries.iter().map(|entry| &entry.bytes).eq(&contents));
    let stats = reopened.stats();
    assert_eq!((stats.entries_pending, stats.records_pending), (100, 100));
    assert_eq!(
        (stats.quarantined_segments, stats.checksum_errors_total),
        (0, 0)
    );
}

fn owed_records(vault: &Vault) -> Vec<u64> {
    let destinations = vault.stats().by_destination;
    destinations
        .iter()
        .map(|destination| destination.owed_records)
        .collect()
}

#[test]
fn mixed_entries_come_back_bit_for_bit_with_lz4() {
    round_trip(Compression::Lz4, Rung::IoUring);
}

#[test]
fn mixed_entries_come_back_bit_for_bit_uncompressed() {
    round_trip(Compression::None, Rung::IoUring);
}

#[test]
fn without_io_uring_a_thread_writes() {
    round_trip(Compression::Lz4, Rung::Pwrite);
}

#[test]
fn without_o_direct_the_page_cache_is_synced() {
    round_trip(Compression::Lz4, Rung::Buffered);
}

#[test]
fn the_best_rung_that_works_is_taken_and_another_one_may_open_it_next() {
    let dir = real_disk();
    let vault = open(&small(dir.path()));
    assert_eq!(vault.stats().rung, Rung::IoUring.as_str());
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        lane.append(meta(1, 0), &[&b"as it was"[..]]).await.unwrap();
    });
    vault.close().unwrap();
    let buffered = Config {
        rung: Some(Rung::Buffered),
        ..small(dir.path())
    };
    let reopened = open(&buffered);
    assert_eq!(read_all(&reopened, usize::MAX)[0].bytes, b"as it was");
}

/// A tmpfs of kernels before 6.6 refuses O_DIRECT; newer ones take it.
#[test]
fn a_file_system_without_o_direct_does_not_keep_the_vault_from_working() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let vault = open(&small(dir.path()));
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        lane.append(meta(1, 0), &[&b"in memory"[..]]).await.unwrap();
        lane.shutdown().await.unwrap();
    });
    assert_eq!(read_all(&vault, usize::MAX)[0].bytes, b"in memory");
}

#[test]
fn what_is_known_of_an_entry_comes_back_and_parts_are_joined() {
    let dir = real_disk();
    let vault = Vault::open(&small(dir.path()), &["main".into(), "backup".into()]).unwrap();
    let stored = EntryMeta {
        encoding: ContentEncoding::Zstd,
        owed: 0b11,
        arrival_unix_ns: u64::MAX - 5,
        records: 512,
        ..meta(0, 0)
    };
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        lane.append(stored, &[&b"one, "[..], b"", b"two"])
            .await
            .unwrap();
    });
    let entries = read_all(&vault, usize::MAX);
    let [entry] = entries.as_slice() else {
        panic!("one entry, not {entries:?}")
    };
    assert_eq!(entry.bytes, b"one, two");
    assert_eq!((entry.encoding, entry.owed), (ContentEncoding::Zstd, 0b11));
    assert_eq!((entry.arrival_unix_ns, entry.records), (u64::MAX - 5, 512));
    assert_eq!(vault.mask_of("backup"), Some(0b10));
    assert_eq!(owed_records(&vault), [512, 512]);
}

#[test]
fn concurrent_appends_share_blocks_and_a_lone_one_does_not_linger() {
    let dir = real_disk();
    let config = Config {
        linger: Duration::from_secs(3600),
        ..small(dir.path())
    };
    let vault = open(&config);
    let contents = vec![vec![b'x'; 100]; 400];
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        // With an hour's linger this returns only because nothing else is in flight.
        lane.append(meta(1, 0), &[b"alone"]).await.unwrap();
        for result in append_all(&lane, 1, &contents).await {
            result.unwrap();
        }
        assert_eq!(lane.bytes_in_use(), 0);
    });
    let stats = vault.stats();
    assert_eq!(stats.entries_total, 401);
    assert!(
        stats.blocks_total <= 20,
        "401 entries in {} blocks",
        stats.blocks_total
    );
    assert!(
        stats.stored_bytes_total
            < stats.raw_bytes_total + 128 * stats.blocks_total + 4096 * stats.blocks_total
    );
    assert!(stats.sync.buckets.iter().sum::<u64>() > 2);
}

#[test]
fn a_full_vault_refuses_and_keeps_what_it_acknowledged() {
    let dir = real_disk();
    let config = Config {
        max_bytes: 1 << 20,
        segment_bytes: 512 << 10,
        max_entry_bytes: 100_000,
        compression: Compression::None,
        ..small(dir.path())
    };
    let vault = open(&config);
    let mut random = Random(3);
    let stored = on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut stored = Vec::new();
        loop {
            let content = random.content(20_000);
            match lane.append(meta(1, 0), &[&content]).await {
                Ok(id) => stored.push((id, content)),
                Err(AppendError::Full { retry_after }) => {
                    assert!((800..=1200).contains(&retry_after.as_millis()));
                    break;
                }
                Err(other) => panic!("{other}"),
            }
            assert!(stored.len() < 100, "1 MiB can't hold 2 MB");
        }
        assert!(vault.stats().bytes <= config.max_bytes);
        // Delivering makes room again.
        let refused = random.content(20_000);
        for (id, _) in stored.drain(..stored.len() - 5) {
            vault.settle(id, 1);
        }
        loop {
            match lane.append(meta(1, 0), &[&refused]).await {
                Ok(id) => break stored.push((id, refused)),
                Err(AppendError::Full { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
        stored
    });
    let entries = read_all(&vault, usize::MAX);
    assert!(
        entries
            .iter()
            .map(|entry| &entry.bytes)
            .eq(stored.iter().map(|(_, content)| content))
    );
}

#[test]
fn a_vault_of_one_segment_takes_entries_again_once_all_is_delivered() {
    let dir = real_disk();
    let config = Config {
        max_bytes: 512 << 10,
        segment_bytes: 512 << 10,
        max_entry_bytes: 200_000,
        compression: Compression::None,
        ..small(dir.path())
    };
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        // Entries that use up the segment, and large ones that leave room in it.
        for len in [10_000, 200_000, 10_000, 200_000] {
            let content = vec![3; len];
            let mut stored = Vec::new();
            let full = loop {
                match lane.append(meta(1, 0), &[&content]).await {
                    Ok(id) => stored.push(id),
                    // Before the first one, the room of the last round is being made free.
                    Err(AppendError::Full { .. }) if stored.is_empty() => {
                        tokio::task::yield_now().await;
                    }
                    Err(error) => break error,
                }
            };
            assert!(matches!(full, AppendError::Full { .. }), "{full}");
            for id in stored {
                vault.settle(id, 1);
            }
        }
    });
}

#[test]
fn an_entry_above_the_limit_is_refused_for_good() {
    let dir = real_disk();
    let config = small(dir.path());
    let vault = open(&config);
    let content = vec![0; config.max_entry_bytes + 1];
    let refused = on_worker(async { vault.lane(0).unwrap().append(meta(1, 0), &[&content]).await });
    assert_eq!(
        refused,
        Err(AppendError::TooLarge {
            bytes: content.len(),
            max: config.max_entry_bytes
        })
    );
}

#[test]
fn a_second_daemon_is_refused_by_name() {
    let dir = real_disk();
    let config = small(dir.path());
    let vault = open(&config);
    match Vault::open(&config, &[]) {
        Err(Error::Locked { dir, pid }) => {
            assert_eq!((dir, pid), (config.dir.clone(), Some(std::process::id())));
        }
        other => panic!("{other:?}"),
    }
    vault.close().unwrap();
    open(&config);
}

#[test]
fn a_lane_is_given_out_once_and_refuses_after_its_shutdown() {
    let dir = real_disk();
    let vault = open(&small(dir.path()));
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        assert!(matches!(
            vault.lane(0),
            Err(Error::Lane { index: 0, lanes: 1 })
        ));
        assert!(matches!(
            vault.lane(1),
            Err(Error::Lane { index: 1, lanes: 1 })
        ));
        lane.append(meta(1, 0), &[b"a"]).await.unwrap();
        lane.shutdown().await.unwrap();
        lane.shutdown().await.unwrap();
        assert_eq!(
            lane.append(meta(1, 0), &[b"b"]).await,
            Err(AppendError::Closed)
        );
    });
}

#[test]
fn held_entries_are_skipped_until_released_and_settled_ones_for_good() {
    let dir = real_disk();
    let config = small(dir.path());
    let vault = open(&config);
    let ids = on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        for number in 0..4_u8 {
            let held = EntryMeta {
                held: number < 3,
                ..meta(1, 0)
            };
            ids.push(lane.append(held, &[[number]]).await.unwrap());
        }
        ids
    });
    let visible = |vault: &Vault| {
        read_all(vault, usize::MAX)
            .iter()
            .map(|entry| entry.bytes[0])
            .collect::<Vec<_>>()
    };
    assert_eq!(visible(&vault), [3]);
    vault.release(ids[1]);
    assert_eq!(visible(&vault), [1, 3]);
    vault.settle(ids[0], 1);
    vault.settle(ids[1], 0);
    vault.settle(ids[3], 1);
    assert_eq!(visible(&vault), [1]);
    assert_eq!(vault.stats().entries_pending, 2);
    vault.close().unwrap();
    // No export is in flight after a restart.
    assert_eq!(visible(&open(&config)), [1, 2]);
}

#[test]
fn an_entry_stays_held_while_some_have_it_and_others_are_still_at_it() {
    let dir = real_disk();
    let destinations = ["near", "far"].map(str::to_owned);
    let vault = Vault::open(&small(dir.path()), &destinations).unwrap();
    let id = on_worker(async {
        let held = EntryMeta {
            held: true,
            ..meta(0b11, 0)
        };
        let lane = vault.lane(0).unwrap();
        lane.append(held, &[b"abc"]).await.unwrap()
    });
    vault.settle(id, 0b01);
    assert!(read_all(&vault, usize::MAX).is_empty());
    vault.release(id);
    assert_eq!(read_all(&vault, usize::MAX)[0].owed, 0b10);
    vault.settle(id, 0b10);
    assert!(read_all(&vault, usize::MAX).is_empty());
    vault.close().unwrap();
}

#[test]
fn cursors_survive_and_spent_segments_are_deleted() {
    let dir = real_disk();
    let config = Config {
        compression: Compression::None,
        ..small(dir.path())
    };
    let vault = Vault::open(&config, &["main".into(), "backup".into()]).unwrap();
    let mut random = Random(5);
    let contents: Vec<_> = (0..60).map(|_| random.content(100_000)).collect();
    let ids: Vec<_> = on_worker(async {
        let lane = vault.lane(0).unwrap();
        let ids = append_all(&lane, 0b11, &contents).await;
        lane.shutdown().await.unwrap();
        ids.into_iter().map(Result::unwrap).collect()
    });
    let segments = vault.stats().segments;
    assert!(segments >= 3, "{segments}");
    for id in &ids[..50] {
        vault.settle(*id, 0b01);
    }
    for id in &ids[..30] {
        vault.settle(*id, 0b10);
    }
    wait_until("a spent segment is deleted", || {
        vault.stats().segments < segments
    });
    vault.close().unwrap();
    assert!(segment_files(dir.path()).len() < usize::try_from(segments).unwrap());
    let reopened = Vault::open(&config, &["main".into(), "backup".into()]).unwrap();
    let left = read_all(&reopened, 1 << 20);
    assert_eq!(left.len(), 30);
    for (number, entry) in (30..).zip(&left) {
        assert!(entry.bytes == contents[number]);
        assert_eq!(
            entry.owed,
            if number < 50 { 0b10 } else { 0b11 },
            "entry {number}"
        );
    }
    assert_eq!(owed_records(&reopened), [10, 30]);
    let stored = reopened.stats().by_destination;
    assert_eq!(
        (stored[0].stored_records, stored[1].stored_records),
        (10, 30),
        "what an earlier run settled is its business"
    );
}

#[test]
fn a_cancelled_append_leaves_whole_entries_only() {
    let dir = real_disk();
    let vault = open(&small(dir.path()));
    let mut random = Random(11);
    let contents: Vec<_> = (0..200)
        .map(|number| random.content(if number % 3 == 0 { 300_000 } else { 500 }))
        .collect();
    let acknowledged = on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut acknowledged = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            let owned = lane.clone();
            let copy = content.clone();
            let append = tokio::task::spawn_local(async move {
                owned
                    .append(
                        EntryMeta {
                            held: true,
                            ..meta(1, number as u64)
                        },
                        &[copy],
                    )
                    .await
            });
            for _ in 0..random.below(4) {
                tokio::task::yield_now().await;
            }
            if number % 2 == 0 {
                append.abort();
            }
            if let Ok(result) = append.await {
                vault.release(result.unwrap());
                acknowledged.push(number as u64);
            }
        }
        lane.shutdown().await.unwrap();
        acknowledged
    });
    let mut read = Vec::new();
    for entry in read_all(&vault, 1 << 20) {
        assert!(
            entry.bytes == contents[usize::try_from(entry.arrival_unix_ns).unwrap()],
            "torn entry {:?}",
            entry.id
        );
        read.push(entry.arrival_unix_ns);
    }
    assert!(acknowledged.iter().all(|number| read.contains(number)));
    let stats = vault.stats();
    assert_eq!(
        (stats.checksum_errors_total, stats.entries_pending),
        (0, read.len() as u64),
        "nothing stays held"
    );
}

#[test]
fn reading_what_is_held_or_settled_costs_the_disk_nothing() {
    let dir = real_disk();
    let config = Config {
        compression: Compression::None,
        ..small(dir.path())
    };
    let vault = open(&config);
    let contents = vec![vec![9; 60_000]; 25];
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        for content in &contents {
            let held = EntryMeta {
                held: true,
                ..meta(1, 0)
            };
            ids.push(lane.append(held, &[content]).await.unwrap());
        }
        let disk_bytes = || -> u64 {
            let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
            let line = io
                .lines()
                .find_map(|line| line.strip_prefix("read_bytes: "));
            line.unwrap().parse().unwrap()
        };
        let cost = |vault: &Vault| {
            let before = disk_bytes();
            let read = vault.reader().next(usize::MAX, u32::MAX).unwrap().len();
            (read, disk_bytes() - before)
        };
        assert_eq!(cost(&vault), (0, 0), "all is in flight");
        let (last, settled) = ids.split_last().unwrap();
        vault.release(*last);
        let (read, all) = cost(&vault);
        assert_eq!(read, 1);
        for id in settled {
            vault.settle(*id, 1);
        }
        assert_eq!(cost(&vault).0, 1, "this reading learns what is settled");
        let (read, rest) = cost(&vault);
        assert_eq!(read, 1);
        assert!(rest * 4 < all, "{rest} of {all} bytes read again");
    });
}

#[test]
fn a_sealed_segment_takes_no_more_room_than_its_blocks() {
    let dir = real_disk();
    let config = small(dir.path());
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        lane.append(meta(1, 0), &[b"little"]).await.unwrap();
        lane.shutdown().await.unwrap();
    });
    vault.close().unwrap();
    let files = segment_files(dir.path());
    let [file] = files.as_slice() else {
        panic!("one segment, not {files:?}")
    };
    let length = || std::fs::metadata(file).unwrap().len();
    assert!(length() <= 4 * 4096, "header, block, a mark maybe, seal");
    // As if the last run had been killed before it could cut the file.
    let grown = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    grown.set_len(config.segment_bytes).unwrap();
    let vault = open(&config);
    wait_until("the file is cut", || length() < config.segment_bytes);
    wait_until("its bytes are given back", || {
        vault.stats().bytes < 2 * config.segment_bytes
    });
    assert_eq!(read_all(&vault, usize::MAX).len(), 1);
}

#[test]
fn two_lanes_write_beside_each_other() {
    let dir = real_disk();
    let config = Config {
        lanes: 2,
        ..small(dir.path())
    };
    let vault = open(&config);
    let contents = [mixed_contents(1, 50), mixed_contents(2, 50)];
    std::thread::scope(|scope| {
        for (index, contents) in contents.iter().enumerate() {
            let vault = &vault;
            scope.spawn(move || {
                on_worker(async {
                    let lane = vault.lane(index).unwrap();
                    for result in append_all(&lane, 1, contents).await {
                        result.unwrap();
                    }
                    lane.shutdown().await.unwrap();
                });
            });
        }
    });
    let entries = read_all(&vault, 1 << 20);
    for (lane, contents) in (0_u16..).zip(&contents) {
        let of_lane = entries
            .iter()
            .filter(|entry| entry.id.lane == lane)
            .map(|entry| &entry.bytes);
        assert!(of_lane.eq(contents));
    }
}

#[test]
fn a_segment_takes_no_more_entries_than_its_cursors_cover() {
    let dir = real_disk();
    let config = small(dir.path());
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let tasks: Vec<_> = (0..700)
            .map(|_| {
                let lane = lane.clone();
                tokio::task::spawn_local(async move {
                    for number in 0..100 {
                        lane.append(meta(1, number), &[[0_u8; 0]]).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        lane.shutdown().await.unwrap();
    });
    assert_eq!(vault.stats().segments, 2);
    assert_eq!(vault.stats().entries_pending, 70_000);
    vault.close().unwrap();
    assert_eq!(read_all(&open(&config), usize::MAX).len(), 70_000);
}

#[test]
fn held_and_settled_entries_are_skipped_beside_others_in_their_block() {
    let dir = real_disk();
    let vault = open(&small(dir.path()));
    let results = on_worker(async {
        let lane = vault.lane(0).unwrap();
        let metas: Vec<_> = (0..9)
            .map(|number| EntryMeta {
                held: number % 3 == 1,
                ..meta(1, number)
            })
            .collect();
        let first = lane.append(metas[0], &[[0_u8]]);
        let (a, b, c, d, e) = tokio::join!(
            first,
            lane.append(metas[1], &[[1_u8]]),
            lane.append(metas[2], &[[2_u8]]),
            lane.append(metas[3], &[[3_u8]]),
            lane.append(metas[4], &[[4_u8]]),
        );
        [a, b, c, d, e].map(Result::unwrap)
    });
    assert!(vault.stats().blocks_total < 5, "some share a block");
    vault.settle(results[2], 1);
    for max_bytes in [1, usize::MAX] {
        let read: Vec<_> = read_all(&vault, max_bytes)
            .iter()
            .map(|entry| entry.bytes[0])
            .collect();
        assert_eq!(read, [0, 3]);
    }
}

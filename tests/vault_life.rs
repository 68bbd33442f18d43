//! A segment's life: recycling, keeping, sealing by age, dropping, and the lanes' fair share.

#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    time::Duration,
};

use gophership::vault::{
    AppendError, Compression, Config, EntryId, Lane, OnFull, Vault,
    entry::{Part, PieceHeader},
    format::{BLOCK_HEADER, BlockHeader, BlockKind, Codec, PAGE},
};
use vault_support::{
    Random, append_all, meta, on_worker, open, read_all, real_disk, segment::blocks, segment_files,
    small, wait_until,
};

const SEGMENT: u64 = 512 << 10;
const HOUR: Duration = Duration::from_secs(3600);

/// Small segments, so that a few entries fill one.
fn tiny(dir: &Path) -> Config {
    Config {
        max_bytes: 8 * SEGMENT,
        segment_bytes: SEGMENT,
        max_entry_bytes: 200_000,
        compression: Compression::None,
        ..small(dir)
    }
}

/// Waits for a condition without holding up the lane.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(vault_support::PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in time: {what}");
}

/// Appends `content` until a segment later than the first is begun; the ids.
async fn fill_one(lane: &Lane, content: &[u8]) -> Vec<EntryId> {
    let mut ids: Vec<EntryId> = Vec::new();
    loop {
        let id = lane.append(meta(1, 0), &[content]).await.unwrap();
        ids.push(id);
        if ids[0].segment != id.segment {
            return ids;
        }
    }
}

/// The files as a crash now would leave them.
fn crash_copy(dir: &Path) -> tempfile::TempDir {
    let copy = real_disk();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(from) = dirs.pop() {
        let to = copy.path().join(from.strip_prefix(dir).unwrap());
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(&from).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                match fs::copy(&path, to.join(path.file_name().unwrap())) {
                    Ok(_) => {}
                    // A spare that got its name meanwhile.
                    Err(gone) => assert_eq!(gone.kind(), ErrorKind::NotFound),
                }
            }
        }
    }
    copy
}

/// What a producer would send who wants its bytes to pass for blocks of an unknown version, once they
/// lie in a recycled file: a header with a matching checksum at the start of each page.
fn planted(len: usize) -> Vec<u8> {
    let mut header = [0; BLOCK_HEADER];
    header[..4].copy_from_slice(b"GSVB");
    header[4] = 99;
    let crc = crc32fast::hash(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
    let mut content = vec![b'p'; len];
    let mut at = PAGE - BLOCK_HEADER - 32;
    while at + header.len() <= len {
        content[at..at + header.len()].copy_from_slice(&header);
        at += PAGE;
    }
    content
}

/// The same for one who has guessed the numbers of the next segments: each page is a whole block of one of them,
/// with an entry, and knows of a durable one.
fn planted_for(len: usize, numbers: std::ops::Range<u64>) -> Vec<u8> {
    let invented = b"invented";
    let size = u32::try_from(invented.len()).unwrap();
    let piece = PieceHeader::new(&meta(1, 0), Part::Whole, size, 0, size);
    let payload = [&piece.encode()[..], invented].concat();
    let stored_len = u32::try_from(payload.len()).unwrap();
    let mut content = vec![b'p'; len];
    let mut numbers = numbers.cycle();
    let mut at = PAGE - BLOCK_HEADER - 32;
    while at + PAGE <= len {
        let header = BlockHeader {
            kind: BlockKind::Data,
            codec: Codec::Raw,
            segment: numbers.next().unwrap(),
            tag: 0xbad,
            index: 1,
            entries: 1,
            first_entry: 0,
            first_record: 0,
            records: 1,
            raw_len: stored_len,
            stored_len,
            durable_through: 1,
            wall_unix_ns: 1,
            monotonic_ns: 1,
            zone: 0,
            cause: 0,
            segment_crc: 0,
            payload_crc: crc32fast::hash(&payload),
        };
        header.encode(&mut content[at..]);
        content[at + BLOCK_HEADER..][..payload.len()].copy_from_slice(&payload);
        at += PAGE;
    }
    content
}

#[test]
fn a_spent_segments_file_is_used_again_and_its_old_blocks_are_nobodys() {
    let dir = real_disk();
    let config = tiny(dir.path());
    let vault = open(&config);
    let mut random = Random(1);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut owed = Vec::new();
        for round in 0..12 {
            lane.seal().await;
            // Each in a block of its own, the same pages in each file.
            let ids = fill_one(&lane, &planted(32_000)).await;
            for id in &ids {
                vault.settle(*id, 1);
            }
            let first = ids[0].segment;
            let gone = format!("{first:016x}.gsv");
            until("the spent segment is gone", || {
                !segment_files(dir.path())
                    .iter()
                    .any(|file| file.ends_with(&gone))
            })
            .await;
            // One that stays owed, alone in its block, with the old blocks behind it.
            let len = 1 + random.below(9_000);
            let content = random.content(len);
            lane.append(meta(1, round), &[&content]).await.unwrap();
            owed.push(content);
            let copy = crash_copy(dir.path());
            let crashed = open(&tiny(copy.path()));
            let entries = read_all(&crashed, usize::MAX);
            let stats = crashed.stats();
            assert_eq!(
                (stats.quarantined_segments, stats.checksum_errors_total),
                (0, 0),
                "round {round}"
            );
            let read: Vec<_> = entries.iter().map(|entry| &entry.bytes).collect();
            for content in &owed {
                assert!(read.contains(&content), "round {round}");
            }
            if round % 4 == 3 {
                for entry in read_all(&vault, usize::MAX) {
                    vault.settle(entry.id, 1);
                }
                owed.clear();
            }
        }
        let recycled = vault.stats().recycled_segments_total;
        assert!(recycled > 4, "{recycled} files were used again");
        assert!(vault.stats().bytes <= config.max_bytes);
    });
}

#[test]
fn a_recycled_file_that_a_crash_leaves_unused_is_no_damage() {
    let dir = real_disk();
    let vault = open(&tiny(dir.path()));
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        while vault.stats().recycled_segments_total == 0 {
            for id in fill_one(&lane, &planted_for(32_000, 2..9)).await {
                vault.settle(id, 1);
            }
            until("the full one is retired", || vault.stats().segments == 1).await;
        }
        until("the next one is ready", || {
            segment_files(dir.path()).len() == 2
        })
        .await;
        lane.append(meta(1, 0), &[b"owed"]).await.unwrap();
        let copy = crash_copy(dir.path());
        let crashed = open(&tiny(copy.path()));
        let read = read_all(&crashed, usize::MAX);
        assert!(read.iter().any(|entry| entry.bytes == b"owed"));
        assert!(read.iter().all(|entry| entry.bytes != b"invented"));
        let stats = crashed.stats();
        assert_eq!((stats.segments, stats.quarantined_segments), (1, 0));
    });
}

#[test]
fn a_reader_in_a_file_that_is_recycled_under_it_goes_on_behind_it() {
    let dir = real_disk();
    // Larger than what a reader reads ahead.
    let vault = open(&Config {
        max_bytes: 64 << 20,
        segment_bytes: 4 << 20,
        ..tiny(dir.path())
    });
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let ids = fill_one(&lane, &[7; 20_000]).await;
        let mut reader = vault.reader();
        assert_eq!(reader.next(1, u32::MAX).unwrap()[0].id, ids[0]);
        // Now it has the first segment open, and more to read in it.
        for id in &ids {
            vault.settle(*id, 1);
        }
        let mut owed = Vec::new();
        while vault.stats().recycled_segments_total < 1 {
            owed.push(lane.append(meta(1, 0), &[[8; 30_000]]).await.unwrap());
        }
        // Into the recycled one, and on behind it.
        for _ in 0..2 {
            owed.extend(fill_one(&lane, &[8; 30_000]).await);
        }
        let mut read = Vec::new();
        loop {
            let batch = reader.next(usize::MAX, u32::MAX).unwrap();
            if batch.is_empty() {
                break;
            }
            assert!(batch.iter().all(|entry| entry.bytes == [8; 30_000]));
            read.extend(batch.iter().map(|entry| entry.id));
        }
        assert_eq!(read, owed);
        let stats = vault.stats();
        assert_eq!(
            (stats.quarantined_segments, stats.checksum_errors_total),
            (0, 0)
        );
    });
}

#[test]
fn a_recycled_file_that_was_cut_is_whole_again_before_it_is_used() {
    let dir = real_disk();
    let config = tiny(dir.path());
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for round in 0..4 {
            let id = lane
                .append(meta(1, round), &[[b'x'; 60_000]])
                .await
                .unwrap();
            let file = segment_files(dir.path())
                .into_iter()
                .find(|file| file.ends_with(format!("{:016x}.gsv", id.segment)))
                .unwrap();
            let metadata = fs::metadata(&file).unwrap();
            assert_eq!(metadata.len(), SEGMENT);
            assert!(metadata.blocks() * 512 >= SEGMENT, "no holes: {metadata:?}");
            lane.seal().await;
            until("it is cut", || {
                fs::metadata(&file).unwrap().len() < SEGMENT / 2
            })
            .await;
            vault.settle(id, 1);
            until("it is retired", || vault.stats().segments == 0).await;
            assert!(!file.exists());
        }
    });
}

#[test]
fn after_close_only_what_is_owed_is_left() {
    let dir = real_disk();
    let vault = open(&tiny(dir.path()));
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.extend(fill_one(&lane, &[7; 50_000]).await);
        }
        assert!(vault.stats().bytes > 5 * SEGMENT);
        for id in ids {
            vault.settle(id, 1);
        }
        until("the room is given back", || {
            // The one being written, the ready one and a spare.
            vault.stats().bytes <= 3 * SEGMENT
        })
        .await;
        lane.shutdown().await.unwrap();
    });
    vault.close().unwrap();
    let lane = dir.path().join("lane-00");
    let left: Vec<_> = fs::read_dir(lane).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn delivered_segments_are_kept_until_room_is_needed_and_not_replayed() {
    let dir = real_disk();
    let config = Config {
        retain: HOUR,
        ..tiny(dir.path())
    };
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for id in fill_one(&lane, &[7; 50_000]).await {
            vault.settle(id, 1);
        }
        lane.seal().await;
        until("both are kept", || vault.stats().retained_segments == 2).await;
        lane.shutdown().await.unwrap();
    });
    vault.close().unwrap();
    let kept = segment_files(dir.path());
    assert_eq!(kept.len(), 2);
    let vault = open(&config);
    assert!(read_all(&vault, usize::MAX).is_empty(), "delivered once");
    assert_eq!(vault.stats().retained_segments, 2);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut stored = 0_u64;
        let full = loop {
            match lane.append(meta(1, 0), &[[7; 50_000]]).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
            assert!(vault.stats().bytes <= config.max_bytes);
        };
        assert!(matches!(full, AppendError::Full { .. }), "{full}");
        assert!(
            stored * 50_000 > config.max_bytes * 3 / 4,
            "only {stored} entries"
        );
    });
    assert_eq!(vault.stats().retained_segments, 0);
    assert!(kept.iter().all(|file| !file.exists()));
}

#[test]
fn a_full_vault_says_when_replay_will_have_made_room() {
    let dir = real_disk();
    let config = tiny(dir.path());
    let vault = open(&config);
    let full = async |lane: &Lane, ids: &mut Vec<EntryId>| loop {
        match lane.append(meta(1, 0), &[[7; 50_000]]).await {
            Ok(id) => ids.push(id),
            Err(AppendError::Full { retry_after }) => break retry_after,
            Err(error) => panic!("{error}"),
        }
    };
    let is_about = |found: Duration, seconds: u64| {
        let fifth = Duration::from_millis(seconds * 200);
        let expected = Duration::from_secs(seconds);
        let range = expected - fifth..=expected + fifth;
        assert!(range.contains(&found), "{found:?}, not about {expected:?}");
    };
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        is_about(full(&lane, &mut ids).await, 1);
        let oldest = ids[0].segment;
        let in_oldest: Vec<_> = ids.iter().filter(|id| id.segment == oldest).collect();
        // One record each. The segments behind the oldest don't count.
        assert!((8..12).contains(&in_oldest.len()), "{}", in_oldest.len());
        vault.expect_room(1);
        let after = full(&lane, &mut Vec::new()).await;
        is_about(after, in_oldest.len() as u64);
        for id in &in_oldest[4..] {
            vault.settle(**id, 1);
        }
        vault.expect_room(1);
        is_about(full(&lane, &mut Vec::new()).await, 4);
        // Nobody knows, or it is over at once.
        for rate in [0, 1000] {
            vault.expect_room(rate);
            is_about(full(&lane, &mut Vec::new()).await, 1);
        }
        // Not all at once.
        let mut told = Vec::new();
        for _ in 0..50 {
            told.push(full(&lane, &mut Vec::new()).await);
        }
        told.sort_unstable();
        told.dedup();
        assert!(told.len() > 10, "{told:?}");
    });
}

#[test]
fn what_is_kept_goes_when_its_time_is_over() {
    let dir = real_disk();
    let vault = open(&Config {
        retain: Duration::from_millis(20),
        ..tiny(dir.path())
    });
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let id = lane.append(meta(1, 0), &[b"little"]).await.unwrap();
        lane.seal().await;
        vault.settle(id, 1);
        until("it is gone", || vault.stats().segments == 0).await;
    });
}

#[test]
fn an_idle_lanes_segment_is_sealed_by_age_and_an_empty_one_is_not_begun() {
    let dir = real_disk();
    let vault = open(&Config {
        // Long after the mark that an idle lane writes, so nothing else wakes it.
        segment_max_age: Duration::from_millis(200),
        ..tiny(dir.path())
    });
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut last = None;
        for round in 0..3 {
            let id = lane.append(meta(1, round), &[b"little"]).await.unwrap();
            assert_ne!(last, Some(id.segment), "the one before was sealed");
            vault.settle(id, 1);
            // Only a sealed segment is retired.
            until("it is sealed and retired", || vault.stats().segments == 0).await;
            last = Some(id.segment);
        }
        let ready = || segment_files(dir.path());
        until("the next one is ready", || ready().len() == 1).await;
        let before = ready();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(ready(), before, "nothing is sealed for nothing");
    });
}

#[test]
fn entries_of_several_blocks_survive_a_seal_by_age_in_between() {
    let dir = real_disk();
    // All of it fits one: a full segment's last block is covered by the next one's.
    let vault = open(&Config {
        segment_max_age: Duration::from_millis(1),
        max_bytes: 256 << 20,
        segment_bytes: 8 << 20,
        ..tiny(dir.path())
    });
    let mut random = Random(4);
    let contents: Vec<_> = (0..60)
        .map(|number| random.content(if number % 2 == 0 { 200_000 } else { 900 }))
        .collect();
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for round in contents.chunks(6) {
            for result in append_all(&lane, 1, round).await {
                result.unwrap();
            }
        }
        lane.shutdown().await.unwrap();
    });
    assert!(vault.stats().segments > 2, "sealed in between");
    for file in segment_files(dir.path()) {
        // Else rot in the last block of a lane that idles after it would pass for a torn end.
        for (_, block) in blocks(&file) {
            let is_covered = block.kind != BlockKind::Seal || block.durable_through == block.index;
            assert!(is_covered, "{}: {block:?}", file.display());
        }
    }
    // One that began again may have been overtaken.
    let mut read: Vec<_> = read_all(&vault, usize::MAX)
        .into_iter()
        .map(|entry| entry.bytes)
        .collect();
    let mut contents = contents;
    read.sort_unstable();
    contents.sort_unstable();
    assert!(read == contents);
}

/// Stored, owed, dropped and lost records of the only destination.
fn books(vault: &Vault) -> (u64, u64, u64, u64) {
    let destinations = vault.stats().by_destination;
    let main = &destinations[0];
    (
        main.stored_records,
        main.owed_records,
        main.settled.dropped,
        main.lost_records,
    )
}

#[test]
fn a_full_vault_may_drop_its_oldest_and_counts_each_record() {
    let dir = real_disk();
    let config = Config {
        on_full: OnFull::DropOldest,
        ..tiny(dir.path())
    };
    let vault = open(&config);
    let count = 400_u64;
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for number in 0..count {
            lane.append(meta(1, number), &[[7; 40_000]]).await.unwrap();
            assert!(vault.stats().bytes <= config.max_bytes);
        }
        lane.shutdown().await.unwrap();
    });
    let (stored, owed, dropped, lost) = books(&vault);
    assert_eq!((stored, lost), (count, 0));
    assert_eq!(owed + dropped, count);
    let stats = vault.stats();
    assert_eq!(stats.dropped_records_total, dropped);
    assert!(stats.dropped_segments_total > 0);
    let numbers: Vec<_> = read_all(&vault, usize::MAX)
        .iter()
        .map(|entry| entry.arrival_unix_ns)
        .collect();
    assert!(
        numbers.iter().copied().eq(dropped..count),
        "the newest are left: {numbers:?}"
    );
    assert!(
        owed * 40_000 > config.max_bytes / 2,
        "no more is dropped than has to be: {owed} left"
    );
}

#[test]
fn what_is_kept_is_used_up_before_anything_is_dropped() {
    let dir = real_disk();
    let config = Config {
        on_full: OnFull::DropOldest,
        retain: HOUR,
        ..tiny(dir.path())
    };
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let oldest = lane.append(meta(1, 0), &[b"owed"]).await.unwrap();
        lane.seal().await;
        for number in 0..400_u64 {
            let id = lane.append(meta(1, number), &[[7; 40_000]]).await.unwrap();
            vault.settle(id, 1);
        }
        assert_eq!(books(&vault), (401, 1, 0, 0));
        assert_eq!(read_all(&vault, usize::MAX)[0].id, oldest);
    });
}

#[test]
fn a_damaged_segment_is_never_dropped() {
    let dir = real_disk();
    let config = Config {
        on_full: OnFull::DropOldest,
        ..tiny(dir.path())
    };
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let ids = fill_one(&lane, &[7; 30_000]).await;
        let file = segment_files(dir.path())
            .into_iter()
            .find(|file| file.ends_with(format!("{:016x}.gsv", ids[0].segment)))
            .unwrap();
        let raw = fs::OpenOptions::new().write(true).open(&file).unwrap();
        raw.write_all_at(&[1, 2, 3], 5_000).unwrap();
        raw.sync_all().unwrap();
        assert_eq!(read_all(&vault, usize::MAX).len(), ids.len() - 1);
        for number in 0..300 {
            lane.append(meta(1, number), &[[7; 30_000]]).await.unwrap();
        }
        assert!(file.exists());
        let (stored, owed, dropped, lost) = books(&vault);
        assert_eq!((stored, lost), (300 + ids.len() as u64, 1));
        assert_eq!(stored, owed + dropped + lost);
        assert!(dropped > 0);
    });
}

#[test]
fn a_greedy_lane_leaves_the_others_their_room() {
    for on_full in [OnFull::Refuse, OnFull::DropOldest] {
        let dir = real_disk();
        let config = Config {
            lanes: 3,
            on_full,
            budget_bytes: 3 << 20,
            ..tiny(dir.path())
        };
        let vault = open(&config);
        let contents = vec![vec![7; 40_000]; 200];
        on_worker(async {
            let greedy = vault.lane(0).unwrap();
            let mut stored = 0;
            for result in append_all(&greedy, 1, &contents).await {
                stored += u64::from(result.is_ok());
            }
            match on_full {
                OnFull::Refuse => assert!(stored < 100, "{stored} in 4 MiB"),
                OnFull::DropOldest => assert_eq!(stored, 200),
            }
            assert!(vault.stats().bytes <= config.max_bytes);
            // More than one segment: what lies in the first doesn't keep them from the next.
            for index in [1, 2] {
                let lane = vault.lane(index).unwrap();
                for number in 0..20 {
                    lane.append(meta(1, number), &[[8; 40_000]]).await.unwrap();
                }
            }
            let mine = read_all(&vault, usize::MAX);
            for lane in [1, 2] {
                let entries = mine.iter().filter(|entry| entry.id.lane == lane);
                assert_eq!(entries.count(), 20, "lane {lane}");
            }
            assert!(vault.stats().bytes <= config.max_bytes);
        });
    }
}

#[test]
fn a_directory_opens_with_fewer_and_with_more_lanes() {
    let dir = real_disk();
    let of = |lanes| Config {
        lanes,
        max_bytes: 64 << 20,
        ..tiny(dir.path())
    };
    let write = |lanes: usize, first: u64| {
        let vault = open(&of(lanes));
        on_worker(async {
            for index in 0..lanes {
                let lane = vault.lane(index).unwrap();
                let number = first + index as u64;
                lane.append(meta(1, number), &[[7; 4_000]]).await.unwrap();
                // Some lanes are left as by a crash.
                if index % 2 == 0 {
                    lane.shutdown().await.unwrap();
                }
            }
        });
        vault.close().unwrap();
    };
    write(4, 0);
    write(1, 100);
    write(6, 200);
    let vault = open(&of(2));
    let mut numbers: Vec<_> = read_all(&vault, usize::MAX)
        .iter()
        .map(|entry| entry.arrival_unix_ns)
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 100, 200, 201, 202, 203, 204, 205]);
    for entry in read_all(&vault, usize::MAX) {
        vault.settle(entry.id, 1);
    }
    wait_until("the old lanes' files are gone", || {
        (2..6).all(|lane| {
            let dir = dir.path().join(format!("lane-{lane:02}"));
            segment_files_in(&dir) == 0
        })
    });
    wait_until("nothing is left but what is ready", || {
        vault.stats().segments == 0
    });
}

fn segment_files_in(lane: &Path) -> usize {
    fs::read_dir(lane)
        .unwrap()
        .filter(|entry| {
            let path = entry.as_ref().unwrap().path();
            path.extension().is_some_and(|extension| extension == "gsv")
        })
        .count()
}

#[test]
fn automatic_compression_follows_the_cpu_and_everything_comes_back() {
    let dir = real_disk();
    let vault = open(&Config {
        compression: Compression::Auto,
        max_bytes: 64 << 20,
        ..tiny(dir.path())
    });
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut appended = 0;
        for (permille, raw) in [(900, 1), (0, 0), (900, 1)] {
            lane.note_cpu_wait(permille);
            while vault.stats().lanes_raw != raw {
                lane.append(meta(1, 0), &[[7; 9_000]]).await.unwrap();
                appended += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let stats = vault.stats();
        assert!(stats.lz4_blocks_total > 0 && stats.lz4_blocks_total < stats.blocks_total);
        let entries = read_all(&vault, usize::MAX);
        assert_eq!(entries.len(), appended);
        assert!(entries.iter().all(|entry| entry.bytes == [7; 9_000]));
    });
}

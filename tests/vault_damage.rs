//! What the vault does with torn tails and with damage.

#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use gophership::vault::{
    Compression, Config, Entry, EntryId, Stats,
    format::{BlockHeader, BlockKind, PAGE, SegmentHeader},
    inspect::{Depth, Directory, State, summarize},
};
use vault_support::{
    Random, append_all, meta, on_worker, open, read_all, real_disk,
    segment::{blocks, data_blocks, edit, flip, reseal, rewrite},
    segment_files, small,
};

/// Appends `contents` one after the other, so each has its own block; without `seal`, as if the
/// process had died after the last acknowledgement.
fn write(config: &Config, contents: &[Vec<u8>], seal: bool) -> Vec<EntryId> {
    let vault = open(config);
    let ids = on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            ids.push(
                lane.append(meta(1, number as u64), &[content])
                    .await
                    .unwrap(),
            );
        }
        if seal {
            lane.shutdown().await.unwrap();
        }
        ids
    });
    vault.close().unwrap();
    ids
}

fn only_segment(dir: &Path) -> std::path::PathBuf {
    let mut files = segment_files(dir);
    files.retain(|file| !data_blocks(file).is_empty());
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn reopen(config: &Config) -> (Vec<Entry>, Stats) {
    let vault = open(config);
    let entries = read_all(&vault, 100_000);
    let stats = vault.stats();
    vault.close().unwrap();
    (entries, stats)
}

fn contents(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    (0..count)
        .map(|_| {
            let len = 1 + random.below(9_000);
            random.content(len)
        })
        .collect()
}

fn same(entries: &[Entry], contents: &[Vec<u8>]) {
    assert_eq!(entries.len(), contents.len());
    assert!(entries.iter().map(|entry| &entry.bytes).eq(contents));
}

#[test]
fn an_unsealed_segment_is_read_whole_and_sealed() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(1, 20);
    write(&config, &contents, false);
    let path = only_segment(dir.path());
    let (entries, stats) = reopen(&config);
    same(&entries, &contents);
    assert_eq!(stats.quarantined_segments, 0);
    let (_, last) = *blocks(&path).last().unwrap();
    assert_eq!((last.kind, last.first_entry), (BlockKind::Seal, 20));
    assert!(
        fs::metadata(&path).unwrap().len() < config.segment_bytes,
        "cut behind its seal"
    );
    same(&reopen(&config).0, &contents);
}

#[test]
fn a_torn_block_behind_the_acknowledged_ones_is_cut_off() {
    let dir = real_disk();
    let config = Config {
        compression: Compression::None,
        ..small(dir.path())
    };
    let contents = contents(2, 10);
    write(&config, &contents, false);
    let path = only_segment(dir.path());
    // What a block in flight leaves: its header and a part of its payload.
    let all = blocks(&path);
    let (offset, last) = *all
        .iter()
        .rfind(|(_, header)| header.kind == BlockKind::Data)
        .unwrap();
    let end = all
        .last()
        .map(|(offset, header)| offset + header.padded_len() as u64)
        .unwrap();
    let index = all.last().unwrap().1.index + 1;
    let mut torn = vec![0; last.padded_len()];
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.read_exact_at(&mut torn, offset).unwrap();
    let header = BlockHeader {
        index,
        first_entry: last.first_entry + u64::from(last.entries),
        first_record: last.first_record + u64::from(last.records),
        durable_through: index,
        ..last
    };
    header.encode(&mut torn);
    torn[130] ^= 1;
    file.write_all_at(&torn, end).unwrap();
    drop(file);
    let (entries, stats) = reopen(&config);
    same(&entries, &contents);
    assert_eq!(
        (stats.quarantined_segments, stats.checksum_errors_total),
        (0, 0)
    );
    assert_eq!(blocks(&path).last().unwrap().1.kind, BlockKind::Seal);
}

#[test]
fn a_file_cut_in_its_last_block_keeps_the_blocks_before() {
    let dir = real_disk();
    let config = Config {
        compression: Compression::None,
        ..small(dir.path())
    };
    let mut contents = contents(3, 10);
    contents.push(vec![7; 9_000]);
    write(&config, &contents, false);
    let path = only_segment(dir.path());
    let (offset, _) = *data_blocks(&path).last().unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(offset + PAGE as u64)
        .unwrap();
    let (entries, stats) = reopen(&config);
    same(&entries, &contents[..10]);
    assert_eq!(stats.quarantined_segments, 0);
}

fn damage_in_the_middle(within: u64, sealed: bool) {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(4, 12);
    write(&config, &contents, sealed);
    let path = only_segment(dir.path());
    let length = fs::metadata(&path).unwrap().len();
    flip(&path, data_blocks(&path)[5].0 + within);
    let vault = open(&config);
    let entries = read_all(&vault, 1 << 20);
    let mut expected = contents.clone();
    expected.remove(5);
    same(&entries, &expected);
    let stats = vault.stats();
    assert_eq!(
        (
            stats.quarantined_segments,
            stats.quarantined_entries,
            stats.quarantined_records
        ),
        (1, 1, 1)
    );
    assert_eq!(stats.entries_pending, 11);
    assert!(stats.checksum_errors_total > 0);
    // Delivered or not, a damaged segment stays, and stays as it is.
    for entry in &entries {
        vault.settle(entry.id, 1);
    }
    vault.close().unwrap();
    let (entries, stats) = reopen(&config);
    assert!(
        entries.is_empty(),
        "settled entries of a damaged segment aren't read again"
    );
    assert_eq!(
        (
            stats.quarantined_segments,
            stats.quarantined_records,
            stats.entries_pending
        ),
        (1, 1, 0)
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), length);
}

#[test]
fn a_flipped_byte_in_a_payload_is_counted_and_the_rest_is_read() {
    damage_in_the_middle(200, true);
}

#[test]
fn a_flipped_byte_in_a_block_header_is_counted_and_the_rest_is_read() {
    damage_in_the_middle(30, true);
}

#[test]
fn damage_before_a_torn_tail_is_not_mistaken_for_one() {
    damage_in_the_middle(200, false);
    damage_in_the_middle(0, false);
}

#[test]
fn the_last_acknowledged_block_is_covered_once_the_lane_idles() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(5, 3);
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for result in append_all(&lane, 1, &contents).await {
            result.unwrap();
        }
        let path = only_segment(dir.path());
        while blocks(&path)
            .last()
            .is_none_or(|(_, header)| header.kind != BlockKind::Mark)
        {
            tokio::task::yield_now().await;
        }
    });
    vault.close().unwrap();
    let path = only_segment(dir.path());
    flip(&path, data_blocks(&path).last().unwrap().0 + 200);
    let (_, stats) = reopen(&config);
    assert_eq!(stats.quarantined_segments, 1);
}

/// A write that went astray: the mark that vouches for the last block lies in that block's place.
#[test]
fn a_block_that_a_later_one_lies_upon_is_no_torn_tail() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(6, 4);
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for content in &contents {
            lane.append(meta(1, 0), &[content]).await.unwrap();
        }
        let path = only_segment(dir.path());
        while blocks(&path)
            .last()
            .is_none_or(|(_, header)| header.kind != BlockKind::Mark)
        {
            tokio::task::yield_now().await;
        }
    });
    vault.close().unwrap();
    let path = only_segment(dir.path());
    let (lost, _) = *data_blocks(&path).last().unwrap();
    let (mark, _) = *blocks(&path).last().unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut page = [0; PAGE];
    file.read_exact_at(&mut page, mark).unwrap();
    file.write_all_at(&page, lost).unwrap();
    file.write_all_at(&[0; PAGE], mark).unwrap();
    drop(file);

    let directory = Directory::open(dir.path()).unwrap();
    let number = directory.segments()[0].number;
    let segment = directory.segment(number).unwrap();
    let summary = summarize(&directory, segment, Depth::Everything, &mut |_| {}).unwrap();
    assert_eq!(
        (summary.state, summary.lost_entries),
        (State::Damaged, 1),
        "{summary:?}"
    );
    assert_eq!(
        summary.damage[0].end - summary.damage[0].offset,
        PAGE as u64
    );
    let (entries, stats) = reopen(&config);
    same(&entries, &contents[..3]);
    assert_eq!(
        (stats.quarantined_segments, stats.quarantined_entries),
        (1, 1)
    );
}

#[test]
fn damage_met_while_reading_is_counted_once_and_read_past() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(6, 12);
    let vault = open(&config);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for content in &contents {
            lane.append(meta(1, 0), &[content]).await.unwrap();
        }
        let path = only_segment(dir.path());
        let blocks = data_blocks(&path);
        flip(&path, blocks[3].0 + 200);
        flip(&path, blocks[8].0 + 8);
        let mut expected = contents.clone();
        expected.remove(3);
        expected.remove(7);
        for _ in 0..2 {
            same(&read_all(&vault, 10_000), &expected);
            let stats = vault.stats();
            assert_eq!(
                (stats.quarantined_segments, stats.quarantined_records),
                (1, 2)
            );
            assert_eq!(
                (stats.checksum_errors_total, stats.entries_pending),
                (2, 10)
            );
        }
    });
}

#[test]
fn a_lost_piece_loses_its_entry_only() {
    let dir = real_disk();
    let config = Config {
        compression: Compression::None,
        ..small(dir.path())
    };
    let mut random = Random(8);
    let contents = vec![
        random.content(100),
        random.content(300_000),
        random.content(100),
    ];
    write(&config, &contents, true);
    let path = only_segment(dir.path());
    let pieces: Vec<_> = data_blocks(&path)
        .into_iter()
        .filter(|(_, header)| header.raw_len > 1000)
        .collect();
    assert!(pieces.len() > 2);
    flip(&path, pieces[1].0 + 5_000);
    let (entries, stats) = reopen(&config);
    same(&entries, &[contents[0].clone(), contents[2].clone()]);
    assert_eq!(
        (stats.quarantined_entries, stats.quarantined_records),
        (1, 1)
    );
}

#[test]
fn a_lost_piece_is_counted_while_the_vault_runs() {
    let mut random = Random(16);
    let contents = vec![
        random.content(100),
        random.content(300_000),
        random.content(100),
    ];
    // The first piece or one in the middle; its payload or its header; in a segment that is written or
    // sealed.
    for (piece, within) in [(0, 5_000), (0, 8), (1, 5_000), (1, 8)] {
        for seal in [false, true] {
            let case = format!("piece {piece}, byte {within}, sealed: {seal}");
            let dir = real_disk();
            let config = Config {
                compression: Compression::None,
                ..small(dir.path())
            };
            let vault = open(&config);
            on_worker(async {
                let lane = vault.lane(0).unwrap();
                for content in &contents {
                    lane.append(meta(1, 0), &[content]).await.unwrap();
                }
                if seal {
                    lane.shutdown().await.unwrap();
                }
                let path = only_segment(dir.path());
                let mut pieces = data_blocks(&path);
                pieces.retain(|(_, header)| header.raw_len > 1000);
                assert!(pieces.len() > 2);
                flip(&path, pieces[piece].0 + within);
                for _ in 0..2 {
                    let expected = [contents[0].clone(), contents[2].clone()];
                    same(&read_all(&vault, 10_000), &expected);
                    let stats = vault.stats();
                    let counted = (stats.quarantined_entries, stats.quarantined_records);
                    assert_eq!(counted, (1, 1), "{case}");
                    let left = (stats.entries_pending, stats.quarantined_segments);
                    assert_eq!(left, (2, 1), "{case}");
                }
            });
            vault.close().unwrap();
            let (entries, stats) = reopen(&config);
            assert_eq!(entries.len(), 2, "{case}");
            assert_eq!(stats.quarantined_entries, 1, "{case}, after a restart");
        }
    }
}

#[test]
fn a_lost_segment_header_loses_no_entry() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(9, 5);
    write(&config, &contents, true);
    flip(&only_segment(dir.path()), 20);
    let (entries, stats) = reopen(&config);
    same(&entries, &contents);
    assert_eq!(stats.quarantined_segments, 1);
}

#[test]
fn any_flipped_byte_is_harmless_or_counted() {
    let dir = real_disk();
    let config = Config {
        max_entry_bytes: 300_000,
        ..small(dir.path())
    };
    let mut random = Random(10);
    let contents: Vec<_> = (0..24)
        .map(|number| {
            let len = if number % 8 == 3 {
                200_000
            } else {
                random.below(8_000)
            };
            random.content(len)
        })
        .collect();
    write(&config, &contents, true);
    let path = only_segment(dir.path());
    let pristine = fs::read(&path).unwrap();
    for round in 0..60 {
        let mut damaged = pristine.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(damaged.len());
            damaged[at] ^= 1 << random.below(8);
        }
        fs::write(&path, &damaged).unwrap();
        let (entries, stats) = reopen(&config);
        for entry in &entries {
            let number = usize::try_from(entry.arrival_unix_ns).unwrap();
            assert!(
                entry.bytes == contents[number],
                "round {round}: entry {number} differs"
            );
        }
        let read = entries.len() as u64;
        assert_eq!(
            read + stats.quarantined_entries,
            24,
            "round {round}: {stats:?}"
        );
        assert_eq!(
            fs::read(&path).unwrap().len(),
            pristine.len(),
            "round {round}"
        );
    }
}

#[test]
fn an_acknowledged_block_of_the_next_segment_vouches_for_this_one() {
    for successor_acknowledged in [true, false] {
        let dir = real_disk();
        let config = Config {
            compression: Compression::None,
            ..small(dir.path())
        };
        let contents = vec![vec![5; 60_000]; 60];
        write(&config, &contents, true);
        let files: Vec<_> = segment_files(dir.path());
        let (first, second) = (&files[0], &files[1]);
        // As if its last block, its seal and the next segment had been in flight together.
        let all = blocks(first);
        let (seal, last) = (all.len() - 1, all.len() - 2);
        let known = all[last].1.index;
        rewrite(first, all[seal].0, |seal| seal.durable_through = known);
        edit(second, 0, PAGE, |page| {
            let header = SegmentHeader::decode(page).unwrap();
            SegmentHeader {
                previous_durable: known,
                previous_given_up: false,
                ..header
            }
            .encode(page);
        });
        if !successor_acknowledged {
            for (offset, _) in blocks(second) {
                rewrite(second, offset, |block| block.durable_through = 0);
            }
            reseal(second);
        }
        flip(first, all[last].0 + 200);
        let (entries, stats) = reopen(&config);
        let lost = u64::from(all[last].1.entries);
        assert_eq!(entries.len() as u64 + lost, 60);
        let expected = if successor_acknowledged {
            (1, lost)
        } else {
            (0, 0)
        };
        assert_eq!(
            (stats.quarantined_segments, stats.quarantined_entries),
            expected
        );
    }
}

#[test]
fn what_could_not_be_read_once_is_read_after_a_restart() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(12, 8);
    let vault = open(&config);
    let path = on_worker(async {
        let lane = vault.lane(0).unwrap();
        for (number, content) in contents.iter().enumerate() {
            let stored = meta(1, number as u64);
            let id = lane.append(stored, &[content]).await.unwrap();
            if number == 0 {
                vault.settle(id, 1);
            }
        }
        let path = only_segment(dir.path());
        // A header, a payload, and the last header, behind which nothing can be found.
        let blocks = data_blocks(&path);
        for at in [blocks[2].0 + 8, blocks[5].0 + 200, blocks[7].0] {
            flip(&path, at);
        }
        assert_eq!(read_all(&vault, 10_000).len(), 4);
        assert_eq!(vault.stats().quarantined_entries, 2);
        // More is appended, so that the last one's end is known.
        let more = lane.append(meta(1, 8), &[&contents[0]]).await.unwrap();
        assert_eq!(read_all(&vault, 10_000).len(), 5);
        assert_eq!(vault.stats().quarantined_entries, 3);
        vault.settle(more, 1);
        lane.shutdown().await.unwrap();
        for at in [blocks[2].0 + 8, blocks[5].0 + 200, blocks[7].0] {
            flip(&path, at);
        }
        path
    });
    vault.close().unwrap();
    assert!(path.exists());
    let (entries, stats) = reopen(&config);
    same(&entries, &contents[1..]);
    assert_eq!(
        (stats.quarantined_entries, stats.entries_pending),
        (0, 7),
        "a reader that fails settles nothing"
    );
}

#[test]
fn a_block_of_a_newer_version_is_kept() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(13, 4);
    write(&config, &contents, false);
    let path = only_segment(dir.path());
    let pristine = fs::read(&path).unwrap();
    let mut newer = pristine.clone();
    for (offset, _) in blocks(&path).into_iter().skip(2) {
        let header = &mut newer[usize::try_from(offset).unwrap()..][..128];
        header[4] = 2;
        let crc = crc32fast::hash(&header[..124]);
        header[124..].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&path, &newer).unwrap();
    let (entries, stats) = reopen(&config);
    same(&entries, &contents[..2]);
    assert_eq!(stats.quarantined_segments, 1);
    assert!(fs::read(&path).unwrap() == newer, "not a byte is changed");
}

#[test]
fn a_file_in_which_nothing_was_ever_acknowledged_is_removed() {
    // Of zeros; with what a crash has left of a block's first write; with a torn header.
    for stray in [None, Some(700_001), Some(9)] {
        let dir = real_disk();
        let config = small(dir.path());
        write(&config, &contents(14, 1), true);
        let path = dir.path().join("lane-00/00000000000000aa.gsv");
        let mut bytes = vec![0; 1 << 20];
        if let Some(at) = stray {
            bytes[at] = 1;
        }
        fs::write(&path, &bytes).unwrap();
        let (entries, stats) = reopen(&config);
        assert_eq!(entries.len(), 1);
        assert!(!path.exists(), "{stray:?}");
        assert_eq!(stats.quarantined_segments, 0);
    }
}

#[test]
fn what_was_delivered_before_the_damage_is_not_lost() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = contents(15, 6);
    let ids = write(&config, &contents, true);
    let vault = open(&config);
    assert_eq!(read_all(&vault, 1 << 20).len(), 6);
    vault.settle(ids[1], 1);
    vault.settle(ids[4], 1);
    vault.close().unwrap();
    let path = only_segment(dir.path());
    let blocks = data_blocks(&path);
    flip(&path, blocks[1].0 + 200);
    flip(&path, blocks[3].0 + 200);
    flip(&path, blocks[4].0 + 8);
    let (entries, stats) = reopen(&config);
    assert_eq!(entries.len(), 3);
    assert_eq!(
        (stats.quarantined_entries, stats.quarantined_records),
        (1, 1),
        "two of the three damaged blocks held nothing that is owed"
    );
}

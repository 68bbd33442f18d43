//! What is found in sealed segments that nobody asks for: rot, changed blocks, removed files.

mod vault_support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use gophership::vault::{
    Compression, Config, EntryId, Vault,
    chain::{self, ChainReport, State},
};
use vault_support::{
    Random, append_all, meta, on_worker, open, read_all, real_disk, scrub,
    segment::{blocks, data_blocks, edit, flip, forge_block, reseal},
    segment_files, small, wait_until,
};

/// One lane; blocks as they are, so that changing a byte changes a byte of an entry.
fn raw(dir: &Path) -> Config {
    Config {
        compression: Compression::None,
        ..small(dir)
    }
}

/// Appends `count` entries, a block each, and seals the segment; the vault goes on.
fn fill(vault: &Vault, seed: u64, count: usize) -> Vec<EntryId> {
    let mut random = Random(seed);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        for _ in 0..count {
            let content = random.content(5_000);
            ids.push(lane.append(meta(1, 0), &[content]).await.unwrap());
        }
        lane.shutdown().await.unwrap();
        ids
    })
}

/// Runs the vault `segments` times, a sealed segment each, until all are hashed.
fn write_chained(config: &Config, segments: u64) -> Vec<PathBuf> {
    for seed in 0..segments {
        let vault = open(config);
        fill(&vault, seed, 6);
        scrub(&vault);
        vault.close().unwrap();
    }
    let files = segment_files(&config.dir);
    assert_eq!(files.len() as u64, segments);
    files
}

fn verify(config: &Config) -> ChainReport {
    chain::verify(&config.dir.join("lane-00")).unwrap()
}

fn states(report: &ChainReport) -> Vec<State> {
    report
        .segments
        .iter()
        .map(|segment| segment.state)
        .collect()
}

#[test]
fn rot_is_found_before_anybody_reads_and_counted_once() {
    let dir = real_disk();
    let config = raw(dir.path());
    let vault = open(&config);
    fill(&vault, 1, 8);
    let path = segment_files(dir.path()).remove(0);
    let blocks = data_blocks(&path);
    flip(&path, blocks[2].0 + 300);
    flip(&path, blocks[5].0 + 8);
    assert_eq!(vault.stats().quarantined_segments, 0, "nothing has read it");
    scrub(&vault);
    for _ in 0..2 {
        let stats = vault.stats();
        assert_eq!(stats.quarantined_segments, 1);
        assert_eq!((stats.quarantined_records, stats.entries_pending), (2, 6));
        assert_eq!(stats.checksum_errors_total, 2);
        assert_eq!(read_all(&vault, 1 << 20).len(), 6);
    }
    let (scrubbed, length) = (vault.stats().scrubbed_bytes_total, fs::metadata(&path));
    assert!(scrubbed > 0 && scrubbed < length.unwrap().len());
    vault.close().unwrap();
    assert!(
        verify(&config).head.is_none(),
        "what is damaged isn't hashed"
    );
}

#[test]
fn a_delivered_entry_that_rots_is_an_alert_and_no_loss() {
    let dir = real_disk();
    let config = raw(dir.path());
    let vault = open(&config);
    let ids = fill(&vault, 2, 4);
    vault.settle(ids[1], 1);
    let path = segment_files(dir.path()).remove(0);
    flip(&path, data_blocks(&path)[1].0 + 300);
    scrub(&vault);
    let stats = vault.stats();
    assert_eq!(
        (stats.quarantined_segments, stats.quarantined_records),
        (1, 0)
    );
    assert_eq!(stats.entries_pending, 3);
    vault.close().unwrap();
}

#[test]
fn a_damaged_seal_is_an_alert_and_no_loss() {
    let dir = real_disk();
    let config = raw(dir.path());
    let vault = open(&config);
    fill(&vault, 3, 4);
    let path = segment_files(dir.path()).remove(0);
    flip(&path, blocks(&path).last().unwrap().0 + 20);
    scrub(&vault);
    let stats = vault.stats();
    assert_eq!(
        (stats.quarantined_segments, stats.quarantined_records),
        (1, 0)
    );
    assert_eq!(read_all(&vault, 1 << 20).len(), 4);
    vault.close().unwrap();
}

#[test]
fn without_weight_nothing_is_scrubbed() {
    let dir = real_disk();
    let vault = open(&raw(dir.path()));
    fill(&vault, 4, 4);
    assert_eq!(vault.background_weight(), 0, "until somebody allows it");
    wait_until("recovery is through", || !vault.stats().recovering);
    assert_eq!(vault.stats().scrubbed_bytes_total, 0);
    scrub(&vault);
    let stats = vault.stats();
    assert_eq!(stats.scrubbed_segments_total, 1);
    vault.set_background_weight(0);
    assert_eq!(
        vault.stats().scrubbed_bytes_total,
        stats.scrubbed_bytes_total
    );
    vault.close().unwrap();
}

#[test]
fn a_changed_block_with_its_own_checksums_mended_is_found_by_the_seals() {
    type Find = fn(&Vault);
    let by_reader: Find = |vault| drop(read_all(vault, 10_000));
    let by_scrub: Find = scrub;
    for find in [by_reader, by_scrub] {
        let dir = real_disk();
        let config = raw(dir.path());
        let vault = open(&config);
        fill(&vault, 5, 6);
        let path = segment_files(dir.path()).remove(0);
        forge_block(&path, 3);
        find(&vault);
        let stats = vault.stats();
        assert_eq!(stats.quarantined_segments, 1);
        assert_eq!(stats.quarantined_records, 0, "all of it can be read");
        assert_eq!(read_all(&vault, 10_000).len(), 6);
        assert_eq!(vault.stats().checksum_errors_total, 1, "reported once");
        vault.close().unwrap();
        // And by recovery, before anybody reads.
        let vault = open(&config);
        wait_until("recovery is through", || !vault.stats().recovering);
        assert_eq!(vault.stats().quarantined_segments, 1);
        assert_eq!(read_all(&vault, 10_000).len(), 6);
        vault.close().unwrap();
    }
}

#[test]
fn whole_segments_are_never_quarantined_by_the_seals_checksum() {
    let dir = real_disk();
    let config = Config {
        max_entry_bytes: 400_000,
        ..small(dir.path())
    };
    let mut random = Random(6);
    for round in 0..4_u64 {
        let vault = open(&config);
        let contents: Vec<_> = (0..30)
            .map(|number| {
                let len = if number % 10 == 4 { 300_000 } else { 3_000 };
                random.content(len)
            })
            .collect();
        on_worker(async {
            let lane = vault.lane(0).unwrap();
            for result in append_all(&lane, 1, &contents).await {
                result.unwrap();
            }
            // Every other run as if the process had died, so that recovery seals.
            if round % 2 == 0 {
                lane.shutdown().await.unwrap();
            }
        });
        scrub(&vault);
        assert_eq!(read_all(&vault, 200_000).len() as u64, 30 * (round + 1));
        assert_eq!(vault.stats().quarantined_segments, 0);
        vault.close().unwrap();
    }
    let vault = open(&config);
    scrub(&vault);
    assert_eq!(vault.stats().quarantined_segments, 0);
    vault.close().unwrap();
    let report = verify(&config);
    assert!(report.is_intact(), "{report:?}");
    assert!(report.segments.len() >= 4);
    assert!(
        states(&report).iter().all(|&state| state == State::Intact),
        "{report:?}"
    );
}

#[test]
fn a_changed_block_with_all_checksums_mended_is_found_by_its_hash() {
    let dir = real_disk();
    let config = raw(dir.path());
    let files = write_chained(&config, 3);
    assert!(verify(&config).is_intact());
    forge_block(&files[1], 2);
    reseal(&files[1]);
    let report = verify(&config);
    assert_eq!(
        states(&report),
        [State::Intact, State::Altered, State::Intact]
    );
    assert!(!report.is_intact());
    let vault = open(&config);
    assert_eq!(read_all(&vault, 1 << 20).len(), 18);
    assert_eq!(vault.stats().quarantined_segments, 0, "the checksums match");
    scrub(&vault);
    assert_eq!(vault.stats().quarantined_segments, 1);
    vault.close().unwrap();
}

#[test]
fn a_removal_by_the_vault_is_told_from_one_by_hand() {
    let dir = real_disk();
    let config = raw(dir.path());
    let files = write_chained(&config, 4);
    let vault = open(&config);
    let entries = read_all(&vault, 1 << 20);
    let first = entries[0].id.segment;
    for entry in entries.iter().filter(|entry| entry.id.segment == first) {
        vault.settle(entry.id, 1);
    }
    wait_until("the settled segment is removed", || !files[0].exists());
    vault.close().unwrap();
    fs::remove_file(&files[2]).unwrap();
    flip(&files[3], data_blocks(&files[3])[1].0 + 300);
    let report = verify(&config);
    let states = states(&report);
    assert_eq!(states[..3], [State::Removed, State::Intact, State::Missing]);
    assert!(
        matches!(states[3], State::Damaged { reason, .. } if reason.contains("checksum")),
        "{states:?}"
    );
    assert!(report.segments.iter().all(|segment| segment.is_linked));
    assert!(!report.is_intact());
}

#[test]
fn a_changed_or_removed_record_breaks_the_chain() {
    const HEADER: u64 = 64;
    const RECORD: usize = 192;
    let dir = real_disk();
    let config = raw(dir.path());
    write_chained(&config, 4);
    let manifest = dir.path().join("lane-00/manifest");
    let pristine = fs::read(&manifest).unwrap();
    let offset = HEADER + RECORD as u64;
    edit(&manifest, offset, RECORD, |record| {
        record[64] ^= 1;
        let crc = crc32fast::hash(&record[..RECORD - 4]);
        record[RECORD - 4..].copy_from_slice(&crc.to_le_bytes());
    });
    let report = verify(&config);
    let linked: Vec<_> = report.segments.iter().map(|s| s.is_linked).collect();
    assert_eq!(linked, [true, false, true, true]);
    assert_eq!(report.segments[1].state, State::Altered);

    let mut cut = pristine.clone();
    cut.drain(64 + RECORD..64 + 2 * RECORD);
    fs::write(&manifest, &cut).unwrap();
    let report = verify(&config);
    assert_eq!(report.missing_places, 1);
    assert_eq!(report.segments.last().unwrap().state, State::Unchained);
    assert!(!report.is_intact());

    fs::write(&manifest, &pristine[..pristine.len() - 10]).unwrap();
    let report = verify(&config);
    assert_eq!((report.torn_bytes, report.damaged_records), (182, 0));
    assert!(
        report.is_intact(),
        "a torn last record is no fault: {report:?}"
    );
    // The vault hashes the segment again and writes the record over what was torn.
    let vault = open(&config);
    scrub(&vault);
    vault.close().unwrap();
    assert_eq!(fs::read(&manifest).unwrap(), pristine);

    flip(&manifest, 20);
    let refused = chain::verify(&config.dir.join("lane-00")).unwrap_err();
    assert!(refused.to_string().contains("manifest"), "{refused}");
    let vault = open(&config);
    scrub(&vault);
    vault.close().unwrap();
    assert!(manifest.with_extension("damaged").exists());
    assert!(verify(&config).is_intact(), "the chain began anew");
}

#[test]
fn a_directory_that_is_no_lane_is_refused() {
    let dir = real_disk();
    let refused = chain::verify(dir.path()).unwrap_err();
    assert!(refused.to_string().contains("lane"), "{refused}");
}

//! How much is read of a segment, however much of it is damaged: at most a few times its length.

#[path = "vault_reads/counting.rs"]
mod counting;
#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use counting::{Counting, Counts};
use gophership::vault::{
    Background, Config, Stats, Vault,
    entry::{Part, PieceHeader},
    format::{BLOCK_HEADER, BlockHeader, BlockKind, Codec, PAGE, SegmentHeader},
    inspect::{Depth, Directory, Ending, Owner, summarize},
    platform::Platform,
};
use vault_support::{meta, real_disk, small};

/// Blocks of a crafted segment, a page each.
const BLOCKS: u32 = 4_200;
/// Blocks that a lane has in flight: so far behind is what a block knows to be durable.
const IN_FLIGHT: u32 = 4;
/// How often each byte may be read, in all.
const TIMES_MAX: u64 = 6;
const SEGMENT: u64 = 1;
const TAG: u64 = 0x7a6;

/// What is done to a block before it is written.
type Harm = fn(u32, &mut BlockHeader, &mut [u8]);

/// Writes a sealed segment of which `harm` has seen every block; gives its length.
fn craft(dir: &Path, number: u64, previous: u64, blocks: u32, harm: Harm) -> u64 {
    let mut file = vec![0; PAGE];
    SegmentHeader {
        lane: 0,
        segment: number,
        tag: TAG,
        previous,
        previous_durable: 0,
        previous_given_up: false,
        is_ready: false,
        created_unix_ns: 1,
        bytes: u64::from(blocks + 2) * PAGE as u64,
        host: [0; 16],
    }
    .encode(&mut file);
    let mut crc = crc32fast::Hasher::new();
    for index in 0..=blocks {
        let mut block = block(number, index, blocks);
        let payload = payload(index, &mut block);
        block.segment_crc = crc.clone().finalize();
        let mut page = vec![0; PAGE];
        page[BLOCK_HEADER..][..payload.len()].copy_from_slice(&payload);
        let mut header = block;
        header.encode(&mut page);
        harm(index, &mut header, &mut page);
        crc.update(&header.own_crc_fields());
        file.extend_from_slice(&page);
    }
    fs::write(dir.join(format!("lane-00/{number:016x}.gsv")), &file).unwrap();
    file.len() as u64
}

fn block(number: u64, index: u32, blocks: u32) -> BlockHeader {
    let is_seal = index == blocks;
    BlockHeader {
        kind: if is_seal {
            BlockKind::Seal
        } else {
            BlockKind::Data
        },
        codec: Codec::Raw,
        segment: number,
        tag: TAG,
        index,
        entries: u32::from(!is_seal),
        first_entry: index.into(),
        first_record: index.into(),
        records: u32::from(!is_seal),
        raw_len: 0,
        stored_len: 0,
        durable_through: if is_seal {
            index
        } else {
            index.saturating_sub(IN_FLIGHT)
        },
        wall_unix_ns: 1,
        monotonic_ns: 1,
        zone: 0,
        cause: 0,
        segment_crc: 0,
        payload_crc: crc32fast::hash(&[]),
    }
}

/// One small entry; nothing for the seal.
fn payload(index: u32, block: &mut BlockHeader) -> Vec<u8> {
    if block.kind == BlockKind::Seal {
        return Vec::new();
    }
    let content = index.to_le_bytes();
    let piece = PieceHeader::new(&meta(1, index.into()), Part::Whole, 4, 0, 4);
    let payload = [&piece.encode()[..], &content].concat();
    block.raw_len = u32::try_from(payload.len()).unwrap();
    block.stored_len = block.raw_len;
    block.payload_crc = crc32fast::hash(&payload);
    payload
}

fn nothing(_: u32, _: &mut BlockHeader, _: &mut [u8]) {}

/// The header's checksum doesn't match.
fn headers(index: u32, _: &mut BlockHeader, page: &mut [u8]) {
    if index.is_multiple_of(2) && index < BLOCKS {
        page[30] ^= 1;
    }
}

fn payloads(index: u32, _: &mut BlockHeader, page: &mut [u8]) {
    if !index.is_multiple_of(3) && index < BLOCKS {
        page[BLOCK_HEADER + 5] ^= 1;
    }
}

/// No block knows of another, and every other one is of another version: nothing but that speaks for damage.
fn versions(index: u32, header: &mut BlockHeader, page: &mut [u8]) {
    header.durable_through = 0;
    header.encode(page);
    if index.is_multiple_of(2) && index < BLOCKS {
        page[4] = 2;
        let crc = crc32fast::hash(&page[..124]);
        page[124..128].copy_from_slice(&crc.to_le_bytes());
    }
}

/// No block knows of another: only the seal, and what the next segment knows, vouch.
fn payloads_under_a_seal(index: u32, header: &mut BlockHeader, page: &mut [u8]) {
    header.durable_through = 0;
    header.encode(page);
    payloads(index, header, page);
}

fn empty_vault(dir: &Path) -> Config {
    let config = small(dir);
    vault_support::open(&config).close().unwrap();
    config
}

fn recovered(config: &Config) -> (Vault, Background, Arc<Counts>) {
    let (machine, counts) = Counting::new();
    let (vault, mut background) = Vault::open_on(machine, config, &["main".to_owned()]).unwrap();
    background.recover();
    (vault, background, counts)
}

/// Recovers, reads everything, and looks at it, each of which may read only so much.
fn check(config: &Config, bytes: u64, is_bad: bool) -> (usize, Stats) {
    let (machine, counts) = Counting::new();
    counts.set_bad(is_bad);
    let within = |what: &str, counts: &Counts| {
        let (read, reads) = counts.take();
        assert!(read <= TIMES_MAX * bytes, "{what}: {read} of {bytes} bytes");
        let pages = bytes / PAGE as u64;
        assert!(reads <= TIMES_MAX * pages, "{what}: {reads}, {pages} pages");
    };
    let inspect = || {
        let directory = Directory::open_on(machine.clone(), &config.dir).unwrap();
        let segment = directory.segment(SEGMENT).unwrap();
        counts.take();
        for depth in [Depth::Everything, Depth::Needed, Depth::Headers] {
            let summary = summarize(&directory, segment, depth, &mut |_| {}).unwrap();
            within(&format!("inspection, {depth:?}"), &counts);
            assert_eq!(summary.walked.entries, u64::from(BLOCKS));
        }
    };
    inspect();
    let names = ["main".to_owned()];
    let (vault, mut background) = Vault::open_on(machine.clone(), config, &names).unwrap();
    // With an owner, what looks damaged is looked at twice.
    inspect();
    counts.take();
    background.recover();
    within("recovery", &counts);
    let mut reader = vault.reader();
    let mut found = 0;
    loop {
        let batch = reader.next(64 << 10, u32::MAX).unwrap();
        if batch.is_empty() {
            break;
        }
        found += batch.len();
    }
    within("reading", &counts);
    (found, vault.stats())
}

#[test]
fn thousands_of_damaged_places_are_read_a_few_times() {
    for (harm, lost) in [
        (nothing as Harm, 0),
        (headers, BLOCKS / 2),
        (payloads, BLOCKS - BLOCKS / 3),
        (versions, BLOCKS / 2),
    ] {
        let dir = real_disk();
        let config = empty_vault(dir.path());
        let bytes = craft(dir.path(), SEGMENT, 0, BLOCKS, harm);
        let (found, stats) = check(&config, bytes, false);
        assert_eq!(found as u64, u64::from(BLOCKS - lost));
        assert_eq!(stats.quarantined_entries, u64::from(lost));
    }
}

#[test]
fn the_next_segment_is_asked_once_whether_it_vouches() {
    // It vouches only in its last blocks, if at all.
    fn late(index: u32, header: &mut BlockHeader, page: &mut [u8]) {
        header.durable_through = index.saturating_sub(BLOCKS - 2);
        header.encode(page);
    }
    let dir = real_disk();
    let config = empty_vault(dir.path());
    let bytes = craft(dir.path(), SEGMENT, 0, BLOCKS, payloads_under_a_seal)
        + craft(dir.path(), SEGMENT + 1, SEGMENT, BLOCKS, late);
    let (found, stats) = check(&config, bytes, false);
    let lost = BLOCKS - BLOCKS / 3;
    assert_eq!(found as u64, u64::from(2 * BLOCKS - lost));
    assert_eq!(stats.quarantined_entries, u64::from(lost));
}

#[test]
fn thousands_of_pages_that_cannot_be_read_are_tried_a_few_times() {
    let dir = real_disk();
    let config = empty_vault(dir.path());
    let bytes = craft(dir.path(), SEGMENT, 0, BLOCKS, nothing);
    let (found, stats) = check(&config, bytes, true);
    assert_eq!(found as u64, u64::from(BLOCKS / 2));
    assert_eq!(stats.quarantined_entries, u64::from(BLOCKS / 2));
}

/// Nothing vouches for anything, as far as it can be read.
fn unvouched(index: u32, header: &mut BlockHeader, page: &mut [u8]) {
    header.durable_through = 0;
    header.encode(page);
    if index == 0 {
        page[30] ^= 1;
    }
}

#[test]
fn nothing_is_cut_off_while_what_may_vouch_for_it_cannot_be_read() {
    let dir = real_disk();
    let config = empty_vault(dir.path());
    let bytes = craft(dir.path(), SEGMENT, 0, 64, unvouched);
    let path = dir.path().join(format!("lane-00/{SEGMENT:016x}.gsv"));
    let names = ["main".to_owned()];
    let (machine, counts) = Counting::new();
    counts.set_bad(true);
    let (vault, mut background) = Vault::open_on(machine, &config, &names).unwrap();
    background.recover();
    assert_eq!(vault.stats().quarantined_segments, 1);
    vault.close().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes, "kept whole");
    drop((vault, background));
    // Without anything that vouches, and all of it read, it is a torn end.
    let (vault, ..) = recovered(&config);
    assert_eq!(vault.stats().quarantined_segments, 0);
    assert!(fs::metadata(&path).unwrap().len() < bytes, "cut");
}

#[test]
fn rot_in_thousands_of_places_is_scrubbed_by_reading_a_few_times() {
    let dir = real_disk();
    let config = empty_vault(dir.path());
    let bytes = craft(dir.path(), SEGMENT, 0, BLOCKS, nothing);
    let (vault, mut background, counts) = recovered(&config);
    assert_eq!(vault.stats().entries_pending, u64::from(BLOCKS));
    craft(dir.path(), SEGMENT, 0, BLOCKS, headers);
    vault.set_background_weight(1000);
    counts.take();
    vault_support::wait_until("all is scrubbed", || {
        background.scrub();
        vault.stats().scrubbed_segments_total > 0
    });
    assert_eq!(vault.stats().quarantined_entries, u64::from(BLOCKS / 2));
    let (read, _) = counts.take();
    assert!(read <= TIMES_MAX * bytes, "{read} of {bytes} bytes");
}

#[test]
fn a_segment_that_is_recycled_while_it_is_looked_at_is_gone_and_not_damaged() {
    let dir = real_disk();
    let config = empty_vault(dir.path());
    craft(dir.path(), SEGMENT, 0, BLOCKS, nothing);
    let path = dir.path().join(format!("lane-00/{SEGMENT:016x}.gsv"));
    let next = path.with_file_name(format!("{:016x}.gsv", SEGMENT + 1));
    let (machine, counts) = Counting::new();
    let _lock = machine.lock(&config.dir.join("lock")).unwrap();
    let directory = Directory::open_on(machine, &config.dir).unwrap();
    assert!(matches!(directory.owner(), Owner::Daemon(_)));
    counts.before_reading(5 << 20, move || {
        fs::rename(&path, &next).unwrap();
        let file = OpenOptions::new().write(true).open(&next).unwrap();
        let other = vec![7; usize::try_from(BLOCKS).unwrap() * PAGE];
        file.write_all_at(&other, 0).unwrap();
    });
    let segment = directory.segment(SEGMENT).unwrap();
    let summary = summarize(&directory, segment, Depth::Everything, &mut |_| {}).unwrap();
    assert_eq!(
        (summary.walked.ending, summary.damage),
        (Ending::Gone, vec![])
    );
}

//! The manifests as the daemon keeps them.

use std::fs;

use super::*;
use crate::vault::{
    format::{BlockHeader, BlockKind, Codec},
    ledger::Ledger,
    platform::Os,
    walk::Position,
};

const PLATFORM: Os = Os::to_read();
const LANE: u16 = 0;

fn segment(number: u64) -> Arc<Segment> {
    let ledger = Ledger::new(1);
    let segment = Segment::new(number, LANE, number ^ 0x55, PathBuf::new(), 4096, ledger);
    segment.begin();
    Arc::new(segment)
}

fn content(number: u64) -> Content {
    let seal = BlockHeader {
        kind: BlockKind::Seal,
        codec: Codec::Raw,
        segment: number,
        tag: number ^ 0x55,
        index: 3,
        entries: 0,
        first_entry: 12,
        first_record: 40,
        records: 0,
        raw_len: 0,
        stored_len: 0,
        durable_through: 3,
        wall_unix_ns: 1_000 + number,
        monotonic_ns: 0,
        zone: 0,
        cause: 0,
        segment_crc: 77,
        payload_crc: 0,
    };
    Content {
        seal,
        position: Position::START,
        blocks: 3,
        crc: 77,
        hash: *blake3::hash(&number.to_le_bytes()).as_bytes(),
    }
}

fn image(dir: &Path) -> Image {
    read(&PLATFORM, &directory::lane_dir(dir, LANE).join(NAME))
        .unwrap()
        .unwrap()
        .unwrap()
}

fn vault() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(directory::lane_dir(dir.path(), LANE)).unwrap();
    dir
}

#[test]
fn a_manifest_stays_bounded_and_keeps_what_is_on_disk() {
    let dir = vault();
    let dir = dir.path();
    let chains = Chains::default();
    // One that stays, as a quarantined one does, and very many that come and go.
    for number in 1..=3 * REMOVED_KEPT {
        let segment = segment(number);
        chains
            .add(&PLATFORM, dir, &segment, &content(number))
            .unwrap();
        if number != 5 {
            chains.note_removal(&PLATFORM, dir, &[segment]);
        }
        let bytes = image(dir).whole_bytes;
        assert!(bytes < 5 * REMOVED_KEPT * RECORD as u64, "{bytes} bytes");
    }
    let last = chains
        .find(&PLATFORM, dir, &segment(3 * REMOVED_KEPT))
        .unwrap();
    assert_eq!(last.place, 3 * REMOVED_KEPT - 1);
    assert!(image(dir).compacted_below > 0);
    // As the next start, and anybody who verifies, finds it.
    let reopened = Chains::default();
    assert_eq!(
        reopened.find(&PLATFORM, dir, &segment(5)).unwrap().number,
        5
    );
    assert_eq!(reopened.find(&PLATFORM, dir, &segment(6)), None);
    let next = segment(9_999);
    reopened
        .add(&PLATFORM, dir, &next, &content(9_999))
        .unwrap();
    let next = reopened.find(&PLATFORM, dir, &next).unwrap();
    assert_eq!((next.place, next.before), (last.place + 1, last.chained));
    let report = verify(&directory::lane_dir(dir, LANE)).unwrap();
    assert_eq!(report.head, Some(next.chained));
    assert_eq!((report.missing_places, report.damaged_records), (0, 0));
    assert!(report.compacted_places > 0);
    assert!(report.segments.iter().all(|segment| segment.is_linked));
    for found in &report.segments {
        let expected = match found.number {
            5 | 9_999 => State::Missing,
            _ => State::Removed,
        };
        assert_eq!(found.state, expected, "segment {}", found.number);
    }
}

#[test]
fn a_segment_that_is_being_removed_is_not_chained() {
    let dir = vault();
    let chains = Chains::default();
    let segment = segment(1);
    chains.note_removal(&PLATFORM, dir.path(), &[Arc::clone(&segment)]);
    chains
        .add(&PLATFORM, dir.path(), &segment, &content(1))
        .unwrap();
    assert_eq!(chains.find(&PLATFORM, dir.path(), &segment), None);
    assert!(!directory::lane_dir(dir.path(), LANE).join(NAME).exists());
}

#[test]
fn a_manifest_of_a_newer_version_is_left_alone() {
    let dir = vault();
    let path = directory::lane_dir(dir.path(), LANE).join(NAME);
    let mut bytes = manifest::encode(LANE, 0, &[]);
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let chains = Chains::default();
    let segment = segment(1);
    chains
        .add(&PLATFORM, dir.path(), &segment, &content(1))
        .unwrap();
    chains.note_removal(&PLATFORM, dir.path(), &[segment]);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let refused = verify(&directory::lane_dir(dir.path(), LANE)).unwrap_err();
    assert!(refused.to_string().contains("version 2"), "{refused}");
}

//! What is asked of a slot of cursors.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Bitmap, CursorWriter, Cursors, Ledger, PathBuf, SLOTS, Segment, decode};
use crate::vault::{
    entry::DestMask,
    platform::{Os, Platform, Rung},
};

/// Most entries that are written again; a whole segment's take a while.
const ENTRIES_WRITTEN: u64 = 1 << 17;

/// Reads a slot, writes what it says into `dir`, and reads that.
pub fn check(bytes: &[u8], dir: &Path) {
    let Some(cursors) = decode(bytes) else {
        return;
    };
    assert!(
        cursors.segments.len() <= bytes.len() / 24,
        "no more segments than heads"
    );
    let bitmaps = cursors
        .segments
        .values()
        .flat_map(|settled| &settled.bitmaps);
    let held: usize = bitmaps
        .map(|bitmap| match bitmap {
            Bitmap::None | Bitmap::All => 1,
            Bitmap::Some(bits) => bits.len(),
        })
        .sum();
    assert!(held <= bytes.len(), "{held} bytes of bitmaps");
    let entries = cursors
        .segments
        .values()
        .map(|settled| u64::from(settled.entries));
    if entries.sum::<u64>() > ENTRIES_WRITTEN {
        return;
    }
    let segments: BTreeMap<_, _> = cursors
        .segments
        .iter()
        .map(|(&(number, tag), settled)| {
            let mut ledger = Ledger::new(settled.bitmaps.len());
            for _ in 0..settled.entries {
                ledger.push(DestMask::MAX, 1, false);
            }
            cursors.apply(number, tag, &mut ledger);
            let segment = Segment::new(number, 0, tag, PathBuf::new(), 0, ledger);
            ((number, tag), Arc::new(segment))
        })
        .collect();
    let segments: Vec<_> = segments.into_values().collect();
    let cursors = Arc::new(cursors);
    let mut recovered = CursorWriter::new(dir, Arc::clone(&cursors));
    recovered.recovered();
    written_again(&cursors, recovered, &segments, dir);
    // Recovery hasn't read any of them.
    written_again(
        &cursors,
        CursorWriter::new(dir, Arc::clone(&cursors)),
        &[],
        dir,
    );
}

/// Writes the cursors of `segments` into `dir`: what is read then is what it was.
fn written_again(
    cursors: &Cursors,
    mut writer: CursorWriter,
    segments: &[Arc<Segment>],
    dir: &Path,
) {
    let platform = Os::on(Rung::Buffered);
    for slot in SLOTS {
        let _ = platform.remove(&dir.join(slot));
    }
    writer.gather(cursors.next_segment, cursors.books.clone(), segments);
    writer.write(&platform).expect("a slot can be written");
    let (again, damaged) = Cursors::read_noting(&platform, dir).expect("a slot can be read");
    assert!(damaged.is_empty(), "{damaged:?}");
    assert_eq!(again.generation, cursors.generation + 1);
    assert_eq!(again.next_segment, cursors.next_segment);
    assert_eq!(again.books, cursors.books);
    assert_eq!(again.segments.len(), cursors.segments.len());
    for (&(number, tag), settled) in &cursors.segments {
        // One beyond the end, which nobody has settled.
        for entry in 0..=u64::from(settled.entries) {
            let mask = cursors.settled_by(number, tag, entry);
            assert_eq!(again.settled_by(number, tag, entry), mask);
            let all = mask.count_ones() as usize == settled.bitmaps.len();
            let unsettled = cursors.unsettled(number, tag, entry..entry + 1);
            assert_eq!(unsettled == 0, all && entry < u64::from(settled.entries));
        }
    }
}

//! What is settled, durably: two checksummed files written in turn, so that one is always whole.
//!
//! ```text
//!  0  u64  magic "GSVCURSR"
//!  8  u16  version (1)   10 u16 zero
//! 12  u32  segments
//! 16  u64  generation; the slot with the higher one counts
//! 24  u64  no segment had this number or a higher one yet
//! 32  …    for each segment:
//!            u64 number   u64 tag   u32 entries   u32 destinations
//!            for each destination: u8 form: 0 none settled, 1 all settled, 2 a bitmap follows
//!              (entries / 8 bytes, rounded up; bit i of byte j: entry 8 j + i is settled)
//!      u32  CRC32 of everything before
//! ```
//!
//! A cursor counts for a segment only if its tag matches too, so a number that comes again after a
//! crash never inherits what was settled of another segment.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    bytes::{u16_at, u32_at, u64_at},
    entry::DestMask,
    error::{Error, io_error},
    format::{ENTRIES_MAX, NUMBERS_END},
    ledger::Ledger,
    platform::Platform,
    segment::Segment,
};

const MAGIC: u64 = u64::from_le_bytes(*b"GSVCURSR");
const VERSION: u16 = 1;
const HEAD: usize = 32;
/// Most bytes of a slot that are read: 16,000 full segments of one destination have so many.
const BYTES_MAX: u64 = 128 << 20;
const SLOTS: [&str; 2] = ["cursors-a", "cursors-b"];

/// What one slot says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Cursors {
    /// Which writing this is.
    pub(super) generation: u64,
    /// Lowest number a new segment may have.
    pub(super) next_segment: u64,
    segments: HashMap<(u64, u64), Settled>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Settled {
    entries: u32,
    /// By destination.
    bitmaps: Vec<Bitmap>,
}

/// Which entries one destination has, in no more memory than in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bitmap {
    None,
    All,
    Some(Vec<u8>),
}

impl Cursors {
    /// Reads the newer of the two slots that is whole; nothing settled if there is none.
    ///
    /// # Errors
    /// A slot exists but can't be read.
    pub(super) fn read(platform: &dyn Platform, dir: &Path) -> Result<Self, Error> {
        let (newest, damaged) = Self::read_noting(platform, dir)?;
        for note in damaged {
            tracing::warn!("{note}");
        }
        Ok(newest)
    }

    /// As [`Cursors::read`], with what is to be said about slots that aren't whole.
    ///
    /// # Errors
    /// A slot exists but can't be read.
    pub(super) fn read_noting(
        platform: &dyn Platform,
        dir: &Path,
    ) -> Result<(Self, Vec<String>), Error> {
        let (mut newest, mut damaged) = (Self::default(), Vec::new());
        for name in SLOTS {
            let path = dir.join(name);
            let bytes = match platform.read(&path, BYTES_MAX) {
                Ok(bytes) => bytes,
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(io_error("reading", path)(source)),
            };
            match decode(&bytes) {
                Some(slot) if slot.generation >= newest.generation => newest = slot,
                Some(_) => {}
                // A crash while writing leaves this; the other slot has the last whole state.
                None => damaged.push(format!(
                    "{}: the cursor slot is torn or damaged and not used",
                    path.display()
                )),
            }
        }
        Ok((newest, damaged))
    }

    /// How many of `entries` some destination may still want.
    #[must_use]
    pub(super) fn unsettled(&self, number: u64, tag: u64, entries: Range<u64>) -> u64 {
        let settled = self.segments.get(&(number, tag));
        entries
            .filter(|&entry| !settled.is_some_and(|settled| settled.has(entry)))
            .count() as u64
    }

    /// Destinations that needn't get an entry any more.
    #[must_use]
    pub(super) fn settled_by(&self, number: u64, tag: u64, entry: u64) -> DestMask {
        let at = usize::try_from(entry).unwrap_or(usize::MAX);
        let Some(settled) = self
            .segments
            .get(&(number, tag))
            .filter(|settled| entry < u64::from(settled.entries))
        else {
            return 0;
        };
        (0..)
            .zip(&settled.bitmaps)
            .filter(|(_, bitmap)| bitmap.has(at))
            .fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    /// Who is owed all of `entries`, and everybody else none of them; `None` if that differs from entry to entry or
    /// isn't known without reading them.
    #[must_use]
    pub(super) fn owed_alike(
        &self,
        number: u64,
        tag: u64,
        mut entries: Range<u64>,
        destinations: usize,
    ) -> Option<DestMask> {
        let settled = self.segments.get(&(number, tag))?;
        if entries.end > u64::from(settled.entries) || settled.bitmaps.len() != destinations {
            return None;
        }
        let known = u32::try_from((1_u64 << destinations) - 1).ok()?;
        let first = self.settled_by(number, tag, entries.next()?);
        entries
            .all(|entry| self.settled_by(number, tag, entry) == first)
            .then_some(known & !first)
    }

    /// Takes what is settled of a recovered segment out of its ledger.
    pub(super) fn apply(&self, number: u64, tag: u64, ledger: &mut Ledger) {
        let Some(settled) = self.segments.get(&(number, tag)) else {
            return;
        };
        for (bit, bitmap) in settled
            .bitmaps
            .iter()
            .enumerate()
            .take(DestMask::BITS as usize)
        {
            if *bitmap == Bitmap::None {
                continue;
            }
            for index in 0..settled.entries {
                if bitmap.has(index as usize) {
                    ledger.settle(index, 1 << bit);
                }
            }
        }
    }
}

impl Settled {
    fn has(&self, entry: u64) -> bool {
        let at = usize::try_from(entry).unwrap_or(usize::MAX);
        entry < u64::from(self.entries) && self.bitmaps.iter().all(|bitmap| bitmap.has(at))
    }
}

impl Bitmap {
    /// Whether an entry of the segment is settled.
    fn has(&self, at: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(bits) => bits[at / 8] & (1 << (at % 8)) != 0,
        }
    }
}

/// Writes slots in turn.
#[derive(Debug)]
pub(super) struct CursorWriter {
    dir: PathBuf,
    generation: u64,
    bytes: Vec<u8>,
}

impl CursorWriter {
    /// Goes on after `last` in `dir`.
    #[must_use]
    pub(super) fn new(dir: &Path, last: &Cursors) -> Self {
        Self {
            dir: dir.to_path_buf(),
            generation: last.generation,
            bytes: Vec::new(),
        }
    }

    /// Writes what is settled of `segments` to the older slot, durably.
    ///
    /// # Errors
    /// The slot can't be written; the other one still counts.
    pub(super) fn write<'a>(
        &mut self,
        platform: &dyn Platform,
        next_segment: u64,
        segments: impl Iterator<Item = &'a Segment>,
    ) -> Result<(), Error> {
        let generation = self.generation + 1;
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&u32::from(VERSION).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&next_segment.to_le_bytes());
        let mut count = 0_u32;
        for segment in segments {
            encode_segment(segment, bytes);
            count += 1;
        }
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        let crc = crc32fast::hash(bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let slot = if generation.is_multiple_of(2) {
            SLOTS[0]
        } else {
            SLOTS[1]
        };
        let path = self.dir.join(slot);
        let created = !platform.exists(&path);
        platform
            .write(&path, bytes)
            .map_err(io_error("writing", &path))?;
        if created {
            super::directory::sync_dir(platform, &self.dir)?;
        }
        self.generation = generation;
        Ok(())
    }
}

fn encode_segment(segment: &Segment, bytes: &mut Vec<u8>) {
    let ledger = segment.ledger();
    let entries = u32::try_from(ledger.len())
        .unwrap_or(ENTRIES_MAX)
        .min(ENTRIES_MAX);
    let destinations = u32::try_from(ledger.destinations()).unwrap_or(DestMask::BITS);
    bytes.extend_from_slice(&segment.number.to_le_bytes());
    bytes.extend_from_slice(&segment.tag.to_le_bytes());
    bytes.extend_from_slice(&entries.to_le_bytes());
    bytes.extend_from_slice(&destinations.to_le_bytes());
    for bit in 0..destinations as usize {
        let start = bytes.len();
        bytes.push(2);
        let mut settled = 0;
        for word in ledger.settled(bit) {
            settled += word.count_ones();
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(start + 1 + entries.div_ceil(8) as usize);
        if settled == 0 || settled == entries {
            bytes[start] = u8::from(settled != 0);
            bytes.truncate(start + 1);
        }
    }
}

fn decode(bytes: &[u8]) -> Option<Cursors> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let whole = body.len() >= HEAD
        && u64_at(body, 0) == MAGIC
        && crc32fast::hash(body) == u32::from_le_bytes(*crc)
        && u16_at(body, 8) == VERSION;
    if !whole {
        return None;
    }
    let mut cursors = Cursors {
        generation: u64_at(body, 16),
        next_segment: u64_at(body, 24),
        segments: HashMap::new(),
    };
    if cursors.generation >= NUMBERS_END || cursors.next_segment >= NUMBERS_END {
        return None;
    }
    let mut rest = &body[HEAD..];
    for _ in 0..u32_at(body, 12) {
        let head = rest.split_off(..24)?;
        let (entries, destinations) = (u32_at(head, 16), u32_at(head, 20));
        if entries > ENTRIES_MAX || destinations > DestMask::BITS {
            return None;
        }
        let bytes = entries.div_ceil(8) as usize;
        let mut settled = Settled {
            entries,
            bitmaps: Vec::new(),
        };
        for _ in 0..destinations {
            let bitmap = match rest.split_off_first()? {
                0 => Bitmap::None,
                1 => Bitmap::All,
                2 => Bitmap::Some(rest.split_off(..bytes)?.to_vec()),
                _ => return None,
            };
            settled.bitmaps.push(bitmap);
        }
        cursors
            .segments
            .insert((u64_at(head, 0), u64_at(head, 8)), settled);
    }
    rest.is_empty().then_some(cursors)
}

#[cfg(fuzzing)]
#[path = "fuzzing/cursors.rs"]
pub(super) mod fuzzing;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::vault::platform::{Os, Rung};

    const PLATFORM: Os = Os::on(Rung::Buffered);

    fn segment(number: u64, tag: u64, entries: u32) -> Segment {
        let mut ledger = Ledger::new(2);
        for _ in 0..entries {
            ledger.push(0b11, 1, false);
        }
        Segment::new(number, 0, tag, PathBuf::new(), 0, ledger)
    }

    #[test]
    fn settled_bits_come_back_for_the_same_segment_only() {
        let dir = tempfile::tempdir().unwrap();
        let written = segment(7, 70, 20);
        for index in [0, 3, 19] {
            written.ledger().settle(index, 0b01);
        }
        let mut writer = CursorWriter::new(dir.path(), &Cursors::default());
        writer.write(&PLATFORM, 9, [&written].into_iter()).unwrap();
        let read = Cursors::read(&PLATFORM, dir.path()).unwrap();
        assert_eq!(read.next_segment, 9);
        let same = segment(7, 70, 20);
        read.apply(7, 70, &mut same.ledger());
        for index in 0..20 {
            assert_eq!(
                same.ledger().owed(index),
                written.ledger().owed(index),
                "entry {index}"
            );
        }
        let other_tag = segment(7, 71, 20);
        read.apply(7, 71, &mut other_tag.ledger());
        assert_eq!(other_tag.ledger().pending().entries, 20);
        assert_eq!(other_tag.ledger().owed(0), 0b11);
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let written = segment(1, 10, 3);
        let mut writer = CursorWriter::new(dir.path(), &Cursors::default());
        for round in 0..4 {
            written.ledger().settle(round, 0b11);
            writer.write(&PLATFORM, 5, [&written].into_iter()).unwrap();
        }
        let newest = SLOTS
            .iter()
            .map(|slot| dir.path().join(slot))
            .max_by_key(|path| decode(&fs::read(path).unwrap()).unwrap().generation);
        let newest = newest.unwrap();
        let bytes = fs::read(&newest).unwrap();
        fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(Cursors::read(&PLATFORM, dir.path()).unwrap().generation, 3);
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let written = segment(1, 10, 9);
        written.ledger().settle(4, 0b11);
        CursorWriter::new(dir.path(), &Cursors::default())
            .write(&PLATFORM, 5, [&written].into_iter())
            .unwrap();
        let bytes = fs::read(dir.path().join(SLOTS[1])).unwrap();
        assert!(decode(&bytes).is_some());
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(decode(&flipped).is_none(), "byte {at}");
            assert!(decode(&bytes[..at]).is_none(), "{at} bytes");
        }
    }
}

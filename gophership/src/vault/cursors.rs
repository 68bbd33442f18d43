//! What is settled, durably: two checksummed files written in turn, so that one is always whole.
//!
//! ```text
//!  0  u64  magic "GSVCURSR"
//!  8  u16  version (3)   10 u16 destinations
//! 12  u32  segments
//! 16  u64  generation; the slot with the higher one counts
//! 24  u64  no segment had this number or a higher one yet
//! 32  …    for each destination, by bit, records of all runs:
//!            u64 delivered without the vault
//!            u64 delivered by the export that was under way when the vault acknowledged them
//!            u64 delivered by replay   u64 dead-lettered   u64 rejected   u64 dropped
//!            u64 rejected without the vault
//!     …    for each segment:
//!            u64 number   u64 tag   u32 entries   u32 destinations
//!            for each destination: u8 form: 0 none settled, 1 all settled, 2 a bitmap follows
//!              (entries / 8 bytes, rounded up; bit i of byte j: entry 8 j + i is settled)
//!      u32  CRC32 of everything before
//! ```
//!
//! A cursor counts for a segment only if its tag matches too, so a number that comes again after a
//! crash never inherits what was settled of another segment. The records count exactly what the bits
//! say is settled, and what was in segments that are gone. Version 1 had no records, and a zero at 10; version 2 had all
//! but the last.

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    books::Books,
    bytes::{u16_at, u32_at, u64_at},
    entry::DestMask,
    error::{Error, io_error},
    format::{ENTRIES_MAX, NUMBERS_END},
    ledger::Ledger,
    platform::Platform,
    segment::Segment,
};

const MAGIC: u64 = u64::from_le_bytes(*b"GSVCURSR");
const VERSION: u16 = 3;
/// Without what was rejected without the vault; still read.
const VERSION_BEFORE_REJECTIONS: u16 = 2;
/// Without books; still read.
const VERSION_BEFORE_BOOKS: u16 = 1;
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
    /// By destination; none in an old slot.
    books: Vec<Books>,
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

    /// Tag of the segment, and entries known of it.
    #[must_use]
    pub(super) fn known(&self, number: u64) -> Option<(u64, u32)> {
        // A number comes again only after a crash, and then nothing of the earlier one is here any more.
        let mut of_number = self.segments.iter().filter(|(key, _)| key.0 == number);
        of_number
            .next()
            .map(|((_, tag), settled)| (*tag, settled.entries))
    }

    /// What earlier runs have settled for the destination at `bit`.
    #[must_use]
    pub(super) fn books(&self, bit: usize) -> Books {
        self.books.get(bit).copied().unwrap_or_default()
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

    /// Destinations that may want some of `entries`.
    #[must_use]
    pub(super) fn owed_some(&self, number: u64, tag: u64, entries: Range<u64>) -> DestMask {
        entries.fold(0, |owed, entry| owed | !self.settled_by(number, tag, entry))
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

    /// What is known of other segments than `known`, in the order of their numbers.
    fn without(&self, known: &[Arc<Segment>]) -> Vec<(&(u64, u64), &Settled)> {
        let known: HashSet<u64> = known.iter().map(|segment| segment.number).collect();
        let mut others: Vec<_> = self
            .segments
            .iter()
            .filter(|((number, _), _)| !known.contains(number))
            .collect();
        others.sort_unstable_by_key(|(key, _)| **key);
        others
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
                    ledger.settled_before(index, 1 << bit);
                }
            }
        }
    }
}

impl Settled {
    fn encode(&self, (number, tag): (u64, u64), bytes: &mut Vec<u8>) {
        let destinations =
            u32::try_from(self.bitmaps.len()).expect("at most one a bit of the mask");
        encode_head(number, tag, self.entries, destinations, bytes);
        for bitmap in &self.bitmaps {
            match bitmap {
                Bitmap::None => bytes.push(0),
                Bitmap::All => bytes.push(1),
                Bitmap::Some(bits) => {
                    bytes.push(2);
                    bytes.extend_from_slice(bits);
                }
            }
        }
    }

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
    /// What was settled before this run, until recovery has read all segments.
    before: Option<Arc<Cursors>>,
}

impl CursorWriter {
    /// Goes on after `last` in `dir`.
    #[must_use]
    pub(super) fn new(dir: &Path, last: Arc<Cursors>) -> Self {
        Self {
            dir: dir.to_path_buf(),
            generation: last.generation,
            bytes: Vec::new(),
            before: Some(last),
        }
    }

    /// Recovery is through: `segments` are all there are from now on.
    pub(super) fn recovered(&mut self) {
        self.before = None;
    }

    /// Gathers what is settled of `segments` for the next slot, and of those that recovery hasn't read
    /// yet; `books` are what was settled elsewhere, by destination.
    pub(super) fn gather(
        &mut self,
        next_segment: u64,
        mut books: Vec<Books>,
        segments: &[Arc<Segment>],
    ) {
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let destinations = u16::try_from(books.len()).expect("at most one a bit of the mask");
        bytes.extend_from_slice(&destinations.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(self.generation + 1).to_le_bytes());
        bytes.extend_from_slice(&next_segment.to_le_bytes());
        bytes.resize(HEAD + books.len() * Books::BYTES, 0);
        for segment in segments {
            encode_segment(segment, bytes, &mut books);
        }
        let unread = self
            .before
            .iter()
            .flat_map(|before| before.without(segments))
            .map(|(key, settled)| settled.encode(*key, bytes))
            .count();
        let count = u32::try_from(segments.len() + unread).expect("far fewer segments fit a disk");
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        for (encoded, books) in bytes[HEAD..].chunks_exact_mut(Books::BYTES).zip(&books) {
            books.encode(encoded);
        }
        let crc = crc32fast::hash(bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
    }

    /// Writes what was gathered to the older slot, durably.
    ///
    /// # Errors
    /// The slot can't be written; the other one still counts.
    pub(super) fn write(&mut self, platform: &dyn Platform) -> Result<(), Error> {
        let generation = self.generation + 1;
        let slot = if generation.is_multiple_of(2) {
            SLOTS[0]
        } else {
            SLOTS[1]
        };
        let path = self.dir.join(slot);
        let created = !platform.exists(&path);
        platform
            .write(&path, &self.bytes)
            .map_err(io_error("writing", &path))?;
        if created {
            super::directory::sync_dir(platform, &self.dir)?;
        }
        self.generation = generation;
        Ok(())
    }
}

/// Adds a segment's bits to the slot, and, of the same moment, its books to `books`.
fn encode_segment(segment: &Segment, bytes: &mut Vec<u8>, books: &mut [Books]) {
    let ledger = segment.ledger();
    for (bit, books) in books.iter_mut().enumerate() {
        *books = books.plus(ledger.books(bit));
    }
    let entries = u32::try_from(ledger.len())
        .unwrap_or(ENTRIES_MAX)
        .min(ENTRIES_MAX);
    let destinations = u32::try_from(ledger.destinations()).unwrap_or(DestMask::BITS);
    encode_head(segment.number, segment.tag, entries, destinations, bytes);
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

fn encode_head(number: u64, tag: u64, entries: u32, destinations: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&tag.to_le_bytes());
    bytes.extend_from_slice(&entries.to_le_bytes());
    bytes.extend_from_slice(&destinations.to_le_bytes());
}

fn decode(bytes: &[u8]) -> Option<Cursors> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let whole = body.len() >= HEAD
        && u64_at(body, 0) == MAGIC
        && crc32fast::hash(body) == u32::from_le_bytes(*crc);
    if !whole {
        return None;
    }
    let destinations = usize::from(u16_at(body, 10));
    let (destinations, books_bytes) = match u16_at(body, 8) {
        VERSION => (destinations, Books::BYTES),
        VERSION_BEFORE_REJECTIONS => (destinations, Books::BYTES_BEFORE_REJECTIONS),
        VERSION_BEFORE_BOOKS => (0, Books::BYTES),
        _ => return None,
    };
    if destinations > DestMask::BITS as usize {
        return None;
    }
    let mut rest = &body[HEAD..];
    let books = rest.split_off(..destinations * books_bytes)?;
    let mut cursors = Cursors {
        generation: u64_at(body, 16),
        next_segment: u64_at(body, 24),
        books: books.chunks_exact(books_bytes).map(Books::decode).collect(),
        segments: HashMap::new(),
    };
    if cursors.generation >= NUMBERS_END || cursors.next_segment >= NUMBERS_END {
        return None;
    }
    for _ in 0..u32_at(body, 12) {
        let (key, settled) = decode_segment(&mut rest)?;
        cursors.segments.insert(key, settled);
    }
    rest.is_empty().then_some(cursors)
}

fn decode_segment(rest: &mut &[u8]) -> Option<((u64, u64), Settled)> {
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
    Some(((u64_at(head, 0), u64_at(head, 8)), settled))
}

#[cfg(fuzzing)]
#[path = "fuzzing/cursors.rs"]
pub(super) mod fuzzing;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::vault::{
        books::Settlement,
        platform::{Os, Rung},
    };

    const PLATFORM: Os = Os::on(Rung::Buffered);

    fn segment(number: u64, tag: u64, entries: u32) -> Arc<Segment> {
        let mut ledger = Ledger::new(2);
        for _ in 0..entries {
            ledger.push(0b11, 1, false);
        }
        Arc::new(Segment::new(number, 0, tag, PathBuf::new(), 0, ledger))
    }

    fn settle(segment: &Segment, index: u32, mask: DestMask) {
        segment.ledger().settle(index, mask, Settlement::WHOLE);
    }

    fn write(writer: &mut CursorWriter, next_segment: u64, segment: &Arc<Segment>) {
        let segments = [Arc::clone(segment)];
        writer.gather(next_segment, vec![Books::default(); 2], &segments);
        writer.write(&PLATFORM).unwrap();
    }

    #[test]
    fn records_come_back_as_of_the_same_moment_as_the_bits() {
        let dir = tempfile::tempdir().unwrap();
        let written = segment(7, 70, 20);
        settle(&written, 0, 0b11);
        let elsewhere = Books {
            direct: 100,
            held: 200,
            replayed: 300,
            dead_lettered: 400,
            rejected: 500,
            dropped: 600,
            direct_rejected: 700,
        };
        let mut writer = CursorWriter::new(dir.path(), Arc::default());
        writer.gather(
            9,
            vec![elsewhere, Books::default()],
            &[Arc::clone(&written)],
        );
        settle(&written, 1, 0b11);
        writer.write(&PLATFORM).unwrap();
        let read = Cursors::read(&PLATFORM, dir.path()).unwrap();
        assert_eq!((read.books(0).held, read.books(1).held), (201, 1));
        assert_eq!(
            read.books(0),
            Books {
                held: 201,
                ..elsewhere
            }
        );
        assert_eq!(
            (read.settled_by(7, 70, 0), read.settled_by(7, 70, 1)),
            (0b11, 0)
        );
        assert_eq!(read.books(2), Books::default(), "a destination that is new");
    }

    /// As version 1 wrote it: entries 0 and 3 of 4 settled for one destination of two.
    fn without_books() -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[1, 0, 0, 0]);
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        for number in [6_u64, 9, 7, 70] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&4_u32.to_le_bytes());
        bytes.extend_from_slice(&2_u32.to_le_bytes());
        bytes.extend_from_slice(&[2, 0b1001, 0]);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    #[test]
    fn a_slot_without_books_still_counts_and_the_next_one_goes_on_after_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SLOTS[0]), without_books()).unwrap();
        let read = Cursors::read(&PLATFORM, dir.path()).unwrap();
        assert_eq!((read.generation, read.next_segment), (6, 9));
        assert_eq!(read.books(0), Books::default());
        let settled: Vec<_> = (0..4).map(|entry| read.settled_by(7, 70, entry)).collect();
        assert_eq!(settled, [1, 0, 0, 1]);
        let mut writer = CursorWriter::new(dir.path(), Arc::new(read));
        write(&mut writer, 10, &segment(9, 90, 1));
        let read = Cursors::read(&PLATFORM, dir.path()).unwrap();
        assert_eq!(read.generation, 7);
        // Until recovery is through, what it hasn't read stays as it was.
        assert_eq!(
            (read.settled_by(7, 70, 0), read.settled_by(7, 70, 1)),
            (1, 0)
        );
        writer.recovered();
        write(&mut writer, 10, &segment(9, 90, 1));
        let read = Cursors::read(&PLATFORM, dir.path()).unwrap();
        assert_eq!((read.generation, read.settled_by(7, 70, 0)), (8, 0));
    }

    #[test]
    fn a_slot_of_version_2_has_all_records_but_those_rejected_without_the_vault() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[2, 0, 2, 0]);
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        for number in [6, 9].into_iter().chain(1_u64..=12) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        fs::write(dir.path().join(SLOTS[0]), bytes).unwrap();
        let read = Cursors::read(&PLATFORM, dir.path()).unwrap();
        assert_eq!(read.generation, 6);
        let second = Books {
            direct: 7,
            held: 8,
            replayed: 9,
            dead_lettered: 10,
            rejected: 11,
            dropped: 12,
            direct_rejected: 0,
        };
        assert_eq!(read.books(1), second);
    }

    #[test]
    fn settled_bits_come_back_for_the_same_segment_only() {
        let dir = tempfile::tempdir().unwrap();
        let written = segment(7, 70, 20);
        for index in [0, 3, 19] {
            settle(&written, index, 0b01);
        }
        let mut writer = CursorWriter::new(dir.path(), Arc::default());
        write(&mut writer, 9, &written);
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
        let mut writer = CursorWriter::new(dir.path(), Arc::default());
        for round in 0..4 {
            settle(&written, round, 0b11);
            write(&mut writer, 5, &written);
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
        settle(&written, 4, 0b11);
        let mut writer = CursorWriter::new(dir.path(), Arc::default());
        write(&mut writer, 5, &written);
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

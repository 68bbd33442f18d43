//! Another reader of a vault's directory, by docs/vault-format.md and the drawings alone: it shares no
//! code with the daemon, so that what it needs to know has to be written there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{DESTINATIONS, Line};

const PAGE: usize = 4096;
const BLOCK_HEADER: usize = 128;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn size_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u32_at(bytes, at)).unwrap()
}

/// Everything in the directory, as lines.
pub(super) fn read(dir: &Path) -> Vec<String> {
    assert_eq!(destinations(dir), DESTINATIONS);
    let cursors = Cursors::read(dir);
    let mut files = BTreeMap::new();
    for lane in 0..2 {
        for entry in fs::read_dir(lane_dir(dir, lane)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "gsv") {
                let stem = path.file_stem().unwrap().to_str().unwrap();
                files.insert(u64::from_str_radix(stem, 16).unwrap(), (lane, path));
            }
        }
    }
    let mut lines = Vec::new();
    let mut segments = BTreeMap::new();
    for (number, (lane, path)) in files {
        let segment = Segment::read(lane, number, &path);
        let state = match segment.state {
            _ if path.with_extension("quarantine").exists() => "quarantined",
            state => state,
        };
        lines.push(format!("segment {number} of lane {lane}: {state}"));
        lines.extend(segment.lines(&cursors));
        segments.insert(number, segment);
    }
    for lane in 0..2 {
        let head = chain(
            &fs::read(lane_dir(dir, lane).join("manifest")).unwrap(),
            lane,
            &segments,
        );
        lines.push(format!("head of lane {lane}: {head}"));
    }
    lines
}

fn lane_dir(dir: &Path, lane: u16) -> PathBuf {
    dir.join(format!("lane-{lane:02}"))
}

fn destinations(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("destinations")).unwrap();
    let (head, body) = text.split_once('\n').unwrap();
    let crc = format!("{:08x}", crc32fast::hash(body.as_bytes()));
    assert_eq!(head, format!("gophership-vault-destinations 1 {crc}"));
    body.lines().map(str::to_owned).collect()
}

/// What is settled: by number and tag, a bitmap of entries for each destination.
struct Cursors(BTreeMap<(u64, u64), Vec<Vec<bool>>>);

impl Cursors {
    fn read(dir: &Path) -> Self {
        let slots = ["cursors-a", "cursors-b"].map(|slot| fs::read(dir.join(slot)));
        let whole = slots.into_iter().flatten().filter(|bytes| {
            let (body, crc) = bytes.split_at(bytes.len() - 4);
            u64_at(body, 0) == u64::from_le_bytes(*b"GSVCURSR")
                && crc32fast::hash(body) == u32_at(crc, 0)
        });
        let slot = whole.max_by_key(|bytes| u64_at(bytes, 16)).unwrap();
        let mut segments = BTreeMap::new();
        // Records by destination, seven of them, of which version 2 had six, and version 1 none.
        let books_bytes = match u16_at(&slot, 8) {
            1 => 0,
            2 => 48,
            version => {
                assert_eq!(version, 3);
                56
            }
        };
        let mut at = 32 + books_bytes * usize::from(u16_at(&slot, 10));
        for _ in 0..u32_at(&slot, 12) {
            let key = (u64_at(&slot, at), u64_at(&slot, at + 8));
            let (entries, destinations) = (size_at(&slot, at + 16), u32_at(&slot, at + 20));
            at += 24;
            let mut bitmaps = Vec::new();
            for _ in 0..destinations {
                let form = slot[at];
                at += 1;
                let bitmap = match form {
                    0 | 1 => vec![form == 1; entries],
                    _ => (0..entries)
                        .map(|i| slot[at + i / 8] & (1 << (i % 8)) != 0)
                        .collect(),
                };
                at += if form == 2 { entries.div_ceil(8) } else { 0 };
                bitmaps.push(bitmap);
            }
            segments.insert(key, bitmaps);
        }
        assert_eq!(at + 4, slot.len());
        Self(segments)
    }

    fn settled(&self, number: u64, tag: u64, entry: usize) -> u32 {
        let bitmaps = self.0.get(&(number, tag)).into_iter().flatten();
        (0..)
            .zip(bitmaps)
            .filter(|(_, bitmap)| bitmap.get(entry) == Some(&true))
            .fold(0, |mask, (bit, _)| mask | 1 << bit)
    }
}

/// A segment, from its first block to its end.
#[derive(Default)]
struct Segment {
    number: u64,
    tag: u64,
    state: &'static str,
    /// Decoded payloads of the data blocks, one after the other, but for lost ones.
    content: Vec<u8>,
    entries: BTreeMap<u64, Entry>,
    lost: Vec<u64>,
    seal: Vec<u8>,
}

#[derive(Default)]
struct Entry {
    head: Vec<u8>,
    bytes: Vec<u8>,
}

impl Segment {
    fn read(lane: u16, number: u64, path: &Path) -> Self {
        let file = fs::read(path).unwrap();
        let mut segment = Self {
            number,
            state: "unused",
            ..Self::default()
        };
        let header = &file[..PAGE];
        if header.iter().all(|&byte| byte == 0) {
            return segment;
        }
        assert_eq!(&header[..8], b"GSVSEGMT");
        assert_eq!(crc32fast::hash(&header[..124]), u32_at(header, 124));
        assert_eq!(
            (u16_at(header, 8), u16_at(header, 10), u64_at(header, 16)),
            (1, lane, number)
        );
        segment.tag = u64_at(header, 24);
        segment.walk(&file);
        segment
    }

    fn walk(&mut self, file: &[u8]) {
        let (mut at, mut index, mut entry, mut record) = (PAGE, 0, 0, 0);
        let (mut crcs, mut large) = (crc32fast::Hasher::new(), Entry::default());
        self.state = "sealed";
        loop {
            let page = self.header(file, at);
            let Some(header) = page.filter(|header| {
                u32_at(header, 24) == index
                    && (u64_at(header, 32), u64_at(header, 40)) == (entry, record)
            }) else {
                self.state = "open";
                return;
            };
            if header[6] == 3 {
                let is_whole = crcs.finalize() == u32_at(header, 84);
                assert!(is_whole, "the seal vouches for other blocks");
                self.seal = header.to_vec();
                return;
            }
            crcs.update(&header[124..128]);
            crcs.update(&header[120..124]);
            let ends = u64::from(u32_at(header, 28));
            match self.payload(file, at) {
                Some(payload) => self.take(&payload, entry, &mut large),
                None if self.durable(file, at) > index => {
                    self.state = "damaged";
                    self.lost.extend(entry..entry + ends);
                }
                None => {
                    self.state = "torn";
                    return;
                }
            }
            (index, entry) = (index + 1, entry + ends);
            record += u64::from(u32_at(header, 48));
            at += (BLOCK_HEADER + size_at(header, 56)).next_multiple_of(PAGE);
        }
    }

    /// A block's header, if a block of this segment begins there.
    fn header<'a>(&self, file: &'a [u8], at: usize) -> Option<&'a [u8]> {
        let header = file.get(at..at + BLOCK_HEADER)?;
        let is_ours = &header[..4] == b"GSVB"
            && crc32fast::hash(&header[..124]) == u32_at(header, 124)
            && (u64_at(header, 8), u64_at(header, 16)) == (self.number, self.tag);
        is_ours.then(|| {
            assert_eq!(u16_at(header, 4), 1);
            header
        })
    }

    fn payload(&self, file: &[u8], at: usize) -> Option<Vec<u8>> {
        let header = self.header(file, at)?;
        let stored = file.get(at + BLOCK_HEADER..)?.get(..size_at(header, 56))?;
        let is_whole = crc32fast::hash(stored) == u32_at(header, 120);
        is_whole.then(|| match header[7] {
            0 => stored.to_vec(),
            _ => lz4_flex::block::decompress(stored, size_at(header, 52)).unwrap(),
        })
    }

    /// Most blocks that a later one says were durable.
    fn durable(&self, file: &[u8], at: usize) -> u32 {
        let later = (at + PAGE..file.len()).step_by(PAGE);
        later
            .filter_map(|at| Some(u32_at(self.header(file, at)?, 60)))
            .max()
            .unwrap_or(0)
    }

    fn take(&mut self, payload: &[u8], first: u64, large: &mut Entry) {
        self.content.extend_from_slice(payload);
        let mut rest = payload;
        let mut number = first;
        while !rest.is_empty() {
            let (head, after) = rest.split_at(32);
            let (bytes, after) = after.split_at(size_at(head, 0));
            rest = after;
            let (part, offset) = (head[6], size_at(head, 28));
            if matches!(part, 0 | 1) {
                *large = Entry::default();
            }
            assert_eq!(large.bytes.len(), offset, "no piece is lost in the fixture");
            large.head = head.to_vec();
            large.bytes.extend_from_slice(bytes);
            if matches!(part, 0 | 3) {
                assert_eq!(large.bytes.len(), size_at(head, 24));
                self.entries.insert(number, std::mem::take(large));
                number += 1;
            }
        }
    }

    fn lines(&self, cursors: &Cursors) -> Vec<String> {
        let found = self.entries.iter().map(|(&index, entry)| {
            let settled = cursors.settled(self.number, self.tag, usize::try_from(index).unwrap());
            let stored_for = u32_at(&entry.head, 8);
            let line = Line {
                segment: self.number,
                index,
                encoding: ["identity", "gzip", "zstd"][usize::from(entry.head[5])],
                records: u32_at(&entry.head, 12),
                arrival_unix_ns: u64_at(&entry.head, 16),
                stored_for,
                owed: stored_for & !settled,
                bytes: &entry.bytes,
            };
            (index, line.to_string())
        });
        let lost = self
            .lost
            .iter()
            .map(|&index| (index, format!("lost {}:{index}", self.number)));
        let lines: BTreeMap<_, _> = found.chain(lost).collect();
        lines.into_values().collect()
    }
}

/// Checks a manifest against the segments there are; gives the last chained hash.
fn chain(manifest: &[u8], lane: u16, segments: &BTreeMap<u64, Segment>) -> String {
    let (header, records) = manifest.split_at(64);
    assert_eq!(&header[..8], b"GSVMANIF");
    assert_eq!(crc32fast::hash(&header[..60]), u32_at(header, 60));
    assert_eq!(
        (u16_at(header, 8), u16_at(header, 10), u64_at(header, 16)),
        (1, lane, 0)
    );
    let mut head = [0; 32];
    let mut place = 0;
    for record in records.chunks(192) {
        assert_eq!(crc32fast::hash(&record[..188]), u32_at(record, 188));
        if record[0] == 2 {
            assert!(!segments.contains_key(&u64_at(record, 16)), "removed");
            continue;
        }
        assert_eq!((record[0], u64_at(record, 8)), (1, place));
        assert_eq!(record[96..128], head);
        let own = &record[64..96];
        let chained = blake3::hash(&[&head, &record[8..64], own].concat());
        assert_eq!(&record[128..160], chained.as_bytes());
        if let Some(segment) = segments.get(&u64_at(record, 16))
            && segment.lost.is_empty()
        {
            assert_eq!(own, blake3::hash(&segment.content).as_bytes());
            assert_eq!(u64_at(record, 24), segment.tag);
            // Entries, records, when, blocks, checksum: as in the seal.
            let seal = &segment.seal;
            assert_eq!(record[32..48], seal[32..48]);
            assert_eq!(record[48..56], seal[64..72]);
            assert_eq!(
                (&record[56..60], &record[60..64]),
                (&seal[24..28], &seal[84..88])
            );
        }
        head = *chained.as_bytes();
        place += 1;
    }
    blake3::Hash::from_bytes(head).to_hex().to_string()
}

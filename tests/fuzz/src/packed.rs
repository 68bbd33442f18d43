//! A vault's directory in few bytes, as input of the target `segment`.
//!
//! ```text
//! chunks, one after the other:
//!  0  u8   kind, of which the lowest three bits count
//!  1  u16  bytes that follow; fewer at the end
//!  3  …    0, 1: of the segment: block or header; zeros follow to the next page
//!          2: a segment begins: u8 lane, u8 number, from 1
//!          3: pages of zeros: u8 how many
//!          4: the slot cursors-a, or cursors-b if there is one already
//!          5: the manifest of the segment's lane
//!          6: the quarantine of the segment
//!          7: nothing
//! ```

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    path::Path,
};

use crate::{
    checksums::{mend_block, mend_manifest, mend_tail, mend_text},
    mutation::{Bytewise, Random},
    vault::format::{BLOCK_HEADER, PAGE},
};

/// Bytes before a chunk's.
const HEAD: usize = 3;
/// Lanes there are.
pub const LANES: u16 = 2;
/// Pages of all segments; what is above is left out.
const PAGES_MAX: usize = 256;
/// Destinations, by bit.
pub const DESTINATIONS: [&str; 2] = ["main", "local"];

/// What a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the segment, padded to a page.
    Bytes,
    /// A segment begins.
    Segment,
    /// Pages of zeros.
    Zeros,
    /// A slot.
    Cursors,
    /// The lane's manifest.
    Manifest,
    /// The segment's quarantine.
    Quarantine,
    /// Nothing.
    Nothing,
}

impl Kind {
    fn of(code: u8) -> Self {
        match code & 7 {
            2 => Self::Segment,
            3 => Self::Zeros,
            4 => Self::Cursors,
            5 => Self::Manifest,
            6 => Self::Quarantine,
            7 => Self::Nothing,
            _ => Self::Bytes,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Bytes => 0,
            Self::Segment => 2,
            Self::Zeros => 3,
            Self::Cursors => 4,
            Self::Manifest => 5,
            Self::Quarantine => 6,
            Self::Nothing => 7,
        }
    }
}

/// Appends a chunk; its bytes are fewer than 64 Ki.
pub fn push(packed: &mut Vec<u8>, kind: Kind, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("chunks are small");
    packed.push(kind.code());
    packed.extend_from_slice(&len.to_le_bytes());
    packed.extend_from_slice(bytes);
}

/// Where each chunk begins and ends.
fn chunks(packed: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut chunks = Vec::new();
    let mut at = 0;
    while let Some(&[_, low, high]) = packed.get(at..at + HEAD) {
        let end = at + HEAD + usize::from(u16::from_le_bytes([low, high]));
        chunks.push(at..end.min(packed.len()));
        at = end;
    }
    chunks
}

/// Makes the directory.
pub fn unpack(packed: &[u8], dir: &Path) {
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).expect("a file can be written");
    for lane in 0..LANES {
        fs::create_dir_all(lane_dir(dir, lane)).expect("a directory can be made");
    }
    let mut table = format!(
        "gophership-vault-destinations 1 00000000\n{}\n",
        DESTINATIONS.join("\n")
    )
    .into_bytes();
    mend_text(&mut table);
    write(&dir.join("destinations"), &table);

    let mut segments: BTreeMap<u8, (u16, Vec<u8>)> = BTreeMap::new();
    let (mut lane, mut number, mut pages) = (0, 1, 0);
    for chunk in chunks(packed) {
        let (head, bytes) = packed[chunk].split_at(HEAD);
        let in_lane = |name: &str| lane_dir(dir, lane).join(name);
        let padded = match Kind::of(head[0]) {
            Kind::Bytes => bytes.len().next_multiple_of(PAGE),
            Kind::Zeros => usize::from(bytes.first().copied().unwrap_or(1)) * PAGE,
            Kind::Segment => {
                let [new_lane, new_number, ..] = *bytes else {
                    continue;
                };
                // A number is never used twice.
                if let Entry::Vacant(vacant) = segments.entry(new_number.max(1)) {
                    (lane, number) = (u16::from(new_lane) % LANES, *vacant.key());
                    vacant.insert((lane, Vec::new()));
                }
                continue;
            }
            Kind::Cursors => {
                let first = dir.join("cursors-a");
                let slot = if first.exists() {
                    dir.join("cursors-b")
                } else {
                    first
                };
                write(&slot, bytes);
                continue;
            }
            Kind::Manifest => {
                write(&in_lane("manifest"), bytes);
                continue;
            }
            Kind::Quarantine => {
                write(&in_lane(&format!("{number:016x}.quarantine")), bytes);
                continue;
            }
            Kind::Nothing => continue,
        };
        pages += padded / PAGE;
        if pages <= PAGES_MAX {
            let (_, content) = segments.entry(number).or_insert((lane, Vec::new()));
            let end = content.len() + padded;
            if Kind::of(head[0]) == Kind::Bytes {
                content.extend_from_slice(bytes);
            }
            content.resize(end, 0);
        }
    }
    for (number, (lane, content)) in segments {
        write(
            &lane_dir(dir, lane).join(format!("{number:016x}.gsv")),
            &content,
        );
    }
}

fn lane_dir(dir: &Path, lane: u16) -> std::path::PathBuf {
    dir.join(format!("lane-{lane:02}"))
}

/// Mutates bytes, or whole chunks and fields of headers.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
) -> usize {
    let mut random = Random(u64::from(seed));
    let size = match random.below(3) {
        0 => bytewise(data, size, max_size),
        1 => {
            let mut packed = data[..size].to_vec();
            mutate_chunks(&mut packed, &mut random);
            let size = packed.len().min(max_size).min(data.len());
            data[..size].copy_from_slice(&packed[..size]);
            size
        }
        _ => {
            mutate_field(&mut data[..size], &mut random);
            size
        }
    };
    if random.below(8) != 0 {
        mend(&mut data[..size]);
    }
    size
}

/// Removes, repeats, swaps or cuts chunks.
fn mutate_chunks(packed: &mut Vec<u8>, random: &mut Random) {
    let chunks = chunks(packed);
    if chunks.is_empty() {
        return;
    }
    let one = chunks[random.below(chunks.len())].clone();
    let other = chunks[random.below(chunks.len())].clone();
    match random.below(4) {
        0 => drop(packed.drain(one)),
        1 => {
            let copy = packed[one].to_vec();
            packed.splice(other.start..other.start, copy);
        }
        2 => {
            let (first, second) = if one.start < other.start {
                (one, other)
            } else {
                (other, one)
            };
            if first != second {
                let (a, b) = (
                    packed[first.clone()].to_vec(),
                    packed[second.clone()].to_vec(),
                );
                packed.splice(second, a);
                packed.splice(first, b);
            }
        }
        _ => packed.truncate(one.end),
    }
}

/// Sets a field of a block's header to a value that may just be allowed, or just not.
fn mutate_field(packed: &mut [u8], random: &mut Random) {
    /// Offset and length of fields: version, kind, codec, number, counts, lengths, `durable_through`.
    const FIELDS: [(usize, usize); 11] = [
        (4, 2),
        (6, 1),
        (7, 1),
        (8, 8),
        (24, 4),
        (28, 4),
        (32, 8),
        (40, 8),
        (52, 4),
        (56, 4),
        (60, 4),
    ];
    const VALUES: [u64; 8] = [0, 1, 2, 3, 5, 65_535, 65_536, u64::MAX];
    let mut chunks = chunks(packed);
    chunks.retain(|chunk| {
        Kind::of(packed[chunk.start]) == Kind::Bytes && chunk.len() >= HEAD + BLOCK_HEADER
    });
    if chunks.is_empty() {
        return;
    }
    let chunk = chunks[random.below(chunks.len())].clone();
    let (at, len) = FIELDS[random.below(FIELDS.len())];
    let value = VALUES[random.below(VALUES.len())].to_le_bytes();
    packed[chunk][HEAD + at..][..len].copy_from_slice(&value[..len]);
}

/// Mends the checksums in all chunks.
fn mend(packed: &mut [u8]) {
    for chunk in chunks(packed) {
        let kind = Kind::of(packed[chunk.start]);
        let bytes = &mut packed[chunk][HEAD..];
        match kind {
            Kind::Bytes => mend_block(bytes),
            Kind::Cursors => mend_tail(bytes),
            Kind::Manifest => mend_manifest(bytes),
            Kind::Quarantine => mend_text(bytes),
            Kind::Segment | Kind::Zeros | Kind::Nothing => {}
        }
    }
}

//! A vault's directory, through everything that reads one: inspection, verification, and starts of a
//! vault on it, which have to agree.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path, sync::Arc, time::Duration};

use crate::{
    mutation::Bytewise,
    packed::{self, DESTINATIONS, LANES},
    scratch,
    vault::{
        Background, Compression, Config, EntryId, OnFull, Sync, Vault, chain,
        format::{ENTRIES_MAX, PAGE},
        inspect::{
            BlockSeen, Damage, Depth, Directory, Ending, EntrySeen, Header, SegmentFile, Visitor,
            summarize, walk,
        },
        platform::{Os, Rung},
    },
};

/// All entries that somebody is owed: who, how many bytes, and their checksum.
type Entries = BTreeMap<EntryId, (u32, usize, u32)>;

/// Both destinations.
const ALL: u32 = (1 << DESTINATIONS.len()) - 1;

/// Reads `data` as a packed directory.
pub fn check(data: &[u8]) {
    let scratch = scratch::empty();
    let dir = scratch.path();
    packed::unpack(data, dir);
    let seen = inspect(dir);
    for lane in 0..LANES {
        let _ = chain::verify(&dir.join(format!("lane-{lane:02}")));
    }

    let first = start(dir, |_, background, _| background.make_segments());
    if let Some(seen) = seen {
        assert_eq!(first, seen, "recovery against inspection");
    }
    let second = start(dir, |vault, _, entries| {
        // Every third has all of it, and every second the first destination's part.
        for (at, (id, _)) in entries.iter().enumerate() {
            if at % 3 == 0 {
                vault.settle(*id, ALL);
            } else if at % 2 == 0 {
                vault.settle(*id, 1);
            }
        }
    });
    assert_eq!(second, first, "a second start against the first");
    let left: Entries = (0..)
        .zip(first)
        .filter_map(|(at, (id, (owed, len, crc)))| {
            let settled = match at {
                at if at % 3 == 0 => ALL,
                at if at % 2 == 0 => 1,
                _ => 0,
            };
            let owed = owed & !settled;
            (owed != 0).then_some((id, (owed, len, crc)))
        })
        .collect();
    let third = start(dir, |_, background, _| background.make_segments());
    assert_eq!(third, left, "what was settled, and nothing else, is gone");
}

fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        max_bytes: 64 << 20,
        segment_bytes: 256 << 10,
        segment_max_age: Duration::from_secs(3600),
        on_full: OnFull::Refuse,
        retain: Duration::ZERO,
        linger: Duration::ZERO,
        compression: Compression::None,
        sync: Sync::Always,
        cursor_interval: Duration::from_secs(3600),
        lanes: usize::from(LANES),
        budget_bytes: 1 << 20,
        max_entry_bytes: 64 << 10,
        rung: None,
    }
}

/// Opens the vault, recovers, reads everything, does `work`, and writes the cursors.
fn start(dir: &Path, work: impl FnOnce(&Vault, &mut Background, &Entries)) -> Entries {
    let names = DESTINATIONS.map(str::to_owned);
    let platform = Arc::new(Os::on(Rung::Buffered));
    let (vault, mut background) =
        Vault::open_on(platform, &config(dir), &names).expect("the directory can be used");
    background.recover();
    let before = vault.stats();
    let entries = read_all(&vault);
    assert_eq!(before.entries_pending, entries.len() as u64);
    assert_eq!(
        vault.stats(),
        before,
        "reading finds what recovery has found"
    );
    work(&vault, &mut background, &entries);
    background.keep_up().expect("cursors can be written");
    drop(background);
    vault.close().expect("the vault can be closed");
    entries
}

fn read_all(vault: &Vault) -> Entries {
    let mut entries = Entries::new();
    let mut reader = vault.reader();
    loop {
        let batch = reader.next(PAGE, ALL).expect("segments can be opened");
        if batch.is_empty() {
            return entries;
        }
        for entry in batch {
            let content = (entry.owed, entry.bytes.len(), crc32fast::hash(&entry.bytes));
            let twice = entries.insert(entry.id, content);
            assert_eq!(twice, None, "{:?} comes once", entry.id);
        }
    }
}

/// Walks all segments at every depth; what recovery must find, where that is the same by the rules.
fn inspect(dir: &Path) -> Option<Entries> {
    let directory = Directory::open(dir).expect("the directory can be listed");
    let mut entries = Entries::new();
    let mut is_comparable = true;
    for segment in directory.segments() {
        // What is in another segment's place vouches for others at a start alone.
        is_comparable &= !matches!(segment.header, Header::Foreign(_));
        let mut seen = Seen::new(segment);
        let walked = walk(&directory, segment, Depth::Everything, &mut seen)
            .expect("the segment can be opened");
        assert!(walked.entries <= u64::from(ENTRIES_MAX));
        let pages = walked.end / PAGE as u64;
        assert!(u64::from(walked.blocks) <= pages || seen.is_damaged);
        if !matches!(walked.ending, Ending::Unused | Ending::Lost) {
            assert_eq!(seen.entries.len() as u64 + seen.lost, walked.entries);
        }
        for depth in [Depth::Headers, Depth::Needed, Depth::Everything] {
            let summary = summarize(&directory, segment, depth, &mut |_| {});
            let summary = summary.expect("the segment can be opened");
            assert!(summary.damage.len() as u64 <= summary.damaged_places);
            if depth == Depth::Everything {
                assert_eq!(summary.walked, walked);
                assert_eq!(summary.lost_entries, seen.lost);
            }
        }
        if segment.quarantine.is_none() {
            entries.extend(seen.entries);
        }
    }
    entries.retain(|_, (owed, ..)| *owed != 0);
    is_comparable.then_some(entries)
}

/// What a walk tells of one segment.
struct Seen<'a> {
    segment: &'a SegmentFile,
    /// Where the next block begins at the earliest, and the next entry's number.
    offset: u64,
    next: u64,
    lost: u64,
    is_damaged: bool,
    entries: Entries,
}

impl<'a> Seen<'a> {
    fn new(segment: &'a SegmentFile) -> Self {
        Self {
            segment,
            offset: PAGE as u64,
            next: 0,
            lost: 0,
            is_damaged: false,
            entries: Entries::new(),
        }
    }
}

impl Visitor for Seen<'_> {
    fn wants_bytes(&mut self, _: u64) -> bool {
        true
    }

    fn block(&mut self, block: &BlockSeen) -> ControlFlow<()> {
        assert!(block.offset >= self.offset, "the walk advances");
        self.offset = block.offset + block.header.padded_len() as u64;
        ControlFlow::Continue(())
    }

    fn entry(&mut self, entry: &EntrySeen<'_>) -> ControlFlow<()> {
        assert!(entry.index >= self.next, "entries are numbered");
        self.next = entry.index + 1;
        let bytes = entry.bytes.expect("its bytes were asked for");
        assert_eq!(bytes.len(), entry.len as usize);
        let id = EntryId {
            lane: self.segment.lane,
            segment: self.segment.number,
            index: u32::try_from(entry.index).expect("a segment has few"),
        };
        let content = (entry.owed & ALL, bytes.len(), crc32fast::hash(bytes));
        self.entries.insert(id, content);
        ControlFlow::Continue(())
    }

    fn damage(&mut self, damage: &Damage) {
        assert!(damage.offset <= damage.end && damage.unsettled <= damage.entries);
        self.lost += damage.entries;
        self.is_damaged = true;
    }
}

/// Makes a new input.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
) -> usize {
    packed::mutate(data, size, max_size, seed, bytewise)
}

//! Makes the fixture: several runs of a vault, and then what a crash, a disk and an operator do.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use flate2::{Compression as Level, write::GzEncoder};
use gophership::vault::{
    Config, ContentEncoding, EntryId, EntryMeta, Kind, Lane, Quarantine, Vault, chain,
    format::{BLOCK_HEADER, BlockHeader, BlockKind, PAGE, SegmentHeader},
    inspect::set_quarantine,
};

use super::{
    DESTINATIONS, Line, copy, encoding, hex,
    vault_support::{PATIENCE, Random, on_worker, real_disk, segment_files, small, wait_until},
};

const MAIN: u32 = 1;
const LOCAL: u32 = 2;
const BOTH: u32 = MAIN | LOCAL;
/// Entries of the segment that the operator withholds: for whom.
pub(super) const WITHHELD: [u32; 2] = [BOTH, LOCAL];

/// Small blocks, so that little makes several.
pub(super) fn config(dir: &Path) -> Config {
    Config {
        segment_bytes: 256 << 10,
        budget_bytes: 1 << 20,
        max_entry_bytes: 64 << 10,
        lanes: 2,
        ..small(dir)
    }
}

/// An entry that was acknowledged.
struct Stored {
    id: EntryId,
    meta: EntryMeta,
    bytes: Vec<u8>,
    settled: u32,
}

/// Appends, and remembers what.
struct Maker {
    random: Random,
    stored: Vec<Stored>,
}

impl Maker {
    fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 4] = ["connection", "refused", "retrying", "upstream"];
        let mut text = Vec::new();
        while text.len() < len {
            text.extend_from_slice(WORDS[self.random.below(4)].as_bytes());
            text.push(b' ');
        }
        text.truncate(len);
        text
    }

    /// What no codec makes smaller.
    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|_| self.random.next().to_le_bytes()[0])
            .collect()
    }

    fn meta(&mut self, owed: u32) -> EntryMeta {
        EntryMeta {
            kind: Kind::OtlpLogs,
            encoding: ContentEncoding::Identity,
            owed,
            arrival_unix_ns: 1_700_000_000_000_000_000 + self.random.next() % 1_000_000_000,
            records: 1 + u32::try_from(self.random.below(9)).unwrap(),
            held: false,
        }
    }

    async fn append(&mut self, lane: &Lane, owed: u32, bytes: Vec<u8>) -> EntryId {
        let meta = self.meta(owed);
        self.append_as(lane, meta, bytes).await
    }

    async fn append_as(&mut self, lane: &Lane, meta: EntryMeta, bytes: Vec<u8>) -> EntryId {
        let id = lane.append(meta, &[&bytes]).await.unwrap();
        self.stored.push(Stored {
            id,
            meta,
            bytes,
            settled: 0,
        });
        id
    }

    /// Several at the same time: all but the first share a block.
    async fn append_together(&mut self, lane: &Lane, owed: u32, contents: Vec<Vec<u8>>) {
        let tasks: Vec<_> = contents
            .into_iter()
            .map(|bytes| {
                let (lane, meta) = (lane.clone(), self.meta(owed));
                tokio::task::spawn_local(async move {
                    let id = lane.append(meta, &[&bytes]).await.unwrap();
                    Stored {
                        id,
                        meta,
                        bytes,
                        settled: 0,
                    }
                })
            })
            .collect();
        for task in tasks {
            self.stored.push(task.await.unwrap());
        }
    }

    fn settle(&mut self, vault: &Vault, id: EntryId, accepted: u32) {
        vault.settle(id, accepted);
        let entry = self.stored.iter_mut().find(|entry| entry.id == id).unwrap();
        entry.settled |= accepted;
    }

    /// The first run: most of what a segment can have.
    fn first_run(&mut self, dir: &Path) {
        let vault = open(dir);
        on_worker(async {
            let (zero, one) = (vault.lane(0).unwrap(), vault.lane(1).unwrap());
            let gone = self.text(50);
            let gone = self.append(&one, BOTH, gone).await;
            one.seal().await;
            until(|| hashed(dir, 1) == 1).await;
            self.settle(&vault, gone, BOTH);
            self.stored.clear();
            until(|| !path_of(dir, gone).exists()).await;

            let (text, noise) = (self.text(700), self.noise(5000));
            let delivered = self.append(&zero, BOTH, text).await;
            self.append(&zero, BOTH, noise).await;
            let half = self.append_gzip(&zero).await;
            let text = self.text(60);
            self.append(&zero, LOCAL, text).await;
            let text = self.text(40_000);
            let large = self.append(&zero, BOTH, text).await;
            until(|| has_mark(&path_of(dir, large))).await;
            let texts = vec![self.text(100), self.text(200), self.text(300)];
            self.append_together(&zero, MAIN, texts).await;
            zero.shutdown().await.unwrap();

            let (empty, text, more) = (Vec::new(), self.text(90), self.noise(20));
            self.append(&one, BOTH, empty).await;
            let other = self.append(&one, BOTH, text).await;
            self.append(&one, MAIN, more).await;
            one.shutdown().await.unwrap();

            self.settle(&vault, delivered, BOTH);
            self.settle(&vault, half, MAIN);
            self.settle(&vault, large, LOCAL);
            self.settle(&vault, other, MAIN);
            until(|| hashed(dir, 0) == 1 && hashed(dir, 1) == 2).await;
        });
        vault.close().unwrap();
    }

    async fn append_gzip(&mut self, lane: &Lane) -> EntryId {
        let mut gzip = GzEncoder::new(Vec::new(), Level::default());
        gzip.write_all(&self.text(2000)).unwrap();
        let meta = EntryMeta {
            encoding: ContentEncoding::Gzip,
            ..self.meta(BOTH)
        };
        self.append_as(lane, meta, gzip.finish().unwrap()).await
    }

    /// One more segment in each lane; gives that of lane 0.
    fn second_run(&mut self, dir: &Path) -> u64 {
        let vault = open(dir);
        let withheld = on_worker(async {
            let (zero, one) = (vault.lane(0).unwrap(), vault.lane(1).unwrap());
            let mut withheld = 0;
            for owed in WITHHELD {
                let text = self.text(400);
                withheld = self.append(&zero, owed, text).await.segment;
            }
            for _ in 0..4 {
                let noise = self.noise(4500);
                self.append(&one, BOTH, noise).await;
            }
            zero.shutdown().await.unwrap();
            one.shutdown().await.unwrap();
            until(|| hashed(dir, 0) == 2 && hashed(dir, 1) == 3).await;
            withheld
        });
        vault.close().unwrap();
        withheld
    }

    /// A segment without its seal.
    fn third_run(&mut self, dir: &Path) {
        let vault = open(dir);
        on_worker(async {
            let zero = vault.lane(0).unwrap();
            for _ in 0..3 {
                let noise = self.noise(4500);
                self.append(&zero, BOTH, noise).await;
            }
        });
        vault.close().unwrap();
    }

    /// Takes the last entry, whose block a crash tears, from what is expected; gives its segment.
    fn tear(&mut self, dir: &Path) -> u64 {
        let torn = self.stored.pop().unwrap().id;
        let path = path_of(dir, torn);
        assert!(!has_mark(&path), "what nobody vouches for");
        let (offset, header) = *blocks(&path).last().unwrap();
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0; PAGE], offset + PAGE as u64).unwrap();
        // A page of zeros stays for all that it had ahead.
        file.set_len(offset + header.padded_len() as u64 + PAGE as u64)
            .unwrap();
        torn.segment
    }

    /// Flips a bit of the second entry of the lane's last segment; gives that entry.
    fn damage(&mut self, dir: &Path, lane: u16) -> EntryId {
        let of_lane = self.stored.iter().filter(|entry| entry.id.lane == lane);
        let id = of_lane.map(|entry| entry.id).nth_back(2).unwrap();
        let path = path_of(dir, id);
        let (offset, _) = blocks(&path)[usize::try_from(id.index).unwrap()];
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut byte = [0];
        let at = offset + BLOCK_HEADER as u64 + 100;
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        id
    }
}

/// Writes the directory, and what is in it.
pub(super) fn make(fixture: &Path, expected: &Path) {
    let scratch = real_disk();
    let dir = scratch.path();
    let mut maker = Maker {
        random: Random(1),
        stored: Vec::new(),
    };
    maker.first_run(dir);
    let withheld = maker.second_run(dir);
    maker.third_run(dir);
    let torn = maker.tear(dir);
    let lost = maker.damage(dir, 1);
    let order = Quarantine {
        since_unix_ns: 1_700_000_000_000_000_000,
        by: "uid 0".to_owned(),
        reason: "crashes the collector".to_owned(),
    };
    set_quarantine(dir, withheld, Some(order)).unwrap();
    let unused = add_unused(dir);
    fs::remove_file(dir.join("lock")).unwrap();
    segment_files(dir).iter().for_each(|path| anonymize(path));

    let state = |number| match number {
        number if number == torn => "torn",
        number if number == withheld => "quarantined",
        number if number == lost.segment => "damaged",
        number if number == unused => "unused",
        _ => "sealed",
    };
    let mut lines = Vec::new();
    maker
        .stored
        .sort_by_key(|entry| (entry.id.segment, entry.id.index));
    for path in segment_files(dir) {
        let number = number_of(&path);
        let lane = path
            .parent()
            .unwrap()
            .to_str()
            .unwrap()
            .chars()
            .last()
            .unwrap();
        lines.push(format!(
            "segment {number} of lane {lane}: {}",
            state(number)
        ));
        let entries = maker
            .stored
            .iter()
            .filter(|entry| entry.id.segment == number);
        lines.extend(entries.map(|entry| line_of(entry, lost)));
    }
    for lane in 0..2 {
        let report = chain::verify(&dir.join(format!("lane-{lane:02}"))).unwrap();
        lines.push(format!(
            "head of lane {lane}: {}",
            hex(&report.head.unwrap())
        ));
    }
    let _ = fs::remove_dir_all(fixture);
    copy(dir, fixture);
    fs::write(expected, lines.join("\n") + "\n").unwrap();
}

fn line_of(entry: &Stored, lost: EntryId) -> String {
    if entry.id == lost {
        return format!("lost {}:{}", lost.segment, lost.index);
    }
    let line = Line {
        segment: entry.id.segment,
        index: u64::from(entry.id.index),
        encoding: encoding(entry.meta.encoding),
        records: entry.meta.records,
        arrival_unix_ns: entry.meta.arrival_unix_ns,
        stored_for: entry.meta.owed,
        owed: entry.meta.owed & !entry.settled,
        bytes: &entry.bytes,
    };
    line.to_string()
}

fn open(dir: &Path) -> Vault {
    let vault = Vault::open(&config(dir), &DESTINATIONS.map(str::to_owned)).unwrap();
    wait_until("recovery is through", || !vault.stats().recovering);
    vault.set_background_weight(1000);
    vault
}

/// Waits on a worker, where waiting must not hold up the lanes.
async fn until(mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap();
}

/// Segments in a lane's chain.
fn hashed(dir: &Path, lane: u16) -> usize {
    let report = chain::verify(&dir.join(format!("lane-{lane:02}"))).unwrap();
    report
        .segments
        .iter()
        .filter(|segment| segment.sealed.is_some())
        .count()
}

fn path_of(dir: &Path, id: EntryId) -> PathBuf {
    dir.join(format!("lane-{:02}/{:016x}.gsv", id.lane, id.segment))
}

fn number_of(path: &Path) -> u64 {
    u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap()
}

/// The segment's blocks, and where they begin.
fn blocks(path: &Path) -> Vec<(u64, BlockHeader)> {
    let bytes = fs::read(path).unwrap();
    let mut at = PAGE;
    let mut blocks = Vec::new();
    while let Some(Ok(header)) = bytes.get(at..).map(BlockHeader::decode) {
        blocks.push((at as u64, header));
        at += header.padded_len();
    }
    blocks
}

fn has_mark(path: &Path) -> bool {
    blocks(path)
        .iter()
        .any(|(_, header)| header.kind == BlockKind::Mark)
}

/// Adds a segment that was made ahead, as a crash leaves it, but shorter; gives its number.
fn add_unused(dir: &Path) -> u64 {
    let number = number_of(segment_files(dir).last().unwrap()) + 1;
    fs::write(
        dir.join(format!("lane-01/{number:016x}.gsv")),
        [0; 2 * PAGE],
    )
    .unwrap();
    number
}

/// Puts another machine's id into a segment's header.
fn anonymize(path: &Path) {
    let mut page = fs::read(path).unwrap();
    page.truncate(PAGE);
    if let Ok(header) = SegmentHeader::decode(&page) {
        SegmentHeader {
            host: [7; 16],
            ..header
        }
        .encode(&mut page);
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&page, 0).unwrap();
    }
}

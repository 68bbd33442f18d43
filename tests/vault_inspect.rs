//! What an operator sees of a vault, and takes out of replay, with a daemon and without.

mod common;
#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, OpenOptions},
    io::{Read, Write},
    ops::ControlFlow,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use common::{
    PATIENCE,
    certs::GS_CTL,
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    oracle,
    process::{self, Finished},
    settings::Settings,
    sink::Sink as Collector,
};
use flate2::{Compression as Level, write::GzEncoder};
use gophership::vault::{
    Compression, Config, ContentEncoding, EntryId, EntryMeta, Kind, Quarantine, QuarantineError,
    Vault,
    chain::{self, Hash},
    format::{BlockHeader, BlockKind, PAGE},
    inspect::{
        BlockSeen, Damage, Depth, Directory, Ending, EntrySeen, Owner, State, Visitor,
        set_quarantine, summarize, walk,
    },
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;
use serde_json::Value;
use vault_support::{
    Random, meta, on_worker, open, read_all, real_disk, scrub,
    segment::{blocks, edit, flip, forge_block, reseal, rewrite},
    segment_files, small, wait_until,
};

/// `count` requests of two records each.
fn requests(seed: u64, count: usize, body_bytes: usize) -> Vec<Vec<u8>> {
    let shape = Shape {
        records: 2,
        body_bytes,
    };
    let messages = Messages::new(seed, shape).take(count);
    messages.iter().map(|message| message.to_vec()).collect()
}

/// Appends one after the other, each as a block of its own or several.
fn append(vault: &Vault, contents: &[Vec<u8>], owed: u32, seal: bool) -> Vec<EntryId> {
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            let meta = EntryMeta {
                records: 2,
                ..meta(owed, 1_700_000_000_000_000_000 + number as u64)
            };
            ids.push(lane.append(meta, &[content]).await.unwrap());
        }
        if seal {
            lane.shutdown().await.unwrap();
        }
        ids
    })
}

/// One run of a vault with one segment.
fn write(config: &Config, contents: &[Vec<u8>], seal: bool) -> Vec<EntryId> {
    let vault = open(config);
    let ids = append(&vault, contents, 1, seal);
    vault.close().unwrap();
    ids
}

/// Everything a walk told.
#[derive(Default)]
struct Seen {
    blocks: Vec<(u64, BlockHeader)>,
    entries: Vec<(u64, u32, Option<Vec<u8>>)>,
    damage: Vec<Damage>,
}

impl Visitor for Seen {
    fn wants_bytes(&mut self, _entry: u64) -> bool {
        true
    }

    fn block(&mut self, block: &BlockSeen) -> ControlFlow<()> {
        self.blocks.push((block.offset, block.header));
        ControlFlow::Continue(())
    }

    fn entry(&mut self, entry: &EntrySeen<'_>) -> ControlFlow<()> {
        let bytes = entry.bytes.map(<[u8]>::to_vec);
        self.entries.push((entry.index, entry.owed, bytes));
        ControlFlow::Continue(())
    }

    fn damage(&mut self, damage: &Damage) {
        self.damage.push(*damage);
    }
}

fn seen(directory: &Directory, number: u64) -> (Ending, Seen) {
    let mut seen = Seen::default();
    let segment = directory.segment(number).unwrap();
    let walked = walk(directory, segment, Depth::Everything, &mut seen).unwrap();
    (walked.ending, seen)
}

fn gs_ctl(arguments: &[&str]) -> Finished {
    process::run(Command::new(GS_CTL).args(arguments), PATIENCE)
}

fn vault_json(dir: &Path, arguments: &[&str]) -> Value {
    let dir = dir.to_str().unwrap();
    let tail = ["--dir", dir, "--output", "json"];
    let finished = gs_ctl(&[&["vault"], arguments, &tail].concat()).expect_success();
    serde_json::from_str(&finished.stdout).unwrap()
}

fn path_of(id: &EntryId, dir: &Path) -> PathBuf {
    let name = format!("{:016x}.gsv", id.segment);
    let files = segment_files(dir);
    let found = files.iter().find(|path| path.ends_with(&name));
    found
        .unwrap_or_else(|| panic!("no {name} in {files:?}"))
        .clone()
}

#[test]
fn what_is_owed_is_told_from_the_directory_alone() {
    let dir = real_disk();
    let config = small(dir.path());
    let names = ["main".to_owned(), "copy".to_owned()];
    let vault = Vault::open(&config, &names).unwrap();
    let both = vault.mask_of("main").unwrap() | vault.mask_of("copy").unwrap();
    let contents = requests(1, 12, 300);
    let ids = append(&vault, &contents, both, true);
    for id in &ids[..5] {
        vault.settle(*id, vault.mask_of("main").unwrap());
    }
    vault.settle(ids[7], both);
    vault.close().unwrap();

    let directory = Directory::open(dir.path()).unwrap();
    assert_eq!(directory.owner(), Owner::Nobody);
    let segment = directory.segment(ids[0].segment).unwrap();
    for depth in [Depth::Needed, Depth::Everything] {
        let summary = summarize(&directory, segment, depth, &mut |_| {}).unwrap();
        assert_eq!(summary.state, State::Sealed, "{depth:?}");
        assert_eq!((summary.walked.entries, summary.walked.records), (12, 24));
        let owed: Vec<_> = summary
            .owed
            .iter()
            .map(|owed| (owed.entries, owed.records))
            .collect();
        assert_eq!(owed, [(6, 12), (11, 22)], "{depth:?}");
        assert_eq!(summary.owed_any.entries, 11);
    }
    let (_, seen) = seen(&directory, ids[0].segment);
    let bytes = seen
        .entries
        .iter()
        .map(|(_, _, bytes)| bytes.clone().unwrap());
    assert!(bytes.eq(contents), "byte for byte");

    let list = vault_json(dir.path(), &["list"]);
    let line = &list["segments"][0];
    assert_eq!(line["segment"], format!("{:016x}", ids[0].segment));
    assert_eq!(
        (&line["state"], &line["sealed"]),
        (&"sealed".into(), &true.into())
    );
    assert_eq!(
        (&line["entries"], &line["records"]),
        (&12.into(), &24.into())
    );
    assert_eq!(line["owed"]["main"]["records"], 12);
    assert_eq!(line["owed"]["copy"]["entries"], 11);
    assert_eq!(list["totals"]["owed_records"], 22);
    let table = gs_ctl(&["vault", "list", "--dir", dir.path().to_str().unwrap()]).expect_success();
    for word in ["SEGMENT", "sealed", "TO main", "TO copy"] {
        assert!(table.stdout.contains(word), "{word}: {table}");
    }

    let shown = vault_json(
        dir.path(),
        &[
            "inspect",
            &format!("{:x}", ids[0].segment),
            "--entries",
            "--blocks",
        ],
    );
    assert_eq!(shown["entries"][2]["owed"], serde_json::json!(["copy"]));
    assert_eq!(shown["entries"][2]["settled"], serde_json::json!(["main"]));
    assert_eq!(shown["entries"][7]["owed"], serde_json::json!([]));
    let blocks = shown["blocks"].as_array().unwrap();
    assert_eq!(blocks.last().unwrap()["kind"], "seal");
    assert_eq!(
        shown["segment"]["blocks"],
        blocks.len() - 1,
        "the seal isn't counted"
    );
}

#[test]
fn looking_changes_nothing_while_a_lane_writes() {
    let dir = real_disk();
    let config = small(dir.path());
    let vault = open(&config);
    let contents = requests(2, 30, 300);
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        for (number, content) in contents.iter().enumerate() {
            let id = lane.append(meta(1, 1), &[content]).await.unwrap();
            let directory = Directory::open(dir.path()).unwrap();
            assert_eq!(directory.owner(), Owner::Daemon(Some(std::process::id())));
            let segment = directory.segment(id.segment).unwrap();
            let summary = summarize(&directory, segment, Depth::Everything, &mut |_| {}).unwrap();
            assert_eq!(summary.state, State::Writing, "{summary:?}");
            assert_eq!(
                summary.walked.entries,
                number as u64 + 1,
                "what is acknowledged is seen"
            );
            assert_eq!(summary.damage, []);
        }
        lane.shutdown().await.unwrap();
    });
    let locked = set_quarantine(dir.path(), 1, None).unwrap_err();
    assert!(
        locked.to_string().contains(&std::process::id().to_string()),
        "{locked}"
    );
    assert!(matches!(locked, QuarantineError::File(_)));
    vault.close().unwrap();
    let entries = read_all(&open(&config), 1 << 20);
    assert!(entries.iter().map(|entry| &entry.bytes).eq(&contents));
}

#[test]
fn endings_are_told_apart() {
    let dir = real_disk();
    let config = small(dir.path());
    let ids = write(&config, &requests(3, 4, 300), false);
    let path = path_of(&ids[0], dir.path());
    let state = |expected: State, ending: Ending| {
        let directory = Directory::open(dir.path()).unwrap();
        let segment = directory.segment(ids[0].segment).unwrap();
        for depth in [Depth::Needed, Depth::Everything] {
            let summary = summarize(&directory, segment, depth, &mut |_| {}).unwrap();
            assert_eq!(
                (summary.state, summary.walked.ending),
                (expected, ending),
                "{depth:?}"
            );
            assert_eq!(summary.walked.entries, 4);
        }
    };
    state(State::Open, Ending::Open);
    let end = {
        let directory = Directory::open(dir.path()).unwrap();
        let (_, seen) = seen(&directory, ids[0].segment);
        let (offset, last) = *seen.blocks.last().unwrap();
        offset + last.padded_len() as u64
    };
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"a part of a block", end).unwrap();
    state(State::Torn, Ending::Torn);
    let verified = vault_json(dir.path(), &["verify"]);
    assert_eq!(
        verified["ok"], true,
        "nobody was promised a torn end: {verified:#}"
    );
    let vault = open(&config);
    assert_eq!(read_all(&vault, 1 << 20).len(), 4);
    vault.close().unwrap();
    state(State::Sealed, Ending::Sealed);
    fs::write(
        path.with_file_name("00000000000000ff.gsv"),
        vec![0; 3 * PAGE],
    )
    .unwrap();
    let list = vault_json(dir.path(), &["list"]);
    assert_eq!(list["segments"][1]["state"], "unused");
}

#[test]
fn damage_is_told_by_bytes_and_records_and_ends_verify_with_1() {
    let dir = real_disk();
    let config = small(dir.path());
    let ids = write(&config, &requests(4, 9, 300), true);
    let path = path_of(&ids[0], dir.path());
    let directory = Directory::open(dir.path()).unwrap();
    let (_, before) = seen(&directory, ids[0].segment);
    let data: Vec<_> = before
        .blocks
        .iter()
        .filter(|(_, header)| header.kind == BlockKind::Data)
        .collect();
    let ((payload_at, payload_of), (header_at, header_of)) = (data[2], data[5]);
    flip(&path, payload_at + 140);
    flip(&path, header_at + 3);

    let text = dir.path().to_str().unwrap();
    let finished = gs_ctl(&["vault", "verify", "--dir", text, "--output", "json"]);
    assert_eq!(finished.code, Some(1), "{finished}");
    let verified: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(
        (&verified["ok"], &verified["damaged_places"]),
        (&false.into(), &2.into())
    );
    let damage = &verified["segments"][0]["damage"];
    for (index, at, header, reason) in [
        (
            0,
            payload_at,
            payload_of,
            "checksum of the payload doesn't match",
        ),
        (1, header_at, header_of, "block header damaged"),
    ] {
        let place = &damage[index];
        assert_eq!(place["offset"], *at);
        assert_eq!(place["end"], at + header.padded_len() as u64);
        assert_eq!(place["block"], header.index);
        assert_eq!(place["first_entry"], header.first_entry);
        assert_eq!(
            (&place["entries"], &place["records"]),
            (&1.into(), &2.into())
        );
        assert_eq!(place["first_record"], header.first_record);
        assert_eq!(place["unsettled_entries"], 1);
        assert_eq!(place["reason"], reason);
    }
    assert_eq!(verified["segments"][0]["state"], "damaged");
    let table = gs_ctl(&["vault", "verify", "--dir", text]);
    assert_eq!(table.code, Some(1));
    assert!(table.stdout.contains("block header damaged"), "{table}");

    let cat = gs_ctl(&["vault", "cat", "--dir", text]);
    assert_eq!(
        (cat.code, cat.stdout.lines().count()),
        (Some(1), 7),
        "{cat}"
    );
    assert_eq!(cat.stderr.matches("damaged, ").count(), 2, "{cat}");
}

#[test]
fn a_header_that_a_crash_may_have_torn_is_damage_only_if_something_vouches_for_a_block() {
    let dir = real_disk();
    let config = small(dir.path());
    let ids = write(&config, &requests(15, 3, 300), true);
    let path = path_of(&ids[0], dir.path());
    flip(&path, 30);
    let look = || {
        let directory = Directory::open(dir.path()).unwrap();
        let segment = directory.segment(ids[0].segment).unwrap();
        let depths = [Depth::Headers, Depth::Everything].into_iter();
        let mut found = depths.map(|depth| {
            let summary = summarize(&directory, segment, depth, &mut |_| {}).unwrap();
            (summary.state, summary.damaged_places, summary.walked.blocks)
        });
        let quick = found.next();
        assert_eq!(found.next(), quick);
        quick.unwrap()
    };
    let all = blocks(&path);
    let count = u32::try_from(all.len()).unwrap() - 1;
    assert_eq!(look(), (State::Damaged, 1, count), "the seal vouches");
    // The first block was in flight together with the header.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(all[1].0).unwrap();
    assert_eq!(look(), (State::Open, 0, 1));
    file.set_len(all[0].0).unwrap();
    assert_eq!(look(), (State::Unused, 0, 0));
    let vault = open(&config);
    wait_until("recovery is through", || !vault.stats().recovering);
    assert_eq!(vault.stats().quarantined_segments, 0, "as recovery sees it");
    vault.close().unwrap();
}

#[test]
fn a_seal_that_vouches_for_other_blocks_is_damage() {
    let dir = real_disk();
    let config = small(dir.path());
    let ids = write(&config, &requests(5, 2, 100), true);
    let path = path_of(&ids[0], dir.path());
    let directory = Directory::open(dir.path()).unwrap();
    let (_, before) = seen(&directory, ids[0].segment);
    let (offset, _) = *before.blocks.last().unwrap();
    rewrite(&path, offset, |seal| seal.segment_crc ^= 1);
    let (_, after) = seen(&directory, ids[0].segment);
    assert_eq!(after.entries.len(), 2);
    assert_eq!(after.damage.len(), 1);
    assert!(
        after.damage[0].reason.contains("seal"),
        "{:?}",
        after.damage
    );
}

/// One run of a vault for each segment, in which it is sealed and hashed.
fn write_chained(config: &Config, segments: u64) -> Vec<PathBuf> {
    for seed in 0..segments {
        let vault = open(config);
        append(&vault, &requests(seed, 4, 300), 1, true);
        scrub(&vault);
        vault.close().unwrap();
    }
    segment_files(&config.dir)
}

/// What `vault verify` says, and whether it ends well.
fn verify(dir: &Path, segments: &[&str]) -> (Value, bool) {
    let dir = dir.to_str().unwrap();
    let tail = ["--dir", dir, "--output", "json"];
    let finished = gs_ctl(&[&["vault", "verify"], segments, &tail].concat());
    let value: Value = serde_json::from_str(&finished.stdout).unwrap();
    let ok = finished.code == Some(0);
    assert_eq!(value["ok"], ok, "{finished}");
    assert!(ok || finished.code == Some(1), "{finished}");
    (value, ok)
}

/// States of the segments of the first lane's chain.
fn chained(verified: &Value) -> Vec<&str> {
    let segments = verified["chains"][0]["segments"].as_array().unwrap().iter();
    segments
        .map(|segment| segment["state"].as_str().unwrap())
        .collect()
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Blocks as they are, so that changing a byte changes a byte of an entry.
fn raw(dir: &Path) -> Config {
    Config {
        compression: Compression::None,
        ..small(dir)
    }
}

#[test]
fn verify_shows_the_chains_head_and_finds_what_was_altered() {
    let dir = real_disk();
    let files = write_chained(&raw(dir.path()), 3);
    let (verified, ok) = verify(dir.path(), &[]);
    assert!(ok, "{verified:#}");
    assert_eq!(chained(&verified), ["intact"; 3]);
    let head = chain::verify(&dir.path().join("lane-00")).unwrap().head;
    let head = hex(&head.unwrap());
    assert_eq!(verified["chains"][0]["head"], head);
    let table = gs_ctl(&["vault", "verify", "--dir", dir.path().to_str().unwrap()]);
    assert!(table.expect_success().stdout.contains(&head));

    forge_block(&files[1], 2);
    reseal(&files[1]);
    let (verified, ok) = verify(dir.path(), &[]);
    assert!(!ok);
    assert_eq!(chained(&verified), ["intact", "altered", "intact"]);
    assert_eq!(
        (&verified["damaged_places"], &verified["chains"][0]["head"]),
        (&0.into(), &head.into()),
        "every checksum matches, and so does the chain"
    );
    let table = gs_ctl(&["vault", "verify", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(table.code, Some(1));
    assert!(table.stdout.contains("isn't what was sealed"), "{table}");
    let numbers: Vec<_> = files
        .iter()
        .map(|file| file.file_stem().unwrap().to_str().unwrap())
        .collect();
    assert!(verify(dir.path(), &[numbers[0], numbers[2]]).1);
    assert!(!verify(dir.path(), &[numbers[0], numbers[1]]).1);
}

#[test]
fn verify_tells_removals_by_the_vault_from_those_by_hand() {
    let dir = real_disk();
    let config = raw(dir.path());
    let files = write_chained(&config, 4);
    let vault = open(&config);
    let entries = read_all(&vault, 1 << 20);
    let first = entries[0].id.segment;
    for entry in entries.iter().filter(|entry| entry.id.segment == first) {
        vault.settle(entry.id, 1);
    }
    append(&vault, &requests(9, 2, 300), 1, true);
    wait_until("the settled segment is removed", || !files[0].exists());
    vault.close().unwrap();
    let (verified, ok) = verify(dir.path(), &[]);
    assert!(ok, "{verified:#}");
    let states = ["removed", "intact", "intact", "intact", "unchained"];
    assert_eq!(chained(&verified), states);

    // Its seal and what follows cut off: for the checksums alone a lane that was killed.
    let (seal, _) = *blocks(&files[1]).last().unwrap();
    let file = OpenOptions::new().write(true).open(&files[1]).unwrap();
    file.set_len(seal).unwrap();
    fs::remove_file(&files[3]).unwrap();
    let (verified, ok) = verify(dir.path(), &[]);
    assert!(!ok);
    assert_eq!(verified["damaged_places"], 0);
    let states = ["removed", "damaged", "intact", "missing", "unchained"];
    assert_eq!(chained(&verified), states);
    let table = gs_ctl(&["vault", "verify", "--dir", dir.path().to_str().unwrap()]);
    for word in ["ends without its seal", "not by the vault"] {
        assert!(table.stdout.contains(word), "{word}: {table}");
    }
}

#[test]
fn verify_finds_a_changed_and_a_damaged_manifest() {
    const RECORD: usize = 192;
    let dir = real_disk();
    write_chained(&raw(dir.path()), 3);
    let manifest = dir.path().join("lane-00/manifest");
    let pristine = fs::read(&manifest).unwrap();
    // Its place's hash before it is another, and its checksum mended.
    edit(&manifest, 64 + RECORD as u64, RECORD, |record| {
        record[96] ^= 1;
        let crc = crc32fast::hash(&record[..RECORD - 4]);
        record[RECORD - 4..].copy_from_slice(&crc.to_le_bytes());
    });
    let (verified, ok) = verify(dir.path(), &[]);
    assert!(!ok);
    let linked: Vec<_> = (0..3)
        .map(|at| verified["chains"][0]["segments"][at]["linked"] == true)
        .collect();
    assert_eq!(linked, [true, false, true]);

    fs::write(&manifest, &pristine).unwrap();
    flip(&manifest, 64 + 5);
    let (verified, ok) = verify(dir.path(), &[]);
    assert!(!ok);
    assert_eq!(verified["chains"][0]["damaged_records"], 1);

    fs::write(&manifest, &pristine).unwrap();
    flip(&manifest, 20);
    let (verified, ok) = verify(dir.path(), &[]);
    assert!(!ok);
    let error = verified["chains"][0]["error"].as_str().unwrap();
    assert!(error.contains("manifest"), "{error}");
}

#[test]
fn verify_beside_a_vault_that_removes_and_recycles_raises_no_alarm() {
    let dir = real_disk();
    let config = Config {
        segment_bytes: 256 << 10,
        max_entry_bytes: 64 << 10,
        ..raw(dir.path())
    };
    let vault = open(&config);
    vault.set_background_weight(1000);
    let contents = requests(14, 20, 20_000);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let churn = scope.spawn(|| {
            on_worker(async {
                let lane = vault.lane(0).unwrap();
                let mut owed = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    for content in &contents {
                        owed.push_back(lane.append(meta(1, 1), &[content]).await.unwrap());
                    }
                    while owed.len() > 60 {
                        vault.settle(owed.pop_front().unwrap(), 1);
                    }
                }
                lane.shutdown().await.unwrap();
            });
        });
        let (mut seen, mut rounds) = (HashSet::new(), 0);
        wait_until("all kinds were seen", || {
            rounds += 1;
            let (verified, ok) = verify(dir.path(), &[]);
            stop.store(!ok, Ordering::Relaxed);
            assert!(ok, "{verified:#}");
            seen.extend(chained(&verified).into_iter().map(ToOwned::to_owned));
            ["intact", "removed", "unchained"]
                .iter()
                .all(|&state| seen.contains(state))
                && vault.stats().recycled_segments_total > 50
                && rounds > 50
        });
        stop.store(true, Ordering::Relaxed);
        churn.join().unwrap();
    });
    vault.close().unwrap();
}

fn append_each(vault: &Vault, entries: &[(Kind, ContentEncoding, &Vec<u8>)]) -> Vec<EntryId> {
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let mut ids = Vec::new();
        for &(kind, encoding, content) in entries {
            let meta = EntryMeta {
                kind,
                encoding,
                ..meta(1, 1)
            };
            ids.push(lane.append(meta, &[content]).await.unwrap());
        }
        lane.shutdown().await.unwrap();
        ids
    })
}

#[test]
fn cat_gives_back_what_producers_sent() {
    let dir = real_disk();
    let config = small(dir.path());
    let plain = requests(6, 5, 200);
    let large = requests(7, 1, 140_000).remove(0);
    let mut gzip = GzEncoder::new(Vec::new(), Level::fast());
    gzip.write_all(&plain[1]).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&plain[3][..], 3).unwrap();
    let json = ExportLogsServiceRequest::decode(&plain[4][..]).unwrap();
    let json = zstd::encode_all(&serde_json::to_vec(&json).unwrap()[..], 3).unwrap();
    let vault = open(&config);
    let ids = append_each(
        &vault,
        &[
            (Kind::OtlpLogs, ContentEncoding::Identity, &plain[0]),
            (Kind::OtlpLogs, ContentEncoding::Gzip, &gzip),
            (Kind::OtlpLogs, ContentEncoding::Identity, &large),
            (Kind::OtlpLogs, ContentEncoding::Identity, &plain[2]),
            (Kind::OtlpLogs, ContentEncoding::Zstd, &zstd),
            (Kind::OtlpLogsJson, ContentEncoding::Zstd, &json),
        ],
    );
    vault.settle(ids[0], 1);
    vault.close().unwrap();

    let text = dir.path().to_str().unwrap();
    let cat = |arguments: &[&str]| {
        gs_ctl(&[&["vault", "cat", "--dir", text], arguments].concat()).expect_success()
    };
    let all = cat(&[]);
    let lines: Vec<ExportLogsServiceRequest> = all
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sent = [
        &plain[0], &plain[1], &large, &plain[2], &plain[3], &plain[4],
    ];
    let sent = sent.map(|bytes| ExportLogsServiceRequest::decode(&bytes[..]).unwrap());
    assert_eq!(lines, sent);
    let first: Value = serde_json::from_str(all.stdout.lines().next().unwrap()).unwrap();
    let record = &first["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0];
    assert_eq!(
        record["traceId"].as_str().unwrap().len(),
        32,
        "hex: {record}"
    );
    assert!(record["timeUnixNano"].is_string() && record["severityNumber"] == 9);

    assert_eq!(cat(&["--owed"]).stdout.lines().count(), 5);
    assert_eq!(cat(&["--limit", "2"]).stdout.lines().count(), 2);
    let one = format!("{:x}:1", ids[1].segment);
    assert_eq!(cat(&[&one]).stdout.lines().count(), 1);
    let hex = cat(&[&one, "--format", "hex"]).stdout;
    assert!(
        hex.contains("gzip") && hex.contains("00000000  1f 8b"),
        "{hex}"
    );

    let last = format!("{:x}:5", ids[5].segment);
    let hex = cat(&[&last, "--format", "hex"]).stdout;
    assert!(hex.contains("otlp_logs_json, zstd"), "{hex}");

    let raw = Command::new(GS_CTL)
        .args(["vault", "cat", "--dir", text, "--format", "raw"])
        .output()
        .unwrap();
    assert_eq!(
        raw.stdout,
        [&plain[0][..], &gzip, &large, &plain[2], &zstd, &json].concat()
    );
    let missing = format!("{:x}:77", ids[0].segment);
    let missing = gs_ctl(&["vault", "cat", &missing, "--dir", text]);
    assert_eq!(missing.code, Some(1), "{missing}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_cat_quietly() {
    let dir = real_disk();
    write(&small(dir.path()), &requests(8, 2, 200_000), true);
    let mut child = Command::new(GS_CTL)
        .args(["vault", "cat", "--dir", dir.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a pipe holds is left unread.
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    let status = process::wait(&mut child, PATIENCE).unwrap();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_quarantined_segment_is_neither_replayed_nor_removed() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = requests(9, 6, 200);
    let first = write(&config, &contents[..3], true);
    let vault = open(&config);
    let second = append(&vault, &contents[3..], 1, true);
    let number = first[0].segment;
    let order = Quarantine::now("uid 7".to_owned(), "poison".to_owned());
    wait_until("recovery is through", || !vault.stats().recovering);

    let held = vault.quarantine_segment(number, &order).unwrap();
    assert_eq!(held.quarantine.as_ref(), Some(&order));
    let again = vault.quarantine_segment(number, &order);
    assert!(
        matches!(again, Err(QuarantineError::Already(_))),
        "{again:?}"
    );
    let unknown = vault.quarantine_segment(0xffff, &order);
    assert!(matches!(unknown, Err(QuarantineError::Unknown(0xffff))));
    let stats = vault.stats();
    assert_eq!((stats.records_pending, stats.quarantined_records), (6, 6));
    assert_eq!(stats.quarantined_segments, 1);
    assert_eq!(stats.by_destination[0].owed_records, 6);
    assert_eq!(stats.by_destination[0].lost_records, 6);
    let entries = read_all(&vault, 1 << 20);
    assert!(entries.iter().map(|entry| &entry.bytes).eq(&contents[3..]));
    // What was under way arrives, and still the segment stays.
    for id in &first {
        vault.settle(*id, 1);
    }
    for id in &second {
        vault.settle(*id, 1);
    }
    wait_until("the other segment is removed", || {
        !segment_files(dir.path())
            .iter()
            .any(|path| path.ends_with(format!("{:016x}.gsv", second[0].segment)))
    });
    assert!(path_of(&first[0], dir.path()).exists());
    vault.close().unwrap();

    let vault = open(&config);
    assert_eq!(read_all(&vault, 1 << 20), []);
    assert_eq!(vault.stats().quarantined_segments, 1, "over a restart");
    vault.readmit_segment(number, "uid 7").unwrap();
    let twice = vault.readmit_segment(number, "uid 7");
    assert!(matches!(
        twice,
        Err(QuarantineError::NotQuarantined(_) | QuarantineError::Unknown(_))
    ));
    wait_until("the segment, settled, is removed", || {
        vault.stats().segments == 0
    });
    vault.close().unwrap();
}

#[test]
fn a_segment_quarantined_offline_stays_as_it_is_until_it_is_released() {
    let dir = real_disk();
    let config = small(dir.path());
    let contents = requests(10, 3, 200);
    // Without a seal: a start would write to it.
    let ids = write(&config, &contents, false);
    let path = path_of(&ids[0], dir.path());
    let before = fs::read(&path).unwrap();
    let (text, segment) = (
        dir.path().to_str().unwrap(),
        format!("{:x}", ids[0].segment),
    );
    let order = ["vault", "quarantine", &segment, "--dir", text];
    gs_ctl(&[&order[..], &["--reason", "makes it\ncrash"]].concat()).expect_success();
    let list = vault_json(dir.path(), &["list"]);
    assert_eq!(list["segments"][0]["state"], "quarantined");
    assert_eq!(
        list["segments"][0]["quarantine"]["reason"],
        "makes it crash"
    );
    assert_eq!(list["totals"]["quarantined_segments"], 1);

    let vault = open(&config);
    assert_eq!(read_all(&vault, 1 << 20), []);
    assert_eq!(vault.stats().quarantined_records, 6);
    let refused = gs_ctl(&[&order[..], &["--release"]].concat());
    assert_eq!(refused.code, Some(1));
    let pid = std::process::id().to_string();
    assert!(refused.stderr.contains(&pid), "names who runs: {refused}");
    vault.close().unwrap();
    assert!(fs::read(&path).unwrap() == before, "not a byte is changed");

    gs_ctl(&[&order[..], &["--release"]].concat()).expect_success();
    let unset = gs_ctl(&[&order[..], &["--release"]].concat());
    assert_eq!(unset.code, Some(1), "{unset}");
    let vault = open(&config);
    let entries = read_all(&vault, 1 << 20);
    assert!(entries.iter().map(|entry| &entry.bytes).eq(&contents));
    vault.close().unwrap();
}

/// Offsets in a file whose bytes aren't zero, and a few of the others.
fn worth_flipping(bytes: &[u8]) -> Vec<u64> {
    let worth = |(at, byte): (u64, &u8)| (*byte != 0 || at.is_multiple_of(61)).then_some(at);
    (0..).zip(bytes).filter_map(worth).collect()
}

#[test]
fn no_flipped_byte_makes_a_reader_invent_or_panic() {
    let dir = real_disk();
    let config = Config {
        compression: Compression::None,
        ..small(dir.path())
    };
    let contents = requests(11, 3, 40);
    let ids = write(&config, &contents, true);
    let path = path_of(&ids[0], dir.path());
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() <= 8 * PAGE, "{}", whole.len());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut random = Random(11);
    let mut damaged = 0;
    for at in worth_flipping(&whole) {
        let before = whole[usize::try_from(at).unwrap()];
        let flip = 1 << random.below(8);
        file.write_all_at(&[before ^ flip], at).unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let segment = directory.segment(ids[0].segment).unwrap();
        for depth in [Depth::Headers, Depth::Needed] {
            summarize(&directory, segment, depth, &mut |_| {}).unwrap();
        }
        let (ending, seen) = seen(&directory, ids[0].segment);
        damaged += usize::from(!seen.damage.is_empty());
        for (index, _, bytes) in &seen.entries {
            let sent = &contents[usize::try_from(*index).unwrap()];
            assert_eq!(bytes.as_ref(), Some(sent), "byte {at}, entry {index}");
        }
        let lost: u64 = seen.damage.iter().map(|damage| damage.entries).sum();
        if ending == Ending::Sealed {
            assert_eq!(
                seen.entries.len() as u64 + lost,
                3,
                "byte {at}: {:?}",
                seen.damage
            );
        }
        file.write_all_at(&[before], at).unwrap();
    }
    assert!(damaged > 100, "{damaged} flips were noticed");
}

#[test]
fn no_command_panics_on_damaged_files() {
    let dir = real_disk();
    let ids = write(&small(dir.path()), &requests(12, 3, 400), true);
    let (text, segment) = (
        dir.path().to_str().unwrap(),
        format!("{:x}", ids[0].segment),
    );
    let targets = [
        path_of(&ids[0], dir.path()),
        dir.path().join("destinations"),
        dir.path().join("cursors-b"),
        dir.path()
            .join("lane-00")
            .join(format!("{:016x}.quarantine", ids[0].segment)),
    ];
    let order = Quarantine::now("uid 1".to_owned(), "test".to_owned());
    set_quarantine(dir.path(), ids[0].segment, Some(order)).unwrap();
    let mut random = Random(12);
    for path in targets.iter().filter(|path| path.exists()) {
        let whole = fs::read(path).unwrap();
        let worth = worth_flipping(&whole);
        for _ in 0..12 {
            let at = usize::try_from(worth[random.below(worth.len())]).unwrap();
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << random.below(8);
            fs::write(path, bytes).unwrap();
            for command in [
                &["list"][..],
                &["verify"],
                &["inspect", &segment, "--blocks", "--entries"],
                &["cat", "--format", "hex"],
                &["cat"],
            ] {
                let arguments = [&["vault"], command, &["--dir", text]].concat();
                let finished = gs_ctl(&arguments);
                let at = format!("{} byte {at}, {command:?}: {finished}", path.display());
                assert!(matches!(finished.code, Some(0 | 1)), "{at}");
                assert!(!finished.stderr.contains("panicked"), "{at}");
            }
        }
        fs::write(path, whole).unwrap();
    }
}

#[test]
fn the_daemon_shows_its_vault_and_quarantines_on_demand() {
    let home = Home::new();
    let sink = Collector::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon.ctl(&["override", "--zone", "red", "--reason", "test"]);
    daemon.await_zone("red");
    let shape = Shape {
        records: 3,
        body_bytes: 100,
    };
    let messages = Messages::new(13, shape).take(20);
    daemon.producer().export_all(&messages);
    let list = || -> Value {
        let list = daemon.ctl(&["vault", "list"]);
        serde_json::from_str(&list.stdout).unwrap()
    };
    let writing = list();
    assert_eq!(writing["totals"]["owed_entries"], 20, "{writing:#}");
    assert_eq!(writing["totals"]["owed"]["main"]["records"], 60);
    // One is made ahead for each lane, at its own time.
    eventually("as many segments in the status", PATIENCE, || {
        let segments = list()["segments"].as_array().unwrap().clone();
        let unused = segments.iter().filter(|one| one["state"] == "unused");
        let listed = (segments.len() as u64, unused.count() as u64);
        let counted = |name: &str| daemon.figure(&format!("/vault/{name}"));
        listed.1 > 0 && listed == (counted("segments"), counted("unused_segments"))
    });
    let states = writing["segments"].as_array().unwrap().iter();
    let owing = states.filter(|segment| segment["owed_entries"] != 0);
    let owing: Vec<_> = owing
        .map(|segment| segment["segment"].as_str().unwrap())
        .collect();
    let busy = home.ctl(&["vault", "quarantine", owing[0]]);
    assert_eq!(busy.code, Some(1), "its lane writes it: {busy}");
    let cat = daemon.ctl(&["vault", "cat", "--owed"]);
    assert_eq!(cat.stdout.lines().count(), 20);
    assert_eq!(daemon.terminate(PATIENCE).code(), Some(0));

    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    eventually("the entries of before in the status", PATIENCE, || {
        daemon.figure("/vault/entries_pending") == 20
    });
    for segment in &owing {
        daemon.ctl(&["vault", "quarantine", segment, "--reason", "poison"]);
    }
    assert_eq!(daemon.figure("/vault/quarantined_records"), 60);
    assert_eq!(daemon.figure("/vault/records_pending"), 0);
    let listed: Value = serde_json::from_str(&daemon.ctl(&["vault", "list"]).stdout).unwrap();
    assert_eq!(listed["totals"]["quarantined_segments"], owing.len());
    let audit = fs::read_to_string(home.audit_log()).unwrap();
    assert!(
        audit.contains("vault_quarantine") && audit.contains("poison"),
        "{audit}"
    );

    daemon.ctl(&["override", "--clear"]);
    daemon.await_zone("green");
    for segment in &owing {
        daemon.ctl(&["vault", "quarantine", segment, "--release"]);
    }
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(daemon.figure("/ledger/residue"), 0);
}

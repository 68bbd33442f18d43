//! A directory that an earlier version has written is read by today's: `tests/fixtures/vault-1`, and what
//! is in it, `vault-1.txt`, as its maker knew it from appending, not from reading.
//!
//! Three readers have to find the same: the inspection, a vault that is opened on it, and one in
//! `vault_fixture/layout.rs` that knows nothing but docs/vault-format.md and the drawings it points to.

#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

#[path = "vault_fixture/layout.rs"]
mod layout;
#[path = "vault_fixture/make.rs"]
mod make;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use gophership::vault::{
    ContentEncoding, Vault, chain,
    inspect::{Damage, Depth, Directory, EntrySeen, Visitor, summarize, walk},
};
use vault_support::{read_all, real_disk};

/// Destinations, by bit.
const DESTINATIONS: [&str; 2] = ["main", "local"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn expected() -> Vec<String> {
    let text = fs::read_to_string(fixtures().join("vault-1.txt")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The fixture, where it may be changed.
fn copied() -> tempfile::TempDir {
    let dir = real_disk();
    copy(&fixtures().join("vault-1"), dir.path());
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

/// One entry, as every reader has to find it.
struct Line<'a> {
    segment: u64,
    index: u64,
    encoding: &'a str,
    records: u32,
    arrival_unix_ns: u64,
    stored_for: u32,
    owed: u32,
    bytes: &'a [u8],
}

impl std::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Line {
            segment,
            index,
            encoding,
            records,
            arrival_unix_ns,
            stored_for,
            owed,
            bytes,
        } = self;
        let (len, hash) = (bytes.len(), blake3::hash(bytes).to_hex());
        let (stored_for, owed) = (names(*stored_for), names(*owed));
        write!(
            f,
            "entry {segment}:{index} {encoding} {len} bytes {records} records arrived {arrival_unix_ns} "
        )?;
        write!(f, "stored-for {stored_for} owed {owed} {}", &hash[..16])
    }
}

fn names(mask: u32) -> String {
    let names: Vec<_> = (0..)
        .zip(DESTINATIONS)
        .filter(|(bit, _)| mask & (1 << bit) != 0)
        .map(|(_, name)| name)
        .collect();
    if names.is_empty() {
        "nobody".to_owned()
    } else {
        names.join("+")
    }
}

fn encoding(encoding: ContentEncoding) -> &'static str {
    match encoding {
        ContentEncoding::Identity => "identity",
        ContentEncoding::Gzip => "gzip",
        ContentEncoding::Zstd => "zstd",
    }
}

/// What a walk tells, as lines.
struct Lines {
    segment: u64,
    lines: Vec<String>,
}

impl Visitor for Lines {
    fn wants_bytes(&mut self, _: u64) -> bool {
        true
    }

    fn entry(&mut self, entry: &EntrySeen<'_>) -> ControlFlow<()> {
        let line = Line {
            segment: self.segment,
            index: entry.index,
            encoding: encoding(entry.encoding),
            records: entry.records,
            arrival_unix_ns: entry.arrival_unix_ns,
            stored_for: entry.stored_for,
            owed: entry.owed,
            bytes: entry.bytes.unwrap(),
        };
        self.lines.push(line.to_string());
        ControlFlow::Continue(())
    }

    fn damage(&mut self, damage: &Damage) {
        for entry in damage.first_entry..damage.first_entry + damage.entries {
            self.lines.push(format!("lost {}:{entry}", self.segment));
        }
    }
}

#[test]
fn the_inspection_reads_what_version_1_wrote() {
    let dir = fixtures().join("vault-1");
    let directory = Directory::open(&dir).unwrap();
    assert!(directory.notes().is_empty(), "{:?}", directory.notes());
    assert_eq!(directory.destinations(), DESTINATIONS);
    let mut lines = Vec::new();
    for segment in directory.segments() {
        let summary = summarize(&directory, segment, Depth::Everything, &mut |_| {}).unwrap();
        let (number, lane) = (segment.number, segment.lane);
        lines.push(format!(
            "segment {number} of lane {lane}: {}",
            summary.state.as_str()
        ));
        let mut found = Lines {
            segment: number,
            lines,
        };
        walk(&directory, segment, Depth::Everything, &mut found).unwrap();
        lines = found.lines;
    }
    for lane in 0..2 {
        let report = chain::verify(&dir.join(format!("lane-{lane:02}"))).unwrap();
        assert_eq!(
            (
                report.missing_places,
                report.damaged_records,
                report.torn_bytes
            ),
            (0, 0, 0)
        );
        assert!(report.segments.iter().all(|segment| segment.is_linked));
        lines.push(format!(
            "head of lane {lane}: {}",
            hex(&report.head.unwrap())
        ));
    }
    assert_eq!(lines, expected());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_reader_made_from_the_document_alone_finds_the_same() {
    assert_eq!(layout::read(&fixtures().join("vault-1")), expected());
}

/// What a running vault has to deliver: what is owed, but for what an operator withholds.
fn owed() -> Vec<String> {
    let all = expected();
    let withheld: Vec<_> = all
        .iter()
        .filter_map(|line| line.strip_prefix("segment ")?.strip_suffix(": quarantined"))
        .map(|segment| format!("entry {}:", segment.split(' ').next().unwrap()))
        .collect();
    all.into_iter()
        .filter(|line| line.starts_with("entry ") && !line.contains(" owed nobody "))
        .filter(|line| !withheld.iter().any(|segment| line.starts_with(segment)))
        .collect()
}

#[test]
fn a_vault_that_opens_what_version_1_wrote_delivers_what_is_owed() {
    let dir = copied();
    let config = make::config(dir.path());
    // Every start finds the same, the first of which seals and cuts.
    for _ in 0..2 {
        let vault = Vault::open(&config, &DESTINATIONS.map(str::to_owned)).unwrap();
        let entries = read_all(&vault, 4096);
        let lines: Vec<_> = entries
            .iter()
            .map(|entry| {
                let line = Line {
                    segment: entry.id.segment,
                    index: u64::from(entry.id.index),
                    encoding: encoding(entry.encoding),
                    records: entry.records,
                    arrival_unix_ns: entry.arrival_unix_ns,
                    stored_for: 0,
                    owed: entry.owed,
                    bytes: &entry.bytes,
                };
                line.to_string()
            })
            .collect();
        assert_eq!(
            lines,
            owed()
                .iter()
                .map(|line| without_stored_for(line))
                .collect::<Vec<_>>()
        );
        let stats = vault.stats();
        assert_eq!(stats.entries_pending, entries.len() as u64);
        let quarantined = expected();
        let lost = quarantined
            .iter()
            .filter(|line| line.starts_with("lost "))
            .count();
        let withheld = make::WITHHELD.len();
        assert_eq!(stats.quarantined_entries, (lost + withheld) as u64);
        assert_eq!(stats.quarantined_segments, 2, "damaged, and withheld");
        vault.close().unwrap();
    }
}

/// A running vault doesn't say for whom an entry was stored.
fn without_stored_for(line: &str) -> String {
    let (before, rest) = line.split_once("stored-for ").unwrap();
    let (_, after) = rest.split_once(' ').unwrap();
    format!("{before}stored-for nobody {after}")
}

/// Writes the fixture anew:
/// `cargo test -p gophership --test vault_fixture -- --ignored`.
#[test]
#[ignore = "writes tests/fixtures/vault-1 anew, with today's writer"]
fn make_the_fixture() {
    make::make(&fixtures().join("vault-1"), &fixtures().join("vault-1.txt"));
}

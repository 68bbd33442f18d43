//! `vault inspect`.

use std::ops::ControlFlow;

use gophership::vault::{
    ContentEncoding, DestMask, Kind,
    format::{BlockKind, Codec},
    inspect::{BlockSeen, Depth, Directory, Ending, EntrySeen, Header, Visitor, summarize, walk},
};
use gophership_common::{Cause, Zone};
use serde_json::{Value, json};

use super::{
    Opened, args::SegmentNumber, failed, full_number, list::Row, list::place, number, rfc3339,
    short_time,
};
use crate::{
    failure::Failure,
    human::{bytes, count, counted, plain},
    output::Sink,
    table::{table, titled},
};

/// `vault inspect`.
pub(super) fn run(
    opened: &Opened,
    sink: &mut Sink,
    segment: SegmentNumber,
    (blocks, entries): (bool, bool),
) -> Result<(), Failure> {
    let file = opened.segment(segment)?;
    let directory = &opened.directory;
    let summary = summarize(directory, file, Depth::Everything, &mut |_| {}).map_err(failed)?;
    if summary.walked.ending == Ending::Gone {
        let gone = format!("segment {} was removed just now", number(segment.0));
        return Err(Failure::Failed(gone));
    }
    let row = Row::new(opened, file, summary);
    let mut parts = Parts {
        directory,
        blocks: blocks.then(Vec::new),
        entries: entries.then(Vec::new),
    };
    if blocks || entries {
        let depth = match entries {
            true => Depth::Everything,
            false => Depth::Headers,
        };
        walk(directory, file, depth, &mut parts).map_err(failed)?;
    }
    let list = |blocks: &Vec<Block>| blocks.iter().map(Block::value).collect::<Value>();
    let blocks = parts.blocks.as_ref().map(list);
    let list = |entries: &Vec<Entry>| entries.iter().map(Entry::value).collect::<Value>();
    let entries = parts.entries.as_ref().map(list);
    let value = json!({
        "segment": row.value(),
        "header": header_value(&file.header),
        "blocks": blocks,
        "entries": entries,
    });
    sink.result(&value, || {
        let mut out = table(&facts(opened, &row), &[]);
        for damage in &row.summary.damage {
            out.push_str(&format!("damage: {}\n", place(damage)));
        }
        if let Some(blocks) = &parts.blocks {
            out.push('\n');
            out.push_str(&block_table(blocks));
        }
        if let Some(entries) = &parts.entries {
            out.push('\n');
            out.push_str(&entry_table(entries));
        }
        out
    })
}

/// What is listed besides the figures.
struct Parts<'a> {
    directory: &'a Directory,
    blocks: Option<Vec<Block>>,
    entries: Option<Vec<Entry>>,
}

struct Block(BlockSeen);

struct Entry {
    index: u64,
    block: u32,
    pieces: u32,
    kind: &'static str,
    encoding: &'static str,
    bytes: u32,
    records: u32,
    arrival_unix_ns: u64,
    owed: Vec<String>,
    settled: Vec<String>,
}

impl Visitor for Parts<'_> {
    fn block(&mut self, block: &BlockSeen) -> ControlFlow<()> {
        if let Some(blocks) = &mut self.blocks {
            blocks.push(Block(*block));
        }
        ControlFlow::Continue(())
    }

    fn entry(&mut self, entry: &EntrySeen<'_>) -> ControlFlow<()> {
        let directory = self.directory;
        let names = |mask: DestMask| {
            (0..DestMask::BITS)
                .filter(|bit| mask & (1 << bit) != 0)
                .map(|bit| directory.destination(bit as usize))
                .collect()
        };
        if let Some(entries) = &mut self.entries {
            entries.push(Entry {
                index: entry.index,
                block: entry.block,
                pieces: entry.pieces,
                kind: kind(entry.kind),
                encoding: encoding(entry.encoding),
                bytes: entry.len,
                records: entry.records,
                arrival_unix_ns: entry.arrival_unix_ns,
                owed: names(entry.owed),
                settled: names(entry.stored_for & !entry.owed),
            });
        }
        ControlFlow::Continue(())
    }
}

pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::OtlpLogs => "otlp_logs",
        Kind::OtlpLogsJson => "otlp_logs_json",
    }
}

/// As `content-encoding` names it.
pub(super) fn encoding(encoding: ContentEncoding) -> &'static str {
    match encoding {
        ContentEncoding::Identity => "identity",
        ContentEncoding::Gzip => "gzip",
        ContentEncoding::Zstd => "zstd",
    }
}

fn header_value(header: &Header) -> Value {
    let (whole, problem) = match header {
        Header::Whole(whole) => (Some(whole), None),
        Header::Foreign(other) => (Some(other), Some("of another lane or segment".to_owned())),
        Header::Damaged(error) => (None, Some(error.to_string())),
        Header::Unreadable(error) => (None, Some(error.clone())),
    };
    json!({
        "problem": problem,
        "lane": whole.map(|header| header.lane),
        "segment": whole.map(|header| full_number(header.segment)),
        "tag": whole.map(|header| full_number(header.tag)),
        "previous": whole.map(|header| full_number(header.previous)),
        "previous_durable": whole.map(|header| header.previous_durable),
        "created": whole.map_or(Value::Null, |header| rfc3339(header.created_unix_ns)),
        "bytes": whole.map(|header| header.bytes),
        "host": whole.map(|header| format!("{:032x}", u128::from_be_bytes(header.host))),
    })
}

fn facts(opened: &Opened, row: &Row<'_>) -> Vec<Vec<String>> {
    let (file, summary, walked) = (row.file, &row.summary, &row.summary.walked);
    let mut facts = Vec::new();
    let mut fact = |name: &str, text: String| facts.push(vec![name.to_owned(), text]);
    for note in opened.notes() {
        fact("note", plain(&note));
    }
    fact("segment", full_number(file.number));
    fact("lane", file.lane.to_string());
    fact("path", file.path.display().to_string());
    fact("state", row.state.to_owned());
    if let Some(quarantine) = &row.quarantine {
        let (by, reason) = (plain(&quarantine.by), plain(&quarantine.reason));
        let since = short_time(quarantine.since_unix_ns);
        fact("quarantine", format!("by {by} at {since} UTC: {reason}"));
    }
    match &file.header {
        Header::Whole(header) if header.is_ready => {
            fact("header", "made ahead; the lane hasn't begun it".to_owned());
            fact("tag", full_number(header.tag));
        }
        Header::Whole(header) => {
            fact(
                "created",
                format!("{} UTC", short_time(header.created_unix_ns)),
            );
            fact("tag", full_number(header.tag));
            let previous = match header.previous {
                0 => "none".to_owned(),
                previous => format!(
                    "{}, {} of its blocks known durable then",
                    number(previous),
                    header.previous_durable
                ),
            };
            fact("previous", previous);
            fact("host", format!("{:032x}", u128::from_be_bytes(header.host)));
        }
        Header::Foreign(_) => fact("header", "of another lane or segment".to_owned()),
        Header::Damaged(error) => fact("header", error.to_string()),
        Header::Unreadable(error) => fact("header", error.clone()),
    }
    fact(
        "size",
        format!("{}, used {}", bytes(file.bytes), bytes(walked.end)),
    );
    let codecs = &summary.codecs;
    fact(
        "blocks",
        format!(
            "{}, of which {} data: {} LZ4, {} raw; {} of entries stored in {}",
            count(walked.blocks.into()),
            count(codecs.lz4_blocks + codecs.raw_blocks),
            count(codecs.lz4_blocks),
            count(codecs.raw_blocks),
            bytes(codecs.raw_bytes),
            bytes(codecs.stored_bytes),
        ),
    );
    let amount =
        |entries, records| format!("{} with {}", count(entries), counted(records, "record"));
    fact("entries", amount(walked.entries, walked.records));
    for (name, owed) in &row.owed {
        fact(
            "owed to",
            format!("{}: {}", plain(name), amount(owed.entries, owed.records)),
        );
    }
    facts
}

impl Block {
    fn kind(&self) -> &'static str {
        match self.0.header.kind {
            BlockKind::Data => "data",
            BlockKind::Mark => "mark",
            BlockKind::Seal => "seal",
        }
    }

    fn codec(&self) -> &'static str {
        match self.0.header.codec {
            Codec::Raw => "raw",
            Codec::Lz4 => "lz4",
        }
    }

    fn zone(&self) -> &'static str {
        Zone::from_bits(self.0.header.zone).as_str()
    }

    fn cause(&self) -> &'static str {
        Cause::from_bits(self.0.header.cause).as_str()
    }

    fn value(&self) -> Value {
        let header = &self.0.header;
        json!({
            "index": header.index,
            "offset": self.0.offset,
            "kind": self.kind(),
            "codec": self.codec(),
            "raw_bytes": header.raw_len,
            "stored_bytes": header.stored_len,
            "first_entry": header.first_entry,
            "entries": header.entries,
            "first_record": header.first_record,
            "records": header.records,
            "durable_through": header.durable_through,
            "zone": self.zone(),
            "cause": self.cause(),
            "time": rfc3339(header.wall_unix_ns),
            "monotonic_ns": header.monotonic_ns,
            "payload_crc": format!("{:08x}", header.payload_crc),
        })
    }
}

fn block_table(blocks: &[Block]) -> String {
    let titles = [
        "BLOCK",
        "OFFSET",
        "KIND",
        "CODEC",
        "RAW",
        "STORED",
        "ENTRIES",
        "RECORDS",
        "DURABLE",
        "ZONE",
        "CAUSE",
        "WRITTEN (UTC)",
    ];
    let rows = blocks.iter().map(|block| {
        let header = &block.0.header;
        vec![
            header.index.to_string(),
            block.0.offset.to_string(),
            block.kind().to_owned(),
            block.codec().to_owned(),
            header.raw_len.to_string(),
            header.stored_len.to_string(),
            header.entries.to_string(),
            header.records.to_string(),
            header.durable_through.to_string(),
            block.zone().to_owned(),
            block.cause().to_owned(),
            short_time(header.wall_unix_ns),
        ]
    });
    titled(&titles, rows, &[0, 1, 4, 5, 6, 7, 8])
}

impl Entry {
    fn value(&self) -> Value {
        json!({
            "index": self.index,
            "block": self.block,
            "pieces": self.pieces,
            "kind": self.kind,
            "encoding": self.encoding,
            "bytes": self.bytes,
            "records": self.records,
            "arrival": rfc3339(self.arrival_unix_ns),
            "owed": self.owed,
            "settled": self.settled,
        })
    }
}

fn entry_table(entries: &[Entry]) -> String {
    let titles = [
        "ENTRY",
        "BLOCK",
        "PIECES",
        "KIND",
        "ENCODING",
        "BYTES",
        "RECORDS",
        "ARRIVED (UTC)",
        "OWED",
        "SETTLED",
    ];
    let names = |names: &[String]| match names {
        [] => "-".to_owned(),
        names => plain(&names.join(",")),
    };
    let rows = entries.iter().map(|entry| {
        vec![
            entry.index.to_string(),
            entry.block.to_string(),
            entry.pieces.to_string(),
            entry.kind.to_owned(),
            entry.encoding.to_owned(),
            entry.bytes.to_string(),
            entry.records.to_string(),
            short_time(entry.arrival_unix_ns),
            names(&entry.owed),
            names(&entry.settled),
        ]
    });
    titled(&titles, rows, &[0, 1, 2, 5, 6])
}

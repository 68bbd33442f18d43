//! `vault list`.

use gophership::{
    control::pb,
    vault::{
        Quarantine,
        inspect::{Damage, Depth, Ending, Owed, SegmentFile, Summary, summarize},
    },
};
use serde_json::{Map, Value, json};

use super::{Opened, age_seconds, failed, full_number, number, range, rfc3339, short_time};
use crate::{
    failure::Failure,
    human::{bytes, count, counted, duration, plain},
    output::Sink,
    table::{paint, titled},
};

/// A segment's line.
pub(super) struct Row<'a> {
    pub(super) file: &'a SegmentFile,
    pub(super) summary: Summary,
    pub(super) state: &'static str,
    pub(super) owed: Vec<(String, Owed)>,
    pub(super) owed_any: Owed,
    /// Entries and records that are lost.
    pub(super) lost: (u64, u64),
    pub(super) quarantine: Option<Quarantine>,
}

impl<'a> Row<'a> {
    /// What the file says, and where the daemon was asked what that knows better.
    pub(super) fn new(opened: &Opened, file: &'a SegmentFile, summary: Summary) -> Self {
        let directory = &opened.directory;
        let owed = summary.owed.iter().enumerate();
        let row = Self {
            state: summary.state.as_str(),
            owed: owed
                .map(|(bit, owed)| (directory.destination(bit), *owed))
                .collect(),
            owed_any: summary.owed_any,
            lost: (summary.lost_entries, summary.lost_records),
            quarantine: file.quarantine.clone(),
            file,
            summary,
        };
        match opened.live(file.number) {
            Some(live) => row.corrected_by(live),
            None => row,
        }
    }

    fn corrected_by(mut self, live: &pb::VaultSegment) -> Self {
        self.owed = live
            .owed
            .iter()
            .map(|owed| {
                let (entries, records) = (owed.entries, owed.records);
                (owed.destination.clone(), Owed { entries, records })
            })
            .collect();
        self.owed_any = Owed {
            entries: live.owed_entries,
            records: live.owed_records,
        };
        self.lost.0 = self.lost.0.max(live.lost_entries);
        self.lost.1 = self.lost.1.max(live.lost_records);
        if live.quarantine.is_none() {
            self.state = match (live.damaged, live.closed) {
                (true, _) => "damaged",
                (false, false) => "writing",
                (false, true) => self.state,
            };
        }
        self
    }

    /// Damage was found, by us or by the daemon.
    fn is_damaged(&self) -> bool {
        self.state == "damaged" || self.summary.damaged_places > 0 || self.lost.0 > 0
    }

    fn created_unix_ns(&self) -> u64 {
        let header = self.file.header.begun();
        header.map_or(0, |header| header.created_unix_ns)
    }

    pub(super) fn value(&self) -> Value {
        let (walked, codecs) = (&self.summary.walked, &self.summary.codecs);
        let owed: Map<_, _> = self
            .owed
            .iter()
            .map(|(name, owed)| (name.clone(), owed_value(owed)))
            .collect();
        json!({
            "segment": full_number(self.file.number),
            "lane": self.file.lane,
            "state": self.state,
            "path": self.file.path.display().to_string(),
            "created": rfc3339(self.created_unix_ns()),
            "age_seconds": age_seconds(self.created_unix_ns()),
            "bytes": self.file.bytes,
            "used_bytes": walked.end,
            "sealed": walked.ending == Ending::Sealed,
            "blocks": walked.blocks,
            "entries": walked.entries,
            "records": walked.records,
            "owed_entries": self.owed_any.entries,
            "owed_records": self.owed_any.records,
            "owed": owed,
            "codec": {
                "raw_blocks": codecs.raw_blocks,
                "lz4_blocks": codecs.lz4_blocks,
                "raw_bytes": codecs.raw_bytes,
                "stored_bytes": codecs.stored_bytes,
            },
            "lost_entries": self.lost.0,
            "lost_records": self.lost.1,
            "damage": self.summary.damage.iter().map(damage_value).collect::<Value>(),
            "quarantine": self.quarantine.as_ref().map(|quarantine| json!({
                "since": rfc3339(quarantine.since_unix_ns),
                "by": quarantine.by,
                "reason": quarantine.reason,
            })),
        })
    }
}

/// Of a damaged place.
pub(super) fn damage_value(damage: &Damage) -> Value {
    json!({
        "offset": damage.offset,
        "end": damage.end,
        "block": damage.block,
        "first_entry": damage.first_entry,
        "entries": damage.entries,
        "first_record": damage.first_record,
        "records": damage.records,
        "unsettled_entries": damage.unsettled,
        "open_ended": damage.open_ended,
        "reason": damage.reason,
    })
}

fn owed_value(owed: &Owed) -> Value {
    json!({ "entries": owed.entries, "records": owed.records })
}

/// `vault list`.
pub(super) fn run(opened: &Opened, sink: &mut Sink) -> Result<(), Failure> {
    // The daemon knows what is owed, and found the damage; the disk is spared.
    let depth = match opened.live {
        Some(_) => Depth::Headers,
        None => Depth::Needed,
    };
    let mut rows = Vec::new();
    for file in opened.directory.segments() {
        let summary = summarize(&opened.directory, file, depth, &mut |_| {}).map_err(failed)?;
        if summary.walked.ending != Ending::Gone {
            rows.push(Row::new(opened, file, summary));
        }
    }
    let totals = Totals::of(&rows);
    let value = json!({
        "dir": opened.directory.path().display().to_string(),
        "notes": opened.notes(),
        "segments": rows.iter().map(Row::value).collect::<Value>(),
        "totals": totals.value(),
    });
    let colour = sink.colour();
    sink.result(&value, || page(opened, &rows, &totals, colour))
}

/// Sums over all rows.
#[derive(Default)]
struct Totals {
    segments: u64,
    bytes: u64,
    entries: u64,
    records: u64,
    owed_any: Owed,
    owed: Vec<(String, Owed)>,
    damaged: u64,
    quarantined: u64,
    lost: (u64, u64),
}

impl Totals {
    fn of(rows: &[Row<'_>]) -> Self {
        let mut totals = Self::default();
        for row in rows {
            totals.segments += 1;
            totals.bytes += row.file.bytes;
            totals.entries += row.summary.walked.entries;
            totals.records += row.summary.walked.records;
            add(&mut totals.owed_any, &row.owed_any);
            totals.damaged += u64::from(row.is_damaged());
            totals.quarantined += u64::from(row.quarantine.is_some());
            totals.lost.0 += row.lost.0;
            totals.lost.1 += row.lost.1;
            for (name, owed) in &row.owed {
                match totals.owed.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => add(sum, owed),
                    None => totals.owed.push((name.clone(), *owed)),
                }
            }
        }
        totals
    }

    fn value(&self) -> Value {
        let owed = self.owed.iter();
        json!({
            "segments": self.segments,
            "bytes": self.bytes,
            "entries": self.entries,
            "records": self.records,
            "owed_entries": self.owed_any.entries,
            "owed_records": self.owed_any.records,
            "owed": owed.map(|(name, owed)| (name.clone(), owed_value(owed))).collect::<Map<_, _>>(),
            "damaged_segments": self.damaged,
            "quarantined_segments": self.quarantined,
            "lost_entries": self.lost.0,
            "lost_records": self.lost.1,
        })
    }
}

fn add(sum: &mut Owed, more: &Owed) {
    sum.entries += more.entries;
    sum.records += more.records;
}

fn page(opened: &Opened, rows: &[Row<'_>], totals: &Totals, colour: bool) -> String {
    let mut out = String::new();
    for note in opened.notes() {
        out.push_str(&format!("note: {}\n", plain(&note)));
    }
    if rows.is_empty() {
        let dir = opened.directory.path().display();
        out.push_str(&format!("{dir} has no segments\n"));
        return out;
    }
    let names: Vec<_> = totals.owed.iter().map(|(name, _)| name.clone()).collect();
    let mut titles = vec![
        "SEGMENT",
        "LANE",
        "STATE",
        "CREATED (UTC)",
        "AGE",
        "SIZE",
        "BLOCKS",
        "ENTRIES",
        "RECORDS",
        "LZ4",
        "RATIO",
        "OWED ENTRIES",
        "OWED RECORDS",
    ];
    let to: Vec<_> = names
        .iter()
        .map(|name| format!("TO {}", plain(name)))
        .collect();
    // With one destination the sums say it all.
    if names.len() > 1 {
        titles.extend(to.iter().map(String::as_str));
    }
    let right: Vec<_> = [0, 1].into_iter().chain(4..titles.len()).collect();
    let lines = rows.iter().map(|row| cells(row, &names, colour));
    out.push_str(&titled(&titles, lines, &right));
    out.push_str(&format!("\n{}\n", sums(totals)));
    out.push_str(&remarks(rows));
    out
}

fn cells(row: &Row<'_>, names: &[String], colour: bool) -> Vec<String> {
    let (walked, codecs) = (&row.summary.walked, &row.summary.codecs);
    let age = age_seconds(row.created_unix_ns());
    let blocks = codecs.raw_blocks + codecs.lz4_blocks;
    let share = (codecs.lz4_blocks * 100).checked_div(blocks);
    let tenths = (codecs.raw_bytes * 10).checked_div(codecs.stored_bytes);
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![
        number(row.file.number),
        row.file.lane.to_string(),
        paint(row.state, ansi(row.state), colour),
        short_time(row.created_unix_ns()),
        known(age.map(|age| duration(std::time::Duration::from_secs(age)))),
        bytes(row.file.bytes),
        count(walked.blocks.into()),
        count(walked.entries),
        count(walked.records),
        known(share.map(|share| format!("{share} %"))),
        known(tenths.map(|tenths| format!("{}.{}", tenths / 10, tenths % 10))),
        count(row.owed_any.entries),
        count(row.owed_any.records),
    ];
    if names.len() > 1 {
        cells.extend(names.iter().map(|name| {
            let owed = row.owed.iter().find(|(known, _)| known == name);
            count(owed.map_or(0, |(_, owed)| owed.records))
        }));
    }
    cells
}

fn ansi(state: &str) -> &'static str {
    match state {
        "damaged" => "31",
        "quarantined" | "torn" => "33",
        "writing" => "32",
        _ => "0",
    }
}

fn sums(totals: &Totals) -> String {
    let mut text = format!(
        "{}, {}; {} with {}; owed: {} with {}",
        counted(totals.segments, "segment"),
        bytes(totals.bytes),
        counted(totals.entries, "entry"),
        counted(totals.records, "record"),
        count(totals.owed_any.entries),
        count(totals.owed_any.records),
    );
    if totals.damaged + totals.quarantined > 0 {
        text.push_str(&format!(
            "; {} damaged ({} with {} lost), {} quarantined by operators",
            count(totals.damaged),
            counted(totals.lost.0, "entry"),
            counted(totals.lost.1, "record"),
            count(totals.quarantined),
        ));
    }
    text
}

/// What a line of the table has no room for.
fn remarks(rows: &[Row<'_>]) -> String {
    let mut out = String::new();
    for row in rows {
        let segment = number(row.file.number);
        if let Some(quarantine) = &row.quarantine {
            out.push_str(&format!(
                "{segment}: quarantined by {} at {} UTC{}\n",
                plain(&quarantine.by),
                short_time(quarantine.since_unix_ns),
                match quarantine.reason.as_str() {
                    "" => String::new(),
                    reason => format!(": {}", plain(reason)),
                }
            ));
        }
        for damage in &row.summary.damage {
            out.push_str(&format!("{segment}: {}\n", place(damage)));
        }
        if row.state == "damaged" && row.summary.damage.is_empty() {
            out.push_str(&format!(
                "{segment}: the daemon found damage ({} lost); see `gs-ctl vault verify {segment}`\n",
                counted(row.lost.0, "entry")
            ));
        }
    }
    out
}

/// A damaged place on one line.
pub(super) fn place(damage: &Damage) -> String {
    let lost = match (damage.open_ended, damage.entries) {
        (true, _) => "nothing intact follows".to_owned(),
        (false, 0) => "no entry lost".to_owned(),
        (false, entries) => format!(
            "entries {}, records {}",
            range(damage.first_entry, entries),
            range(damage.first_record, damage.records)
        ),
    };
    let block = match damage.offset {
        0 => "header".to_owned(),
        _ => format!("block {}", damage.block),
    };
    format!(
        "{block}, bytes {}, {}: {}",
        range(damage.offset, damage.end - damage.offset),
        lost,
        damage.reason
    )
}

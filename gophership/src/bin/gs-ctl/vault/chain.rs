//! What `vault verify` finds of the lanes' chains of hashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use gophership::vault::chain::{ChainReport, Hash, Known, SegmentReport, State, verify_known};
use serde_json::{Value, json};

use super::{Opened, args::SegmentNumber, full_number, list::Row, number};
use crate::human::{count, counted, plain};

/// One lane's chain.
pub(super) struct Chain {
    /// Name of the lane's directory.
    lane: String,
    found: Result<ChainReport, String>,
    /// Segments whose damage the table shows.
    shown: BTreeSet<u64>,
}

/// Checks the chains of all lanes, or of those that `asked` segments are in; what was read of the segments is
/// in `rows`.
pub(super) fn check(opened: &Opened, rows: &[Row<'_>], asked: &[SegmentNumber]) -> Vec<Chain> {
    let known: BTreeMap<_, _> = rows
        .iter()
        .map(|row| (row.file.number, row.summary.known()))
        .collect();
    let is_asked = |number| asked.is_empty() || asked.contains(&SegmentNumber(number));
    let known = |number| match known.get(&number) {
        Some(known) => *known,
        None if is_asked(number) => Known::Nothing,
        None => Known::Unasked,
    };
    let shown = rows.iter().filter(|row| row.summary.damaged_places > 0);
    let shown: BTreeSet<_> = shown.map(|row| row.file.number).collect();
    let lanes = opened.directory.lanes().iter();
    let lanes = lanes.filter(|lane| {
        let is_in = |row: &Row<'_>| row.file.path.parent() == Some(lane);
        asked.is_empty() || rows.iter().any(is_in)
    });
    lanes
        .map(|lane| Chain {
            lane: name(lane),
            found: verify_known(lane, &known)
                .map(|mut report| {
                    report.segments.retain(|segment| is_asked(segment.number));
                    report
                })
                .map_err(|error| error.to_string()),
            shown: shown.clone(),
        })
        .collect()
}

fn name(lane: &Path) -> String {
    let name = lane.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Chain {
    /// Faults, as the last line names them.
    pub(super) fn faults(&self) -> Vec<String> {
        let report = match &self.found {
            Ok(report) => report,
            Err(_) => return vec![format!("the manifest of {}", self.lane)],
        };
        let mut faults: Vec<_> = report
            .segments
            .iter()
            .filter(|segment| self.fault(segment).is_some())
            .map(|segment| number(segment.number))
            .collect();
        let records = report.missing_places + report.damaged_records;
        if records > 0 {
            faults.push(format!("{} of {}", counted(records, "record"), self.lane));
        }
        faults
    }

    /// What is wrong with a segment beside the damage that the table shows.
    fn fault(&self, segment: &SegmentReport) -> Option<&'static str> {
        match segment.state {
            State::Missing => Some("removed, and not by the vault"),
            State::Altered => Some("its checksums match, but it isn't what was sealed"),
            State::Damaged { reason, .. } => {
                (!self.shown.contains(&segment.number)).then_some(reason)
            }
            State::Intact | State::Removed | State::Unchained | State::Unread => {
                (!segment.is_linked).then_some("its record isn't linked to the one before")
            }
        }
    }

    pub(super) fn value(&self) -> Value {
        let report = match &self.found {
            Ok(report) => report,
            Err(error) => return json!({ "lane": self.lane, "ok": false, "error": error }),
        };
        json!({
            "lane": self.lane,
            "ok": self.faults().is_empty(),
            "head": report.head.map(|head| hex(&head)),
            "missing_records": report.missing_places,
            "damaged_records": report.damaged_records,
            "compacted_records": report.compacted_places,
            "segments": report.segments.iter().map(segment_value).collect::<Value>(),
        })
    }

    /// Segment and reason of each fault that the table has no line of yet.
    pub(super) fn lines(&self) -> impl Iterator<Item = (String, &'static str)> {
        let segments = self.found.iter().flat_map(|report| &report.segments);
        segments.filter_map(|segment| Some((number(segment.number), self.fault(segment)?)))
    }

    /// The lane on one line.
    pub(super) fn sums(&self) -> String {
        let report = match &self.found {
            Ok(report) => report,
            Err(error) => return format!("{}: {}\n", plain(&self.lane), plain(error)),
        };
        let of = |name| {
            let segments = report.segments.iter();
            let named = segments.filter(|segment| state(segment.state) == name);
            named.count() as u64
        };
        let mut text = format!("{}: ", plain(&self.lane));
        text.push_str(&match report.head {
            None => "no chain yet".to_owned(),
            Some(head) => format!("chain head {}", hex(&head)),
        });
        for (what, how_many) in [
            ("intact", of("intact")),
            ("altered", of("altered")),
            ("damaged", of("damaged")),
            ("missing", of("missing")),
            ("removed by the vault", of("removed")),
            ("not chained yet", of("unchained")),
        ] {
            if how_many > 0 {
                text.push_str(&format!("; {} {what}", count(how_many)));
            }
        }
        for (what, records) in [
            ("missing", report.missing_places),
            ("damaged", report.damaged_records),
        ] {
            if records > 0 {
                text.push_str(&format!("; {} {what}", counted(records, "record")));
            }
        }
        text.push('\n');
        text
    }
}

fn segment_value(segment: &SegmentReport) -> Value {
    json!({
        "segment": full_number(segment.number),
        "place": segment.sealed.map(|sealed| sealed.place),
        "state": state(segment.state),
        "linked": segment.is_linked,
        "ok": segment.is_intact(),
    })
}

fn state(state: State) -> &'static str {
    match state {
        State::Intact => "intact",
        State::Removed => "removed",
        State::Missing => "missing",
        State::Altered => "altered",
        State::Damaged { .. } => "damaged",
        State::Unchained => "unchained",
        State::Unread => "unread",
    }
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

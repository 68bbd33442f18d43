//! `vault verify`.

use gophership::vault::inspect::{Damage, Depth, Ending, SegmentFile, summarize};
use serde_json::{Value, json};

use super::{
    Opened, Progress,
    args::SegmentNumber,
    chain::{self, Chain},
    failed, full_number,
    list::{Row, damage_value},
    number, range,
};
use crate::{
    failure::Failure,
    human::{bytes, count, counted, plain},
    output::Sink,
    table::titled,
};

/// `vault verify`.
pub(super) fn run(
    opened: &Opened,
    sink: &mut Sink,
    asked: &[SegmentNumber],
) -> Result<(), Failure> {
    let files: Vec<&SegmentFile> = match asked {
        [] => opened.directory.segments().iter().collect(),
        some => some
            .iter()
            .map(|number| opened.segment(*number))
            .collect::<Result<_, _>>()?,
    };
    let mut progress = Progress::new(files.iter().map(|file| file.bytes).sum());
    let mut rows = Vec::new();
    for file in files {
        let read = &mut |bytes| progress.add(bytes);
        let summary = summarize(&opened.directory, file, Depth::Everything, read);
        let summary = summary.map_err(failed)?;
        if summary.walked.ending != Ending::Gone {
            rows.push(Row::new(opened, file, summary));
        }
    }
    let read = progress.done;
    drop(progress);
    let chains = chain::check(opened, &rows, asked);
    let places: u64 = rows.iter().map(|row| row.summary.damaged_places).sum();
    let damaged: Vec<_> = rows
        .iter()
        .filter(|row| row.summary.damaged_places > 0)
        .map(|row| number(row.file.number))
        .collect();
    let faults: Vec<_> = chains.iter().flat_map(Chain::faults).collect();
    let value = json!({
        "dir": opened.directory.path().display().to_string(),
        "ok": places == 0 && faults.is_empty(),
        "notes": opened.notes(),
        "read_bytes": read,
        "damaged_segments": damaged.len(),
        "damaged_places": places,
        "segments": rows.iter().map(value).collect::<Value>(),
        "chains": chains.iter().map(Chain::value).collect::<Value>(),
    });
    sink.result(&value, || page(opened, &rows, &chains, read))?;
    let mut wrong = Vec::new();
    if places > 0 {
        wrong.push(format!(
            "{}, in {}",
            counted(places, "damaged place"),
            damaged.join(", ")
        ));
    }
    if !faults.is_empty() {
        wrong.push(format!("faults of the chain: {}", faults.join(", ")));
    }
    match wrong.as_slice() {
        [] => Ok(()),
        wrong => Err(Failure::Failed(wrong.join("; "))),
    }
}

fn value(row: &Row<'_>) -> Value {
    let (summary, walked) = (&row.summary, &row.summary.walked);
    json!({
        "segment": full_number(row.file.number),
        "lane": row.file.lane,
        "path": row.file.path.display().to_string(),
        "state": row.state,
        "ok": summary.damaged_places == 0,
        "blocks": walked.blocks,
        "entries": walked.entries,
        "records": walked.records,
        "lost_entries": summary.lost_entries,
        "lost_records": summary.lost_records,
        "damaged_places": summary.damaged_places,
        "damage": summary.damage.iter().map(damage_value).collect::<Value>(),
    })
}

fn page(opened: &Opened, rows: &[Row<'_>], chains: &[Chain], read: u64) -> String {
    let mut out = String::new();
    for note in opened.notes() {
        out.push_str(&format!("note: {}\n", plain(&note)));
    }
    let damage = rows.iter().flat_map(|row| {
        let segment = number(row.file.number);
        row.summary
            .damage
            .iter()
            .map(move |damage| cells(&segment, damage))
    });
    let titles = [
        "SEGMENT",
        "BLOCK",
        "BYTES",
        "ENTRIES LOST",
        "RECORDS LOST",
        "STILL OWED",
        "REASON",
    ];
    let faults = chains.iter().flat_map(Chain::lines).map(|(segment, why)| {
        let mut cells = vec!["-".to_owned(); titles.len()];
        cells[0] = segment;
        cells[titles.len() - 1] = why.to_owned();
        cells
    });
    out.push_str(&titled(&titles, damage.chain(faults), &[0, 1]));
    for row in rows {
        let kept = row.summary.damage.len() as u64;
        if row.summary.damaged_places > kept {
            let more = count(row.summary.damaged_places - kept);
            out.push_str(&format!(
                "… and {more} more in {}\n",
                number(row.file.number)
            ));
        }
    }
    let sum = |of: fn(&Row<'_>) -> u64| -> u64 { rows.iter().map(of).sum() };
    out.push_str(&format!(
        "{}, {} in {} read: {} with {}; {} damaged\n",
        counted(rows.len() as u64, "segment"),
        bytes(read),
        counted(sum(|row| row.summary.walked.blocks.into()), "block"),
        counted(sum(|row| row.summary.walked.entries), "entry"),
        counted(sum(|row| row.summary.walked.records), "record"),
        count(sum(|row| u64::from(row.summary.damaged_places > 0))),
    ));
    out.extend(chains.iter().map(Chain::sums));
    out
}

fn cells(segment: &str, damage: &Damage) -> Vec<String> {
    let lost = |first, count| match damage.open_ended {
        true => format!("from {first} on"),
        false => range(first, count),
    };
    vec![
        segment.to_owned(),
        block_name(damage),
        range(damage.offset, damage.end.saturating_sub(damage.offset)),
        lost(damage.first_entry, damage.entries),
        lost(damage.first_record, damage.records),
        match damage.open_ended {
            true => "unknown".to_owned(),
            false => count(damage.unsettled),
        },
        damage.reason.to_owned(),
    ]
}

/// The damaged block; the segment's header comes before all blocks.
fn block_name(damage: &Damage) -> String {
    match damage.offset {
        0 => "header".to_owned(),
        _ => damage.block.to_string(),
    }
}

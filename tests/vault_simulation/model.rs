//! What was sent and promised, and the check that the vault keeps it.

use std::collections::{BTreeMap, HashMap, HashSet};

use gophership::vault::{Entry, EntryId, SegmentStats};

use super::{disk::Faults, image::Image, report::Report};
use crate::vault_support::Random;

/// An append and what became of it.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Which start of the machine it was sent in.
    life: u64,
    lane: usize,
    acknowledged: Option<EntryId>,
    /// It was settled, so it needn't come back, but may.
    settled: bool,
    cancelled: bool,
}

/// All that was sent.
#[derive(Debug, Default)]
pub(super) struct Model {
    sent: BTreeMap<u64, Sent>,
    /// Segments that were dropped though something in them was owed.
    dropped: HashSet<u64>,
}

/// No smaller entry is larger than a block.
const LARGE: usize = 16_000;

fn random_of(number: u64) -> Random {
    Random(number ^ 0x5eed)
}

fn length(random: &mut Random) -> usize {
    match random.below(16) {
        0 => 0,
        1 => 20_000 + random.below(80_000),
        2 => 8_000 + random.below(12_000),
        _ => random.below(2_500),
    }
}

/// The content of an append, from its number alone.
pub(super) fn content(number: u64) -> Vec<u8> {
    let mut random = random_of(number);
    let len = length(&mut random);
    let tile: Vec<u8> = (0..32).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut bytes = tile.repeat(len / tile.len() + 1);
    bytes.truncate(len);
    bytes
}

impl Model {
    /// The next append's number.
    pub(super) fn send(&mut self, life: u64, lane: usize) -> u64 {
        let number = self.sent.len() as u64;
        let sent = Sent {
            life,
            lane,
            ..Sent::default()
        };
        self.sent.insert(number, sent);
        number
    }

    pub(super) fn acknowledge(&mut self, number: u64, id: EntryId) {
        self.sent.get_mut(&number).unwrap().acknowledged = Some(id);
    }

    pub(super) fn cancel(&mut self, number: u64) {
        self.sent.get_mut(&number).unwrap().cancelled = true;
    }

    /// Settles one of what was acknowledged in this life and isn't settled.
    pub(super) fn settle_one(&mut self, life: u64, random: &mut Random) -> Option<EntryId> {
        let mut owed: Vec<_> = self
            .sent
            .values_mut()
            .filter(|sent| sent.life == life && sent.acknowledged.is_some() && !sent.settled)
            .collect();
        if owed.is_empty() {
            return None;
        }
        let at = random.below(owed.len());
        owed[at].settled = true;
        owed[at].acknowledged
    }

    pub(super) fn acknowledged(&self) -> usize {
        let sent = self.sent.values();
        sent.filter(|sent| sent.acknowledged.is_some()).count()
    }

    /// Notes what was dropped between two looks at the segments, and gives how many entries that were.
    pub(super) fn drop_between(&mut self, before: &[SegmentStats], after: &[SegmentStats]) -> u64 {
        let owed_after: HashMap<_, _> = after
            .iter()
            .map(|segment| (segment.number, segment.owed_any.0))
            .collect();
        let mut entries = 0;
        for segment in before.iter().filter(|segment| segment.owed_any.0 > 0) {
            if owed_after
                .get(&segment.number)
                .is_none_or(|&owed| owed == 0)
            {
                self.dropped.insert(segment.number);
                entries += segment.owed_any.0;
            }
        }
        entries
    }

    pub(super) fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// What was read is what was sent.
    pub(super) fn check_content(&self, entry: &Entry) {
        let number = entry.arrival_unix_ns;
        assert!(
            self.sent.contains_key(&number),
            "{:?} was never sent",
            entry.id
        );
        assert!(
            entry.bytes == content(number),
            "{:?} isn't what was sent as {number}",
            entry.id
        );
    }

    /// Everything acknowledged is in `read`, or was settled or dropped, or is reported as lost.
    pub(super) fn check_all(&self, read: &[Entry], report: &Report, faults: Faults, image: &Image) {
        let mut found: HashMap<u64, Vec<EntryId>> = HashMap::new();
        for entry in read {
            self.check_content(entry);
            found
                .entry(entry.arrival_unix_ns)
                .or_default()
                .push(entry.id);
        }
        let mut missing = Vec::new();
        for (number, sent) in &self.sent {
            let ids = found.get(number).map_or(&[][..], Vec::as_slice);
            assert!(
                ids.len() <= 1 || faults.write_errors > 0,
                "{number} is there more than once: {ids:?}"
            );
            let owed = sent.acknowledged.filter(|_| !sent.settled);
            let kept = owed.filter(|id| !self.dropped.contains(&id.segment));
            missing.extend(kept.filter(|id| !ids.contains(id)));
        }
        if faults.of_the_medium() {
            report.check_counts(&missing);
            missing.retain(|&id| image.vouches_for(id) && !report.has(id));
            assert!(
                missing.is_empty(),
                "acknowledged, vouched for, and neither readable nor reported: {missing:?}; {report:?}"
            );
        } else {
            assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
            assert!(
                report.is_empty(),
                "a crash, or what fails for a while, is no damage: {report:?}"
            );
        }
        report.check_blame();
        let denied = read.iter().find(|entry| report.has(entry.id));
        assert!(denied.is_none(), "{denied:?} isn't lost");
        assert!(
            read.is_sorted_by_key(|entry| (entry.id.segment, entry.id.index)),
            "what was stored first is read first"
        );
        self.check_order(faults);
    }

    /// In a lane, what was sent first was stored first.
    fn check_order(&self, faults: Faults) {
        let mut last: HashMap<(u64, usize), (u64, EntryId)> = HashMap::new();
        for (&number, sent) in &self.sent {
            // A cancelled append may give its turn away.
            let Some(id) = sent.acknowledged.filter(|_| !sent.cancelled) else {
                continue;
            };
            // One that is written again from its start after an error has lost its turn, too.
            if faults.write_errors > 0 && length(&mut random_of(number)) >= LARGE {
                continue;
            }
            let lane = last.entry((sent.life, sent.lane)).or_insert((number, id));
            let before = lane.1;
            assert!(
                before == id || (before.segment, before.index) < (id.segment, id.index),
                "{} was sent before {number}, but stored after it: {before:?}, {id:?}",
                lane.0
            );
            *lane = (number, id);
        }
    }
}

//! What was sent and promised, and the check that the vault keeps it.

use std::collections::{BTreeMap, HashMap};

use gophership::vault::{Entry, EntryId, Stats};

use super::{disk::Faults, image::Image};
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
}

/// The content of an append, from its number alone.
pub(super) fn content(number: u64) -> Vec<u8> {
    let mut random = Random(number ^ 0x5eed);
    let len = match random.below(16) {
        0 => 0,
        1 => 20_000 + random.below(80_000),
        2 => 8_000 + random.below(12_000),
        _ => random.below(2_500),
    };
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

    /// Everything acknowledged is in `read`, or was settled, or is reported as lost in `stats`.
    pub(super) fn check_all(&self, read: &[Entry], stats: &Stats, faults: Faults, image: &Image) {
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
            let Some(id) = sent.acknowledged.filter(|_| !sent.settled) else {
                continue;
            };
            if !ids.contains(&id) {
                missing.push((*number, id));
            }
        }
        if faults.of_the_medium() {
            missing.retain(|(_, id)| image.vouches_for(*id));
            assert!(
                missing.len() as u64 <= stats.quarantined_entries,
                "acknowledged, vouched for, and neither readable nor reported: {missing:?}; {stats:?}"
            );
        } else if faults.read_errors == 0 {
            assert!(
                missing.is_empty(),
                "acknowledged and lost: {missing:?}; {stats:?}"
            );
            assert_eq!(
                (stats.quarantined_segments, stats.quarantined_entries),
                (0, 0),
                "a crash or a write error is no damage"
            );
        }
        if faults.write_errors == 0 {
            self.check_order();
        }
    }

    /// In a lane, what was sent first was stored first.
    fn check_order(&self) {
        let mut last: HashMap<(u64, usize), (u64, EntryId)> = HashMap::new();
        for (&number, sent) in &self.sent {
            // A cancelled append may give its turn away.
            let Some(id) = sent.acknowledged.filter(|_| !sent.cancelled) else {
                continue;
            };
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

//! Entries that may be why batches aren't taken: found by halving, then sent by themselves, ever more rarely.
//!
//! A request that a server always fails at (too large for it, or with what a firewall forbids) looks like a server that is
//! down, and would hold up all the others. So what failed or was rejected together is sent again in halves. An entry that
//! fails by itself while others are accepted is left out for a time that doubles.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::vault::EntryId;

/// How long an entry is left out at first.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// … and at most.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// How often it is looked whether some are due: for each time the vault is read from the start again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most entries that are known to fail by themselves: if more do, it is the destination's failure.
const ALONE_MAX: usize = 1024;
/// Most entries of batches that failed; beyond that all but those are forgotten, and found anew.
const PARTS_MAX: usize = 1 << 16;

/// Those of one destination.
#[derive(Debug)]
pub(super) struct Suspects {
    /// By the number of the part that each goes with.
    parts: HashMap<EntryId, u64>,
    last_part: u64,
    alone: HashMap<EntryId, Alone>,
    looked_at: Instant,
}

/// What failed by itself.
#[derive(Debug)]
struct Alone {
    /// Batches that the destination had accepted when it failed last.
    accepted: u64,
    /// How often others were accepted between its failures.
    failures: u32,
    /// Left out until then.
    due: Option<Instant>,
    /// Left out until something is accepted: the next try is another's, which tells whether the destination is down.
    is_doubted: bool,
}

impl Suspects {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            parts: HashMap::new(),
            last_part: 0,
            alone: HashMap::new(),
            looked_at: now,
        }
    }

    /// Whether two entries may be in one batch.
    pub(super) fn go_together(&self, one: EntryId, other: EntryId) -> bool {
        self.parts.get(&one) == self.parts.get(&other)
    }

    /// A batch of these failed or was rejected: its halves aren't sent together again.
    pub(super) fn split(&mut self, entries: impl ExactSizeIterator<Item = EntryId>) {
        if self.parts.len() > PARTS_MAX {
            let alone = &self.alone;
            self.parts.retain(|id, _| alone.contains_key(id));
        }
        let half = entries.len().div_ceil(2);
        for (place, id) in entries.enumerate() {
            let part = self.last_part + 1 + u64::from(place >= half);
            self.parts.insert(id, part);
        }
        self.last_part += 2;
    }

    /// A batch of this entry failed, by when the destination had accepted so many. If others were since it failed
    /// by itself before, gives for how long it is left out now.
    pub(super) fn failed_alone(
        &mut self,
        id: EntryId,
        accepted: u64,
        now: Instant,
    ) -> Option<Duration> {
        let Some(alone) = self.alone.get_mut(&id) else {
            self.note_alone(id, accepted);
            return None;
        };
        alone.is_doubted = accepted == alone.accepted;
        if alone.is_doubted {
            return None;
        }
        let wait = WAIT_FIRST.saturating_mul(1 << alone.failures.min(16));
        let wait = wait.min(WAIT_MAX);
        alone.accepted = accepted;
        alone.failures += 1;
        alone.due = Some(now + wait);
        Some(wait)
    }

    fn note_alone(&mut self, id: EntryId, accepted: u64) {
        if self.alone.len() >= ALONE_MAX {
            // The vault may have dropped some of these.
            self.alone
                .retain(|_, alone| alone.is_doubted || alone.due.is_some());
        }
        if self.alone.len() < ALONE_MAX {
            self.split(std::iter::once(id));
            let first = Alone {
                accepted,
                failures: 0,
                due: None,
                is_doubted: true,
            };
            self.alone.insert(id, first);
        }
    }

    /// Whether an entry is left out for now.
    pub(super) fn is_left_out(&self, id: EntryId, now: Instant) -> bool {
        let is_out = |alone: &Alone| alone.is_doubted || alone.due.is_some_and(|due| now < due);
        self.alone.get(&id).is_some_and(is_out)
    }

    /// Entries that were left out long enough, now that the destination has accepted so many batches.
    pub(super) fn take_due(&mut self, accepted: u64, now: Instant) -> Vec<EntryId> {
        if now.saturating_duration_since(self.looked_at) < LOOK_EVERY {
            return Vec::new();
        }
        self.looked_at = now;
        let due = self.alone.iter_mut().filter_map(|(&id, alone)| {
            let is_due = alone.due.take_if(|due| now >= *due).is_some();
            let is_cleared = alone.is_doubted && accepted != alone.accepted;
            alone.is_doubted &= !is_cleared;
            (is_due || is_cleared).then_some(id)
        });
        due.collect()
    }

    /// Entries of which it isn't known whether it is they that fail; there are no others to find it out with.
    pub(super) fn take_doubted(&mut self) -> Vec<EntryId> {
        let doubted = self
            .alone
            .iter_mut()
            .filter_map(|(&id, alone)| std::mem::take(&mut alone.is_doubted).then_some(id));
        doubted.collect()
    }

    /// The destination has the entry, or will never get it.
    pub(super) fn settled(&mut self, id: EntryId) {
        self.parts.remove(&id);
        self.alone.remove(&id);
    }

    /// Nothing is owed any more.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.alone.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(index: u32) -> EntryId {
        EntryId {
            lane: 0,
            segment: 1,
            index,
        }
    }

    /// As the replay puts them together.
    fn batches(suspects: &Suspects, entries: u32) -> Vec<Vec<u32>> {
        let mut batches: Vec<Vec<u32>> = Vec::new();
        for index in 0..entries {
            match batches.last_mut() {
                Some(batch) if suspects.go_together(id(batch[0]), id(index)) => batch.push(index),
                _ => batches.push(vec![index]),
            }
        }
        batches
    }

    #[test]
    fn the_one_that_fails_is_found_by_halving() {
        let mut suspects = Suspects::new(Instant::now());
        assert_eq!(batches(&suspects, 1000).len(), 1);
        for bad in [0, 617, 999] {
            let mut owed = vec![true; 1000];
            let mut calls = 0;
            while owed[bad as usize] {
                for batch in batches(&suspects, 1000) {
                    let batch: Vec<u32> = batch
                        .into_iter()
                        .filter(|&index| owed[index as usize])
                        .collect();
                    calls += usize::from(!batch.is_empty());
                    if batch.contains(&bad) && batch.len() > 1 {
                        suspects.split(batch.into_iter().map(id));
                    } else {
                        for index in batch {
                            owed[index as usize] = false;
                            suspects.settled(id(index));
                        }
                    }
                }
            }
            assert!((19..=21).contains(&calls), "{calls} calls for {bad}");
        }
    }

    #[test]
    fn what_fails_alone_is_left_out_only_if_others_were_accepted() {
        let start = Instant::now();
        let mut suspects = Suspects::new(start);
        for _ in 0..5 {
            assert_eq!(suspects.failed_alone(id(3), 7, start), None, "it is down");
            assert!(suspects.is_left_out(id(3), start), "others are tried");
            assert_eq!(suspects.take_due(7, start + SECOND * 9), []);
            assert_eq!(suspects.take_doubted(), [id(3)]);
        }
        assert!(!suspects.go_together(id(3), id(4)));
        let mut now = start + SECOND * 10;
        let mut waits = Vec::new();
        for accepted in 8..20 {
            let wait = suspects.failed_alone(id(3), accepted, now);
            let wait = wait.expect("it is left out");
            waits.push(wait.as_secs());
            assert!(suspects.is_left_out(id(3), now));
            assert_eq!(suspects.take_due(accepted, now + wait - SECOND / 10), []);
            now += wait + SECOND;
            assert_eq!(suspects.take_due(accepted, now), [id(3)]);
            assert!(!suspects.is_left_out(id(3), now));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        suspects.settled(id(3));
        assert!(suspects.go_together(id(3), id(4)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let mut suspects = Suspects::new(start);
        for index in 0..3000 {
            suspects.failed_alone(id(index), 0, start);
            assert!(suspects.alone.len() <= ALONE_MAX);
        }
        for index in 0..3000 {
            for accepted in 1..3 {
                suspects.failed_alone(id(index), accepted, start);
            }
        }
        assert_eq!(suspects.alone.len(), ALONE_MAX);
        for batch in 1..100 {
            let ids: Vec<_> = (batch * 10_000..(batch + 1) * 10_000).map(id).collect();
            suspects.split(ids.into_iter());
            assert!(suspects.parts.len() <= PARTS_MAX + 10_000);
        }
    }
}

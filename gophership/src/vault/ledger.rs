//! What a segment still owes, entry by entry.
//!
//! Kept in memory as one bit for each entry and destination plus each entry's record count: four bytes while entries are
//! added, so at most ENTRIES_MAX × (4 + destinations / 8) bytes a segment, and as many as the largest count needs, one as a
//! rule, when the segment is closed. A vault that fills for hours has many closed ones.

mod counts;

use std::ops::Range;

use counts::Counts;

use super::{
    books::{Books, Settlement},
    entry::DestMask,
    format::ENTRIES_MAX,
};

/// Entries and records still owed, lost and held of one segment.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Records by entry.
    records: Counts,
    /// By destination: bit set where the entry is still owed to it.
    owed: Vec<Bits>,
    held: Bits,
    /// By destination: bit set where nobody should try now; made when the first is.
    parked: Vec<Bits>,
    /// Entries a reader couldn't read. They count as lost and not as owed, but their `owed` bits
    /// stay, and so they stay in the cursors: the next start may be able to read them.
    unread: Bits,
    /// Records by destination: ever owed in this run, still owed, owed but lost.
    stored_records: Vec<u64>,
    owed_records: Vec<u64>,
    lost_owed_records: Vec<u64>,
    /// By destination: what was settled in this run.
    books: Vec<Books>,
    pending_entries: u64,
    pending_records: u64,
    lost_entries: u64,
    lost_records: u64,
}

/// Sums a [`Ledger`] keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// Entries owed to at least one destination.
    pub(super) entries: u64,
    /// Records of those.
    pub(super) records: u64,
}

impl Ledger {
    /// For `destinations` bits, growing as entries come.
    #[must_use]
    pub(super) fn new(destinations: usize) -> Self {
        Self {
            owed: vec![Bits::default(); destinations],
            stored_records: vec![0; destinations],
            owed_records: vec![0; destinations],
            lost_owed_records: vec![0; destinations],
            books: vec![Books::default(); destinations],
            ..Self::default()
        }
    }

    /// Reserves room for a whole segment, so that appending never allocates.
    #[must_use]
    pub(super) fn preallocated(destinations: usize) -> Self {
        let mut ledger = Self::new(destinations);
        ledger.records.reserve(ENTRIES_MAX as usize);
        ledger.held.reserve();
        ledger.owed.iter_mut().for_each(Bits::reserve);
        ledger
    }

    /// Gives back what [`Ledger::preallocated`] reserved and a closed segment won't use.
    pub(super) fn shrink(&mut self) {
        self.records.shrink();
        self.held.shrink();
        self.owed.iter_mut().for_each(Bits::shrink);
    }

    /// Adds the next entry; bits of unknown destinations are left out.
    pub(super) fn push(&mut self, owed: DestMask, records: u32, held: bool) {
        let index = self.records.len();
        self.records.push(records);
        self.held.push(index, held);
        let mut any = false;
        for (bit, bits) in self.owed.iter_mut().enumerate() {
            let is_owed = owed & (1 << bit) != 0;
            bits.push(index, is_owed);
            if is_owed {
                self.stored_records[bit] += u64::from(records);
                self.owed_records[bit] += u64::from(records);
                any = true;
            }
        }
        if any {
            self.pending_entries += 1;
            self.pending_records += u64::from(records);
        }
    }

    /// Adds `entries` that can't be read, with `records` in all. Who was owed them isn't known: `owed`,
    /// which is everybody who hasn't settled all of them.
    pub(super) fn push_lost(&mut self, entries: u32, records: u64, owed: DestMask) {
        for _ in 0..entries {
            let index = self.records.len();
            self.records.push(0);
            self.held.push(index, false);
            for bits in &mut self.owed {
                bits.push(index, true);
            }
            self.unread.set(index);
        }
        self.lost_entries += u64::from(entries);
        self.lost_records += records;
        for bit in (0..self.owed.len()).filter(|bit| owed & (1 << bit) != 0) {
            self.stored_records[bit] += records;
            self.lost_owed_records[bit] += records;
        }
    }

    /// Marks `mask` as settled for an entry; true if that changed anything.
    pub(super) fn settle(&mut self, index: u32, mask: DestMask, how: Settlement) -> bool {
        let (changed, records) = self.clear(index, mask);
        for (bit, books) in self.books.iter_mut().enumerate() {
            if changed & (1 << bit) != 0 {
                books.settle(how, u64::from(records));
            }
        }
        changed != 0
    }

    /// Leaves out what an earlier run has settled for an entry: that run has accounted for it.
    pub(super) fn settled_before(&mut self, index: u32, mask: DestMask) {
        let (changed, records) = self.clear(index, mask);
        for (bit, stored) in self.stored_records.iter_mut().enumerate() {
            if changed & (1 << bit) != 0 {
                *stored -= u64::from(records);
            }
        }
    }

    /// Takes `mask` out of what is owed of an entry; gives for whom that changed anything, and its records.
    fn clear(&mut self, index: u32, mask: DestMask) -> (DestMask, u32) {
        let index = index as usize;
        let Some(records) = self.records.get(index) else {
            return (0, 0);
        };
        let before = self.unsettled(index);
        let is_unread = self.unread.get(index);
        for (bit, bits) in self.owed.iter_mut().enumerate() {
            if mask & before & (1 << bit) != 0 {
                bits.clear(index);
                let sums = if is_unread {
                    &mut self.lost_owed_records
                } else {
                    &mut self.owed_records
                };
                sums[bit] -= u64::from(records);
            }
        }
        if before != 0 && before & !mask == 0 {
            if is_unread {
                // Delivered from memory after all.
                self.unread.clear(index);
                self.lost_entries -= 1;
                self.lost_records -= u64::from(records);
            } else {
                self.pending_entries -= 1;
                self.pending_records -= u64::from(records);
            }
        }
        (before & mask, records)
    }

    /// Leaves an entry out of what is wanted for `mask`, until it is taken back.
    pub(super) fn park(&mut self, index: u32, mask: DestMask) {
        if index as usize >= self.records.len() {
            return;
        }
        self.parked.resize(self.owed.len(), Bits::default());
        for (bit, parked) in self.parked.iter_mut().enumerate() {
            if mask & (1 << bit) != 0 {
                parked.set(index as usize);
            }
        }
    }

    /// Takes an entry back in for `mask`.
    pub(super) fn unpark_entry(&mut self, index: u32, mask: DestMask) {
        for (bit, parked) in self.parked.iter_mut().enumerate() {
            if mask & (1 << bit) != 0 {
                parked.clear(index as usize);
            }
        }
    }

    /// Nothing is left out any more.
    pub(super) fn unpark(&mut self) {
        self.parked = Vec::new();
    }

    /// Destinations that an entry is owed to and that should be tried.
    #[must_use]
    pub(super) fn wanted(&self, index: usize) -> DestMask {
        let parked = (0..)
            .zip(&self.parked)
            .filter(|(_, parked)| parked.get(index))
            .fold(0, |mask, (bit, _)| mask | 1 << bit);
        self.owed(index) & !parked
    }

    /// Drops the hold on an entry.
    pub(super) fn release(&mut self, index: u32) {
        self.held.clear(index as usize);
    }

    /// Takes the entries of a block that can't be read out of what is owed, until the next start tries
    /// again; returns how many entries and records were owed and are lost now.
    pub(super) fn lose(&mut self, range: Range<u32>) -> Pending {
        let mut lost = Pending::default();
        for index in range.map(|index| index as usize) {
            let owed = self.owed(index);
            if owed == 0 {
                continue;
            }
            let records = u64::from(self.records.get(index).unwrap_or(0));
            for bit in 0..self.owed.len() {
                if owed & (1 << bit) != 0 {
                    self.owed_records[bit] -= records;
                    self.lost_owed_records[bit] += records;
                }
            }
            self.unread.set(index);
            lost.entries += 1;
            lost.records += records;
        }
        self.pending_entries -= lost.entries;
        self.pending_records -= lost.records;
        self.lost_entries += lost.entries;
        self.lost_records += lost.records;
        lost
    }

    /// Gives up all that is owed, because the segment is dropped; returns how much that was. What is
    /// settled afterwards changes nothing.
    pub(super) fn drop_owed(&mut self) -> Pending {
        for (books, owed) in self.books.iter_mut().zip(&mut self.owed_records) {
            books.dropped += std::mem::take(owed);
        }
        for bits in &mut self.owed {
            for (word, owed) in bits.0.iter_mut().enumerate() {
                *owed &= self.unread.word(word);
            }
        }
        Pending {
            entries: std::mem::take(&mut self.pending_entries),
            records: std::mem::take(&mut self.pending_records),
        }
    }

    /// What was settled for one destination in this run.
    #[must_use]
    pub(super) fn books(&self, bit: usize) -> Books {
        self.books.get(bit).copied().unwrap_or_default()
    }

    /// Destinations an entry is still owed to, 0 for one that isn't known or can't be read.
    #[must_use]
    pub(super) fn owed(&self, index: usize) -> DestMask {
        if self.unread.get(index) {
            0
        } else {
            self.unsettled(index)
        }
    }

    /// Destinations that haven't accepted an entry, whether or not it can be read.
    fn unsettled(&self, index: usize) -> DestMask {
        let mut mask = 0;
        for (bit, bits) in self.owed.iter().enumerate() {
            if bits.get(index) {
                mask |= 1 << bit;
            }
        }
        mask
    }

    /// Whether an export of the entry is in flight.
    #[must_use]
    pub(super) fn is_held(&self, index: usize) -> bool {
        self.held.get(index)
    }

    /// Entries known.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// What is owed.
    #[must_use]
    pub(super) fn pending(&self) -> Pending {
        Pending {
            entries: self.pending_entries,
            records: self.pending_records,
        }
    }

    /// What is lost.
    #[must_use]
    pub(super) fn lost(&self) -> Pending {
        Pending {
            entries: self.lost_entries,
            records: self.lost_records,
        }
    }

    /// Records ever owed to one destination in this run.
    #[must_use]
    pub(super) fn stored_records(&self, bit: usize) -> u64 {
        self.stored_records.get(bit).copied().unwrap_or(0)
    }

    /// Records that were owed to one destination when damage made them unreadable.
    #[must_use]
    pub(super) fn lost_records(&self, bit: usize) -> u64 {
        self.lost_owed_records.get(bit).copied().unwrap_or(0)
    }

    /// Records owed to one destination.
    #[must_use]
    pub(super) fn owed_records(&self, bit: usize) -> u64 {
        self.owed_records.get(bit).copied().unwrap_or(0)
    }

    /// Entries owed to one destination.
    #[must_use]
    pub(super) fn owed_entries(&self, bit: usize) -> u64 {
        let Some(owed) = self.owed.get(bit) else {
            return 0;
        };
        (0..self.records.len().div_ceil(64))
            .map(|word| u64::from((owed.word(word) & !self.unread.word(word)).count_ones()))
            .sum()
    }

    /// Destinations it keeps bits of.
    #[must_use]
    pub(super) fn destinations(&self) -> usize {
        self.owed.len()
    }

    /// Entries the destination at `bit` needn't get any more, a bit each, 64 at a time. What can't be
    /// read isn't among them.
    pub(super) fn settled(&self, bit: usize) -> impl Iterator<Item = u64> + '_ {
        let entries = self.records.len();
        (0..entries.div_ceil(64)).map(move |word| {
            let known = u64::MAX >> (64 - (entries - word * 64).min(64));
            self.owed.get(bit).map_or(0, |bits| !bits.word(word)) & known
        })
    }

    /// Whether some entry is owed to one of `mask`, isn't parked for it, and nobody holds it.
    #[must_use]
    pub(super) fn is_any_wanted(&self, mask: DestMask) -> bool {
        self.is_any(mask, |bit, word| {
            let parked = self.parked.get(bit).map_or(0, |parked| parked.word(word));
            !parked & !self.held.word(word)
        })
    }

    /// Whether some entry that can be read is owed to one of `mask`.
    #[must_use]
    pub(super) fn is_any_owed(&self, mask: DestMask) -> bool {
        self.is_any(mask, |_, _| u64::MAX)
    }

    /// Whether some entry that can be read is owed to one of `mask`, and is among those that `of` gives for a
    /// destination's bit and a word of entries.
    fn is_any(&self, mask: DestMask, of: impl Fn(usize, usize) -> u64) -> bool {
        let bits = || {
            (0..)
                .zip(&self.owed)
                .filter(|(bit, _)| mask & (1 << bit) != 0)
        };
        (0..self.records.len().div_ceil(64)).any(|word| {
            let unread = self.unread.word(word);
            bits().any(|(bit, owed)| owed.word(word) & !unread & of(bit, word) != 0)
        })
    }

    /// Whether every destination has all of `range`.
    #[must_use]
    pub(super) fn is_settled(&self, mut range: Range<u64>) -> bool {
        range.all(|index| usize::try_from(index).is_ok_and(|index| self.unsettled(index) == 0))
    }
}

#[derive(Debug, Clone, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn reserve(&mut self) {
        self.0.reserve_exact((ENTRIES_MAX as usize).div_ceil(64));
    }

    fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    fn push(&mut self, index: usize, value: bool) {
        if index / 64 >= self.0.len() {
            self.0.push(0);
        }
        if value {
            self.0[index / 64] |= 1 << (index % 64);
        }
    }

    fn set(&mut self, index: usize) {
        if index / 64 >= self.0.len() {
            self.0.resize(index / 64 + 1, 0);
        }
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn get(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    fn word(&self, word: usize) -> u64 {
        self.0.get(word).copied().unwrap_or(0)
    }

    fn clear(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_pending_until_every_owed_destination_has_it() {
        let mut ledger = Ledger::new(2);
        ledger.push(0b11, 10, true);
        ledger.push(0b10, 5, false);
        ledger.push(0b100, 7, false);
        assert_eq!(
            ledger.pending(),
            Pending {
                entries: 2,
                records: 15
            }
        );
        assert!(ledger.settle(0, 0b01, Settlement::WHOLE));
        assert!(
            !ledger.settle(0, 0b01, Settlement::WHOLE),
            "settling twice changes nothing"
        );
        assert_eq!(
            (
                ledger.owed(0),
                ledger.owed_records(0),
                ledger.owed_records(1)
            ),
            (0b10, 0, 15)
        );
        assert!(ledger.is_held(0) && !ledger.is_any_wanted(0b01));
        assert!(ledger.is_any_wanted(0b10), "entry 1");
        ledger.release(0);
        assert!(!ledger.is_held(0));
        assert!(ledger.settled(0).eq([0b111]) && ledger.settled(1).eq([0b100]));
        assert!(ledger.is_settled(2..3) && !ledger.is_settled(0..3));
        assert!(ledger.settle(0, 0b11, Settlement::WHOLE));
        assert_eq!(
            ledger.pending(),
            Pending {
                entries: 1,
                records: 5
            }
        );
        assert!(
            !ledger.settle(9, 0b11, Settlement::WHOLE),
            "an unknown entry"
        );
        assert_eq!(
            ledger.lose(0..3),
            Pending {
                entries: 1,
                records: 5
            }
        );
        assert_eq!(ledger.pending(), Pending::default());
        assert_eq!((ledger.stored_records(1), ledger.lost_records(1)), (15, 5));
        assert_eq!(
            ledger.lost(),
            Pending {
                entries: 1,
                records: 5
            }
        );
    }

    #[test]
    fn an_unreadable_entry_stays_unsettled_until_its_export_ends() {
        let mut ledger = Ledger::new(2);
        ledger.push(0b11, 10, true);
        ledger.lose(0..1);
        assert_eq!((ledger.owed(0), ledger.pending().records), (0, 0));
        assert!(
            ledger.settled(0).eq([0]),
            "for the cursors it is owed: the next start tries again"
        );
        assert!(!ledger.is_settled(0..1));
        assert_eq!(ledger.lose(0..1), Pending::default(), "counted once");
        assert!(ledger.settle(0, 0b01, Settlement::WHOLE));
        assert_eq!(ledger.lost().records, 10);
        assert!(ledger.settle(0, 0b10, Settlement::WHOLE));
        assert_eq!(ledger.lost(), Pending::default(), "delivered after all");
        assert_eq!((ledger.stored_records(0), ledger.lost_records(0)), (10, 0));
        assert_eq!(ledger.pending(), Pending::default());
        assert_eq!((ledger.owed_records(0), ledger.owed_records(1)), (0, 0));
    }
}

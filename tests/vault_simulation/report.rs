//! What is reported as lost: how much, by the vault that runs, and where, by whoever inspects its directory.

use std::{collections::BTreeMap, ops::Range};

use gophership::vault::{
    EntryId, Vault,
    inspect::{Damage, Depth, Directory, Visitor, walk},
};

use super::disk::Disk;

/// By segment, those that are said to be damaged.
#[derive(Debug, Default)]
pub(super) struct Report {
    segments: BTreeMap<u64, Lost>,
}

#[derive(Debug)]
struct Lost {
    /// The vault has quarantined it.
    is_quarantined: bool,
    /// Entries that somebody is owed.
    counted: u64,
    places: Places,
    /// Something has happened to its file.
    is_damaged: bool,
}

/// Entries that are in damaged places.
#[derive(Debug, Default)]
struct Places {
    known: Vec<Range<u64>>,
    /// Nothing intact follows, so nobody knows how many there were from this one on.
    rest: Option<u64>,
    any: bool,
}

impl Visitor for Places {
    fn damage(&mut self, damage: &Damage) {
        self.any = true;
        let first = damage.first_entry;
        if damage.open_ended {
            self.rest = Some(first);
        } else {
            self.known.push(first..first + damage.entries);
        }
    }
}

impl Places {
    fn knows(&self, index: u64) -> bool {
        self.known.iter().any(|place| place.contains(&index))
    }
}

impl Report {
    /// Asks both.
    pub(super) fn of(vault: &Vault, directory: &Directory, disk: &Disk) -> Self {
        let mut report = Self::default();
        for running in vault.segments() {
            let segment = directory.segment(running.number).expect("it has a file");
            let mut places = Places::default();
            walk(directory, segment, Depth::Everything, &mut places).unwrap();
            if running.is_damaged || places.any {
                let lost = Lost {
                    is_quarantined: running.is_damaged,
                    counted: running.lost.0,
                    places,
                    is_damaged: disk.has_damaged(&segment.path),
                };
                report.segments.insert(running.number, lost);
            }
        }
        report
    }

    /// Both say the same, and nothing of what the medium has left alone.
    pub(super) fn check_blame(&self) {
        for (number, lost) in &self.segments {
            assert!(
                lost.is_quarantined && lost.places.any,
                "segment {number}: not both find it damaged: {lost:?}"
            );
            assert!(
                lost.is_damaged,
                "segment {number}: nothing happened to it: {lost:?}"
            );
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The entry is reported as lost.
    pub(super) fn has(&self, id: EntryId) -> bool {
        let Some(Lost { places, .. }) = self.segments.get(&id.segment) else {
            return false;
        };
        let index = u64::from(id.index);
        places.knows(index) || places.rest.is_some_and(|first| index >= first)
    }

    /// No segment has lost more of `ids` where it is known how many there were than are counted.
    pub(super) fn check_counts(&self, ids: &[EntryId]) {
        for (number, lost) in &self.segments {
            let of_it = ids.iter().filter(|id| id.segment == *number);
            let known = of_it.filter(|id| lost.places.knows(u64::from(id.index)));
            assert!(
                known.count() as u64 <= lost.counted,
                "segment {number}: more is lost than is counted: {ids:?}; {lost:?}"
            );
        }
    }
}

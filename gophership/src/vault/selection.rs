//! Which of the entries that are owed a reader gives.

use super::segment::Segment;

/// All of what is owed, or a part of it; the default is all, oldest segment first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only what arrived then or later, in nanoseconds since 1970.
    pub from_unix_ns: Option<u64>,
    /// Only what arrived before.
    pub to_unix_ns: Option<u64>,
    /// Only what this lane wrote.
    pub lane: Option<u16>,
    /// Newest segment first; within a segment the oldest is always first.
    pub newest_first: bool,
}

impl Selection {
    /// Whether it may have something in a segment.
    pub(super) fn is_in(&self, segment: &Segment) -> bool {
        self.lane.is_none_or(|lane| lane == segment.lane)
    }

    /// Whether what arrived then is part of it.
    pub(super) fn has(&self, arrival_unix_ns: u64) -> bool {
        self.from_unix_ns.is_none_or(|from| arrival_unix_ns >= from)
            && self.to_unix_ns.is_none_or(|to| arrival_unix_ns < to)
    }
}

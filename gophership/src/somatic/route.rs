//! The decision: zone × destinations × room → route. Pure, and exhaustive.

use gophership_common::{Cause, Zone};

use crate::pipeline::NoRoom;

/// Why a request went to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pivot {
    /// The zone is Red, for this cause.
    Zone(Cause),
    /// The pipeline has no room.
    NoRoom,
    /// The request is larger than a batch.
    Oversize,
    /// No destination is worth an attempt now.
    DestinationDown,
    /// A destination that must have it did not take it.
    DestinationFailed,
    /// The destinations did not answer within `export.ack_within`, or weren't expected to.
    AckTimeout,
}

/// Causes of the zone come first in the counters; the others follow.
const OTHERS: usize = 16;

impl Pivot {
    /// Every pivot that has a counter.
    pub fn all() -> impl Iterator<Item = Self> {
        let others = [
            Self::NoRoom,
            Self::Oversize,
            Self::DestinationDown,
            Self::DestinationFailed,
            Self::AckTimeout,
        ];
        Cause::ALL.into_iter().map(Self::Zone).chain(others)
    }

    /// Index of its counter, below [`crate::telemetry::counters::PIVOT_CAUSES_MAX`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Zone(cause) => cause as usize,
            Self::NoRoom => OTHERS,
            Self::Oversize => OTHERS + 1,
            Self::DestinationDown => OTHERS + 2,
            Self::DestinationFailed => OTHERS + 3,
            Self::AckTimeout => OTHERS + 4,
        }
    }

    /// Value of the `cause` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zone(cause) => cause.as_str(),
            Self::NoRoom => "no_room",
            Self::Oversize => "oversize",
            Self::DestinationDown => "destination_down",
            Self::DestinationFailed => "destination_failed",
            Self::AckTimeout => "ack_timeout",
        }
    }
}

/// Whether the pipeline is to be tried at all.
///
/// # Errors
/// The pivot, if the vault is the way.
pub const fn route(zone: Zone, cause: Cause, any_destination_allowed: bool) -> Result<(), Pivot> {
    match (zone, any_destination_allowed) {
        (Zone::Red, _) => Err(Pivot::Zone(cause)),
        (Zone::Green | Zone::Yellow, false) => Err(Pivot::DestinationDown),
        (Zone::Green | Zone::Yellow, true) => Ok(()),
    }
}

impl From<NoRoom> for Pivot {
    fn from(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::Full => Self::NoRoom,
            NoRoom::Oversize => Self::Oversize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::counters::PIVOT_CAUSES_MAX;

    #[test]
    fn every_zone_has_its_route() {
        for up in [false, true] {
            assert_eq!(
                route(Zone::Red, Cause::ReceiveQueue, up),
                Err(Pivot::Zone(Cause::ReceiveQueue))
            );
        }
        for zone in [Zone::Green, Zone::Yellow] {
            assert_eq!(route(zone, Cause::None, true), Ok(()));
            assert_eq!(route(zone, Cause::None, false), Err(Pivot::DestinationDown));
        }
    }

    #[test]
    fn every_pivot_has_its_own_counter_and_label() {
        let mut indices: Vec<_> = Pivot::all().map(Pivot::index).collect();
        let mut labels: Vec<_> = Pivot::all().map(Pivot::as_str).collect();
        assert!(indices.iter().all(|&index| index < PIVOT_CAUSES_MAX));
        for list in [indices.len(), labels.len()] {
            assert_eq!(list, Pivot::all().count());
        }
        indices.sort_unstable();
        indices.dedup();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(indices.len(), labels.len());
        assert_eq!(indices.len(), Pivot::all().count());
    }
}

//! Whether a lane may have another segment: `max_bytes` over all, and a fair share for each.
//!
//! Each lane is guaranteed a floor: two segments, one with what is owed and one to go on in, or an equal
//! part of `max_bytes` where that is less. What lanes below their floor lack is kept free for them, so no
//! lane can use up the vault so that another never gets a segment; above the floors, who comes first has
//! the rest. Files that give way (spares, and segments all of which is delivered) count as free.

/// Bytes that are taken, by lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    max_bytes: u64,
    segment_bytes: u64,
    floor: u64,
    lanes: Vec<u64>,
    /// Of lanes that are no more, and of segments not read yet.
    others: u64,
}

impl Room {
    pub(super) fn new(max_bytes: u64, segment_bytes: u64, lanes: usize) -> Self {
        let share = max_bytes / (lanes.max(1) as u64);
        Self {
            max_bytes,
            segment_bytes,
            floor: share.min(segment_bytes.saturating_mul(2)),
            lanes: vec![0; lanes],
            others: 0,
        }
    }

    /// Notes a file of `lane`.
    pub(super) fn take(&mut self, lane: u16, bytes: u64) {
        match self.lanes.get_mut(usize::from(lane)) {
            Some(taken) => *taken += bytes,
            None => self.others += bytes,
        }
    }

    /// Notes files of which no lane is known.
    pub(super) fn take_unknown(&mut self, bytes: u64) {
        self.others += bytes;
    }

    /// Whether `lane` may have one more segment.
    #[must_use]
    pub(super) fn has_for(&self, lane: u16) -> bool {
        let taken = self.others + self.lanes.iter().sum::<u64>();
        let kept_free: u64 = (0_u16..)
            .zip(&self.lanes)
            .filter(|(other, _)| *other != lane)
            .map(|(_, taken)| self.floor.saturating_sub(*taken))
            .sum();
        taken + kept_free + self.segment_bytes <= self.max_bytes
    }

    /// Whether `lane` gets room when a segment of `from` goes: what a lane has within its floor stays
    /// its own.
    #[must_use]
    pub(super) fn gains_from(&self, lane: u16, from: u16) -> bool {
        lane == from
            || self
                .lanes
                .get(usize::from(from))
                .is_none_or(|taken| *taken > self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lane_has_everything() {
        let mut room = Room::new(10, 4, 1);
        assert!(room.has_for(0));
        room.take(0, 4);
        assert!(room.has_for(0));
        room.take(0, 2);
        assert!(room.has_for(0), "exactly full");
        room.take(0, 1);
        assert!(!room.has_for(0));
    }

    #[test]
    fn a_greedy_lane_leaves_each_other_one_its_floor() {
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut room = Room::new(100, 10, 3);
            for lane in order {
                let mut segments = 0;
                while room.has_for(lane) {
                    room.take(lane, 10);
                    segments += 1;
                }
                let expected = if lane == order[0] { 6 } else { 2 };
                assert_eq!(segments, expected, "lane {lane} of {order:?}");
            }
        }
    }

    #[test]
    fn what_a_lane_has_of_little_use_doesnt_cost_it_its_next_segment() {
        let mut room = Room::new(100, 10, 2);
        room.take(0, 1);
        while room.has_for(1) {
            room.take(1, 10);
        }
        assert!(
            room.has_for(0),
            "a sealed segment of one byte, and now a whole one"
        );
    }

    #[test]
    fn nothing_is_taken_from_a_lane_within_its_floor() {
        let mut room = Room::new(100, 10, 2);
        room.take(0, 70);
        room.take(1, 20);
        assert!(room.gains_from(1, 0) && room.gains_from(1, 1));
        assert!(!room.gains_from(0, 1) && room.gains_from(0, 0));
        assert!(room.gains_from(0, 7), "a lane that is no more");
    }
}

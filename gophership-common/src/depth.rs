//! The depth of a receive queue: what it is measured against, and the level it makes. Both halves
//! compile these, so that a socket counts for the same whoever looks at it.

use crate::pages::Levels;
use crate::rules::rising_exit;

/// Level of a socket that isn't above Yellow.
pub const BELOW: u32 = 0;
/// Level of a socket that is above Yellow, or was and isn't below its exit yet.
pub const ABOVE_YELLOW: u32 = 1;
/// Level of a socket that is above Red, or was and isn't below its exit yet.
pub const ABOVE_RED: u32 = 2;

/// The level after a reading of `permille`: up at the entry thresholds, down only below the exit
/// thresholds.
#[must_use]
#[inline(always)]
pub const fn level(levels: Levels, permille: u32, was: u32) -> u32 {
    let value = permille as u64;
    let (yellow, red) = (levels.yellow_permille as u64, levels.red_permille as u64);
    if value >= red || was == ABOVE_RED && value >= rising_exit(red) {
        ABOVE_RED
    } else if value >= yellow || was != BELOW && value >= rising_exit(yellow) {
        ABOVE_YELLOW
    } else {
        BELOW
    }
}

/// Unread bytes that stop the peer: what a receive buffer's window holds, or the HTTP/2 window
/// where that is smaller (a stalled HTTP/2 reader never fills a large buffer; 0: not HTTP/2).
///
/// `scaling_ratio` is how much of the buffer is payload, in 256ths: `tcp_win_from_space` of
/// `include/net/tcp.h`.
#[must_use]
#[inline(always)]
pub const fn capacity_bytes(buffer: u32, scaling_ratio: u8, h2_window: u32) -> u32 {
    let window = (buffer as u64 * scaling_ratio as u64) >> 8;
    let h2 = h2_window as u64;
    let capacity = if h2 != 0 && h2 < window { h2 } else { window };
    // At most 255/256 of 32 bits.
    (capacity & 0xffff_ffff) as u32
}

/// A closed window is full, whatever it could hold: it closes when less than a segment's room is
/// left, and segments can be large.
#[must_use]
#[inline(always)]
pub const fn capacity_when_closed(capacity: u32, unread: u32) -> u32 {
    if unread < capacity { unread } else { capacity }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: Levels = Levels {
        yellow_permille: 500,
        red_permille: 800,
    };

    #[test]
    fn levels_rise_at_the_entries_and_fall_below_the_exits() {
        let walk = [
            (499, BELOW),
            (500, ABOVE_YELLOW),
            (400, ABOVE_YELLOW),
            (799, ABOVE_YELLOW),
            (800, ABOVE_RED),
            (640, ABOVE_RED),
            (639, ABOVE_YELLOW),
            (399, BELOW),
            (450, BELOW),
            (1000, ABOVE_RED),
            (0, BELOW),
        ];
        let mut was = BELOW;
        for (permille, is) in walk {
            was = level(LEVELS, permille, was);
            assert_eq!(was, is, "at {permille}");
        }
    }

    #[test]
    fn the_smallest_level_can_be_left() {
        let one = Levels {
            yellow_permille: 1,
            red_permille: Levels::OFF,
        };
        assert_eq!(level(one, 1, BELOW), ABOVE_YELLOW);
        assert_eq!(level(one, 0, ABOVE_YELLOW), BELOW);
    }

    #[test]
    fn the_smaller_window_is_the_capacity() {
        assert_eq!(capacity_bytes(1000, 128, 0), 500);
        assert_eq!(capacity_bytes(1000, 128, 400), 400);
        assert_eq!(capacity_bytes(1000, 128, 600), 500);
        assert_eq!(capacity_bytes(u32::MAX, u8::MAX, 0), u32::MAX - (1 << 24));
        assert_eq!(capacity_when_closed(500, 300), 300);
        assert_eq!(capacity_when_closed(500, 700), 500);
    }
}

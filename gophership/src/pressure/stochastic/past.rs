//! What a total was a while ago: what shares and rates are made of.

use std::collections::VecDeque;

/// The readings of the last `window_ns`, and one that is older.
pub(super) struct Past<T> {
    window_ns: u64,
    readings: VecDeque<(u64, T)>,
}

/// A reading of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before<T> {
    /// What it was.
    pub(super) reading: T,
    /// Since then; at least the window, or a first event would look like a window full of them.
    pub(super) elapsed_ns: u64,
}

impl<T: Copy> Past<T> {
    pub(super) const fn new(window_ns: u64) -> Self {
        Self {
            window_ns,
            readings: VecDeque::new(),
        }
    }

    /// Remembers `reading`, and returns the one of a window ago; or the first there is, `reading`
    /// itself if need be. The caller keeps a pace: everything within the window is remembered.
    pub(super) fn compare(&mut self, now_ns: u64, reading: T) -> Before<T> {
        let age = |at_ns: u64| now_ns.saturating_sub(at_ns);
        // After a pause: what happened meanwhile isn't of this window.
        if let Some(&(last_ns, _)) = self.readings.back()
            && age(last_ns) > 2 * self.window_ns
        {
            self.readings.clear();
        }
        while let Some(&(second_ns, _)) = self.readings.get(1)
            && age(second_ns) >= self.window_ns
        {
            self.readings.pop_front();
        }
        let (at_ns, before) = self.readings.front().copied().unwrap_or((now_ns, reading));
        self.readings.push_back((now_ns, reading));
        Before {
            reading: before,
            elapsed_ns: age(at_ns).max(self.window_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reading_of_a_window_ago_is_found() {
        let mut past = Past::new(1000);
        let before = |reading, elapsed_ns| Before {
            reading,
            elapsed_ns,
        };
        assert_eq!(past.compare(5000, 'a'), before('a', 1000), "the first");
        assert_eq!(past.compare(5400, 'b'), before('a', 1000), "too young");
        assert_eq!(past.compare(6300, 'c'), before('a', 1300));
        assert_eq!(past.compare(6400, 'd'), before('b', 1000));
        assert_eq!(past.compare(9000, 'e'), before('e', 1000), "after a pause");
    }
}

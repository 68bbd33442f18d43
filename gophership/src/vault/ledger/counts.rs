//! Numbers that are as narrow as they can be once no more are added.

/// Counts by their place.
#[derive(Debug)]
pub(super) enum Counts {
    Wide(Vec<u32>),
    Half(Vec<u16>),
    Narrow(Vec<u8>),
}

impl Default for Counts {
    fn default() -> Self {
        Self::Wide(Vec::new())
    }
}

impl Counts {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Wide(counts) => counts.len(),
            Self::Half(counts) => counts.len(),
            Self::Narrow(counts) => counts.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<u32> {
        match self {
            Self::Wide(counts) => counts.get(index).copied(),
            Self::Half(counts) => counts.get(index).map(|&count| count.into()),
            Self::Narrow(counts) => counts.get(index).map(|&count| count.into()),
        }
    }

    /// Makes room for `capacity` in all, of any size.
    pub(super) fn reserve(&mut self, capacity: usize) {
        let counts = self.widen();
        counts.reserve_exact(capacity.saturating_sub(counts.len()));
    }

    /// Adds one. Allocates if no room was made, or where [`Self::shrink`] was called.
    pub(super) fn push(&mut self, count: u32) {
        self.widen().push(count);
    }

    /// Takes as little memory as these numbers need.
    pub(super) fn shrink(&mut self) {
        let counts = std::mem::take(self.widen());
        let most = counts.iter().copied().max().unwrap_or(0);
        *self = if most <= u8::MAX.into() {
            Self::Narrow(narrowed(&counts))
        } else if most <= u16::MAX.into() {
            Self::Half(narrowed(&counts))
        } else {
            let mut counts = counts;
            counts.shrink_to_fit();
            Self::Wide(counts)
        };
    }

    fn widen(&mut self) -> &mut Vec<u32> {
        *self = Self::Wide(match std::mem::take(self) {
            Self::Wide(counts) => counts,
            Self::Half(counts) => counts.into_iter().map(u32::from).collect(),
            Self::Narrow(counts) => counts.into_iter().map(u32::from).collect(),
        });
        match self {
            Self::Wide(counts) => counts,
            Self::Half(_) | Self::Narrow(_) => unreachable!("they were made wide"),
        }
    }
}

/// In a narrower type, that has room for each.
fn narrowed<T: TryFrom<u32>>(counts: &[u32]) -> Vec<T> {
    let narrow = counts.iter().map(|&count| T::try_from(count));
    let narrow: Vec<T> = narrow.filter_map(Result::ok).collect();
    debug_assert_eq!(narrow.len(), counts.len(), "the largest fits");
    narrow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_changes_nothing_but_the_width() {
        for (largest, width) in [(255, 1), (256, 2), (65_535, 2), (65_536, 4), (u32::MAX, 4)] {
            let mut counts = Counts::default();
            counts.reserve(8);
            let values = [0, 7, largest, 1];
            values.iter().for_each(|&value| counts.push(value));
            counts.shrink();
            let found = match &counts {
                Counts::Narrow(_) => 1,
                Counts::Half(_) => 2,
                Counts::Wide(_) => 4,
            };
            assert_eq!(found, width, "{largest}");
            let read: Vec<_> = (0..5).map_while(|index| counts.get(index)).collect();
            assert_eq!(read, values);
            // Recovery may still add what follows.
            counts.push(300);
            assert_eq!((counts.len(), counts.get(4)), (5, Some(300)));
            assert_eq!(counts.get(2), Some(largest));
        }
    }
}

//! A histogram of times that costs an atomic addition a value: 32 linear steps in each power of two,
//! so that what it gives back is at most 1/32 too large.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const STEPS_LOG2: u32 = 5;
const STEPS: u64 = 1 << STEPS_LOG2;
/// Up to 2^40 ns, 18 minutes; what is longer counts as that.
const BUCKETS: usize = ((40 - STEPS_LOG2 as usize) + 1) << STEPS_LOG2;

/// Counts of values, added to from any thread.
#[derive(Debug)]
pub(crate) struct Histogram(Box<[AtomicU64]>);

/// The counts at one moment, or between two.
#[derive(Debug, Clone)]
pub(crate) struct Counts(Vec<u64>);

impl Histogram {
    pub(crate) fn new() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn add(&self, value_ns: u64) {
        self.0[bucket(value_ns)].fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Counts {
        Counts(self.0.iter().map(|count| count.load(Relaxed)).collect())
    }
}

impl Counts {
    /// What was added after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let pairs = self.0.iter().zip(&earlier.0);
        Self(pairs.map(|(now, then)| now - then).collect())
    }

    /// The value that `per_mille` of a thousand values don't exceed; 0 without values.
    pub(crate) fn quantile_ns(&self, per_mille: u64) -> u64 {
        let total: u64 = self.0.iter().sum();
        let rank = (total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(bucket);
            }
        }
        0
    }
}

/// Below 32 each value has its bucket; above, the five bits after the leading one choose the step.
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return usize::try_from(value).unwrap_or(0);
    }
    let shift = value.ilog2() - STEPS_LOG2;
    let step = (value >> shift) - STEPS;
    let index = u64::from(shift + 1) * STEPS + step;
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The greatest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let (power, step) = (bucket / STEPS, bucket % STEPS);
    if power == 0 {
        return step;
    }
    ((STEPS + step + 1) << (power - 1)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_lies_between_its_bounds() {
        for value in (0..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789, (1 << 40) - 1]) {
            let bound = upper_bound(bucket(value));
            assert!(bound >= value, "{value} is above its bound {bound}");
            assert!(bound - value <= value / 32, "{value} reads as {bound}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_of_what_was_added_since() {
        let histogram = Histogram::new();
        histogram.add(1_000_000);
        let before = histogram.read();
        for value in 1..=20 {
            histogram.add(value);
        }
        let counts = histogram.read().since(&before);
        let quantiles = [500, 950, 951, 1000].map(|q| counts.quantile_ns(q));
        assert_eq!(quantiles, [10, 19, 20, 20]);
        assert_eq!(before.since(&before).quantile_ns(990), 0);
    }
}

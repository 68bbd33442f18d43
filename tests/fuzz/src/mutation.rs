//! How new inputs are made from old ones.

/// libFuzzer's own mutations: of `size` bytes, at most so many; gives how many they are then.
pub type Bytewise = fn(&mut [u8], usize, usize) -> usize;

/// One of this many inputs keeps its checksums as the mutation left them.
const UNMENDED_EVERY: u32 = 8;

/// Mutates bytes, and mostly mends their checksums.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
    mend: impl FnOnce(&mut [u8]),
) -> usize {
    let size = bytewise(data, size, max_size);
    if !seed.is_multiple_of(UNMENDED_EVERY) {
        mend(&mut data[..size]);
    }
    size
}

/// SplitMix64: the same numbers for the same seed.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One below `limit`, which isn't 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % limit as u64).unwrap_or(0)
    }
}

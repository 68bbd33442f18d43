//! The small tables of text: destinations, and an operator's quarantine.

use crate::{
    checksums::mend_text,
    mutation::{self, Bytewise},
    vault::fuzzing,
};

/// The segment that a quarantine in the corpus is of.
const NUMBER: u64 = 1;

/// Reads `data` as either.
pub fn check(data: &[u8]) {
    fuzzing::destinations(data);
    fuzzing::quarantine(data, NUMBER);
}

/// Makes a new input.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
) -> usize {
    mutation::mutate(data, size, max_size, seed, bytewise, mend_text)
}

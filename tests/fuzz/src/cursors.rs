//! A slot of cursors.

use crate::{
    checksums::mend_tail,
    mutation::{self, Bytewise},
    scratch,
    vault::fuzzing,
};

/// Reads `data` as a slot.
pub fn check(data: &[u8]) {
    let dir = scratch::empty();
    fuzzing::cursors(data, dir.path());
}

/// Makes a new input.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
) -> usize {
    mutation::mutate(data, size, max_size, seed, bytewise, mend_tail)
}

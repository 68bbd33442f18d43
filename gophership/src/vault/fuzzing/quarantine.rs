//! What is asked of an operator's quarantine.

use super::{decode, encode};

/// Reads the file of segment `number`, writes what it says, and reads that.
pub fn check(bytes: &[u8], number: u64) {
    let Some(quarantine) = decode(bytes, number) else {
        return;
    };
    let written = encode(&quarantine, number);
    assert_eq!(decode(written.as_bytes(), number), Some(quarantine));
    assert_eq!(decode(written.as_bytes(), number ^ 1), None);
}

//! What is asked of a table of destinations.

use super::{NAMES_MAX, decode, encode};

/// Reads a table, writes what it says, and reads that.
pub fn check(bytes: &[u8]) {
    let Ok(names) = decode(bytes) else { return };
    assert!(names.len() <= NAMES_MAX);
    assert_eq!(decode(encode(&names).as_bytes()), Ok(names));
}

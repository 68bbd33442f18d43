//! What is asked of a manifest.

use super::{HEADER, Image, RECORD, decode, encode};

/// Reads a manifest, writes what it says, and reads that.
pub fn check(bytes: &[u8]) {
    let Ok(image) = decode(bytes) else { return };
    assert_eq!(image.whole_bytes + image.torn_bytes, bytes.len() as u64);
    let records = image.records.len() as u64 + image.damaged;
    assert_eq!(HEADER as u64 + records * RECORD as u64, image.whole_bytes);
    let written = encode(image.lane, image.compacted_below, &image.records);
    let again = Image {
        damaged: 0,
        torn_bytes: 0,
        whole_bytes: written.len() as u64,
        ..image
    };
    assert_eq!(decode(&written), Ok(again));
}

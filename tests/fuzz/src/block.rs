//! A block, or a segment's header: what its header says, and its payload undone.

use crate::{
    checksums::mend_block,
    mutation::{self, Bytewise},
    vault::{
        format::{
            BLOCK_BYTES_MAX, BLOCK_HEADER, BlockHeader, BlockKind, ENTRIES_MAX, PAGE, SegmentHeader,
        },
        walk::{Position, decode_payload, is_consistent},
    },
};

/// Bytes of a block's header, and of a segment's, that are zero when they are written.
const BLOCK_ZEROS: [std::ops::Range<usize>; 2] = [82..84, 88..120];
const SEGMENT_ZEROS: [std::ops::Range<usize>; 2] = [44..48, 80..124];

/// Reads both headers from `data`.
pub fn check(data: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(data) {
        let mut written = [0; PAGE];
        header.encode(&mut written);
        assert_eq!(SegmentHeader::decode(&written), Ok(header));
        // Of the flags only the known one comes back.
        let mut read = data[..BLOCK_HEADER].to_vec();
        read[12] &= 1;
        read[13..16].fill(0);
        assert_eq!(
            without(&read, &SEGMENT_ZEROS),
            without(&written, &SEGMENT_ZEROS)
        );
        assert!(BlockHeader::decode(data).is_err(), "one or the other");
    }
    if let Ok(header) = BlockHeader::decode(data) {
        check_block(&header, data);
    }
}

fn check_block(header: &BlockHeader, data: &[u8]) {
    let mut written = [0; BLOCK_HEADER];
    header.encode(&mut written);
    assert_eq!(BlockHeader::decode(&written), Ok(*header));
    assert_eq!(
        without(&data[..BLOCK_HEADER], &BLOCK_ZEROS),
        without(&written, &BLOCK_ZEROS)
    );

    let padded = header.padded_len();
    assert!(padded.is_multiple_of(PAGE) && (PAGE..=BLOCK_BYTES_MAX).contains(&padded));
    assert!(header.raw_len as usize <= BLOCK_BYTES_MAX);
    assert!(header.first_entry + u64::from(header.entries) <= u64::from(ENTRIES_MAX));
    assert!(header.durable_through <= header.index);
    let at = Position::START.offset;
    let after = Position::after(at, header);
    assert_eq!(after.offset, at + padded as u64);
    assert!(after.entry >= header.first_entry && after.record >= header.first_record);

    let rest = &data[BLOCK_HEADER..];
    let stored = &rest[..rest.len().min(header.stored_len as usize)];
    let mut decoded = Vec::new();
    let payload = decode_payload(header, stored, &mut decoded).map(<[u8]>::to_vec);
    assert!(decoded.capacity() <= BLOCK_BYTES_MAX);
    let Some(payload) = payload else { return };
    if stored.len() == header.stored_len as usize {
        assert_eq!(payload.len(), header.raw_len as usize);
    }
    if header.kind != BlockKind::Data {
        assert!(payload.is_empty());
    }
    // Must not depend on anything but the bytes.
    assert_eq!(
        is_consistent(header, &payload),
        is_consistent(header, &payload)
    );
}

/// The first 124 bytes, without those in `holes`.
fn without(bytes: &[u8], holes: &[std::ops::Range<usize>]) -> Vec<u8> {
    (0..BLOCK_HEADER - 4)
        .filter(|at| !holes.iter().any(|hole| hole.contains(at)))
        .map(|at| bytes[at])
        .collect()
}

/// Makes a new input.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
) -> usize {
    mutation::mutate(data, size, max_size, seed, bytewise, mend_block)
}

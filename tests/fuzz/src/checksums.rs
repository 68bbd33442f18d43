//! Mending the checksums of bytes that a mutation has changed, by the layouts as they are drawn.

use crate::vault::format::{BLOCK_HEADER, PAGE};

/// Bytes of a header of a manifest, and of a record.
const MANIFEST_HEADER: usize = 64;
const MANIFEST_RECORD: usize = 192;

/// Writes the CRC32 of all before the last four bytes into those.
pub fn mend_tail(bytes: &mut [u8]) {
    if let Some((body, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(body).to_le_bytes();
    }
}

/// Mends the header of a segment or of a block, and of a block the payload as far as it is here; what
/// its padding hides may be left out.
pub fn mend_block(bytes: &mut [u8]) {
    let Some((header, payload)) = bytes.split_at_mut_checked(BLOCK_HEADER) else {
        return;
    };
    if header.starts_with(b"GSVB") {
        let stored = u32::from_le_bytes([header[56], header[57], header[58], header[59]]);
        let whole = (BLOCK_HEADER + payload.len()).next_multiple_of(PAGE) - BLOCK_HEADER;
        if stored as usize <= whole {
            let mut padded = vec![0; whole];
            padded[..payload.len()].copy_from_slice(payload);
            let crc = crc32fast::hash(&padded[..stored as usize]);
            header[120..124].copy_from_slice(&crc.to_le_bytes());
        }
    }
    mend_tail(header);
}

/// Mends the header of a manifest and all of its whole records.
pub fn mend_manifest(bytes: &mut [u8]) {
    if let Some((header, records)) = bytes.split_at_mut_checked(MANIFEST_HEADER) {
        mend_tail(header);
        records
            .chunks_exact_mut(MANIFEST_RECORD)
            .for_each(mend_tail);
    }
}

/// Mends the first line of a table of text, which ends with the checksum of the rest in hexadecimal.
pub fn mend_text(bytes: &mut [u8]) {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return;
    };
    let (head, body) = bytes.split_at_mut(end + 1);
    let crc = format!("{:08x}\n", crc32fast::hash(body));
    if let Some(at) = head.len().checked_sub(crc.len()) {
        head[at..].copy_from_slice(crc.as_bytes());
    }
}

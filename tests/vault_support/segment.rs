//! Segment files: what is in them, and changing it.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use gophership::vault::{
    entry::ENTRY_HEADER,
    format::{BLOCK_HEADER, BlockHeader, BlockKind, PAGE},
    platform::Os,
    walk::{BlockSource, Identity, Look, Position},
};

/// Every block of a segment, up to the first that isn't whole: its offset and header.
pub(crate) fn blocks(path: &Path) -> Vec<(u64, BlockHeader)> {
    let number = u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    let identity = Identity {
        segment: number,
        tag: None,
    };
    let limit = fs::metadata(path).unwrap().len();
    let mut source = BlockSource::open(&Os::to_read(), path).unwrap();
    let mut position = Position::START;
    let mut blocks = Vec::new();
    while let Look::Block(header) = source.look(identity, position, limit) {
        blocks.push((position.offset, header));
        position = Position::after(position.offset, &header);
    }
    blocks
}

/// Those with entries.
pub(crate) fn data_blocks(path: &Path) -> Vec<(u64, BlockHeader)> {
    let mut blocks = blocks(path);
    blocks.retain(|(_, header)| header.kind == BlockKind::Data);
    blocks
}

/// Changes `len` bytes of a file from `offset` on.
pub(crate) fn edit(path: &Path, offset: u64, len: usize, change: impl FnOnce(&mut [u8])) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    change(&mut bytes);
    file.write_all_at(&bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// Changes one bit.
pub(crate) fn flip(path: &Path, offset: u64) {
    edit(path, offset, 1, |byte| byte[0] ^= 0x40);
}

/// Changes the header of the block at `offset`, with its checksum.
pub(crate) fn rewrite(path: &Path, offset: u64, change: impl FnOnce(&mut BlockHeader)) {
    edit(path, offset, PAGE, |page| {
        let mut header = BlockHeader::decode(page).unwrap();
        change(&mut header);
        header.encode(page);
    });
}

/// Makes the seal vouch for the blocks as they are now.
pub(crate) fn reseal(path: &Path) {
    let all = blocks(path);
    let (&(offset, seal), before) = all.split_last().unwrap();
    assert_eq!(seal.kind, BlockKind::Seal);
    let mut crc = crc32fast::Hasher::new();
    for (_, header) in before {
        crc.update(&header.own_crc_fields());
    }
    rewrite(path, offset, |seal| seal.segment_crc = crc.finalize());
}

/// Changes a byte of an entry in a data block, stored as it is, and mends the block's checksums.
pub(crate) fn forge_block(path: &Path, block: usize) {
    let (offset, mut header) = data_blocks(path)[block];
    edit(path, offset, header.padded_len(), |bytes| {
        bytes[BLOCK_HEADER + ENTRY_HEADER + 7] ^= 1;
        let end = BLOCK_HEADER + header.stored_len as usize;
        header.payload_crc = crc32fast::hash(&bytes[BLOCK_HEADER..end]);
        header.encode(bytes);
    });
}

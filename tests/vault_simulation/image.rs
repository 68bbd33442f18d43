//! What the disk itself says, read without the vault's own code for reading.

use std::collections::HashMap;

use gophership::vault::{
    EntryId,
    format::{BlockHeader, BlockKind, PAGE, SegmentHeader},
};

/// Which blocks were known to be durable, and which entries they held when they were written.
#[derive(Debug, Default)]
pub(crate) struct Image {
    durable: HashMap<u64, u32>,
    blocks: HashMap<(u64, u32), u32>,
}

impl Image {
    /// Notes a block that a lane has written: where its entries are.
    pub(super) fn note_written(&mut self, bytes: &[u8]) {
        let Ok(header) = BlockHeader::decode(bytes) else {
            return;
        };
        if header.kind == BlockKind::Data {
            let first = u32::try_from(header.first_entry).unwrap();
            for entry in first..first + header.entries {
                self.blocks.insert((header.segment, entry), header.index);
            }
        }
    }

    /// Reads what vouches for what from the segment files.
    pub(super) fn read(&mut self, files: &[Vec<u8>]) {
        let mut vouch = |segment: u64, blocks: u32| {
            let known = self.durable.entry(segment).or_default();
            *known = blocks.max(*known);
        };
        for page in files.iter().flat_map(|file| file.chunks_exact(PAGE)) {
            if let Ok(header) = BlockHeader::decode(page) {
                vouch(header.segment, header.durable_through);
            } else if let Ok(header) = SegmentHeader::decode(page) {
                vouch(header.previous, header.previous_durable);
            }
        }
    }

    /// Whether something on the disk says that the entry's block was durable. Without that, it can't be
    /// told from a torn tail.
    pub(super) fn vouches_for(&self, id: EntryId) -> bool {
        let block = self.blocks.get(&(id.segment, id.index));
        let durable = self.durable.get(&id.segment);
        block
            .zip(durable)
            .is_some_and(|(block, durable)| durable > block)
    }
}

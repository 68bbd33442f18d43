//! How big blocks are, how many a lane has, and what an entry needs of them.

use lz4_flex::block::get_maximum_output_size;

use crate::vault::{
    Compression, Config, Error,
    entry::ENTRY_HEADER,
    format::{BLOCK_BYTES_MAX, BLOCK_HEADER, PAGE},
};

/// Smallest block, bytes.
const BLOCK_MIN: usize = 16 << 10;
/// Largest block, bytes. Each write costs the CPU the same, whatever its length: submission, interrupt, flush.
const BLOCK_MAX: usize = BLOCK_BYTES_MAX;
/// Most block buffers of a lane, and most bytes of all of them as blocks: more in flight doesn't make a disk faster.
const BLOCKS_MAX: usize = 64;
const LANE_BYTES_MAX: usize = 16 << 20;
/// Blocks in a segment at least, so that all buffers together fill at most half of one: what must be
/// written again after an error always fits into one fresh segment.
const BLOCKS_PER_SEGMENT_MIN: usize = 16;
/// Pages kept free at a segment's end: a mark and a seal.
pub(super) const TAIL_BYTES: u64 = 2 * PAGE as u64;

/// Sizes of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vault) struct Geometry {
    /// Most bytes of a block.
    pub(in crate::vault) block_bytes: usize,
    /// Bytes of a block buffer: a block, and what LZ4 may need before it turns out that nothing shrinks.
    pub(in crate::vault) buffer_bytes: usize,
    /// Block buffers of a lane.
    pub(in crate::vault) blocks: usize,
}

impl Geometry {
    /// Sizes for one lane of `config`, which is checked.
    pub(in crate::vault) fn new(config: &Config) -> Result<Self, Error> {
        check(config)?;
        let budget = config.budget_bytes / config.lanes;
        let segment = usize::try_from(config.segment_bytes).unwrap_or(usize::MAX);
        let mut block_bytes = BLOCK_MAX;
        while block_bytes > BLOCK_MIN
            && (block_bytes * 8 > budget || block_bytes * BLOCKS_PER_SEGMENT_MIN > segment)
        {
            block_bytes /= 2;
        }
        let buffer_bytes = match config.compression {
            Compression::None => block_bytes,
            Compression::Auto | Compression::Lz4 => {
                let payload = block_bytes - BLOCK_HEADER;
                (BLOCK_HEADER + get_maximum_output_size(payload)).next_multiple_of(PAGE)
            }
        };
        // One block's worth of the budget is where entries are gathered for LZ4.
        let affordable = (budget / buffer_bytes).saturating_sub(1);
        let blocks = affordable
            .min(segment / 2 / block_bytes - 1)
            .min(LANE_BYTES_MAX / block_bytes)
            .clamp(2, BLOCKS_MAX);
        let geometry = Self {
            block_bytes,
            buffer_bytes,
            blocks,
        };
        let max = geometry.entry_bytes_max(config.segment_bytes);
        let value = config.max_entry_bytes as u64;
        if value > max {
            return Err(Error::TooBig {
                key: "max_entry_bytes",
                value,
                max,
            });
        }
        Ok(geometry)
    }

    /// Largest entry for segments of `segment_bytes`: half of one, and what its blocks need for their
    /// headers.
    fn entry_bytes_max(&self, segment_bytes: u64) -> u64 {
        let pieces = segment_bytes / 2 / self.block_bytes as u64 + 1;
        (pieces * self.piece_max() as u64).min(u64::from(u32::MAX))
    }

    /// Bytes of an entry that fit into one block.
    pub(in crate::vault) fn piece_max(&self) -> usize {
        self.block_bytes - BLOCK_HEADER - ENTRY_HEADER
    }

    /// Most bytes of a segment that an entry of `len` bytes takes.
    pub(in crate::vault) fn bytes_for(&self, len: usize) -> u64 {
        (len.div_ceil(self.piece_max()).max(1) * self.block_bytes) as u64
    }
}

fn check(config: &Config) -> Result<(), Error> {
    let at_least = |key, value, min| {
        if value < min {
            Err(Error::TooSmall { key, value, min })
        } else {
            Ok(())
        }
    };
    let lanes = config.lanes as u64;
    at_least("lanes", lanes, 1)?;
    if config.lanes > usize::from(u16::MAX) {
        return Err(Error::TooBig {
            key: "lanes",
            value: lanes,
            max: u64::from(u16::MAX),
        });
    }
    at_least(
        "segment_bytes",
        config.segment_bytes,
        (BLOCK_MIN * BLOCKS_PER_SEGMENT_MIN) as u64,
    )?;
    if !config.segment_bytes.is_multiple_of(PAGE as u64) {
        return Err(Error::Unaligned(config.segment_bytes));
    }
    at_least(
        "max_bytes",
        config.max_bytes,
        config.segment_bytes.saturating_mul(lanes),
    )?;
    at_least(
        "budget_bytes",
        config.budget_bytes as u64,
        (4 * BLOCK_MIN * config.lanes) as u64,
    )
}

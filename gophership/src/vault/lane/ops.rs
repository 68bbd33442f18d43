//! Writes in flight, in the order in which they count.

use std::{sync::Arc, time::Instant};

use super::block::Packed;
use crate::{
    uring::Buffer,
    vault::{format::padded_len, segment::Segment},
};

/// How far a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The kernel has it.
    Writing,
    /// On stable storage.
    Done,
    /// Refused by the disk.
    Failed,
}

/// What a write is for. While the kernel has it, the buffer is the ring's, and [`Op::return_buffer`]
/// brings it back.
#[derive(Debug)]
pub(super) enum Purpose {
    Header,
    Data {
        packed: Packed,
        index: u32,
        first_entry: u32,
        /// A piece of an entry larger than a block: its append writes all of it again.
        large: bool,
    },
    Mark {
        index: u32,
    },
    Seal,
}

#[derive(Debug)]
pub(super) struct Op {
    pub(super) purpose: Purpose,
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) state: State,
    pub(super) started: Instant,
}

impl Op {
    /// Takes the buffer back from the ring; only a data block's is needed again.
    pub(super) fn return_buffer(&mut self, buffer: Buffer) {
        if let Purpose::Data { packed, .. } = &mut self.purpose {
            packed.buffer = Some(buffer);
        }
    }
}

impl Packed {
    /// Bytes of the block in the file.
    pub(super) fn padded_len(&self) -> usize {
        padded_len(self.stored_len as usize)
    }
}

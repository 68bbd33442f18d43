//! Decompression into one buffer a worker, bounded by the largest request.

use std::{
    cell::{RefCell, RefMut},
    io::Read,
};

use flate2::bufread::MultiGzDecoder;

use super::message::Parts;

/// Why a compressed message is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It isn't gzip, or is damaged.
    #[error("the message is not valid gzip: {0}")]
    Gzip(#[from] std::io::Error),
    /// It is larger than allowed once decompressed.
    #[error("the message is larger than {limit} bytes decompressed (ingest.max_request_bytes)")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// The decompression buffer of one worker, used by one request at a time and never across an
/// `await`.
#[derive(Debug, Default)]
pub struct Inflater {
    buffer: RefCell<Vec<u8>>,
}

/// A buffer that grew beyond this is given back by the next use.
const KEEP_BYTES: usize = 4 * 1024 * 1024;

impl Inflater {
    /// Decompresses a gzip message (one member or several) of at most `limit` bytes.
    ///
    /// # Errors
    /// If it isn't gzip, or larger than the limit.
    pub fn gunzip(&self, parts: &Parts, limit: usize) -> Result<RefMut<'_, Vec<u8>>, Error> {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        buffer.shrink_to(KEEP_BYTES);
        let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        MultiGzDecoder::new(parts.reader())
            .take(bound)
            .read_to_end(&mut buffer)?;
        if buffer.len() > limit {
            return Err(Error::TooLarge { limit });
        }
        Ok(buffer)
    }
}

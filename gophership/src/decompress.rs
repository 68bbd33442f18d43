//! Decompression of what producers sent, bounded by the size of the result.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::vault::ContentEncoding;

/// Bytes of the past that a zstd frame may refer to, as a power of two: 8 MiB. A decoder has to hold them.
///
/// Source: <https://www.rfc-editor.org/rfc/rfc9659>, which allows no more for `content-encoding: zstd`.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The first room that is made, where there is none.
const GROW_BYTES_MIN: usize = 32 * 1024;

/// Why something isn't decompressed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What isn't compressed can't be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// It isn't gzip, or is damaged.
    #[error("not valid gzip: {0}")]
    Gzip(io::Error),
    /// It isn't zstd, is damaged, or needs a larger window than 8 MiB.
    #[error("not valid zstd with a window of at most 8 MiB: {0}")]
    Zstd(io::Error),
    /// It is larger than allowed.
    #[error("larger than {limit} bytes decompressed")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Appends to `to` what `from` has once decompressed: at most `limit` bytes, of one gzip member or zstd frame or of
/// several. `to` gets room for no more than that; what it has already is used first.
///
/// # Errors
/// If it isn't of that encoding, or is larger; `to` then has what came before.
pub fn decompress(
    encoding: ContentEncoding,
    from: impl BufRead,
    limit: usize,
    to: &mut Vec<u8>,
) -> Result<(), Error> {
    let is_all = match encoding {
        ContentEncoding::Identity => read(from, limit, to).map_err(Error::Read)?,
        ContentEncoding::Gzip => read(MultiGzDecoder::new(from), limit, to).map_err(Error::Gzip)?,
        ContentEncoding::Zstd => zstd(from, limit, to).map_err(Error::Zstd)?,
    };
    if is_all {
        Ok(())
    } else {
        Err(Error::TooLarge { limit })
    }
}

fn zstd(from: impl BufRead, limit: usize, to: &mut Vec<u8>) -> io::Result<bool> {
    let mut decoder = ZstdDecoder::with_buffer(from)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    read(decoder, limit, to)
}

/// Reads to the end, and gives whether it came within `limit` bytes.
fn read(mut from: impl Read, limit: usize, to: &mut Vec<u8>) -> io::Result<bool> {
    let end = to.len().saturating_add(limit);
    while to.len() < end {
        if to.len() == to.capacity() {
            let more = to.len().max(GROW_BYTES_MIN).min(end - to.len());
            to.reserve_exact(more);
        }
        // Never more than there is room for, or the room would be doubled.
        let room = to.capacity().min(end) - to.len();
        let read = from.by_ref().take(room as u64).read_to_end(to)?;
        if read < room {
            return Ok(true);
        }
    }
    // One byte more than is allowed shows that there is one.
    Ok(from.take(1).read_to_end(&mut Vec::new())? == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_for_what_is_allowed_at_most() {
        let bytes = vec![7; 100_000];
        for had in [0, 1, 50_000, 99_999, 100_000, 300_000] {
            for limit in [0, 1, 31, 32, 33, 99_999, 100_000, 100_001] {
                let mut to = Vec::with_capacity(had);
                let read = decompress(ContentEncoding::Identity, &bytes[..], limit, &mut to);
                assert_eq!(read.is_ok(), limit >= bytes.len(), "{limit}");
                assert_eq!(to, bytes[..limit.min(bytes.len())]);
                assert!(to.capacity() <= had.max(limit), "{had} {limit}");
            }
        }
        let mut to = vec![1, 2, 3];
        decompress(ContentEncoding::Identity, &bytes[..9], 9, &mut to).expect("it is all");
        assert_eq!(to, [1, 2, 3, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    }
}

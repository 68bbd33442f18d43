//! Decompression of what producers sent, bounded by the size of the result.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::vault::ContentEncoding;

/// Bytes of the past that a zstd frame may refer to, as a power of two: 8 MiB. A decoder has to hold them.
///
/// Source: <https://www.rfc-editor.org/rfc/rfc9659>, which allows no more for `content-encoding: zstd`.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

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
/// several.
///
/// # Errors
/// If it isn't of that encoding, or is larger; `to` then has what came before.
pub fn decompress(
    encoding: ContentEncoding,
    from: impl BufRead,
    limit: usize,
    to: &mut Vec<u8>,
) -> Result<(), Error> {
    let read = match encoding {
        ContentEncoding::Identity => read(from, limit, to).map_err(Error::Read)?,
        ContentEncoding::Gzip => read(MultiGzDecoder::new(from), limit, to).map_err(Error::Gzip)?,
        ContentEncoding::Zstd => zstd(from, limit, to).map_err(Error::Zstd)?,
    };
    if read > limit {
        return Err(Error::TooLarge { limit });
    }
    Ok(())
}

fn zstd(from: impl BufRead, limit: usize, to: &mut Vec<u8>) -> io::Result<usize> {
    let mut decoder = ZstdDecoder::with_buffer(from)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    read(decoder, limit, to)
}

/// Reads a byte more than is allowed, so that the caller sees that there is one.
fn read(from: impl Read, limit: usize, to: &mut Vec<u8>) -> io::Result<usize> {
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    from.take(bound).read_to_end(to)
}

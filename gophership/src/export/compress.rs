//! Compression of batches on their way to servers.
//!
//! It runs on the worker, a piece at a time: between two pieces others have their turn. What a batch is compressed to
//! is never larger than the batch, and takes no more room than that: one that doesn't shrink goes as it is.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::GzEncoder;
use zstd::stream::write::Encoder as ZstdEncoder;

/// How the messages to a server are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// What is compressed before others have their turn: a millisecond or two of gzip.
const PIECE_BYTES: usize = 128 << 10;

/// Both at the level that costs least: logs shrink to a small part at any level.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;

/// `None`: not compressed, because that is the choice, or because it would not be smaller.
pub(super) async fn compress(compression: Compression, message: &Bytes) -> Option<Bytes> {
    let room = Room {
        bytes: Vec::new(),
        bytes_max: message.len(),
    };
    // What fails is the room: nothing else can.
    let compressed = match compression {
        Compression::None => return None,
        Compression::Gzip => gzip(room, message).await,
        Compression::Zstd => zstd(room, message).await,
    };
    compressed.ok().map(|room| room.bytes.into())
}

async fn gzip(room: Room, message: &[u8]) -> io::Result<Room> {
    let mut encoder = GzEncoder::new(room, flate2::Compression::new(GZIP_LEVEL));
    for piece in message.chunks(PIECE_BYTES) {
        encoder.write_all(piece)?;
        tokio::task::yield_now().await;
    }
    encoder.finish()
}

async fn zstd(room: Room, message: &[u8]) -> io::Result<Room> {
    let mut encoder = ZstdEncoder::new(room, ZSTD_LEVEL)?;
    encoder.set_pledged_src_size(Some(message.len() as u64))?;
    for piece in message.chunks(PIECE_BYTES) {
        encoder.write_all(piece)?;
        tokio::task::yield_now().await;
    }
    encoder.finish()
}

/// Takes less than the message has.
struct Room {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Room {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.capacity() == 0 {
            // Once: growing would need both the old and the new room. What isn't written to takes no memory.
            self.bytes.reserve_exact(self.bytes_max);
        }
        if self.bytes.len() + piece.len() >= self.bytes_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn compressed(compression: Compression, message: &[u8]) -> Option<Bytes> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(compress(compression, &Bytes::copy_from_slice(message)))
    }

    #[test]
    fn what_shrinks_comes_back_whole_and_what_does_not_stays_as_it_is() {
        let repeating: Vec<u8> = b"a line of a log, 0123456789\n".repeat(50_000);
        let mut random = 1_u64;
        let noise: Vec<u8> = (0..300_000)
            .map(|_| {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                random.to_le_bytes()[7]
            })
            .collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let small = compressed(compression, &repeating).expect("it shrinks");
            assert!(small.len() < repeating.len() / 10, "{}", small.len());
            let mut whole = Vec::new();
            match compression {
                Compression::Zstd => zstd::stream::copy_decode(&small[..], &mut whole),
                _ => GzDecoder::new(&small[..])
                    .read_to_end(&mut whole)
                    .map(|_| ()),
            }
            .expect("it is valid");
            assert!(whole == repeating, "{compression:?}");
            assert_eq!(compressed(compression, &noise), None);
            assert_eq!(compressed(compression, b""), None);
            assert_eq!(compressed(compression, b"x"), None);
        }
        assert_eq!(compressed(Compression::None, &repeating), None);
    }
}

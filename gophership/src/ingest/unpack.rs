//! Decompression, and JSON made protobuf, into buffers of the worker that never grow beyond what the budget covers.

use std::cell::{RefCell, RefMut};

use super::message::Parts;
use crate::{
    decompress::{self, decompress},
    otel::{self, json, skim},
    vault::{ContentEncoding, Kind},
};

/// Why a message can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be decompressed, or is too large then.
    #[error("the message is {0}")]
    Compressed(#[from] decompress::Error),
    /// It isn't the protobuf that it should be.
    #[error("not an ExportLogsServiceRequest: {0}")]
    Protobuf(#[from] otel::Malformed),
    /// It isn't the JSON that it should be.
    #[error("not an ExportLogsServiceRequest in JSON: {0}")]
    Json(#[from] json::Malformed),
}

/// The buffers of one worker, used by one request at a time and never across an `await`.
#[derive(Debug)]
pub struct Unpacker {
    buffers: RefCell<Buffers>,
}

#[derive(Debug)]
struct Buffers {
    /// What was compressed, or came in several frames of JSON.
    plain: Vec<u8>,
    /// What was JSON; never longer than that.
    protobuf: Vec<u8>,
    /// What each of them keeps.
    keep_bytes: usize,
}

/// The buffers, lent to a request: what they have grown by is given back at once.
#[derive(Debug)]
struct Lent<'a>(RefMut<'a, Buffers>);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Buffers {
            plain,
            protobuf,
            keep_bytes,
        } = &mut *self.0;
        for buffer in [plain, protobuf] {
            buffer.clear();
            buffer.shrink_to(*keep_bytes);
        }
    }
}

/// A request in plain protobuf.
#[derive(Debug)]
pub struct Unpacked<'a> {
    lent: Lent<'a>,
    kind: Kind,
    /// Its log records.
    pub records: u32,
}

impl Unpacked<'_> {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self.kind {
            Kind::OtlpLogs => &self.lent.0.plain,
            Kind::OtlpLogsJson => &self.lent.0.protobuf,
        }
    }
}

impl Unpacker {
    /// With two buffers of `buffer_bytes`.
    #[must_use]
    pub fn new(buffer_bytes: usize) -> Self {
        Self {
            buffers: RefCell::new(Buffers {
                plain: Vec::with_capacity(buffer_bytes),
                protobuf: Vec::with_capacity(buffer_bytes),
                keep_bytes: buffer_bytes,
            }),
        }
    }

    /// Makes plain protobuf of a message that has at most `limit` bytes when it is decompressed. Each buffer grows to
    /// that at most.
    ///
    /// # Errors
    /// If it isn't what it is said to be, or larger than the limit.
    pub fn unpack(
        &self,
        kind: Kind,
        encoding: ContentEncoding,
        parts: &Parts,
        limit: usize,
    ) -> Result<Unpacked<'_>, Error> {
        let mut lent = Lent(self.buffers.borrow_mut());
        let Buffers {
            plain, protobuf, ..
        } = &mut *lent.0;
        let text = match (kind, encoding, parts.as_slice()) {
            (Kind::OtlpLogsJson, ContentEncoding::Identity, [whole]) => whole,
            _ => {
                // At once: who grows step by step has the old and the new one for a while.
                plain.reserve_exact(limit);
                decompress(encoding, parts.reader(), limit, plain)?;
                plain.as_slice()
            }
        };
        let records = match kind {
            Kind::OtlpLogs => skim(&[text])?.records,
            Kind::OtlpLogsJson => {
                protobuf.reserve_exact(text.len());
                json::to_protobuf(text, protobuf)?
            }
        };
        Ok(Unpacked {
            lent,
            kind,
            records,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::message::Joined, *};

    const KEPT: usize = 1000;

    fn parts(frames: &[&[u8]]) -> Parts {
        let mut joined = Joined::default();
        for frame in frames {
            // As they come: large enough not to be copied together.
            joined.push(Bytes::copy_from_slice(frame), true);
        }
        joined.finish()
    }

    fn capacities(unpacker: &Unpacker) -> [usize; 2] {
        let buffers = unpacker.buffers.borrow();
        [buffers.plain.capacity(), buffers.protobuf.capacity()]
    }

    /// JSON of `len` bytes whose protobuf is nearly as long.
    fn json_of(len: usize) -> Vec<u8> {
        let mut json = b"{\"resourceLogs\":[{\"schemaUrl\":\"".to_vec();
        json.resize(len - 4, b'a');
        json.extend_from_slice(b"\"}]}");
        json
    }

    #[test]
    fn buffers_grow_to_the_limit_at_most_and_are_given_back_with_the_request() {
        let unpacker = Unpacker::new(KEPT);
        assert_eq!(capacities(&unpacker), [KEPT; 2]);
        let json = json_of(50_000);
        let compressed = parts(&[&zstd::encode_all(&*json, 1).expect("it compresses")]);
        let halves = json.split_at(20_000);
        let identity = parts(&[halves.0, halves.1]);
        for (encoding, parts) in [
            (ContentEncoding::Zstd, &compressed),
            (ContentEncoding::Identity, &identity),
        ] {
            let unpacked = unpacker
                .unpack(Kind::OtlpLogsJson, encoding, parts, json.len())
                .expect("it is as large as it may be");
            assert!(unpacked.bytes().len() > 49_000);
            let buffers = &unpacked.lent.0;
            assert_eq!(buffers.plain.capacity(), json.len());
            assert_eq!(buffers.protobuf.capacity(), json.len());
            drop(unpacked);
            assert_eq!(capacities(&unpacker), [KEPT; 2]);
        }
    }

    #[test]
    fn what_is_refused_leaves_nothing_behind() {
        let unpacker = Unpacker::new(KEPT);
        let zeros = zstd::encode_all(&[0; 100_000][..], 1).expect("it compresses");
        let zeros = parts(&[&zeros]);
        for limit in [10, KEPT, 60_000, 100_000] {
            let refused = unpacker.unpack(Kind::OtlpLogs, ContentEncoding::Zstd, &zeros, limit);
            match refused {
                Err(Error::Compressed(decompress::Error::TooLarge { limit: named })) => {
                    assert_eq!(named, limit);
                    assert!(limit < 100_000);
                }
                Err(Error::Protobuf(_)) => assert_eq!(limit, 100_000),
                other => panic!("{other:?}"),
            }
            assert_eq!(capacities(&unpacker), [KEPT; 2]);
        }
    }
}

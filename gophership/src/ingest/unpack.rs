//! Decompression, and JSON made protobuf, into buffers of the worker that never grow beyond what the budget covers.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

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

/// The buffers of one worker: two pairs, each lent to one request at a time.
#[derive(Debug)]
pub struct Unpacker {
    /// Never lent across an `await`, so nobody waits for it.
    inline: Arc<Mutex<Buffers>>,
    /// For what is unpacked on another thread.
    aside: Arc<Mutex<Buffers>>,
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

/// A pair of buffers, lent to a request: what they have grown by is given back at once.
#[derive(Debug)]
pub struct Lent(OwnedMutexGuard<Buffers>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.reset();
    }
}

/// A request in plain protobuf.
#[derive(Debug)]
pub struct Unpacked {
    lent: Lent,
    kind: Kind,
    /// Its log records.
    pub records: u32,
}

impl Unpacked {
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
    /// With two buffers of `inline_bytes`, and two of `aside_bytes`.
    #[must_use]
    pub fn new(inline_bytes: usize, aside_bytes: usize) -> Self {
        Self {
            inline: Buffers::of(inline_bytes),
            aside: Buffers::of(aside_bytes),
        }
    }

    /// The buffers for what is unpacked on the worker's thread.
    pub async fn inline(&self) -> Lent {
        Lent(Arc::clone(&self.inline).lock_owned().await)
    }

    /// The buffers for what is unpacked on another thread, when those who asked before have given them back.
    pub async fn aside(&self) -> Lent {
        Lent(Arc::clone(&self.aside).lock_owned().await)
    }
}

impl Buffers {
    fn of(keep_bytes: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            plain: Vec::with_capacity(keep_bytes),
            protobuf: Vec::with_capacity(keep_bytes),
            keep_bytes,
        }))
    }

    fn reset(&mut self) {
        for buffer in [&mut self.plain, &mut self.protobuf] {
            buffer.clear();
            buffer.shrink_to(self.keep_bytes);
        }
    }
}

impl Lent {
    /// Makes plain protobuf of a message that has at most `limit` bytes when it is decompressed, and gives the number of
    /// its log records. Each buffer grows to the limit at most.
    ///
    /// # Errors
    /// If it isn't what it is said to be, or larger than the limit.
    pub fn unpack(
        &mut self,
        kind: Kind,
        encoding: ContentEncoding,
        parts: &Parts,
        limit: usize,
    ) -> Result<u32, Error> {
        self.0.reset();
        let Buffers {
            plain,
            protobuf,
            keep_bytes,
        } = &mut *self.0;
        let text = match (kind, encoding, parts.as_slice()) {
            (Kind::OtlpLogsJson, ContentEncoding::Identity, [whole]) => whole,
            _ => {
                // At once: who grows step by step has the old and the new one for a while.
                plain.reserve_exact(limit);
                decompress(encoding, parts.reader(), limit, plain)?;
                plain.as_slice()
            }
        };
        match kind {
            Kind::OtlpLogs => Ok(skim(&[text])?.records),
            Kind::OtlpLogsJson => {
                protobuf.reserve_exact(text.len());
                let records = json::to_protobuf(text, protobuf)?;
                // Here and not when it is dropped, which is on the worker's thread.
                plain.clear();
                plain.shrink_to(*keep_bytes);
                Ok(records)
            }
        }
    }

    /// What was unpacked last.
    #[must_use]
    pub const fn unpacked(self, kind: Kind, records: u32) -> Unpacked {
        Unpacked {
            lent: self,
            kind,
            records,
        }
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

    fn capacities(buffers: &Buffers) -> [usize; 2] {
        [buffers.plain.capacity(), buffers.protobuf.capacity()]
    }

    fn kept(unpacker: &Unpacker) -> [usize; 2] {
        capacities(&unpacker.aside.try_lock().expect("nobody has them"))
    }

    fn lent(unpacker: &Unpacker) -> Lent {
        let aside = Arc::clone(&unpacker.aside).try_lock_owned();
        Lent(aside.expect("nobody has them"))
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
        let unpacker = Unpacker::new(0, KEPT);
        assert_eq!(kept(&unpacker), [KEPT; 2]);
        let json = json_of(50_000);
        let mut protobuf = Vec::new();
        json::to_protobuf(&json, &mut protobuf).expect("it is valid");
        let zstd = |bytes: &[u8]| parts(&[&zstd::encode_all(bytes, 1).expect("it compresses")]);
        let halves = json.split_at(20_000);
        let (len, zipped) = (json.len(), ContentEncoding::Zstd);
        for (kind, encoding, parts, expected) in [
            (Kind::OtlpLogs, zipped, zstd(&protobuf), [len, KEPT]),
            (Kind::OtlpLogsJson, zipped, zstd(&json), [KEPT, len]),
            (
                Kind::OtlpLogsJson,
                ContentEncoding::Identity,
                parts(&[halves.0, halves.1]),
                [KEPT, len],
            ),
        ] {
            let mut lent = lent(&unpacker);
            let records = lent.unpack(kind, encoding, &parts, len);
            let unpacked = lent.unpacked(kind, records.expect("it is as large as it may be"));
            assert_eq!(unpacked.bytes(), protobuf);
            assert_eq!(capacities(&unpacked.lent.0), expected);
            drop(unpacked);
            assert_eq!(kept(&unpacker), [KEPT; 2]);
        }
    }

    #[test]
    fn what_is_refused_leaves_nothing_behind() {
        let unpacker = Unpacker::new(0, KEPT);
        let zeros = zstd::encode_all(&[0; 100_000][..], 1).expect("it compresses");
        let zeros = parts(&[&zeros]);
        for limit in [10, KEPT, 60_000, 100_000] {
            let refused =
                lent(&unpacker).unpack(Kind::OtlpLogs, ContentEncoding::Zstd, &zeros, limit);
            match refused {
                Err(Error::Compressed(decompress::Error::TooLarge { limit: named })) => {
                    assert_eq!(named, limit);
                    assert!(limit < 100_000);
                }
                Err(Error::Protobuf(_)) => assert_eq!(limit, 100_000),
                other => panic!("{other:?}"),
            }
            assert_eq!(kept(&unpacker), [KEPT; 2]);
        }
    }
}

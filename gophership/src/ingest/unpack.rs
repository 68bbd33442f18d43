//! Decompression, and JSON made protobuf, into buffers of the worker that are bounded by the largest request.

use std::cell::{Ref, RefCell};

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
#[derive(Debug, Default)]
pub struct Unpacker {
    buffers: RefCell<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    /// What was compressed, or came in several frames of JSON.
    plain: Vec<u8>,
    /// What was JSON; never longer than that.
    protobuf: Vec<u8>,
}

/// A request in plain protobuf.
#[derive(Debug)]
pub struct Unpacked<'a> {
    /// Its bytes.
    pub bytes: Ref<'a, [u8]>,
    /// Its log records.
    pub records: u32,
}

/// A buffer that grew beyond this is given back by the next use.
const KEEP_BYTES: usize = 4 * 1024 * 1024;

impl Unpacker {
    /// Makes plain protobuf of a message; decompressed it may have at most `limit` bytes.
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
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { plain, protobuf } = &mut *buffers;
        empty(plain);
        empty(protobuf);
        let text = match (kind, encoding, parts.as_slice()) {
            (Kind::OtlpLogsJson, ContentEncoding::Identity, [whole]) => whole,
            _ => {
                decompress(encoding, parts.reader(), limit, plain)?;
                plain.as_slice()
            }
        };
        let records = match kind {
            Kind::OtlpLogs => skim(&[text])?.records,
            Kind::OtlpLogsJson => json::to_protobuf(text, protobuf)?,
        };
        drop(buffers);
        let bytes = Ref::map(self.buffers.borrow(), |buffers| match kind {
            Kind::OtlpLogs => buffers.plain.as_slice(),
            Kind::OtlpLogsJson => buffers.protobuf.as_slice(),
        });
        Ok(Unpacked { bytes, records })
    }
}

fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEEP_BYTES);
}

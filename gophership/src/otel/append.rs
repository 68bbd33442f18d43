//! Attributes put at the end of every log record of a request, without decoding it.
//!
//! All other bytes stay as they are, but the lengths around. Not for the hot path: it copies once a level.

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// From the request to its log records: `resource_logs`, `scope_logs`, `log_records`.
const LOG_RECORDS: [u32; 3] = [1, 2, 2];

/// The request with what `fields` writes at the end of each record, in their order; `None` if it isn't a request.
#[must_use]
pub fn append_to_records(request: &[u8], mut fields: impl FnMut(&mut Vec<u8>)) -> Option<Vec<u8>> {
    append(request, &LOG_RECORDS, &mut fields)
}

fn append(message: &[u8], path: &[u32], fields: &mut dyn FnMut(&mut Vec<u8>)) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(message.len() + 256);
    let Some((&field, below)) = path.split_first() else {
        out.extend_from_slice(message);
        fields(&mut out);
        return Some(out);
    };
    let mut rest = message;
    while !rest.is_empty() {
        let before = rest;
        let (number, wire) = decode_key(&mut rest).ok()?;
        if number == field && wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let (inner, after) = rest.split_at_checked(length)?;
            rest = after;
            let inner = append(inner, below, fields)?;
            encode_key(number, wire, &mut out);
            encode_varint(inner.len() as u64, &mut out);
            out.extend_from_slice(&inner);
        } else {
            skip_field(wire, number, &mut rest, DecodeContext::default()).ok()?;
            out.extend_from_slice(&before[..before.len() - rest.len()]);
        }
    }
    Some(out)
}

//! The fields of an encoded message, one after the other: nothing is decoded before it is asked for, or kept.

use bytes::Buf as _;
use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Messages that enclose each other without a list between them, of which each may come in parts: a value in a pair or a
/// record, and the list in that value.
pub(super) const PARTS_MAX: usize = 2;

/// The value of a field, by its wire type.
#[derive(Debug, Clone, Copy)]
pub(super) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Group,
}

/// The fields that are left of a message.
///
/// A message that isn't in a list may come in parts, which are to be read as if joined, whatever lies between them. So
/// they are: as the fields in those fields of what encloses the message that have its number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    /// What is left: of the outermost message, of the current part in it, and so on.
    rests: [&'a [u8]; PARTS_MAX + 1],
    /// The number of the parts in each of these.
    path: [u32; PARTS_MAX],
    /// How much of `path` there is.
    levels: usize,
}

impl<'a> Fields<'a> {
    /// Those of a message in one part.
    pub(super) const fn of(message: &'a [u8]) -> Self {
        Self {
            rests: [message, &[], &[]],
            path: [0; PARTS_MAX],
            levels: 0,
        }
    }

    /// Those of the message whose parts are the fields of this number that are left.
    pub(super) fn joined(mut self, number: u32) -> Self {
        self.path[self.levels] = number;
        self.levels += 1;
        self.rests[self.levels] = &[];
        self
    }

    /// The next field's number and value.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Raw<'a>)>, DecodeError> {
        let mut level = self.levels;
        loop {
            if self.rests[level].is_empty() {
                if level == 0 {
                    return Ok(None);
                }
                level -= 1;
                continue;
            }
            let (number, value) = field(&mut self.rests[level])?;
            if level == self.levels {
                return Ok(Some((number, value)));
            }
            if number == self.path[level]
                && let Raw::Bytes(part) = value
            {
                level += 1;
                self.rests[level] = part;
            }
        }
    }
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Raw<'a>), DecodeError> {
    let (number, wire) = decode_key(rest)?;
    let mut value = *rest;
    skip_field(wire, number, rest, DecodeContext::default())?;
    value = &value[..value.len() - rest.len()];
    let value = match wire {
        WireType::Varint => Raw::Varint(decode_varint(&mut value)?),
        WireType::SixtyFourBit => Raw::Fixed64(value.get_u64_le()),
        WireType::ThirtyTwoBit => Raw::Fixed32(value.get_u32_le()),
        WireType::LengthDelimited => {
            decode_varint(&mut value)?;
            Raw::Bytes(value)
        }
        WireType::StartGroup | WireType::EndGroup => Raw::Group,
    };
    Ok((number, value))
}

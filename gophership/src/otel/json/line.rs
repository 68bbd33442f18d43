//! A request written as a line of JSON, field by field, without decoding it first.
//!
//! A decoded message can take a hundred times its bytes: an attribute without any field has two on the wire, one with
//! nothing but a value of no kind four. So a message is walked once to find its fields, and each of its lists once more
//! to write it, element by element.
//!
//! What comes twice is taken as `prost` does: of a scalar and of the kinds of a value the last one counts, the parts of a
//! message are joined. What `prost` refuses is refused, also where something later takes its place.

use std::{fmt, io};

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use prost::DecodeError;
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};

use super::{
    fields::{Fields, Raw},
    schema::{FIELDS_MAX, Field, Form, Message, REQUEST},
};

/// Levels of messages that `prost` follows below the request; its `RECURSION_LIMIT` is private.
const NESTING_MAX: u32 = 100;

/// Why a line wasn't written.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The request can't be decoded.
    #[error("not an ExportLogsServiceRequest: {0}")]
    Malformed(String),
    /// What the line is written to failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<serde_json::Error> for LineError {
    fn from(error: serde_json::Error) -> Self {
        if error.is_io() {
            Self::Io(error.into())
        } else {
            Self::Malformed(error.to_string())
        }
    }
}

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Framing(#[from] DecodeError),
    #[error("{0} has another wire type than its own")]
    WireType(&'static str),
    #[error("{0} isn't UTF-8")]
    Text(&'static str),
    #[error("{0} is nested too deeply")]
    Nesting(&'static str),
    #[error(transparent)]
    Replaced(#[from] serde_json::Error),
}

/// Writes the `ExportLogsServiceRequest` that `request` encodes as one line of JSON, with its newline.
///
/// Memory: none for what is in the request, but some stack for each level of nesting.
///
/// # Errors
/// [`LineError`]; what `out` took until then stays there, also when the request is malformed.
pub fn write_line(request: &[u8], mut out: impl io::Write) -> Result<(), LineError> {
    let request = Object {
        message: &REQUEST,
        fields: Fields::of(request),
        levels_left: NESTING_MAX,
    };
    serde_json::to_writer(&mut out, &request)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// An encoded message, as a JSON object that leaves out default values.
struct Object<'a> {
    message: &'static Message,
    fields: Fields<'a>,
    /// How much deeper messages may be nested in it.
    levels_left: u32,
}

/// What a message has of a field.
#[derive(Clone, Copy)]
struct Found<'a> {
    /// Where it comes first.
    from: Fields<'a>,
    times: usize,
    last: Value<'a>,
}

impl<'a> Object<'a> {
    /// Each field's values, in the order of the message's table.
    fn find(&self) -> Result<[Option<Found<'a>>; FIELDS_MAX], Fault> {
        let mut all: [Option<Found<'a>>; FIELDS_MAX] = [None; FIELDS_MAX];
        // Of the kinds of a value.
        let mut chosen = None;
        let mut rest = self.fields;
        loop {
            let from = rest;
            let Some((number, raw)) = rest.next()? else {
                return Ok(all);
            };
            let fields = self.message.fields;
            let Some(index) = fields.iter().position(|field| field.number == number) else {
                continue;
            };
            let last = Value::of(&fields[index], raw)?;
            if self.message.is_oneof
                && chosen != Some(index)
                && let Some(replaced) = chosen.replace(index)
                && let Some(found) = all[replaced].take()
            {
                self.check_replaced(&fields[replaced], found)?;
            }
            let found = all[index].get_or_insert(Found {
                from,
                times: 0,
                last,
            });
            found.times += 1;
            found.last = last;
        }
    }

    /// Whether what another value has taken the place of can be decoded.
    fn check_replaced(&self, field: &'static Field, found: Found<'a>) -> Result<(), Fault> {
        let mut rest = found.from;
        let mut left = found.times;
        while left > 0
            && let Some((number, raw)) = rest.next()?
        {
            if number != field.number {
                continue;
            }
            left -= 1;
            if let (Form::Message(message), Raw::Bytes(part)) = (field.form, raw) {
                let object = self.nested(field, message, Fields::of(part))?;
                serde_json::to_writer(io::sink(), &object)?;
            }
        }
        Ok(())
    }

    fn nested(
        &self,
        field: &'static Field,
        message: &'static Message,
        fields: Fields<'a>,
    ) -> Result<Self, Fault> {
        let levels_left = self.levels_left.checked_sub(1);
        Ok(Self {
            message,
            fields,
            levels_left: levels_left.ok_or(Fault::Nesting(field.name))?,
        })
    }

    /// Writes what there is of a field.
    fn write<M: SerializeMap>(
        &self,
        to: &mut M,
        field: &'static Field,
        found: Option<Found<'a>>,
    ) -> Result<(), M::Error> {
        let is_written = field.is_always_written || self.message.is_oneof;
        match (field.form, found) {
            _ if field.is_repeated => {
                if found.is_some() || is_written {
                    let within = self;
                    to.serialize_entry(
                        field.name,
                        &List {
                            within,
                            field,
                            found,
                        },
                    )?;
                }
            }
            (Form::Message(message), Some(found)) => {
                let fields = match found.last {
                    Value::Message(only) if found.times == 1 => Fields::of(only),
                    _ => found.from.joined(field.number),
                };
                let object = self.nested(field, message, fields);
                to.serialize_entry(field.name, &object.map_err(M::Error::custom)?)?;
            }
            (_, Some(found)) if is_written || !found.last.is_default() => {
                to.serialize_entry(field.name, &found.last)?;
            }
            (Form::Text, None) if field.is_always_written => to.serialize_entry(field.name, "")?,
            (_, Some(_) | None) => {}
        }
        Ok(())
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let all = self.find().map_err(S::Error::custom)?;
        let mut object = serializer.serialize_map(None)?;
        for (field, found) in self.message.fields.iter().zip(all) {
            self.write(&mut object, field, found)?;
        }
        object.end()
    }
}

/// The values of a repeated field.
struct List<'o, 'a> {
    within: &'o Object<'a>,
    field: &'static Field,
    found: Option<Found<'a>>,
}

impl Serialize for List<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        let mut rest = self.found.map_or(Fields::of(&[]), |found| found.from);
        while let Some((number, raw)) = rest.next().map_err(S::Error::custom)? {
            if number != self.field.number {
                continue;
            }
            match (self.field.form, raw) {
                (Form::Message(message), Raw::Bytes(element)) => {
                    let element = Fields::of(element);
                    let object = self.within.nested(self.field, message, element);
                    list.serialize_element(&object.map_err(S::Error::custom)?)?;
                }
                (_, raw) => {
                    let value = Value::of(self.field, raw).map_err(S::Error::custom)?;
                    list.serialize_element(&value)?;
                }
            }
        }
        list.end()
    }
}

/// The value of a field, read as its form says.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Id(&'a [u8]),
    Bytes(&'a [u8]),
    Bool(bool),
    Double(f64),
    I32(i32),
    I64(i64),
    U32(u32),
    U64(u64),
    /// Still encoded.
    Message(&'a [u8]),
}

impl<'a> Value<'a> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "of a varint that is too long for its field, the lower bits count"
    )]
    fn of(field: &'static Field, raw: Raw<'a>) -> Result<Self, Fault> {
        Ok(match (field.form, raw) {
            (Form::Text, Raw::Bytes(bytes)) => {
                Self::Text(std::str::from_utf8(bytes).map_err(|_| Fault::Text(field.name))?)
            }
            (Form::Id(_), Raw::Bytes(bytes)) => Self::Id(bytes),
            (Form::Bytes, Raw::Bytes(bytes)) => Self::Bytes(bytes),
            (Form::Message(_), Raw::Bytes(bytes)) => Self::Message(bytes),
            (Form::Bool, Raw::Varint(number)) => Self::Bool(number != 0),
            (Form::Int32, Raw::Varint(number)) => Self::I32(number as i32),
            (Form::Int64, Raw::Varint(number)) => Self::I64(number.cast_signed()),
            (Form::Uint32, Raw::Varint(number)) => Self::U32(number as u32),
            (Form::Fixed32, Raw::Fixed32(number)) => Self::U32(number),
            (Form::Fixed64, Raw::Fixed64(number)) => Self::U64(number),
            (Form::Double, Raw::Fixed64(bits)) => Self::Double(f64::from_bits(bits)),
            _ => return Err(Fault::WireType(field.name)),
        })
    }

    fn is_default(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Id(bytes) | Self::Bytes(bytes) => bytes.is_empty(),
            Self::Bool(bool) => !bool,
            Self::Double(double) => double.to_bits() == 0,
            Self::I32(number) => *number == 0,
            Self::I64(number) => *number == 0,
            Self::U32(number) => *number == 0,
            Self::U64(number) => *number == 0,
            Self::Message(_) => false,
        }
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Id(bytes) => serializer.collect_str(&Hex(bytes)),
            Self::Bytes(bytes) => serializer.collect_str(&Base64Display::new(bytes, &STANDARD)),
            Self::Bool(bool) => serializer.serialize_bool(*bool),
            Self::Double(double) if double.is_nan() => serializer.serialize_str("NaN"),
            Self::Double(f64::INFINITY) => serializer.serialize_str("Infinity"),
            Self::Double(f64::NEG_INFINITY) => serializer.serialize_str("-Infinity"),
            Self::Double(double) => serializer.serialize_f64(*double),
            Self::I32(number) => serializer.serialize_i32(*number),
            Self::I64(number) => serializer.collect_str(number),
            Self::U32(number) => serializer.serialize_u32(*number),
            Self::U64(number) => serializer.collect_str(number),
            Self::Message(_) => unreachable!("messages are written as objects"),
        }
    }
}

/// Bytes in lower-case hex.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

//! OTLP JSON → protobuf, while it is parsed: no tree of messages is built in between.
//!
//! Each field is written to the output as its value is read, a message's length once its body is there. So memory is
//! that of the output, which is never longer than the JSON: a decoded tree of `[{},{},…]` would be a hundred times
//! as large. Nesting is bounded by `serde_json` (127 objects and arrays), which is stricter than `prost`.
//!
//! Rules (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>, else the JSON mapping of proto3):
//! - names in lowerCamelCase or as in the protocol's definition; unknown ones are skipped; `null` is an absent field,
//!   and refused as an element of a list;
//! - a field that comes twice is refused, and so is a second value of an `AnyValue`: written one after the other,
//!   lists would be joined and messages merged;
//! - trace and span ids in hex of either case, of the right length or empty; bytes in base64 of either alphabet,
//!   padded or not;
//! - integers as numbers or strings, also with an exponent if they are whole; enums as integers, also unknown ones;
//!   doubles as numbers or strings, among them `"NaN"`, `"Infinity"`, `"-Infinity"`.

use std::fmt;

use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected,
    Visitor,
};

use super::schema::{Field, Form, Message, REQUEST};

/// The input is not an `ExportLogsServiceRequest` in JSON: a producer's error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{what}")]
pub struct Malformed {
    /// The field, such as `resourceLogs[0].resource: `; empty at the top.
    place: String,
    /// What is wrong with it, and in which line and column.
    what: String,
}

/// Writes the protobuf of the request in `json` behind what `out` has, and gives the number of its log records.
///
/// # Errors
/// [`Malformed`], naming the place; `out` then has as much as was written.
pub fn to_protobuf(json: &[u8], out: &mut Vec<u8>) -> Result<u32, Malformed> {
    let mut transcoder = Transcoder {
        out,
        path: Vec::new(),
        records: 0,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let request = Object {
        to: &mut transcoder,
        message: &REQUEST,
    };
    let read = deserializer.deserialize_any(request);
    let read = read.and_then(|()| deserializer.end());
    match read {
        Ok(()) => Ok(transcoder.records),
        Err(error) => Err(Malformed {
            place: transcoder.place(),
            what: error.to_string(),
        }),
    }
}

/// A step into the request.
enum Step {
    Field(&'static str),
    Element(usize),
}

struct Transcoder<'o> {
    out: &'o mut Vec<u8>,
    /// Where the reading is. A step stays if what it leads to is malformed.
    path: Vec<Step>,
    records: u32,
}

impl Transcoder<'_> {
    fn place(&self) -> String {
        let mut place = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) if place.is_empty() => place += name,
                Step::Field(name) => place = place + "." + name,
                Step::Element(index) => place = place + "[" + &index.to_string() + "]",
            }
        }
        if !place.is_empty() {
            place += ": ";
        }
        place
    }

    /// What `read` gives, one step further.
    fn at<T, E>(
        &mut self,
        step: Step,
        read: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.path.push(step);
        let value = read(self)?;
        self.path.pop();
        Ok(value)
    }

    fn key(&mut self, number: u32, wire: WireType) {
        encode_key(number, wire, self.out);
    }

    /// A field with a length, which is known once `write` has written the rest.
    fn delimited<E>(
        &mut self,
        number: u32,
        write: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.key(number, WireType::LengthDelimited);
        let start = self.out.len();
        // Most lengths need one byte; for a longer one the rest makes way.
        self.out.push(0);
        write(self)?;
        let end = self.out.len();
        let len = (end - start - 1) as u64;
        let width = encoded_len_varint(len);
        self.out.resize(end + width - 1, 0);
        self.out.copy_within(start + 1..end, start + width);
        encode_varint(len, &mut &mut self.out[start..start + width]);
        Ok(())
    }
}

/// An object that is a message: its fields are written, without key and length of the message itself.
struct Object<'t, 'o> {
    to: &'t mut Transcoder<'o>,
    message: &'static Message,
}

impl<'de> Visitor<'de> for Object<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    // The text itself may be megabytes long.
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Err(E::invalid_type(Unexpected::Other("a string"), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { to, message } = self;
        let (mut seen, mut chosen) = (0_u32, false);
        while let Some(field) = map.next_key_seed(Name(message))? {
            let Some(field) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            to.at(Step::Field(field.name), |to| {
                let bit = 1 << field.number;
                if seen & bit != 0 {
                    return Err(A::Error::custom("the field is there twice"));
                }
                seen |= bit;
                let is_there = map.next_value_seed(Slot {
                    to,
                    field,
                    is_explicit: message.is_oneof,
                    is_element: false,
                })?;
                if message.is_oneof && is_there {
                    if chosen {
                        return Err(A::Error::custom("a second value, where one is allowed"));
                    }
                    chosen = true;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// A field's name; `None` if it is unknown.
struct Name(&'static Message);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name))
    }
}

/// Where one value goes: a field, or an element of one. Gives whether there was a value, not `null`.
struct Slot<'t, 'o> {
    to: &'t mut Transcoder<'o>,
    field: &'static Field,
    /// The default value is written, too.
    is_explicit: bool,
    is_element: bool,
}

impl<'de> DeserializeSeed<'de> for Slot<'_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Slot<'_, '_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_repeated && !self.is_element {
            return f.write_str("a list");
        }
        f.write_str(match self.field.form {
            Form::Text => "a string",
            Form::Id(_) => "a string of hex digits",
            Form::Bytes => "a string in base64",
            Form::Bool => "true or false",
            Form::Double => "a number",
            Form::Int32 | Form::Int64 | Form::Uint32 | Form::Fixed32 | Form::Fixed64 => {
                "an integer, also as a string"
            }
            Form::Message(_) => "an object",
        })
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<bool, E> {
        if self.is_element {
            return Err(E::invalid_type(Unexpected::Other("null"), &self));
        }
        Ok(false)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<bool, E> {
        match self.single() {
            Some(Form::Bool) => self.varint(u64::from(value)),
            _ => Err(E::invalid_type(Unexpected::Bool(value), &self)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<bool, E> {
        self.integer(value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<bool, E> {
        self.integer(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<bool, E> {
        self.number(value)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<bool, E> {
        match self.single() {
            Some(Form::Text) => self.text(text),
            Some(Form::Id(bytes)) => self.id(text, bytes),
            Some(Form::Bytes) => self.base64(text),
            Some(Form::Double) => self.double_in(text),
            Some(Form::Int32 | Form::Int64 | Form::Uint32 | Form::Fixed32 | Form::Fixed64) => {
                self.integer_in(text)
            }
            Some(Form::Bool | Form::Message(_)) | None => {
                Err(E::invalid_type(Unexpected::Other("a string"), &self))
            }
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
        if self.single().is_some() {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        }
        let Self { to, field, .. } = self;
        for index in 0.. {
            let read = to.at(Step::Element(index), |to| {
                list.next_element_seed(Slot {
                    to,
                    field,
                    is_explicit: true,
                    is_element: true,
                })
            })?;
            if read.is_none() {
                break;
            }
        }
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<bool, A::Error> {
        let Some(Form::Message(message)) = self.single() else {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        };
        let records = self.to.records.checked_add(u32::from(message.is_record));
        self.to.records =
            records.ok_or_else(|| A::Error::custom("more than 4294967295 records"))?;
        self.to.delimited(self.field.number, |to| {
            Object { to, message }.visit_map(map)
        })?;
        Ok(true)
    }
}

/// Writers of proto3's JSON may use either alphabet of base64, with padding or without.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// Writing a single value. Each gives true: there is one, even if it is the default and needs no bytes.
impl Slot<'_, '_> {
    /// What a value other than a list has to be; `None` if it has to be a list.
    fn single(&self) -> Option<Form> {
        (self.is_element || !self.field.is_repeated).then_some(self.field.form)
    }

    fn is_written(&self, is_default: bool) -> bool {
        self.is_explicit || !is_default
    }

    fn varint<E>(self, value: u64) -> Result<bool, E> {
        if self.is_written(value == 0) {
            self.to.key(self.field.number, WireType::Varint);
            encode_varint(value, self.to.out);
        }
        Ok(true)
    }

    fn fixed<E, const N: usize>(self, wire: WireType, value: [u8; N]) -> Result<bool, E> {
        if self.is_written(value == [0; N]) {
            self.to.key(self.field.number, wire);
            self.to.out.extend_from_slice(&value);
        }
        Ok(true)
    }

    fn text<E>(self, text: &str) -> Result<bool, E> {
        if self.is_written(text.is_empty()) {
            self.to.key(self.field.number, WireType::LengthDelimited);
            encode_varint(text.len() as u64, self.to.out);
            self.to.out.extend_from_slice(text.as_bytes());
        }
        Ok(true)
    }

    fn id<E: serde::de::Error>(self, text: &str, bytes: usize) -> Result<bool, E> {
        if text.is_empty() {
            return Ok(true);
        }
        let digits = text.chars().count();
        if digits != 2 * bytes {
            let wanted = 2 * bytes;
            return Err(E::custom(format_args!(
                "{digits} hex digits, where {wanted} are an id"
            )));
        }
        self.to.delimited(self.field.number, |to| {
            let mut pending = None;
            for digit in text.chars() {
                let Some(value) = digit.to_digit(16) else {
                    return Err(E::custom(format_args!("{digit:?} is no hex digit")));
                };
                match pending.take() {
                    // Two digits make less than 256.
                    Some(high) => to.out.push(u8::try_from(high << 4 | value).unwrap_or(0)),
                    None => pending = Some(value),
                }
            }
            Ok(())
        })?;
        Ok(true)
    }

    fn base64<E: serde::de::Error>(self, text: &str) -> Result<bool, E> {
        let engine = if text.contains(['-', '_']) {
            BASE64_URL
        } else {
            BASE64
        };
        self.to.delimited(self.field.number, |to| {
            let decoded = engine.decode_vec(text, to.out);
            decoded.map_err(|error| E::custom(format_args!("not base64: {error}")))
        })?;
        Ok(true)
    }

    fn integer<E: serde::de::Error>(self, value: i128) -> Result<bool, E> {
        // As protobuf writes them, negative ones are extended to 64 bits.
        let written = match self.single() {
            Some(Form::Int32) => i32::try_from(value).map(|value| i64::from(value).cast_unsigned()),
            Some(Form::Int64) => i64::try_from(value).map(i64::cast_unsigned),
            Some(Form::Uint32 | Form::Fixed32) => u32::try_from(value).map(u64::from),
            Some(Form::Fixed64) => u64::try_from(value),
            // The nearest one is meant.
            Some(Form::Double) => return self.double(value as f64),
            _ => return Err(E::invalid_type(Unexpected::Other("a number"), &self)),
        };
        let Ok(written) = written else {
            return Err(E::custom(format_args!("{value} is out of range")));
        };
        match self.field.form {
            #[expect(clippy::cast_possible_truncation, reason = "its range was checked")]
            Form::Fixed32 => self.fixed(WireType::ThirtyTwoBit, (written as u32).to_le_bytes()),
            Form::Fixed64 => self.fixed(WireType::SixtyFourBit, written.to_le_bytes()),
            _ => self.varint(written),
        }
    }

    fn double<E>(self, value: f64) -> Result<bool, E> {
        self.fixed(WireType::SixtyFourBit, value.to_le_bytes())
    }

    /// A number with a fraction or an exponent, or beyond 64 bits.
    fn number<E: serde::de::Error>(self, value: f64) -> Result<bool, E> {
        match self.single() {
            Some(Form::Double) => self.double(value),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it is whole, and far below 2^127"
            )]
            Some(Form::Int32 | Form::Int64 | Form::Uint32 | Form::Fixed32 | Form::Fixed64)
                if value.fract() == 0.0 && value.abs() < 1e20 =>
            {
                self.integer(value as i128)
            }
            _ => Err(E::invalid_type(Unexpected::Float(value), &self)),
        }
    }

    fn integer_in<E: serde::de::Error>(self, text: &str) -> Result<bool, E> {
        match text.parse() {
            Ok(value) if is_number(text) => self.integer(value),
            _ => match decimal(text) {
                Some(value) => self.number(value),
                None => Err(E::custom("a string that is no integer")),
            },
        }
    }

    fn double_in<E: serde::de::Error>(self, text: &str) -> Result<bool, E> {
        let value = match text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => decimal(text),
        };
        match value {
            Some(value) => self.double(value),
            None => Err(E::custom("a string that is no number")),
        }
    }
}

/// A number as JSON writes it, roughly; Rust would take names of what isn't finite, and a plus, too.
fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte))
}

fn decimal(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok().filter(|_| is_number(text))?;
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests;

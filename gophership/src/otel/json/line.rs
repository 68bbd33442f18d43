//! A request written as a line of JSON, decoded one record at a time.
//!
//! A decoded request can take a hundred times its bytes: a record without any field has two on the wire. So resources and
//! scopes are read past what they hold, which is then walked to, record by record.

use std::io;

use opentelemetry_proto::tonic::{
    common::v1::InstrumentationScope, logs::v1::LogRecord, resource::v1::Resource,
};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, check_wire_type, decode_key, decode_varint, skip_field},
};
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};

use super::{Json, Object};

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

/// Writes the `ExportLogsServiceRequest` that `request` encodes as one line of JSON, with its newline.
///
/// Memory: one decoded record, resource and scope.
///
/// # Errors
/// [`LineError`]; what `out` took until then stays there, also when the request is malformed.
pub fn write_line(request: &[u8], mut out: impl io::Write) -> Result<(), LineError> {
    serde_json::to_writer(&mut out, &Request(request))?;
    out.write_all(b"\n")?;
    Ok(())
}

/// `ExportLogsServiceRequest`, encoded.
struct Request<'a>(&'a [u8]);

/// `ResourceLogs`, encoded.
struct ResourceLogs<'a>(&'a [u8]);

/// `ScopeLogs`, encoded.
struct ScopeLogs<'a>(&'a [u8]);

/// `LogRecord`, encoded.
struct Record<'a>(&'a [u8]);

/// `ResourceLogs` without its `ScopeLogs`.
#[derive(Clone, PartialEq, Message)]
struct ResourceHeader {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(string, tag = "3")]
    schema_url: String,
}

/// `ScopeLogs` without its records.
#[derive(Clone, PartialEq, Message)]
struct ScopeHeader {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(string, tag = "3")]
    schema_url: String,
}

impl Serialize for Request<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = Object(serializer.serialize_map(None)?);
        object.messages("resourceLogs", Messages::new(self.0, 1), ResourceLogs)?;
        object.0.end()
    }
}

impl Serialize for ResourceLogs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let header = ResourceHeader::decode(self.0).map_err(S::Error::custom)?;
        let mut object = Object(serializer.serialize_map(None)?);
        object.message("resource", header.resource.as_ref())?;
        object.messages("scopeLogs", Messages::new(self.0, 2), ScopeLogs)?;
        object.text("schemaUrl", &header.schema_url)?;
        object.0.end()
    }
}

impl Serialize for ScopeLogs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let header = ScopeHeader::decode(self.0).map_err(S::Error::custom)?;
        let mut object = Object(serializer.serialize_map(None)?);
        object.message("scope", header.scope.as_ref())?;
        object.messages("logRecords", Messages::new(self.0, 2), Record)?;
        object.text("schemaUrl", &header.schema_url)?;
        object.0.end()
    }
}

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = LogRecord::decode(self.0).map_err(S::Error::custom)?;
        Json(&record).serialize(serializer)
    }
}

impl<M: SerializeMap> Object<M> {
    /// A list of encoded messages, left out if empty.
    fn messages<'a, T: Serialize>(
        &mut self,
        name: &str,
        messages: Messages<'a>,
        wrap: fn(&'a [u8]) -> T,
    ) -> Result<(), M::Error> {
        let is_empty = messages.clone().next().is_none();
        self.unless(is_empty, name, &Wrapped { messages, wrap })
    }
}

/// Encoded messages, and what makes each of them serialisable.
struct Wrapped<'a, T> {
    messages: Messages<'a>,
    wrap: fn(&'a [u8]) -> T,
}

impl<T: Serialize> Serialize for Wrapped<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for message in self.messages.clone() {
            let message = message.map_err(S::Error::custom)?;
            list.serialize_element(&(self.wrap)(message))?;
        }
        list.end()
    }
}

/// The messages in one repeated field of an encoded message.
#[derive(Clone)]
struct Messages<'a> {
    rest: &'a [u8],
    field: u32,
}

impl<'a> Messages<'a> {
    const fn new(message: &'a [u8], field: u32) -> Self {
        Self {
            rest: message,
            field,
        }
    }

    fn step(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        while !self.rest.is_empty() {
            let (field, wire) = decode_key(&mut self.rest)?;
            let mut value = self.rest;
            skip_field(wire, field, &mut self.rest, DecodeContext::default())?;
            if field == self.field {
                check_wire_type(WireType::LengthDelimited, wire)?;
                value = &value[..value.len() - self.rest.len()];
                decode_varint(&mut value)?;
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<&'a [u8], DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

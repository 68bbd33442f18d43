//! OTLP JSON: written one request a line, as OpenTelemetry's file exporter does, and read straight into protobuf.
//!
//! The mapping is written out here because the `serde` one of `opentelemetry-proto` 0.33 isn't right for files: it
//! writes every default (`"traceId":""`, `"timeUnixNano":"0"`, `"resource":null`, `"value":null`) and turns `NaN` and
//! the infinities into `null`. Its deserialiser reads these lines, but for non-finite doubles.
//!
//! Rules (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>, else the JSON mapping of proto3):
//! lowerCamelCase names; trace and span ids in hex; bytes in base64; 64-bit integers as strings; enums as integers;
//! non-finite doubles as `"NaN"`, `"Infinity"`, `"-Infinity"`. Default values are left out, but for a selected
//! `AnyValue` variant and what other readers demand: keys, the lists inside values, entity references. Unknown fields are lost.

use std::fmt;

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    resource::v1::Resource,
};
use serde::ser::{Serialize, SerializeMap, Serializer};

mod line;
mod read;
mod schema;

pub use line::{LineError, write_line};
pub use read::{Malformed, to_protobuf};

/// A message in its OTLP JSON form.
struct Json<'a, T>(&'a T);

/// A list of messages in their OTLP JSON form.
struct List<'a, T>(&'a [T]);

impl<'a, T> Serialize for List<'a, T>
where
    Json<'a, T>: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Json))
    }
}

/// A JSON object that leaves out default values.
struct Object<M>(M);

impl<M: SerializeMap> Object<M> {
    fn field(&mut self, name: &str, value: &impl Serialize) -> Result<(), M::Error> {
        self.0.serialize_entry(name, value)
    }

    fn text(&mut self, name: &str, value: &str) -> Result<(), M::Error> {
        self.unless(value.is_empty(), name, &value)
    }

    fn number<N: Serialize + Default + PartialEq>(
        &mut self,
        name: &str,
        value: &N,
    ) -> Result<(), M::Error> {
        self.unless(*value == N::default(), name, value)
    }

    fn nanos(&mut self, name: &str, value: u64) -> Result<(), M::Error> {
        self.unless(value == 0, name, &Quoted(value))
    }

    fn hex(&mut self, name: &str, value: &[u8]) -> Result<(), M::Error> {
        self.unless(value.is_empty(), name, &Quoted(Hex(value)))
    }

    fn list<'a, T>(&mut self, name: &str, values: &'a [T]) -> Result<(), M::Error>
    where
        Json<'a, T>: Serialize,
    {
        self.unless(values.is_empty(), name, &List(values))
    }

    fn message<'a, T>(&mut self, name: &str, value: Option<&'a T>) -> Result<(), M::Error>
    where
        Json<'a, T>: Serialize,
    {
        value.map_or(Ok(()), |value| self.field(name, &Json(value)))
    }

    fn unless(
        &mut self,
        default: bool,
        name: &str,
        value: &impl Serialize,
    ) -> Result<(), M::Error> {
        if default {
            Ok(())
        } else {
            self.field(name, value)
        }
    }
}

/// Something displayed, as a JSON string.
struct Quoted<T>(T);

impl<T: fmt::Display> Serialize for Quoted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Bytes in lower-case hex.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A double, also one that JSON has no number for.
struct Double(f64);

impl Serialize for Double {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            value if value.is_nan() => serializer.serialize_str("NaN"),
            f64::INFINITY => serializer.serialize_str("Infinity"),
            f64::NEG_INFINITY => serializer.serialize_str("-Infinity"),
            value => serializer.serialize_f64(value),
        }
    }
}

/// An object whose only field is a list, written even if empty: `ArrayValue`, `KeyValueList`.
struct Values<'a, T>(&'a [T]);

impl<'a, T> Serialize for Values<'a, T>
where
    Json<'a, T>: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = Object(serializer.serialize_map(None)?);
        object.field("values", &List(self.0))?;
        object.0.end()
    }
}

/// Implements the JSON form of a message: its fields in the order of the protocol's definition.
macro_rules! json_object {
    ($message:ty, $self:ident, $object:ident, $($field:expr;)*) => {
        impl Serialize for Json<'_, $message> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $self = self.0;
                let mut $object = Object(serializer.serialize_map(None)?);
                $($field?;)*
                $object.0.end()
            }
        }
    };
}

json_object!(Resource, resource, object,
    object.list("attributes", &resource.attributes);
    object.number("droppedAttributesCount", &resource.dropped_attributes_count);
    object.list("entityRefs", &resource.entity_refs);
);

json_object!(EntityRef, entity, object,
    object.field("schemaUrl", &entity.schema_url);
    object.field("type", &entity.r#type);
    object.field("idKeys", &entity.id_keys);
    object.field("descriptionKeys", &entity.description_keys);
);

json_object!(InstrumentationScope, scope, object,
    object.text("name", &scope.name);
    object.text("version", &scope.version);
    object.list("attributes", &scope.attributes);
    object.number("droppedAttributesCount", &scope.dropped_attributes_count);
);

json_object!(LogRecord, record, object,
    object.nanos("timeUnixNano", record.time_unix_nano);
    object.nanos("observedTimeUnixNano", record.observed_time_unix_nano);
    object.number("severityNumber", &record.severity_number);
    object.text("severityText", &record.severity_text);
    object.message("body", record.body.as_ref());
    object.list("attributes", &record.attributes);
    object.number("droppedAttributesCount", &record.dropped_attributes_count);
    object.number("flags", &record.flags);
    object.hex("traceId", &record.trace_id);
    object.hex("spanId", &record.span_id);
    object.text("eventName", &record.event_name);
);

json_object!(KeyValue, pair, object,
    object.field("key", &pair.key);
    object.message("value", pair.value.as_ref());
    object.number("keyStrindex", &pair.key_strindex);
);

impl Serialize for Json<'_, AnyValue> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = Object(serializer.serialize_map(None)?);
        match &self.0.value {
            None => {}
            Some(Value::StringValue(text)) => object.field("stringValue", text)?,
            Some(Value::BoolValue(bool)) => object.field("boolValue", bool)?,
            Some(Value::IntValue(integer)) => object.field("intValue", &Quoted(integer))?,
            Some(Value::DoubleValue(double)) => object.field("doubleValue", &Double(*double))?,
            Some(Value::ArrayValue(array)) => object.field("arrayValue", &Values(&array.values))?,
            Some(Value::KvlistValue(list)) => object.field("kvlistValue", &Values(&list.values))?,
            Some(Value::BytesValue(bytes)) => {
                object.field("bytesValue", &Quoted(Base64Display::new(bytes, &STANDARD)))?;
            }
            Some(Value::StringValueStrindex(index)) => {
                object.field("stringValueStrindex", index)?;
            }
        }
        object.0.end()
    }
}

#[cfg(test)]
mod tests;

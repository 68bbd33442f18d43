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

mod fields;
mod line;
mod read;
mod schema;

pub use line::{LineError, write_line};
pub use read::{Malformed, to_protobuf};

#[cfg(test)]
mod tests;

//! The log data model on the wire: what is read without decoding, and how it is written as JSON.
//!
//! - [`skim`] walks a request's lengths before the acknowledgement: framing and record count, no allocation; [`Ahead`]
//!   does so while it comes in.
//! - [`json`] writes a request the way OpenTelemetry's file exporter does, and makes protobuf of what producers send.
//! - [`append_to_records`] adds attributes to log records.
//! - [`status`] reads and writes the details of a gRPC status (`RetryInfo`), and the body of an HTTP error.

mod append;
pub mod json;
mod skim;
pub mod status;

pub use append::append_to_records;
pub use skim::{Ahead, Malformed, Skim, skim};

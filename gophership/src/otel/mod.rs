//! The log data model on the wire: what is read without decoding, and how it is written as JSON.
//!
//! - [`skim`] walks a request's lengths before the acknowledgement: framing and record count, no allocation; [`Ahead`]
//!   does so while it comes in.
//! - [`Enrichment`] adds resource attributes and observed times while a request is copied, without decoding it.
//! - [`json`] writes a request the way OpenTelemetry's file exporter does, and makes protobuf of what producers send.
//! - [`append_to_records`] adds attributes to log records.
//! - [`status`] reads and writes the details of a gRPC status (`RetryInfo`), and the body of an HTTP error.

mod append;
pub mod json;
mod skim;
mod splice;
pub mod status;

pub use append::append_to_records;
pub use skim::{Ahead, Malformed, Skim, skim};
pub use splice::{ATTRIBUTES_MAX, Enrichment, KEY_BYTES_MAX, Splice};

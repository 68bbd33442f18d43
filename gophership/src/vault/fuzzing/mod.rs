//! Doors to readers that nobody outside uses, for the fuzz targets: built with `--cfg fuzzing` alone.
//!
//! Each takes any bytes, and panics if what is read from them doesn't add up.

pub use super::{
    chain::fuzzing::check as manifest, cursors::fuzzing::check as cursors,
    destinations::fuzzing::check as destinations, quarantine::fuzzing::check as quarantine,
};

//! GopherShip's user-space half: OTLP in, the reflex between pipeline and vault, destinations out.
//!
//! Dependencies point down: `ingest → somatic → {pipeline → export, vault → uring}`,
//! `replay → {vault, pipeline}`, `control → all`, `app → all`; no module imports `config` or `app`.

pub mod app;
pub mod config;
pub mod control;
pub mod decompress;
pub mod doctor;
pub mod export;
pub mod ingest;
mod jitter;
pub mod local_socket;
pub mod otel;
pub mod pipeline;
pub mod pressure;
pub mod privileges;
pub mod render;
pub mod replay;
pub mod somatic;
pub mod telemetry;
pub mod uring;
pub mod vault;

//! What requests are enriched with: the operator's resource attributes, and what detectors find out about this host
//! when the daemon starts.
//!
//! Of a key, what the producer says comes first, then the operator, then a detector.

mod detect;

use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};

pub use crate::otel::KEY_BYTES_MAX;
use crate::otel::{ATTRIBUTES_MAX, Enrichment};

/// Says of a resource that its records were in the vault before they were delivered.
pub const REPLAYED: &str = "gophership.replayed";
/// Most attributes that an operator may add; the others are for detectors and for [`REPLAYED`].
pub const RESOURCE_MAX: usize = ATTRIBUTES_MAX - 16;
/// Longest value of an attribute.
pub const VALUE_BYTES_MAX: usize = 4096;

/// What is added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Resource attributes: keys, of which no two are equal, and values.
    pub resource: Vec<(String, String)>,
    /// What else is found out.
    pub detect: Vec<Detector>,
    /// Whether [`REPLAYED`] is added to what is replayed.
    pub mark_replayed: bool,
}

/// What describes the host that the daemon runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detector {
    /// `host.name`, `host.id` and `host.arch`.
    Host,
    /// `os.type` and `os.description`.
    Os,
    /// `container.id`.
    Container,
    /// Nothing: it could only describe this process, and whose process logged only the producer knows. It may be asked
    /// for, because configurations that name all of OpenTelemetry's detectors have it.
    Process,
    /// `k8s.node.name`, `k8s.pod.name`, `k8s.pod.uid` and `k8s.namespace.name`.
    K8s,
}

/// Enrichments for both ways to the destinations.
#[derive(Debug, Clone)]
pub struct Enrichments {
    /// Through the pipeline.
    pub live: Arc<Enrichment>,
    /// By way of the vault.
    pub replayed: Arc<Enrichment>,
}

impl Config {
    /// Runs the detectors. Blocks on files.
    #[must_use]
    pub fn prepare(&self) -> Enrichments {
        let found = detect::all(&self.detect, &detect::Machine::this());
        let configured = |key: &str| self.resource.iter().any(|(known, _)| known == key);
        let mut all: Vec<(&str, &str)> = self
            .resource
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        for (key, value) in &found {
            if !configured(key) {
                all.push((key, value));
            }
        }
        tracing::info!(attributes = ?all, "resources are enriched");
        if self.detect.contains(&Detector::Process) {
            tracing::info!(
                "enrich.detect: process adds nothing, since it could only describe GopherShip; producers send process.* themselves"
            );
        }
        let text =
            |(key, value): &(&str, &str)| attribute(key, Value::StringValue((*value).to_owned()));
        let mut attributes: Vec<_> = all.iter().map(text).collect();
        let live = Arc::new(Enrichment::new(&attributes));
        let replayed = if self.mark_replayed && !configured(REPLAYED) {
            attributes.push(attribute(REPLAYED, Value::BoolValue(true)));
            Arc::new(Enrichment::new(&attributes))
        } else {
            Arc::clone(&live)
        };
        Enrichments { live, replayed }
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

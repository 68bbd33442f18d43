//! Destinations against a real gRPC and HTTP server (hyper's HTTP/1.1 and 2, TLS 1.3 by rustls) and real files.

#[path = "destinations/endpoints.rs"]
mod endpoints;
#[path = "destinations/files.rs"]
mod files;
#[path = "destinations/http.rs"]
mod http_servers;
#[path = "destinations/options.rs"]
mod options;
#[path = "destinations/server.rs"]
mod server;
#[path = "destinations/servers.rs"]
mod servers;

use std::path::Path;

use gophership::export::{Batch, DestinationConfig, DestinationKind, FileConfig};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use prost::Message;

/// A request of `count` records whose bodies tell them apart.
fn request(label: &str, count: usize) -> ExportLogsServiceRequest {
    let log_records = (0..count)
        .map(|number| LogRecord {
            time_unix_nano: number as u64,
            trace_id: vec![1; 16],
            body: Some(AnyValue {
                value: Some(Value::StringValue(format!("{label} {number}"))),
            }),
            ..LogRecord::default()
        })
        .collect();
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            scope_logs: vec![ScopeLogs {
                log_records,
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
}

fn batch(label: &str, count: usize) -> Batch {
    Batch {
        bytes: request(label, count).encode_to_vec().into(),
        records: count as u64,
    }
}

fn file(name: &str, path: &Path) -> DestinationConfig {
    DestinationConfig {
        name: name.to_owned(),
        kind: DestinationKind::File(FileConfig {
            path: path.to_owned(),
            rotation: None,
        }),
    }
}

/// A runtime like a worker's.
fn on_a_worker<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

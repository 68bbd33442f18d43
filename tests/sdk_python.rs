//! The OpenTelemetry Python SDK sends over mTLS; the file destination holds what it sent.

mod common;

use std::{path::Path, process::Command};

use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually, jsonl, python, sdk,
};
use serde_json::Value;

const RECORDS: usize = 10_000;

/// How the SDK's exporter sends.
#[derive(Clone, Copy)]
enum Way {
    Grpc,
    /// Protobuf over HTTP/1.1.
    Http,
    HttpGzip,
}

#[test]
fn everything_the_python_sdk_sends_is_in_the_file() {
    everything_sent_is_in_the_file(Way::Grpc);
}

#[test]
fn everything_the_python_sdk_sends_by_http_is_in_the_file() {
    everything_sent_is_in_the_file(Way::Http);
}

#[test]
fn everything_the_python_sdk_sends_by_http_in_gzip_is_in_the_file() {
    everything_sent_is_in_the_file(Way::HttpGzip);
}

fn everything_sent_is_in_the_file(way: Way) {
    let python = python::interpreter();
    let home = Home::new();
    let logs = home.path("logs.jsonl");
    let settings = sdk::to_file(&logs);
    let daemon = Daemon::start(&home, &settings);

    let sent = send(&python, &home, &daemon, way);
    eventually("all records in the file", PATIENCE, || {
        jsonl::records(&logs).len() >= RECORDS
    });
    daemon.await_empty_vault();

    assert_eq!(sdk::count(&sent), RECORDS, "the script sent another number");
    sdk::compare(&sent, &logs);
    assert_eq!(daemon.figure("/ingest/records"), RECORDS as u64);
    let sent_on = daemon.figure("/export/0/sent");
    assert_eq!(
        sent_on, RECORDS as u64,
        "records, as the status counts them"
    );
}

#[test]
fn what_the_python_sdk_sends_in_red_lies_in_the_vault_and_is_in_the_file_after_a_kill() {
    let python = python::interpreter();
    let home = Home::new();
    let logs = home.path("logs.jsonl");
    let settings = sdk::to_file(&logs);
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red", "--for", "forever"]);
    daemon.await_zone("red");

    // The SDK says nothing, so all of it is acknowledged.
    let sent = send(&python, &home, &daemon, Way::Grpc);
    eventually("all records in the vault", PATIENCE, || {
        daemon.figure("/vault/records_pending") == RECORDS as u64
    });
    assert!(
        jsonl::records(&logs).is_empty(),
        "Red, and the file got something"
    );
    daemon.kill9();

    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--clear"]);
    eventually("all records in the file", PATIENCE, || {
        jsonl::records(&logs).len() >= RECORDS
    });
    daemon.await_empty_vault();
    sdk::compare(&sent, &logs);
}

fn send(python: &Path, home: &Home, daemon: &Daemon<'_>, way: Way) -> Value {
    let port = match way {
        Way::Grpc => daemon.grpc().port(),
        Way::Http | Way::HttpGzip => daemon.http().port(),
    };
    let mut command = Command::new(python);
    command
        .arg(python::sources().join("send_logs.py"))
        .args(["--count", &RECORDS.to_string()]);
    match way {
        Way::Grpc => &mut command,
        Way::Http => command.args(["--protocol", "http"]),
        Way::HttpGzip => command
            .args(["--protocol", "http"])
            .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    };
    sdk::send(&mut command, home, &format!("https://localhost:{port}"))
}

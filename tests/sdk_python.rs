//! The OpenTelemetry Python SDK sends over mTLS; the file destination holds what it sent.

mod common;

use std::{collections::HashMap, fs, path::Path, process::Command, time::Duration};

use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually, jsonl, process, python,
    settings::Settings,
};
use serde_json::{Value, json};

const RECORDS: usize = 10_000;

/// The SDK retries for up to a minute; making 10,000 records takes it some seconds.
const SEND_WITHIN: Duration = Duration::from_secs(180);

#[test]
fn everything_the_python_sdk_sends_is_in_the_file() {
    let python = python::interpreter();
    let home = Home::new();
    let logs = home.path("logs.jsonl");
    let settings = to_file(&logs);
    let daemon = Daemon::start(&home, &settings);

    let sent = send(&python, &home, &daemon);
    eventually("all records in the file", PATIENCE, || {
        jsonl::records(&logs).len() >= RECORDS
    });
    daemon.await_empty_vault();

    assert_eq!(sent.len(), RECORDS, "the script sent another number");
    compare(&sent, &jsonl::records(&logs));
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
    let settings = to_file(&logs);
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red", "--for", "forever"]);
    daemon.await_zone("red");

    // The SDK says nothing, so all of it is acknowledged.
    let sent = send(&python, &home, &daemon);
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
    compare(&sent, &jsonl::records(&logs));
}

fn to_file(path: &Path) -> Settings {
    Settings::to(format!(
        "{{ name: local, file: {{ path: \"{}\" }} }}",
        path.display()
    ))
}

fn send(python: &Path, home: &Home, daemon: &Daemon<'_>) -> Vec<Value> {
    let sent = home.path("sent.json");
    let certs = home.certs();
    let endpoint = format!("https://localhost:{}", daemon.grpc().port());
    let mut command = Command::new(python);
    command
        .arg(python::sources().join("send_logs.py"))
        .args(["--count", &RECORDS.to_string(), "--sent"])
        .arg(&sent)
        // A proxy of the environment is not for loopback.
        .env("no_proxy", "localhost,127.0.0.1")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", certs.path("ca.pem"))
        .env(
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            certs.path("client.pem"),
        )
        .env("OTEL_EXPORTER_OTLP_CLIENT_KEY", certs.path("client.key"));
    let finished = process::run(&mut command, SEND_WITHIN).expect_success();
    // The exporter only logs what it fails to send.
    assert_eq!(finished.stderr, "", "the SDK complained");
    let sent = fs::read_to_string(sent).expect("the script wrote what it sent");
    serde_json::from_str(&sent).expect("a JSON list")
}

/// Every record sent is in the file once, and as it was sent.
#[track_caller]
fn compare(sent: &[Value], written: &[Value]) {
    let mut by_id: HashMap<&str, Vec<Value>> = HashMap::new();
    for record in written {
        let id = jsonl::attribute(record, "record.id").expect("a record of the script");
        by_id.entry(id).or_default().push(record_form(record));
    }
    for record in sent {
        let id = jsonl::attribute(record, "record.id").expect("the script numbers its records");
        let found = by_id.get(id).map_or(&[][..], Vec::as_slice);
        match found {
            [found] => assert_eq!(
                found,
                &record_form(record),
                "{id} differs from what was sent"
            ),
            _ => panic!("{id} is {} times in the file", found.len()),
        }
    }
    assert_eq!(written.len(), sent.len());
}

/// A record with absent fields filled in, because OTLP JSON may leave out what is empty.
fn record_form(record: &Value) -> Value {
    let field = |name: &str, empty: Value| record.get(name).cloned().unwrap_or(empty);
    json!({
        "timeUnixNano": field("timeUnixNano", json!("0")),
        "observedTimeUnixNano": field("observedTimeUnixNano", json!("0")),
        "severityNumber": field("severityNumber", json!(0)),
        "severityText": field("severityText", json!("")),
        "traceId": field("traceId", json!("")),
        "spanId": field("spanId", json!("")),
        "flags": field("flags", json!(0)),
        "body": value_form(&field("body", Value::Null)),
        "attributes": key_values_form(&field("attributes", json!([]))),
    })
}

fn value_form(value: &Value) -> Value {
    let Some((kind, content)) = value.as_object().and_then(|v| v.iter().next()) else {
        return json!({});
    };
    let content = match kind.as_str() {
        // 1 and 1.0 are the same double in JSON; what isn't finite is a string.
        "doubleValue" if content.is_number() => json!(content.as_f64()),
        "arrayValue" => {
            let values = content.get("values").and_then(Value::as_array);
            values.into_iter().flatten().map(value_form).collect()
        }
        "kvlistValue" => key_values_form(content.get("values").unwrap_or(&Value::Null)),
        _ => content.clone(),
    };
    json!({ kind: content })
}

fn key_values_form(list: &Value) -> Value {
    let pairs = list.as_array().into_iter().flatten();
    pairs
        .map(|pair| json!({ "key": pair["key"], "value": value_form(&pair["value"]) }))
        .collect()
}

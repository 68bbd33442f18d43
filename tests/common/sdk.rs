//! What an OpenTelemetry SDK sent, compared with what arrived.

use std::{collections::HashMap, fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use super::{daemon::Home, jsonl, process};

/// SDKs retry for up to a minute; making 10,000 records takes one some seconds.
const SEND_WITHIN: Duration = Duration::from_secs(180);

/// Runs the script, which sends to `endpoint` and writes what it sent to the file named last.
#[track_caller]
pub(crate) fn send(command: &mut Command, home: &Home, endpoint: &str) -> Vec<Value> {
    let sent = home.path("sent.json");
    let certs = home.certs();
    command
        .arg("--sent")
        .arg(&sent)
        // A proxy of the environment is not for loopback.
        .env("no_proxy", "localhost,127.0.0.1")
        // Python's HTTP client prefers these to the exporter's own certificate.
        .env_remove("REQUESTS_CA_BUNDLE")
        .env_remove("CURL_CA_BUNDLE")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", certs.path("ca.pem"))
        .env(
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            certs.path("client.pem"),
        )
        .env("OTEL_EXPORTER_OTLP_CLIENT_KEY", certs.path("client.key"));
    let finished = process::run(command, SEND_WITHIN).expect_success();
    // The exporters only log what they fail to send.
    assert_eq!(finished.stderr, "", "the SDK complained");
    let sent = fs::read_to_string(sent).expect("the script wrote what it sent");
    serde_json::from_str(&sent).expect("a JSON list")
}

/// A `file` destination.
pub(crate) fn to_file(path: &Path) -> String {
    format!(
        "{{ name: local, file: {{ path: \"{}\" }} }}",
        path.display()
    )
}

/// Every record sent is in the file once, and as it was sent.
#[track_caller]
pub(crate) fn compare(sent: &[Value], written: &[Value]) {
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

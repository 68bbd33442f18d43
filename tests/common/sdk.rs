//! What an OpenTelemetry SDK sent, compared with what arrived.

use std::{collections::HashMap, fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use super::{daemon::Home, jsonl, process, settings::Settings};

/// SDKs retry for up to a minute; making 10,000 records takes one some seconds.
const SEND_WITHIN: Duration = Duration::from_secs(180);

/// Runs the script, which sends to `endpoint` and writes what it sent to the file named last: a request in OTLP JSON.
#[track_caller]
pub(crate) fn send(command: &mut Command, home: &Home, endpoint: &str) -> Value {
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
    serde_json::from_str(&sent).expect("JSON")
}

/// What the daemon adds to resources; the producers' own name counts.
const ENRICH: &str =
    "{ resource: { deployment.environment.name: test, service.name: other }, detect: [] }";

/// What that comes to.
fn added() -> Value {
    json!({ "key": "deployment.environment.name", "value": { "stringValue": "test" } })
}

/// A daemon with a `file` destination.
pub(crate) fn to_file(path: &Path) -> Settings {
    let destination = format!(
        "{{ name: local, file: {{ path: \"{}\" }} }}",
        path.display()
    );
    Settings {
        enrich: ENRICH,
        ..Settings::to(destination)
    }
}

/// Every record sent is in the file once, as it was sent and in what it was sent in, with what the daemon adds.
#[track_caller]
pub(crate) fn compare(sent: &Value, path: &Path) {
    let mut written: HashMap<String, Vec<Value>> = HashMap::new();
    for request in jsonl::requests(path) {
        for (id, record) in records(&request) {
            written.entry(id).or_default().push(record);
        }
    }
    let sent = records(sent);
    assert_eq!(written.len(), sent.len());
    for (id, mut record) in sent {
        let attributes = record.pointer_mut("/resourceLogs/resource/attributes");
        let attributes = attributes.and_then(Value::as_array_mut);
        attributes.expect("filled in").push(added());
        match written.get(&id).map_or(&[][..], Vec::as_slice) {
            [found] => assert_eq!(found, &record, "{id} differs from what was sent"),
            found => panic!("{id} is {} times in the file", found.len()),
        }
    }
}

/// The number of records in a request.
pub(crate) fn count(request: &Value) -> usize {
    records(request).len()
}

/// Each record with what encloses it, and its number by the script.
#[track_caller]
fn records(request: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    form(request, &[("resourceLogs", json!([]))]);
    for resource_logs in jsonl::list(request, "resourceLogs") {
        let in_resource = resource_logs_form(resource_logs);
        for scope_logs in jsonl::list(resource_logs, "scopeLogs") {
            let in_scope = scope_logs_form(scope_logs);
            for record in jsonl::list(scope_logs, "logRecords") {
                let id = jsonl::attribute(record, "record.id").expect("a record of the script");
                let whole = json!({
                    "resourceLogs": in_resource,
                    "scopeLogs": in_scope,
                    "record": record_form(record),
                });
                found.push((id.to_owned(), whole));
            }
        }
    }
    found
}

/// The object with absent fields filled in, because OTLP JSON may leave out what is empty; it has no others.
#[track_caller]
fn form(object: &Value, fields: &[(&str, Value)]) -> Value {
    let given = object.as_object().expect("an object");
    for name in given.keys() {
        let is_known = fields.iter().any(|(known, _)| known == name);
        assert!(is_known, "{name} isn't a field: {object}");
    }
    let filled = fields.iter().map(|(name, empty)| {
        let value = given.get(*name).unwrap_or(empty).clone();
        ((*name).to_owned(), value)
    });
    filled.collect::<serde_json::Map<_, _>>().into()
}

/// Without what it encloses.
fn resource_logs_form(logs: &Value) -> Value {
    let mut logs = form(
        logs,
        &[
            ("resource", json!({})),
            ("scopeLogs", json!([])),
            ("schemaUrl", json!("")),
        ],
    );
    logs["scopeLogs"].take();
    let mut resource = form(
        &logs["resource"],
        &[
            ("attributes", json!([])),
            ("droppedAttributesCount", json!(0)),
            ("entityRefs", json!([])),
        ],
    );
    resource["attributes"] = key_values_form(&resource["attributes"]);
    logs["resource"] = resource;
    logs
}

/// Without what it encloses.
fn scope_logs_form(logs: &Value) -> Value {
    let mut logs = form(
        logs,
        &[
            ("scope", json!({})),
            ("logRecords", json!([])),
            ("schemaUrl", json!("")),
        ],
    );
    logs["logRecords"].take();
    let mut scope = form(
        &logs["scope"],
        &[
            ("name", json!("")),
            ("version", json!("")),
            ("attributes", json!([])),
            ("droppedAttributesCount", json!(0)),
        ],
    );
    scope["attributes"] = key_values_form(&scope["attributes"]);
    logs["scope"] = scope;
    logs
}

fn record_form(record: &Value) -> Value {
    let mut record = form(
        record,
        &[
            ("timeUnixNano", json!("0")),
            ("observedTimeUnixNano", json!("0")),
            ("severityNumber", json!(0)),
            ("severityText", json!("")),
            ("body", json!({})),
            ("attributes", json!([])),
            ("droppedAttributesCount", json!(0)),
            ("flags", json!(0)),
            ("traceId", json!("")),
            ("spanId", json!("")),
            ("eventName", json!("")),
        ],
    );
    record["body"] = value_form(&record["body"]);
    record["attributes"] = key_values_form(&record["attributes"]);
    record
}

fn value_form(value: &Value) -> Value {
    let kinds = value.as_object().expect("a value is an object");
    assert!(kinds.len() <= 1, "more than one value: {value}");
    let Some((kind, content)) = kinds.iter().next() else {
        return json!({});
    };
    let values = |content: &Value| form(content, &[("values", json!([]))])["values"].take();
    let content = match kind.as_str() {
        // 1 and 1.0 are the same double in JSON; what isn't finite is a string.
        "doubleValue" if content.is_number() => json!(content.as_f64()),
        "arrayValue" => {
            let values = values(content);
            let values = values.as_array().expect("a list").iter();
            values.map(value_form).collect()
        }
        "kvlistValue" => key_values_form(&values(content)),
        "stringValue" | "boolValue" | "intValue" | "doubleValue" | "bytesValue" => content.clone(),
        _ => panic!("{kind} isn't a value: {value}"),
    };
    json!({ kind: content })
}

fn key_values_form(list: &Value) -> Value {
    let pairs = list.as_array().expect("a list of pairs").iter();
    let pairs = pairs.map(|pair| {
        let mut pair = form(pair, &[("key", json!("")), ("value", json!({}))]);
        pair["value"] = value_form(&pair["value"]);
        pair
    });
    pairs.collect()
}

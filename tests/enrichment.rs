//! Requests get resource attributes and observed times on both ways to a destination, and nothing else changes.

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually, jsonl,
    settings::Settings,
    sink::Sink,
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use prost::Message;

const OBSERVED: u64 = 1_700_000_000_000_000_001;

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_nanos()).expect("before 2554")
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// Of two resources, one of them none at all; of two records each, one with an observed time.
fn request() -> ExportLogsServiceRequest {
    let record = |observed_time_unix_nano, severity_text: &str| LogRecord {
        observed_time_unix_nano,
        severity_text: severity_text.to_owned(),
        ..LogRecord::default()
    };
    let logs = |resource| ResourceLogs {
        resource,
        scope_logs: vec![ScopeLogs {
            log_records: vec![record(0, "without"), record(OBSERVED, "with")],
            ..ScopeLogs::default()
        }],
        ..ResourceLogs::default()
    };
    let producer = Resource {
        attributes: vec![text("service.name", "producer")],
        ..Resource::default()
    };
    ExportLogsServiceRequest {
        resource_logs: vec![logs(Some(producer)), logs(None)],
    }
}

/// What is expected of [`request`], with `added` and `arrival`.
fn enriched(added: &[KeyValue], arrival: u64) -> ExportLogsServiceRequest {
    let mut request = request();
    for logs in &mut request.resource_logs {
        let resource = logs.resource.get_or_insert_default();
        let has_name = !resource.attributes.is_empty();
        let added = added
            .iter()
            .filter(|attribute| !(has_name && attribute.key == "service.name"));
        resource.attributes.extend(added.cloned());
        logs.scope_logs[0].log_records[0].observed_time_unix_nano = arrival;
    }
    request
}

fn sent() -> Bytes {
    request().encode_to_vec().into()
}

/// The only request that the sink has.
fn arrived(sink: &Sink) -> ExportLogsServiceRequest {
    eventually("the request arrives", PATIENCE, || sink.stored_count() > 0);
    let stored = sink.stored();
    assert_eq!(stored.len(), 1);
    ExportLogsServiceRequest::decode(stored[0].clone()).expect("a request")
}

/// The time that the first record got, which must be the one of all that had none.
fn observed(request: &ExportLogsServiceRequest) -> u64 {
    request.resource_logs[0].scope_logs[0].log_records[0].observed_time_unix_nano
}

const ENRICH: &str = "{ resource: { deployment.environment.name: test, service.name: unknown }, detect: [os], mark_replayed: true }";

/// What that adds.
fn added() -> Vec<KeyValue> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let described = release.lines().find_map(|line| {
        let quoted = line.strip_prefix("PRETTY_NAME=")?;
        Some(quoted.trim_matches('"').to_owned())
    });
    let mut added = vec![
        text("deployment.environment.name", "test"),
        text("service.name", "unknown"),
        text("os.type", "linux"),
    ];
    added.extend(described.map(|described| text("os.description", &described)));
    added
}

#[test]
fn what_passes_through_is_enriched_for_servers_and_files() {
    let home = Home::new();
    let sink = Sink::up();
    let path = home.path("logs.jsonl");
    let mut settings = Settings {
        // Only the destinations can acknowledge.
        ack_within: "30s",
        enrich: ENRICH,
        ..Settings::to(sink.destination("main", "60s"))
    };
    settings.destinations.push(format!(
        "{{ name: local, file: {{ path: \"{}\" }} }}",
        path.display()
    ));
    let daemon = Daemon::start(&home, &settings);
    let before = now_ns();
    daemon
        .producer()
        .export(sent())
        .expect("it is acknowledged");
    let after = now_ns();
    let arrived = arrived(&sink);
    let arrival = observed(&arrived);
    assert!(
        (before..=after).contains(&arrival),
        "{before} {arrival} {after}"
    );
    assert_eq!(arrived, enriched(&added(), arrival));

    let lines = std::fs::read_to_string(&path).expect("the file is there");
    for attribute in ["deployment.environment.name", "os.type"] {
        assert_eq!(lines.matches(attribute).count(), 2, "{lines}");
    }
    let times: Vec<_> = jsonl::records(&path)
        .iter()
        .map(|record| record["observedTimeUnixNano"].as_str().map(str::to_owned))
        .collect();
    let [arrival, own] = [arrival, OBSERVED].map(|time| Some(time.to_string()));
    assert_eq!(times, [arrival.clone(), own.clone(), arrival, own]);
}

#[test]
fn what_is_replayed_has_the_time_of_its_arrival_and_a_mark() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        enrich: ENRICH,
        ..Settings::to(sink.destination("main", "60s"))
    };
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let before = now_ns();
    daemon
        .producer()
        .export(sent())
        .expect("the vault acknowledges");
    let after = now_ns();
    assert_eq!(sink.stored_count(), 0);
    daemon.ctl(&["override", "--clear"]);
    let arrived = arrived(&sink);
    daemon.await_empty_vault();
    let arrival = observed(&arrived);
    assert!(
        (before..=after).contains(&arrival),
        "{before} {arrival} {after}"
    );
    let mut added = added();
    added.push(attribute("gophership.replayed", Value::BoolValue(true)));
    assert_eq!(arrived, enriched(&added, arrival));
}

#[test]
fn what_detectors_find_is_the_last_resort() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        ack_within: "30s",
        enrich: "{ resource: { host.name: configured, k8s.pod.name: mine } }",
        ..Settings::to(sink.destination("main", "60s"))
    };
    let variables = [("K8S_NODE_NAME", "node-1"), ("K8S_POD_NAME", "pod-1")];
    let daemon = Daemon::start_with_env(&home, &settings, &variables);
    daemon
        .producer()
        .export(sent())
        .expect("it is acknowledged");
    let arrived = arrived(&sink);
    for logs in &arrived.resource_logs {
        let resource = logs.resource.as_ref().expect("a resource");
        let with_key = |key: &str| {
            let attributes = resource.attributes.iter();
            let found: Vec<_> = attributes
                .filter(|found| found.key == key)
                .cloned()
                .collect();
            assert_eq!(found.len(), 1, "{key}: {found:?}");
            found.into_iter().next()
        };
        for (key, value) in [
            ("host.name", "configured"),
            ("k8s.pod.name", "mine"),
            ("k8s.node.name", "node-1"),
            ("os.type", "linux"),
        ] {
            assert_eq!(with_key(key), Some(text(key, value)));
        }
        assert!(with_key("host.arch").is_some());
    }
}

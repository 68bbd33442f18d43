use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{
        AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
        any_value::Value,
    },
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use prost::Message;
use serde_json::json;

use super::*;

fn line(request: &ExportLogsServiceRequest) -> String {
    let mut out = Vec::new();
    write_line(&request.encode_to_vec(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn with_record(record: LogRecord) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            scope_logs: vec![ScopeLogs {
                log_records: vec![record],
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
}

fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(any(value)),
        ..KeyValue::default()
    }
}

fn every_value() -> Vec<KeyValue> {
    vec![
        pair("text", Value::StringValue("a\n\"ü\u{2028}\0".into())),
        pair("no text", Value::StringValue(String::new())),
        pair("bool", Value::BoolValue(false)),
        pair("int", Value::IntValue(i64::MIN)),
        pair("double", Value::DoubleValue(0.1)),
        pair("whole", Value::DoubleValue(-3.0)),
        pair("bytes", Value::BytesValue(vec![0, 255, 7, 62])),
        pair(
            "array",
            Value::ArrayValue(ArrayValue {
                values: vec![any(Value::IntValue(1)), AnyValue::default()],
            }),
        ),
        pair("no array", Value::ArrayValue(ArrayValue::default())),
        pair(
            "list",
            Value::KvlistValue(KeyValueList {
                values: vec![pair("inner", Value::BytesValue(Vec::new()))],
            }),
        ),
        KeyValue {
            key: "valueless".into(),
            ..KeyValue::default()
        },
    ]
}

fn full_record() -> LogRecord {
    LogRecord {
        time_unix_nano: u64::MAX,
        observed_time_unix_nano: 1,
        severity_number: 17,
        severity_text: "ERROR".into(),
        body: Some(any(Value::StringValue("it broke".into()))),
        attributes: every_value(),
        dropped_attributes_count: 3,
        flags: 257,
        trace_id: (0..16).collect(),
        span_id: vec![0xab; 8],
        event_name: "event".into(),
    }
}

#[test]
fn every_field_is_written_as_the_specification_says() {
    let written: serde_json::Value =
        serde_json::from_str(&line(&with_record(full_record()))).unwrap();
    let record = json!({
        "timeUnixNano": "18446744073709551615",
        "observedTimeUnixNano": "1",
        "severityNumber": 17,
        "severityText": "ERROR",
        "body": {"stringValue": "it broke"},
        "attributes": [
            {"key": "text", "value": {"stringValue": "a\n\"ü\u{2028}\0"}},
            {"key": "no text", "value": {"stringValue": ""}},
            {"key": "bool", "value": {"boolValue": false}},
            {"key": "int", "value": {"intValue": "-9223372036854775808"}},
            {"key": "double", "value": {"doubleValue": 0.1}},
            {"key": "whole", "value": {"doubleValue": -3.0}},
            {"key": "bytes", "value": {"bytesValue": "AP8HPg=="}},
            {"key": "array", "value": {"arrayValue": {"values": [{"intValue": "1"}, {}]}}},
            {"key": "no array", "value": {"arrayValue": {"values": []}}},
            {"key": "list", "value": {"kvlistValue": {"values": [{"key": "inner", "value": {"bytesValue": ""}}]}}},
            {"key": "valueless"},
        ],
        "droppedAttributesCount": 3,
        "flags": 257,
        "traceId": "000102030405060708090a0b0c0d0e0f",
        "spanId": "abababababababab",
        "eventName": "event",
    });
    assert_eq!(
        written,
        json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})
    );
}

#[test]
fn defaults_are_left_out() {
    assert_eq!(line(&ExportLogsServiceRequest::default()), "{}\n");
    assert_eq!(
        line(&with_record(LogRecord::default())),
        "{\"resourceLogs\":[{\"scopeLogs\":[{\"logRecords\":[{}]}]}]}\n"
    );
}

#[test]
fn doubles_that_json_lacks_are_strings() {
    for (double, text) in [
        (f64::NAN, "NaN"),
        (f64::INFINITY, "Infinity"),
        (f64::NEG_INFINITY, "-Infinity"),
    ] {
        let record = LogRecord {
            body: Some(any(Value::DoubleValue(double))),
            ..LogRecord::default()
        };
        assert!(line(&with_record(record)).contains(&format!("{{\"doubleValue\":\"{text}\"}}")));
    }
}

#[test]
fn the_reference_reader_reads_back_the_same_request() {
    let mut request = with_record(full_record());
    let logs = &mut request.resource_logs[0];
    logs.schema_url = "https://resource".into();
    logs.resource = Some(Resource {
        attributes: every_value(),
        dropped_attributes_count: 1,
        entity_refs: vec![EntityRef {
            r#type: "host".into(),
            id_keys: vec!["host.id".into()],
            ..EntityRef::default()
        }],
    });
    logs.scope_logs[0].schema_url = "https://scope".into();
    logs.scope_logs[0].scope = Some(InstrumentationScope {
        name: "library".into(),
        version: "1".into(),
        attributes: every_value(),
        dropped_attributes_count: 2,
    });
    let read: ExportLogsServiceRequest = serde_json::from_str(&line(&request)).unwrap();
    assert_eq!(read, request);
}

#[test]
fn a_line_is_one_line() {
    assert_eq!(line(&with_record(full_record())).matches('\n').count(), 1);
}

#[test]
fn as_many_messages_may_come_in_parts_as_enclose_each_other_without_a_list() {
    fn longest(message: &schema::Message) -> usize {
        let fields = message.fields.iter();
        let steps = fields.filter_map(|field| match field.form {
            schema::Form::Message(inner) if !field.is_repeated => Some(1 + longest(inner)),
            _ => None,
        });
        steps.max().unwrap_or(0)
    }
    let mut seen: Vec<&schema::Message> = vec![&schema::REQUEST];
    let mut next = 0;
    while next < seen.len() {
        let message = seen[next];
        next += 1;
        assert!(longest(message) <= fields::PARTS_MAX);
        for field in message.fields {
            if let schema::Form::Message(inner) = field.form
                && !seen.iter().any(|known| std::ptr::eq(*known, inner))
            {
                seen.push(inner);
            }
        }
    }
}

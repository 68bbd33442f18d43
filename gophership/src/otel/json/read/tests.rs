use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value::Value},
    logs::v1::LogRecord,
};
use prost::Message as _;
use serde_json::json;

use super::*;

#[track_caller]
fn read(json: &str) -> (ExportLogsServiceRequest, u32) {
    let mut out = Vec::new();
    let records = match to_protobuf(json.as_bytes(), &mut out) {
        Ok(records) => records,
        Err(error) => panic!("{error}: {json}"),
    };
    let request = ExportLogsServiceRequest::decode(&*out).expect("valid protobuf");
    assert_eq!(crate::otel::skim(&[out]).unwrap().records, records);
    (request, records)
}

#[track_caller]
fn refused(json: &str) -> String {
    let mut out = Vec::new();
    match to_protobuf(json.as_bytes(), &mut out) {
        Ok(_) => panic!("it was read: {json}"),
        Err(error) => error.to_string(),
    }
}

fn in_record(record: &str) -> String {
    format!("{{\"resourceLogs\":[{{\"scopeLogs\":[{{\"logRecords\":[{record}]}}]}}]}}")
}

#[track_caller]
fn record(record: &str) -> LogRecord {
    let (mut request, _) = read(&in_record(record));
    request.resource_logs[0].scope_logs[0].log_records.remove(0)
}

#[track_caller]
fn body(value: &str) -> Option<Value> {
    record(&format!("{{\"body\":{value}}}")).body.unwrap().value
}

#[test]
fn names_in_the_schema_are_the_same_in_both_styles() {
    fn check(message: &'static Message, seen: &mut Vec<*const Message>) {
        if seen.contains(&std::ptr::from_ref(message)) {
            return;
        }
        seen.push(message);
        for field in message.fields {
            let mut snake = String::new();
            for c in field.name.chars() {
                if c.is_ascii_uppercase() {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
            assert_eq!(snake, field.proto_name);
            assert!(field.number < 32, "it has a bit of its own");
            if let Form::Message(inner) = field.form {
                check(inner, seen);
            }
        }
    }
    let mut seen = Vec::new();
    check(&REQUEST, &mut seen);
    assert_eq!(seen.len(), 11);
}

#[test]
fn the_specifications_example_is_read() {
    let example = json!({"resourceLogs": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]},
        "scopeLogs": [{
            "scope": {"name": "my.library", "version": "1.0.0", "attributes": [
                {"key": "my.scope.attribute", "value": {"stringValue": "some scope attribute"}}]},
            "logRecords": [{
                "timeUnixNano": "1544712660300000000",
                "observedTimeUnixNano": "1544712660300000000",
                "severityNumber": 10,
                "severityText": "Information",
                "traceId": "5B8EFFF798038103D269B633813FC60C",
                "spanId": "EEE19B7EC3C1B174",
                "body": {"stringValue": "Example log record"},
                "attributes": [
                    {"key": "int.attribute", "value": {"intValue": "10"}},
                    {"key": "map.attribute", "value": {"kvlistValue": {"values": [
                        {"key": "some.map.key", "value": {"stringValue": "some value"}}]}}}]
            }]
        }]
    }]})
    .to_string();
    let (read, records) = read(&example);
    assert_eq!(records, 1);
    let theirs: ExportLogsServiceRequest = serde_json::from_str(&example).unwrap();
    assert_eq!(read, theirs, "opentelemetry-proto's own reader");
}

#[test]
fn names_of_the_definition_are_read_and_unknown_ones_are_skipped() {
    let read = record(
        r#"{"new":{"deep":[[{"a":1e999}],"b"]},"time_unix_nano":5,"trace_id":"","severityText":"W","Flags":7}"#,
    );
    let expected = LogRecord {
        time_unix_nano: 5,
        severity_text: "W".into(),
        ..LogRecord::default()
    };
    assert_eq!(read, expected);
}

#[test]
fn null_is_absent_but_no_element_of_a_list() {
    let read =
        record(r#"{"body":null,"attributes":null,"traceId":null,"flags":null,"eventName":null}"#);
    assert_eq!(read, LogRecord::default());
    assert_eq!(
        body(r#"{"intValue":null,"stringValue":"a","boolValue":null}"#),
        Some(Value::StringValue("a".into()))
    );
    let said = refused(&in_record("null"));
    assert!(
        said.starts_with(
            "resourceLogs[0].scopeLogs[0].logRecords[0]: invalid type: null, expected an object"
        ),
        "{said}"
    );
    assert!(refused("null").contains("expected an object"));
}

#[test]
fn an_empty_value_is_not_an_absent_one() {
    assert_eq!(body("{}"), None);
    assert_eq!(
        body(r#"{"stringValue":""}"#),
        Some(Value::StringValue(String::new()))
    );
    assert_eq!(body(r#"{"intValue":0}"#), Some(Value::IntValue(0)));
    assert_eq!(
        body(r#"{"boolValue":false}"#),
        Some(Value::BoolValue(false))
    );
    assert_eq!(
        body(r#"{"bytesValue":""}"#),
        Some(Value::BytesValue(Vec::new()))
    );
    assert_eq!(read("{}"), (ExportLogsServiceRequest::default(), 0));
}

#[test]
fn integers_are_read_as_numbers_and_strings_within_their_range() {
    for (text, value) in [
        ("\"9223372036854775807\"", i64::MAX),
        ("-9223372036854775808", i64::MIN),
        ("1e3", 1000),
        ("\"-2.0E1\"", -20),
        ("-0", 0),
        ("5.0", 5),
    ] {
        assert_eq!(
            body(&format!("{{\"intValue\":{text}}}")),
            Some(Value::IntValue(value))
        );
    }
    assert_eq!(
        record(r#"{"timeUnixNano":18446744073709551615,"severityNumber":-1,"flags":"257"}"#),
        LogRecord {
            time_unix_nano: u64::MAX,
            severity_number: -1,
            flags: 257,
            ..LogRecord::default()
        }
    );
    for wrong in [
        r#"{"body":{"intValue":9223372036854775808}}"#,
        r#"{"body":{"intValue":1.5}}"#,
        r#"{"body":{"intValue":"1.5"}}"#,
        r#"{"body":{"intValue":"+1"}}"#,
        r#"{"body":{"intValue":" 1"}}"#,
        r#"{"body":{"intValue":""}}"#,
        r#"{"body":{"intValue":true}}"#,
        r#"{"body":{"intValue":1e30}}"#,
        r#"{"timeUnixNano":-1}"#,
        r#"{"timeUnixNano":"18446744073709551616"}"#,
        r#"{"flags":4294967296}"#,
        r#"{"severityNumber":2147483648}"#,
        r#"{"severityNumber":"SEVERITY_NUMBER_INFO"}"#,
    ] {
        refused(&in_record(wrong));
    }
}

#[test]
fn doubles_are_read_as_numbers_and_strings() {
    for (text, value) in [
        ("1", 1.0),
        ("-0.1", -0.1),
        ("1.7976931348623157e308", f64::MAX),
        ("5e-324", f64::from_bits(1)),
        ("\"2.5\"", 2.5),
        ("\"Infinity\"", f64::INFINITY),
        ("\"-Infinity\"", f64::NEG_INFINITY),
        ("18446744073709551616", 18_446_744_073_709_551_616.0),
    ] {
        assert_eq!(
            body(&format!("{{\"doubleValue\":{text}}}")),
            Some(Value::DoubleValue(value))
        );
    }
    assert!(
        matches!(body(r#"{"doubleValue":"NaN"}"#), Some(Value::DoubleValue(nan)) if nan.is_nan())
    );
    for wrong in [
        "\"inf\"",
        "\"nan\"",
        "\"1e999\"",
        "1e999",
        "\"\"",
        "\"+1\"",
        "false",
    ] {
        refused(&in_record(&format!(
            "{{\"body\":{{\"doubleValue\":{wrong}}}}}"
        )));
    }
}

#[test]
fn bytes_are_base64_of_either_alphabet() {
    for text in ["+/+/AQ==", "-_-_AQ==", "-_-_AQ", "+/+/AQ"] {
        assert_eq!(
            body(&format!("{{\"bytesValue\":\"{text}\"}}")),
            Some(Value::BytesValue(vec![0xfb, 0xff, 0xbf, 1])),
            "{text}"
        );
    }
    let said = refused(&in_record(r#"{"body":{"bytesValue":"a b"}}"#));
    assert!(said.contains(".body.bytesValue: not base64"), "{said}");
}

#[test]
fn ids_are_hex_of_their_length() {
    let read =
        record(r#"{"traceId":"00ffABCDEFabcdef0123456789000000","spanId":"0102030405060708"}"#);
    assert_eq!(read.trace_id[..4], [0, 0xff, 0xab, 0xcd]);
    assert_eq!(
        (read.trace_id.len(), read.span_id),
        (16, vec![1, 2, 3, 4, 5, 6, 7, 8])
    );
    let place = "resourceLogs[0].scopeLogs[0].logRecords[0].";
    for (field, what) in [
        (
            r#"{"traceId":"00ff"}"#,
            "traceId: 4 hex digits, where 32 are an id",
        ),
        (
            r#"{"trace_id":"00ff"}"#,
            "traceId: 4 hex digits, where 32 are an id",
        ),
        (
            r#"{"spanId":"010203040506070g"}"#,
            "spanId: 'g' is no hex digit",
        ),
        (
            r#"{"spanId":"éééééééé"}"#,
            "spanId: 8 hex digits, where 16 are an id",
        ),
        (
            r#"{"spanId":"éééééééééééééééé"}"#,
            "spanId: 'é' is no hex digit",
        ),
        (
            r#"{"spanId":7}"#,
            "spanId: invalid type: a number, expected a string of hex digits",
        ),
    ] {
        let said = refused(&in_record(field));
        assert!(said.starts_with(&format!("{place}{what}")), "{said}");
    }
}

#[test]
fn what_is_there_twice_is_refused() {
    for twice in [
        r#"{"flags":1,"flags":1}"#,
        r#"{"timeUnixNano":1,"time_unix_nano":1}"#,
        r#"{"body":{"intValue":1,"stringValue":"a"}}"#,
        r#"{"attributes":[],"attributes":[]}"#,
    ] {
        refused(&in_record(twice));
    }
    let said = refused(r#"{"resourceLogs":[{},{"resource":{},"resource":{}}]}"#);
    assert!(
        said.starts_with("resourceLogs[1].resource: the field is there twice"),
        "{said}"
    );
}

#[test]
fn what_is_no_json_or_of_another_type_is_refused_in_few_words() {
    let long = "x".repeat(100_000);
    for wrong in [
        String::new(),
        "{".into(),
        "{}{}".into(),
        "[]".into(),
        format!("\"{long}\""),
        format!("{{\"resourceLogs\":\"{long}\"}}"),
        format!("{{\"resourceLogs\":[\"{long}\"]}}"),
        in_record(&format!("{{\"body\":\"{long}\"}}")),
        in_record(&format!("{{\"body\":{{\"boolValue\":\"{long}\"}}}}")),
        in_record(&format!("{{\"body\":{{\"intValue\":\"{long}\"}}}}")),
        in_record(&format!("{{\"body\":{{\"bytesValue\":\"{long}_+\"}}}}")),
        in_record(&format!("{{\"traceId\":\"{long}\"}}")),
        r#"{"resourceLogs":{}}"#.into(),
        in_record(r#"{"body":[]}"#),
        in_record(r#"{"eventName":"\ud800"}"#),
        in_record(r#"{"eventName":["a"]}"#),
    ] {
        let said = refused(&wrong);
        assert!(said.len() < 300, "{said}");
    }
    let mut out = Vec::new();
    assert!(to_protobuf(b"{\"resourceLogs\":[{\"schemaUrl\":\"\xff\"}]}", &mut out).is_err());
}

/// Nested arrays and lists, the number of levels given.
fn nested(levels: usize, open: &str, close: &str) -> String {
    let value = format!("{}{{}}{}", open.repeat(levels), close.repeat(levels));
    in_record(&format!("{{\"body\":{value}}}"))
}

#[test]
fn nesting_has_a_limit_within_that_of_protobuf_readers() {
    let kinds = [
        ("{\"arrayValue\":{\"values\":[", "]}}"),
        (
            "{\"kvlistValue\":{\"values\":[{\"key\":\"k\",\"value\":",
            "}]}}",
        ),
    ];
    for (open, close) in kinds {
        let deepest = (0..200).take_while(|&levels| {
            let mut out = Vec::new();
            let is_read = to_protobuf(nested(levels, open, close).as_bytes(), &mut out).is_ok();
            // What is read can be read on.
            assert!(!is_read || ExportLogsServiceRequest::decode(&*out).is_ok());
            is_read
        });
        let deepest = deepest.last().unwrap();
        assert!((28..100).contains(&deepest), "{deepest}");
        refused(&nested(100_000, open, close));
    }
    // Unknown fields have no stack to exhaust.
    read(&format!(
        "{{\"unknown\":{}1{}}}",
        "[".repeat(200_000),
        "]".repeat(200_000)
    ));
}

#[test]
fn lengths_of_every_width_are_right() {
    for len in [0, 1, 126, 127, 128, 129, 16_382, 16_384, 16_390, 2_097_152] {
        let text = "t".repeat(len);
        assert_eq!(
            body(&format!(
                "{{\"arrayValue\":{{\"values\":[{{\"stringValue\":\"{text}\"}},{{\"intValue\":1}}]}}}}"
            )),
            Some(Value::ArrayValue(
                opentelemetry_proto::tonic::common::v1::ArrayValue {
                    values: vec![
                        AnyValue {
                            value: Some(Value::StringValue(text))
                        },
                        AnyValue {
                            value: Some(Value::IntValue(1))
                        },
                    ],
                }
            ))
        );
    }
}

#[test]
fn the_output_is_never_longer_than_the_input() {
    let many = |element: &str, count| vec![element; count].join(",");
    for json in [
        format!("{{\"resourceLogs\":[{}]}}", many("{}", 10_000)),
        in_record(&many("{}", 10_000)),
        in_record(&format!("{{\"attributes\":[{}]}}", many("{}", 10_000))),
        in_record(&format!(
            "{{\"attributes\":[{}]}}",
            many("{\"key\":\"\"}", 10_000)
        )),
        in_record(&format!(
            "{{\"body\":{{\"arrayValue\":{{\"values\":[{}]}}}}}}",
            many("{}", 10_000)
        )),
        in_record(&format!(
            "{{\"body\":{{\"arrayValue\":{{\"values\":[{}]}}}}}}",
            many("{\"intValue\":-1}", 10_000)
        )),
        in_record(&format!(
            "{{\"body\":{{\"arrayValue\":{{\"values\":[{}]}}}}}}",
            many("{\"doubleValue\":1}", 10_000)
        )),
        in_record(&many("{\"flags\":1}", 10_000)),
        in_record(&many("{\"timeUnixNano\":1}", 10_000)),
        nested(30, "{\"arrayValue\":{\"values\":[", "]}}"),
    ] {
        let mut out = Vec::new();
        to_protobuf(json.as_bytes(), &mut out).unwrap();
        assert!(
            out.len() <= json.len(),
            "{} of {}: {:.80}",
            out.len(),
            json.len(),
            json
        );
    }
}

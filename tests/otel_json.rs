//! OTLP JSON as it is written and read, for arbitrary requests, and what reading costs.

mod counting_allocator;

use gophership::otel::json;
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

/// xorshift64*: reproducible by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn u32(&mut self) -> u32 {
        // Often the default, which is left out.
        let shift = self.below(40);
        u32::try_from(self.next() >> 32 >> shift).unwrap()
    }

    fn i32(&mut self) -> i32 {
        self.u32().cast_signed()
    }

    fn u64(&mut self) -> u64 {
        let shift = self.below(64);
        self.next() >> shift
    }

    fn text(&mut self, longest: usize) -> String {
        let length = self.below(longest + 1);
        (0..length)
            .map(|_| match self.below(8) {
                0 => char::from(u8::try_from(self.below(128)).unwrap()),
                1 => ['é', '✓', '🐹', '\u{2028}', '\u{feff}', '\u{fffd}'][self.below(6)],
                _ => char::from(b'a' + u8::try_from(self.below(26)).unwrap()),
            })
            .collect()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[7]).collect()
    }

    fn id(&mut self, length: usize) -> Vec<u8> {
        let length = if self.below(3) == 0 { 0 } else { length };
        self.bytes(length)
    }

    fn double(&mut self) -> f64 {
        let special = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            0.0,
            -0.0,
            1e300,
            0.1,
        ];
        match self.below(4) {
            0 => special[self.below(special.len())],
            _ => {
                let double = f64::from_bits(self.next());
                // JSON has one NaN.
                if double.is_nan() { f64::NAN } else { double }
            }
        }
    }

    fn many<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| make(self)).collect()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(4) > 0).then(|| make(self))
    }
}

fn any_value(random: &mut Random, depth: usize) -> AnyValue {
    let value = match random.below(if depth == 0 { 7 } else { 9 }) {
        0 => None,
        1 => Some(Value::StringValue(random.text(300))),
        2 => Some(Value::BoolValue(random.below(2) == 0)),
        3 => Some(Value::IntValue(random.u64().cast_signed())),
        4 => Some(Value::DoubleValue(random.double())),
        5 => {
            let length = random.below(20);
            Some(Value::BytesValue(random.bytes(length)))
        }
        6 => Some(Value::StringValueStrindex(random.i32())),
        7 => Some(Value::ArrayValue(ArrayValue {
            values: random.many(3, |random| any_value(random, depth - 1)),
        })),
        _ => Some(Value::KvlistValue(KeyValueList {
            values: random.many(3, |random| key_value(random, depth - 1)),
        })),
    };
    AnyValue { value }
}

fn key_value(random: &mut Random, depth: usize) -> KeyValue {
    KeyValue {
        key: random.text(12),
        value: random.maybe(|random| any_value(random, depth)),
        key_strindex: random.i32(),
    }
}

fn attributes(random: &mut Random) -> Vec<KeyValue> {
    random.many(6, |random| key_value(random, 3))
}

fn log_record(random: &mut Random) -> LogRecord {
    LogRecord {
        time_unix_nano: random.u64(),
        observed_time_unix_nano: random.u64(),
        severity_number: random.i32(),
        severity_text: random.text(5),
        body: random.maybe(|random| any_value(random, 4)),
        attributes: attributes(random),
        dropped_attributes_count: random.u32(),
        flags: random.u32(),
        trace_id: random.id(16),
        span_id: random.id(8),
        event_name: random.text(3),
    }
}

fn request(random: &mut Random) -> ExportLogsServiceRequest {
    let resource = |random: &mut Random| Resource {
        attributes: attributes(random),
        dropped_attributes_count: random.u32(),
        entity_refs: random.many(2, |random| EntityRef {
            schema_url: random.text(9),
            r#type: random.text(9),
            id_keys: random.many(2, |random| random.text(4)),
            description_keys: random.many(2, |random| random.text(4)),
        }),
    };
    let scope = |random: &mut Random| InstrumentationScope {
        name: random.text(9),
        version: random.text(9),
        attributes: attributes(random),
        dropped_attributes_count: random.u32(),
    };
    let scope_logs = |random: &mut Random| ScopeLogs {
        scope: random.maybe(scope),
        log_records: random.many(4, log_record),
        schema_url: random.text(9),
    };
    ExportLogsServiceRequest {
        resource_logs: random.many(3, |random| ResourceLogs {
            resource: random.maybe(resource),
            scope_logs: random.many(3, scope_logs),
            schema_url: random.text(9),
        }),
    }
}

fn records(request: &ExportLogsServiceRequest) -> usize {
    let scopes = request
        .resource_logs
        .iter()
        .flat_map(|logs| &logs.scope_logs);
    scopes.map(|logs| logs.log_records.len()).sum()
}

#[track_caller]
fn read(json: &[u8]) -> (Vec<u8>, u32) {
    let mut out = Vec::new();
    match json::to_protobuf(json, &mut out) {
        Ok(records) => (out, records),
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(json)),
    }
}

/// Compared as bytes in one order, since no NaN equals another.
#[track_caller]
fn assert_same(request: &ExportLogsServiceRequest, protobuf: &[u8], seed: u64) {
    let read = ExportLogsServiceRequest::decode(protobuf).expect("valid protobuf");
    assert!(
        read.encode_to_vec() == request.encode_to_vec(),
        "seed {seed}: {request:#?} became {read:#?}"
    );
}

#[test]
fn what_is_written_is_read_back_the_same() {
    for seed in 1..=2_000 {
        let request = request(&mut Random(seed));
        let mut line = Vec::new();
        json::write_line(&request.encode_to_vec(), &mut line).unwrap();
        let (protobuf, counted) = read(&line);
        assert_same(&request, &protobuf, seed);
        assert_eq!(counted as usize, records(&request), "seed {seed}");
        assert!(protobuf.len() <= line.len());
    }
}

/// A decoded record takes a hundred times the two bytes that one without fields has on the wire.
#[test]
fn writing_takes_no_memory_for_many_records() {
    let records = 1_000_000;
    let request = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            scope_logs: vec![ScopeLogs {
                log_records: vec![LogRecord::default(); records],
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
    .encode_to_vec();
    let before = counting_allocator::bytes();
    json::write_line(&request, std::io::sink()).unwrap();
    let allocated = counting_allocator::bytes() - before;
    assert!(allocated < 4096, "{allocated} bytes");
}

#[test]
fn what_another_implementation_writes_is_read_the_same() {
    let is_finite = |value: &str| !value.contains("null");
    let mut compared = 0;
    for seed in 1..=2_000 {
        let request = request(&mut Random(seed));
        let theirs = serde_json::to_string(&request).unwrap();
        // It writes doubles that aren't finite, and values that are absent, as null.
        let (protobuf, counted) = read(theirs.as_bytes());
        assert_eq!(counted as usize, records(&request), "seed {seed}");
        // Its reader doesn't know this field.
        let is_known = !theirs.contains("stringValueStrindex");
        if is_known && let Ok(read) = serde_json::from_str::<ExportLogsServiceRequest>(&theirs) {
            assert_same(&read, &protobuf, seed);
            compared += u32::from(is_finite(&theirs));
        }
    }
    assert!(compared > 50, "{compared}");
}

#[test]
fn mutated_json_never_panics_and_what_is_read_is_valid_protobuf() {
    let mut read = 0;
    for seed in 1..=3_000 {
        let mut random = Random(seed);
        let mut line = Vec::new();
        json::write_line(&request(&mut random).encode_to_vec(), &mut line).unwrap();
        for _ in 0..=random.below(3) {
            if line.is_empty() {
                break;
            }
            let at = random.below(line.len());
            match random.below(3) {
                0 => line[at] = b"{}[],:\"0n\\-"[random.below(11)],
                1 => drop(line.remove(at)),
                _ => line.truncate(at + 1),
            }
        }
        let mut out = Vec::new();
        if json::to_protobuf(&line, &mut out).is_ok() {
            ExportLogsServiceRequest::decode(&*out).expect("valid protobuf");
            read += 1;
        }
    }
    assert!(read > 100, "hardly anything was read: {read}");
}

#[test]
fn reading_allocates_in_proportion_to_the_input_whatever_is_in_it() {
    const INPUT: usize = 4 << 20;
    let in_record = |fields: &str| {
        format!("{{\"resourceLogs\":[{{\"scopeLogs\":[{{\"logRecords\":[{fields}]}}]}}]}}")
    };
    let many = |element: &str| vec![element; INPUT / (element.len() + 1)].join(",");
    for json in [
        format!("{{\"resourceLogs\":[{}]}}", many("{}")),
        in_record(&many("{}")),
        in_record(&many("{\"attributes\":[{}]}")),
        in_record(&format!("{{\"attributes\":[{}]}}", many("{}"))),
        in_record(&format!(
            "{{\"body\":{{\"arrayValue\":{{\"values\":[{}]}}}}}}",
            many("{}")
        )),
        in_record(&format!(
            "{{\"body\":{{\"arrayValue\":{{\"values\":[{}]}}}}}}",
            many("{\"boolValue\":true}")
        )),
        format!("{{\"unknown\":[{}]}}", many("[]")),
        format!(
            "{{\"unknown\":{}{}}}",
            "[".repeat(INPUT / 2),
            "]".repeat(INPUT / 2)
        ),
        in_record(&format!(
            "{{\"eventName\":\"{}\"}}",
            "\\n".repeat(INPUT / 2)
        )),
        format!("{{\"resourceLogs\":{}", "[".repeat(INPUT)),
    ] {
        let mut out = Vec::new();
        let before = counting_allocator::bytes();
        let _ = json::to_protobuf(json.as_bytes(), &mut out);
        let allocated = counting_allocator::bytes() - before;
        // A buffer that doubles asks for twice its size in all, and for half of that in vain.
        let most = 4 * json.len() as u64;
        assert!(
            allocated <= most,
            "{allocated} bytes for {}: {:.80}",
            json.len(),
            json
        );
    }
}

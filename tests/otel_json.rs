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

/// A field with a length.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut encoded = vec![number << 3 | 2];
    prost::encoding::encode_varint(value.len() as u64, &mut encoded);
    encoded.extend_from_slice(value);
    encoded
}

/// A request whose record is `record`.
fn with_record(record: &[u8]) -> Vec<u8> {
    field(1, &field(2, &field(2, record)))
}

/// A decoded message can take a hundred times the two bytes that one without fields has on the wire.
#[test]
fn writing_takes_no_memory_for_many_messages_whatever_encloses_them() {
    let many = |element: &[u8]| element.repeat(100_000);
    let empty = |number| many(&field(number, &[]));
    let body = |value: &[u8]| with_record(&field(5, value));
    for (what, request) in [
        ("records", field(1, &field(2, &empty(2)))),
        ("scopes", field(1, &empty(2))),
        ("resources", empty(1)),
        ("parts of a resource", field(1, &empty(1))),
        ("attributes of a record", with_record(&empty(6))),
        ("attributes of a resource", field(1, &field(1, &empty(1)))),
        (
            "attributes of a scope",
            field(1, &field(2, &field(1, &empty(3)))),
        ),
        ("entities", field(1, &field(1, &empty(3)))),
        (
            "keys of an entity",
            field(1, &field(1, &field(3, &empty(3)))),
        ),
        ("values of an array", body(&field(5, &empty(1)))),
        ("pairs of a list", body(&field(6, &empty(1)))),
        (
            "values of an attribute's array",
            with_record(&field(6, &field(2, &field(5, &empty(1))))),
        ),
        ("bodies", with_record(&empty(5))),
        ("parts of an array", body(&many(&field(5, &field(1, &[]))))),
        (
            "kinds of a value",
            body(&many(&[field(5, &field(1, &[])), field(6, &[])].concat())),
        ),
        ("a long text", body(&field(1, &many(b"x")))),
    ] {
        let before = counting_allocator::bytes();
        json::write_line(&request, std::io::sink()).unwrap();
        let allocated = counting_allocator::bytes() - before;
        assert!(allocated < 4096, "{what}: {allocated} bytes");
        ExportLogsServiceRequest::decode(&*request).expect("it is a request");
    }
}

/// Of what a message's fields are made, by their numbers.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Id(usize),
    Varint,
    Fixed32,
    Fixed64,
    Message(fn() -> &'static [(u8, Kind)]),
}

fn of_request() -> &'static [(u8, Kind)] {
    &[(1, Kind::Message(of_resource_logs))]
}

fn of_resource_logs() -> &'static [(u8, Kind)] {
    &[
        (1, Kind::Message(of_resource)),
        (2, Kind::Message(of_scope_logs)),
        (3, Kind::Text),
    ]
}

fn of_resource() -> &'static [(u8, Kind)] {
    &[
        (1, Kind::Message(of_pair)),
        (2, Kind::Varint),
        (
            3,
            Kind::Message(|| {
                &[
                    (1, Kind::Text),
                    (2, Kind::Text),
                    (3, Kind::Text),
                    (4, Kind::Text),
                ]
            }),
        ),
    ]
}

fn of_scope_logs() -> &'static [(u8, Kind)] {
    &[
        (
            1,
            Kind::Message(|| {
                &[
                    (1, Kind::Text),
                    (2, Kind::Text),
                    (3, Kind::Message(of_pair)),
                    (4, Kind::Varint),
                ]
            }),
        ),
        (2, Kind::Message(of_record)),
        (3, Kind::Text),
    ]
}

fn of_record() -> &'static [(u8, Kind)] {
    &[
        (1, Kind::Fixed64),
        (11, Kind::Fixed64),
        (2, Kind::Varint),
        (3, Kind::Text),
        (5, Kind::Message(of_value)),
        (6, Kind::Message(of_pair)),
        (7, Kind::Varint),
        (8, Kind::Fixed32),
        (9, Kind::Id(16)),
        (10, Kind::Id(8)),
        (12, Kind::Text),
    ]
}

fn of_pair() -> &'static [(u8, Kind)] {
    &[
        (1, Kind::Text),
        (2, Kind::Message(of_value)),
        (3, Kind::Varint),
    ]
}

fn of_value() -> &'static [(u8, Kind)] {
    &[
        (1, Kind::Text),
        (2, Kind::Varint),
        (3, Kind::Varint),
        (4, Kind::Fixed64),
        (5, Kind::Message(|| &[(1, Kind::Message(of_value))])),
        (6, Kind::Message(|| &[(1, Kind::Message(of_pair))])),
        (7, Kind::Text),
        (8, Kind::Varint),
    ]
}

/// A message's fields in any order, any number of times, with unknown ones among them.
fn fields(random: &mut Random, kinds: &[(u8, Kind)], depth: usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    for _ in 0..random.below(7) {
        let (number, kind) = kinds[random.below(kinds.len())];
        match kind {
            _ if random.below(20) == 0 => encoded.extend(field(15, &random.bytes(3))),
            Kind::Text => encoded.extend(field(number, random.text(5).as_bytes())),
            Kind::Id(length) => encoded.extend(field(number, &random.id(length))),
            Kind::Varint => {
                encoded.push(number << 3);
                prost::encoding::encode_varint(random.u64(), &mut encoded);
            }
            Kind::Fixed32 => {
                encoded.push(number << 3 | 5);
                encoded.extend(random.u32().to_le_bytes());
            }
            Kind::Fixed64 => {
                encoded.push(number << 3 | 1);
                encoded.extend(random.double().to_bits().to_le_bytes());
            }
            Kind::Message(inner) if depth > 0 => {
                encoded.extend(field(number, &fields(random, inner(), depth - 1)));
            }
            Kind::Message(_) => encoded.extend(field(number, &[])),
        }
    }
    encoded
}

/// What comes twice, in parts, in another order, or is broken, is taken as `prost` takes it.
#[test]
fn whatever_is_in_a_request_is_written_as_prost_reads_it_or_refused_as_prost_refuses_it() {
    let (mut same, mut refused) = (0, 0);
    for seed in 1..=5_000 {
        let mut random = Random(seed);
        let mut request = fields(&mut random, of_request(), 10);
        if random.below(2) == 0 && !request.is_empty() {
            let at = random.below(request.len());
            request[at] = random.next().to_le_bytes()[3];
        }
        let mut line = Vec::new();
        let written = json::write_line(&request, &mut line);
        let decoded = match ExportLogsServiceRequest::decode(&*request) {
            Ok(decoded) => decoded,
            Err(error) => {
                assert!(
                    written.is_err(),
                    "seed {seed}: prost says {error}: {request:?}"
                );
                refused += 1;
                continue;
            }
        };
        written.unwrap_or_else(|error| panic!("seed {seed}: {error}: {decoded:#?}"));
        let mut protobuf = Vec::new();
        // JSON has one NaN, and ids of one length.
        if json::to_protobuf(&line, &mut protobuf).is_ok()
            && !line.windows(5).any(|w| w == b"\"NaN\"")
        {
            assert_same(&decoded, &protobuf, seed);
            same += 1;
        }
    }
    assert!(same > 1_000 && refused > 300, "{same} {refused}");
}

#[test]
fn as_deep_as_prost_reads_a_line_is_written() {
    let mut refused = 0;
    for levels in 20..60 {
        for list in [5, 6] {
            let mut value = Vec::new();
            for _ in 0..levels {
                value = match list {
                    5 => field(5, &field(1, &value)),
                    _ => field(6, &field(1, &field(2, &value))),
                };
            }
            let request = with_record(&field(5, &value));
            let is_read = ExportLogsServiceRequest::decode(&*request).is_ok();
            let is_written = json::write_line(&request, std::io::sink()).is_ok();
            assert_eq!(is_written, is_read, "{levels} levels");
            refused += u32::from(!is_read);
        }
    }
    assert!(refused > 0);
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

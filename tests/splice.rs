//! Enrichment by splicing against decoding, changing and encoding.

#[path = "common/arbitrary.rs"]
mod arbitrary;

use arbitrary::{Random, break_somewhere, field, request, split, unknown_fields};
use gophership::otel::{ATTRIBUTES_MAX, Enrichment, skim};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    resource::v1::Resource,
};
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_varint, skip_field},
};

const ARRIVAL: u64 = 1_760_000_000_123_456_789;
const OBSERVED: u32 = 11;

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// Few keys, so that producers have some of them.
fn some_key(random: &mut Random) -> String {
    let long = "k".repeat(255);
    let keys = ["host.name", "a", "service.name", "b.c", &long];
    keys[random.below(keys.len())].to_owned()
}

fn added(random: &mut Random) -> Vec<KeyValue> {
    let mut added: Vec<KeyValue> = Vec::new();
    for _ in 0..random.below(5) {
        let key = some_key(random);
        if added.iter().all(|attribute| attribute.key != key) {
            added.push(attribute(&key, &random.text(200)));
        }
    }
    added
}

/// What is asked for, on decoded messages.
fn edit(mut request: ExportLogsServiceRequest, added: &[KeyValue]) -> ExportLogsServiceRequest {
    for logs in &mut request.resource_logs {
        for attribute in added {
            let resource = logs.resource.get_or_insert_default();
            let mut attributes = resource.attributes.iter();
            if attributes.all(|present| present.key != attribute.key) {
                resource.attributes.push(attribute.clone());
            }
        }
        let scopes = logs.scope_logs.iter_mut();
        for record in scopes.flat_map(|scope| &mut scope.log_records) {
            if record.observed_time_unix_nano == 0 {
                record.observed_time_unix_nano = ARRIVAL;
            }
        }
    }
    request
}

/// One field as it is on the wire.
struct Piece {
    number: u32,
    key: Vec<u8>,
    /// Width of the length and the content, or all of the value.
    value: Result<(usize, Vec<u8>), Vec<u8>>,
}

fn pieces(mut bytes: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let before = bytes;
        let (number, wire) = decode_key(&mut bytes).unwrap();
        let key = before[..before.len() - bytes.len()].to_vec();
        let before = bytes;
        let value = if wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut bytes).unwrap()).unwrap();
            let width = before.len() - bytes.len();
            let content = bytes[..length].to_vec();
            bytes = &bytes[length..];
            Ok((width, content))
        } else {
            skip_field(wire, number, &mut bytes, DecodeContext::default()).unwrap();
            Err(before[..before.len() - bytes.len()].to_vec())
        };
        pieces.push(Piece { number, key, value });
    }
    pieces
}

/// A varint of at least `width` bytes.
fn wide_varint(value: usize, width: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(value as u64, &mut bytes);
    while bytes.len() < width {
        *bytes.last_mut().unwrap() |= 0x80;
        bytes.push(0);
    }
    bytes
}

/// The field `number` of `bytes` changed, and everything else as it is.
fn change(bytes: &[u8], number: u32, mut change: impl FnMut(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces(bytes) {
        out.extend(&piece.key);
        match piece.value {
            Ok((width, content)) => {
                let content = match piece.number == number {
                    true => change(&content),
                    false => content,
                };
                out.extend(wide_varint(content.len(), width));
                out.extend(content);
            }
            Err(value) => out.extend(value),
        }
    }
    out
}

/// What is asked for, on the wire's fields.
fn edit_fields(request: &[u8], added: &[KeyValue]) -> Vec<u8> {
    change(request, 1, |logs| {
        let logs = change(logs, 2, |scope| change(scope, 2, edit_record));
        let resources: Vec<_> = pieces(&logs)
            .into_iter()
            .filter(|piece| piece.number == 1)
            .map(|piece| piece.value.unwrap().1)
            .collect();
        let resource = Resource::decode(resources.concat().as_slice()).unwrap();
        let has = |key: &str| resource.attributes.iter().any(|present| present.key == key);
        let mut missing = Vec::new();
        for attribute in added.iter().filter(|attribute| !has(&attribute.key)) {
            field(1, &attribute.encode_to_vec(), &mut missing);
        }
        if missing.is_empty() {
            return logs;
        }
        if resources.is_empty() {
            let mut out = Vec::new();
            field(1, &missing, &mut out);
            return [out, logs].concat();
        }
        let mut number = 0;
        change(&logs, 1, |resource| {
            number += 1;
            let is_last = number == resources.len();
            let missing = if is_last { &missing[..] } else { &[] };
            [resource, missing].concat()
        })
    })
}

fn edit_record(record: &[u8]) -> Vec<u8> {
    let mut out = record.to_vec();
    if LogRecord::decode(record).unwrap().observed_time_unix_nano == 0 {
        encode_varint(u64::from(OBSERVED << 3 | 1), &mut out);
        out.extend(ARRIVAL.to_le_bytes());
    }
    out
}

/// Writes it in pieces, and holds the length against what was announced.
fn splice(enrichment: &Enrichment, parts: &[&[u8]]) -> Vec<u8> {
    let splice = enrichment.splice(parts);
    let mut out = Vec::new();
    splice.write(ARRIVAL, |bytes| out.extend_from_slice(bytes));
    assert_eq!(out.len(), splice.enriched_bytes());
    assert_eq!(
        splice.is_complete(),
        out.len() == parts.iter().map(|part| part.len()).sum::<usize>()
    );
    out
}

/// A length-delimited field whose length may be wider than it needs to be.
fn wide_field(random: &mut Random, number: u64, content: &[u8], out: &mut Vec<u8>) {
    encode_varint(number << 3 | 2, out);
    let width = if random.below(8) == 0 {
        1 + random.below(10)
    } else {
        1
    };
    out.extend(wide_varint(content.len(), width));
    out.extend_from_slice(content);
}

fn strange_record(random: &mut Random) -> Vec<u8> {
    let mut record = Vec::new();
    if random.below(2) == 0 {
        record = LogRecord {
            time_unix_nano: random.next(),
            body: Some(AnyValue {
                value: Some(Value::StringValue(random.text(300))),
            }),
            ..LogRecord::default()
        }
        .encode_to_vec();
    }
    // Again and again, 0 or not: the last one counts.
    for _ in 0..random.below(4) {
        encode_varint(u64::from(OBSERVED << 3 | 1), &mut record);
        let time = [0, random.next(), 1 << 63, 1][random.below(4)];
        record.extend(time.to_le_bytes());
        unknown_fields(random, &mut record);
    }
    record
}

fn strange_resource(random: &mut Random) -> Vec<u8> {
    let mut resource = Vec::new();
    for _ in 0..random.below(4) {
        let mut attribute = attribute(&some_key(random), &random.text(20)).encode_to_vec();
        unknown_fields(random, &mut attribute);
        if random.below(4) == 0 {
            // Of two keys, the last one counts.
            field(1, some_key(random).as_bytes(), &mut attribute);
        }
        wide_field(random, 1, &attribute, &mut resource);
        unknown_fields(random, &mut resource);
    }
    resource
}

/// A valid request as no encoder writes it: resources missing and in several pieces, in any order with the rest,
/// lengths that are too wide, and more messages than a plan tells of.
fn strange(random: &mut Random, most: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.below(most) {
        let mut logs = Vec::new();
        for _ in 0..random.below(most) {
            if random.below(5) == 0 {
                let resource = strange_resource(random);
                wide_field(random, 1, &resource, &mut logs);
            }
            let mut scope = Vec::new();
            for _ in 0..random.below(4) {
                let record = strange_record(random);
                wide_field(random, 2, &record, &mut scope);
                unknown_fields(random, &mut scope);
            }
            wide_field(random, 2, &scope, &mut logs);
            unknown_fields(random, &mut logs);
        }
        wide_field(random, 1, &logs, &mut out);
        unknown_fields(random, &mut out);
    }
    out
}

#[track_caller]
fn check(seed: u64, random: &mut Random, bytes: &[u8]) {
    let added = added(random);
    let enrichment = Enrichment::new(&added);
    let decoded = ExportLogsServiceRequest::decode(bytes).unwrap();
    let edited = edit(decoded, &added);
    let fields = edit_fields(bytes, &added);
    let mut splits: Vec<_> = (0..5).map(|_| split(random, bytes)).collect();
    splits.extend([vec![bytes], bytes.chunks(1).collect()]);
    for parts in splits {
        let out = splice(&enrichment, &parts);
        assert!(out == fields, "seed {seed}: other fields than expected");
        let decoded = ExportLogsServiceRequest::decode(out.as_slice()).unwrap();
        // Encoded, since NaN is no number and not equal to itself.
        let encoded = decoded.encode_to_vec();
        assert!(encoded == edited.encode_to_vec(), "seed {seed}");
        assert!(skim(&[&out]).is_ok(), "seed {seed}");
    }
}

#[test]
fn splicing_is_decoding_changing_and_encoding() {
    for seed in 0..150 {
        let mut random = Random(seed);
        let bytes = request(&mut random);
        check(seed, &mut random, &bytes);
        let bytes = strange(&mut random, 6);
        check(seed, &mut random, &bytes);
    }
}

#[test]
fn splicing_takes_any_number_of_resources_and_scopes() {
    for seed in 0..4 {
        let mut random = Random(seed);
        let bytes = strange(&mut random, 90);
        check(seed, &mut random, &bytes);
    }
}

#[test]
fn what_lacks_nothing_stays_as_it_is() {
    let added = [attribute("a", "1")];
    let enrichment = Enrichment::new(&added);
    for seed in 0..100 {
        let mut random = Random(seed);
        let once = splice(&enrichment, &[&strange(&mut random, 6)]);
        assert_eq!(splice(&enrichment, &split(&mut random, &once)), once);
    }
    assert_eq!(splice(&enrichment, &[]), b"");
}

#[test]
fn as_many_attributes_as_there_may_be() {
    let added: Vec<_> = (0..ATTRIBUTES_MAX)
        .map(|number| attribute(&format!("key.{number}"), "value"))
        .collect();
    let mut request = ExportLogsServiceRequest {
        resource_logs: vec![Default::default()],
    };
    let out = splice(&Enrichment::new(&added), &[&request.encode_to_vec()]);
    request = edit(request, &added);
    assert_eq!(out, request.encode_to_vec());
}

#[test]
fn a_resource_that_cannot_be_read_stays_as_it_is_and_the_records_get_their_time() {
    let enrichment = Enrichment::new(&[attribute("a", "1")]);
    let mut logs = Vec::new();
    // The skim steps over it: an attribute that is longer than the resource.
    field(1, b"\x0a\x7f", &mut logs);
    let mut scope = Vec::new();
    field(2, b"", &mut scope);
    field(2, &scope, &mut logs);
    let mut request = Vec::new();
    field(1, &logs, &mut request);
    assert!(skim(&[&request]).is_ok());
    let out = splice(&enrichment, &[&request]);
    assert_eq!(
        out,
        change(&request, 1, |logs| {
            change(logs, 2, |scope| change(scope, 2, edit_record))
        })
    );
}

#[test]
fn broken_requests_neither_panic_nor_overrun() {
    let mut grown = 0;
    for seed in 0..10_000 {
        let mut random = Random(seed);
        let mut bytes = match random.below(2) {
            0 => request(&mut random),
            _ => strange(&mut random, 4),
        };
        break_somewhere(&mut random, &mut bytes);
        let enrichment = Enrichment::new(&added(&mut random));
        let whole = splice(&enrichment, &[&bytes]);
        assert_eq!(
            splice(&enrichment, &split(&mut random, &bytes)),
            whole,
            "seed {seed}"
        );
        grown += u32::from(whole.len() > bytes.len());
    }
    assert!(grown > 500, "{grown}");
    for seed in 0..50_000 {
        let mut random = Random(seed);
        let mut bytes = random.bytes(24);
        if let [first, second, ..] = bytes.as_mut_slice() {
            (*first, *second) = (0x0a, u8::try_from(random.below(30)).unwrap());
        }
        splice(
            &Enrichment::new(&added(&mut random)),
            &split(&mut random, &bytes),
        );
    }
}

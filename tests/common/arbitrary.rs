//! Requests of every shape from a seed, cut anywhere, and broken ones.

use opentelemetry_proto::tonic::{
    common::v1::{
        AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value,
    },
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use prost::Message;
use prost::encoding::encode_varint;

/// SplitMix64: seeded, so that a failure names the seed that repeats it.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub(crate) fn text(&mut self, longest: usize) -> String {
        let length = self.below(longest + 1);
        (0..length)
            .map(|_| char::from(b'a' + u8::try_from(self.below(26)).unwrap()))
            .collect()
    }

    pub(crate) fn bytes(&mut self, longest: usize) -> Vec<u8> {
        let length = self.below(longest + 1);
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    pub(crate) fn many<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| make(self)).collect()
    }
}

fn any_value(random: &mut Random, depth: usize) -> AnyValue {
    let value = match random.below(if depth == 0 { 6 } else { 8 }) {
        0 => None,
        1 => Some(Value::StringValue(random.text(300))),
        2 => Some(Value::BoolValue(random.below(2) == 0)),
        3 => Some(Value::IntValue(random.next().cast_signed())),
        4 => Some(Value::DoubleValue(f64::from_bits(random.next()))),
        5 => Some(Value::BytesValue(random.bytes(20))),
        6 => Some(Value::ArrayValue(ArrayValue {
            values: random.many(3, |random| any_value(random, depth - 1)),
        })),
        _ => Some(Value::KvlistValue(KeyValueList {
            values: random.many(3, |random| key_value(random, depth - 1)),
        })),
    };
    AnyValue { value }
}

pub(crate) fn key_value(random: &mut Random, depth: usize) -> KeyValue {
    KeyValue {
        key: random.text(12),
        value: (random.below(8) > 0).then(|| any_value(random, depth)),
        key_strindex: 0,
    }
}

pub(crate) fn log_record(random: &mut Random) -> LogRecord {
    LogRecord {
        time_unix_nano: random.next(),
        observed_time_unix_nano: random.next(),
        severity_number: i32::try_from(random.below(25)).unwrap() - 1,
        severity_text: random.text(5),
        body: Some(any_value(random, 3)),
        attributes: random.many(6, |random| key_value(random, 2)),
        dropped_attributes_count: u32::try_from(random.below(1000)).unwrap(),
        flags: u32::try_from(random.below(2)).unwrap(),
        trace_id: random.bytes(16),
        span_id: random.bytes(8),
        event_name: random.text(3),
    }
}

/// A length-delimited field.
pub(crate) fn field(number: u64, content: &[u8], out: &mut Vec<u8>) {
    encode_varint(number << 3 | 2, out);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// Fields that no version of the protocol knows, of every wire type, groups in groups too.
pub(crate) fn unknown_fields(random: &mut Random, out: &mut Vec<u8>) {
    for _ in 0..random.below(3) {
        let number = 16 + random.next() % ((1 << 29) - 16);
        match random.below(5) {
            0 => {
                encode_varint(number << 3, out);
                encode_varint(random.next() >> random.below(64), out);
            }
            1 => {
                encode_varint(number << 3 | 1, out);
                out.extend_from_slice(&random.next().to_le_bytes());
            }
            2 => field(number, &random.bytes(200), out),
            3 => {
                encode_varint(number << 3 | 5, out);
                out.extend_from_slice(&random.next().to_le_bytes()[..4]);
            }
            _ => {
                encode_varint(number << 3 | 3, out);
                unknown_fields(random, out);
                encode_varint(number << 3 | 4, out);
            }
        }
    }
}

/// A valid request with unknown fields strewn in at every level that the skim walks.
pub(crate) fn request(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.below(4) {
        let mut logs = Vec::new();
        for _ in 0..random.below(4) {
            let mut scope = Vec::new();
            for _ in 0..random.below(6) {
                let mut record = log_record(random).encode_to_vec();
                unknown_fields(random, &mut record);
                field(2, &record, &mut scope);
                unknown_fields(random, &mut scope);
            }
            let header = ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: random.text(200),
                    ..InstrumentationScope::default()
                }),
                schema_url: random.text(5),
                ..ScopeLogs::default()
            };
            scope.extend(header.encode_to_vec());
            field(2, &scope, &mut logs);
        }
        unknown_fields(random, &mut logs);
        let header = ResourceLogs {
            resource: Some(Resource {
                attributes: random.many(3, |random| key_value(random, 1)),
                ..Resource::default()
            }),
            ..ResourceLogs::default()
        };
        logs.extend(header.encode_to_vec());
        unknown_fields(random, &mut out);
        field(1, &logs, &mut out);
    }
    unknown_fields(random, &mut out);
    out
}

/// Cuts at random places; parts may be empty.
pub(crate) fn split<'a>(random: &mut Random, bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let mut cuts = random.many(12, |random| random.below(bytes.len() + 1));
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect()
}

/// Breaks a request: cut short, bytes overwritten, removed or put in.
pub(crate) fn break_somewhere(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next().to_le_bytes()[0],
            3 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
            _ => drop(bytes.splice(at..at, random.bytes(12))),
        }
    }
}

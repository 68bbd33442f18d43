//! Requests that are encoded before the clock runs.

use bytes::{BufMut, Bytes, BytesMut};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use prost::Message;

/// Encoded length of each record, its own tag and length not counted.
pub(crate) const RECORD_BYTES: usize = 584;
/// Different requests, sent in turn: enough that no two neighbours are equal.
const REQUESTS: u64 = 16;

/// Ready requests, each an `ExportLogsServiceRequest`.
#[derive(Debug)]
pub(crate) struct Corpus {
    messages: Vec<Bytes>,
}

impl Corpus {
    pub(crate) fn new(records: u64) -> Self {
        let messages = (0..REQUESTS)
            .map(|request| request_of(request, records).encode_to_vec().into())
            .collect();
        Self { messages }
    }

    /// The messages.
    pub(crate) fn messages(&self) -> &[Bytes] {
        &self.messages
    }

    /// The messages as the bodies of gRPC requests: compressed flag, length, message.
    pub(crate) fn framed_for_grpc(&self) -> Vec<Bytes> {
        let frame = |message: &Bytes| {
            let mut framed = BytesMut::with_capacity(message.len() + 5);
            framed.put_u8(0);
            framed.put_u32(u32::try_from(message.len()).expect("a request is below 4 GiB"));
            framed.put_slice(message);
            framed.freeze()
        };
        self.messages.iter().map(frame).collect()
    }
}

fn request_of(request: u64, records: u64) -> ExportLogsServiceRequest {
    let log_records = (0..records)
        .map(|record| record_of(request * records + record))
        .collect();
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource {
                attributes: vec![
                    text("service.name", "checkout"),
                    text("service.version", "2.14.3"),
                    text("host.name", "node-17.eu-central.example"),
                    text("deployment.environment.name", "production"),
                ],
                ..Resource::default()
            }),
            scope_logs: vec![ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: "com.example.checkout.OrderController".to_owned(),
                    version: "2.14.3".to_owned(),
                    ..InstrumentationScope::default()
                }),
                log_records,
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
}

/// A web service's line: ten attributes, trace and span, and a body that fills what is left.
fn record_of(number: u64) -> LogRecord {
    let mixed = mix(number);
    let mut record = LogRecord {
        time_unix_nano: 1_700_000_000_000_000_000 + number,
        observed_time_unix_nano: 1_700_000_000_000_500_000 + number,
        severity_number: 9,
        severity_text: "INFO".to_owned(),
        attributes: vec![
            text("http.request.method", "POST"),
            text("url.path", &format!("/api/v2/orders/{number:08x}/items")),
            integer("http.response.status_code", 201),
            text(
                "client.address",
                &format!("10.{}.{}.7", mixed % 250, number % 250),
            ),
            text("user_agent.original", "okhttp/4.12.0 (Android 14; Pixel 8)"),
            text("enduser.id", &format!("{:016x}", mix(mixed))),
            text("code.function.name", "OrderController.addItem"),
            integer("thread.id", 41),
            text("session.id", &format!("{mixed:016x}")),
            integer("duration_us", 1_000 + (mixed % 15_000).cast_signed()),
        ],
        trace_id: [mixed.to_be_bytes(), mix(mixed).to_be_bytes()].concat(),
        span_id: mix(mixed ^ 7).to_be_bytes().to_vec(),
        ..LogRecord::default()
    };
    let mut body = format!("order {number} accepted:");
    let mut chosen = mixed;
    loop {
        record.body = Some(AnyValue {
            value: Some(Value::StringValue(body.clone())),
        });
        let missing = RECORD_BYTES.saturating_sub(record.encoded_len());
        if missing == 0 {
            return record;
        }
        chosen = mix(chosen);
        // Near the end byte by byte, since lengths of lengths grow too.
        if missing > 32 {
            body.push(' ');
            body.push_str(word(chosen));
        } else {
            body.push(char::from(b'a' + u8::try_from(chosen % 26).unwrap_or(0)));
        }
    }
}

/// What log lines are made of; frequent words come more often.
const WORDS: [&str; 64] = [
    "the",
    "to",
    "for",
    "request",
    "from",
    "with",
    "user",
    "item",
    "in",
    "order",
    "failed",
    "connection",
    "timeout",
    "after",
    "retry",
    "payment",
    "service",
    "response",
    "status",
    "cache",
    "miss",
    "hit",
    "queue",
    "worker",
    "started",
    "finished",
    "session",
    "token",
    "expired",
    "database",
    "query",
    "rows",
    "transaction",
    "committed",
    "rolled",
    "back",
    "inventory",
    "reserved",
    "shipment",
    "warehouse",
    "address",
    "validated",
    "customer",
    "discount",
    "applied",
    "currency",
    "converted",
    "invoice",
    "generated",
    "email",
    "queued",
    "notification",
    "delivered",
    "webhook",
    "signature",
    "mismatch",
    "upstream",
    "gateway",
    "circuit",
    "opened",
    "closed",
    "half",
    "backpressure",
    "checkpoint",
];

/// A word of [`WORDS`]: the square of an even draw favours those in front.
fn word(random: u64) -> &'static str {
    let even = random % 4096;
    WORDS[usize::try_from(even * even / 4096 * 64 / 4096).unwrap_or(0)]
}

/// A number that looks random, always the same for the same `number` (splitmix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn integer(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_as_long_as_promised_and_no_two_requests_are_equal() {
        let corpus = Corpus::new(50);
        for message in &corpus.messages {
            let request = ExportLogsServiceRequest::decode(message.clone()).unwrap();
            let records = &request.resource_logs[0].scope_logs[0].log_records;
            assert_eq!(records.len(), 50);
            for record in records {
                assert_eq!(record.encoded_len(), RECORD_BYTES);
                assert_eq!(record.attributes.len(), 10);
            }
        }
        let mut messages = corpus.messages.clone();
        messages.sort();
        messages.dedup();
        assert_eq!(messages.len() as u64, REQUESTS);
    }

    #[test]
    fn a_grpc_body_is_prefixed_with_its_length() {
        let corpus = Corpus::new(2);
        for (framed, message) in corpus.framed_for_grpc().iter().zip(&corpus.messages) {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            assert_eq!(framed[..5], [&[0], &length[..]].concat());
            assert_eq!(framed[5..], message[..]);
        }
    }
}

//! Numbered `ExportLogsServiceRequest` messages from a seed.

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use prost::Message;

/// Deterministic pseudo-random numbers (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Any seed will do.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// `length` bytes of text that LZ4 can shrink only a little.
    pub(crate) fn text(&mut self, length: usize) -> String {
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            text.push_str(&format!("{:016x}", self.next()));
        }
        text.truncate(length);
        text
    }
}

/// How large messages are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Log records of one request.
    pub(crate) records: u64,
    /// Bytes of each record's body, about.
    pub(crate) body_bytes: usize,
}

/// Makes messages of which no two are equal, with a number in each record's body and attributes.
#[derive(Debug)]
pub(crate) struct Messages {
    seed: u64,
    next: u64,
    rng: Rng,
    shape: Shape,
}

impl Messages {
    /// Messages with one seed are the same in each run; different seeds never make the same message.
    pub(crate) fn new(seed: u64, shape: Shape) -> Self {
        Self {
            seed,
            next: 0,
            rng: Rng::new(seed),
            shape,
        }
    }

    /// The next message's bytes.
    pub(crate) fn message(&mut self) -> Bytes {
        let request = self.next;
        self.next += 1;
        // Up to three field-1 entries, so that the oracle sees whether a message stays in one piece.
        let entries = 1 + self.rng.below(3).min(self.shape.records.saturating_sub(1));
        let mut resource_logs: Vec<_> = (0..entries)
            .map(|entry| resource_logs(self.seed, request, entry))
            .collect();
        for record in 0..self.shape.records {
            let entry = usize::try_from(record % entries).expect("at most three");
            let record = self.record(request, record);
            resource_logs[entry].scope_logs[0].log_records.push(record);
        }
        ExportLogsServiceRequest { resource_logs }
            .encode_to_vec()
            .into()
    }

    /// The next `count` messages.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Bytes> {
        (0..count).map(|_| self.message()).collect()
    }

    fn record(&mut self, request: u64, record: u64) -> LogRecord {
        let id = format!("{}-{request}-{record}", self.seed);
        let filler = self.rng.text(self.shape.body_bytes);
        LogRecord {
            time_unix_nano: 1_700_000_000_000_000_000 + request,
            observed_time_unix_nano: 1_700_000_000_000_000_001 + request,
            severity_number: 9,
            severity_text: "INFO".to_owned(),
            body: Some(text(format!("record {id}: {filler}"))),
            attributes: vec![attribute("record.id", id)],
            trace_id: self.rng.next().to_be_bytes().repeat(2),
            span_id: self.rng.next().to_be_bytes().to_vec(),
            ..LogRecord::default()
        }
    }
}

fn resource_logs(seed: u64, request: u64, entry: u64) -> ResourceLogs {
    ResourceLogs {
        resource: Some(Resource {
            attributes: vec![
                attribute("service.name", "producer".to_owned()),
                attribute("entry.id", format!("{seed}-{request}-{entry}")),
            ],
            ..Resource::default()
        }),
        scope_logs: vec![ScopeLogs {
            scope: Some(InstrumentationScope {
                name: "gophership-tests".to_owned(),
                ..InstrumentationScope::default()
            }),
            ..ScopeLogs::default()
        }],
        ..ResourceLogs::default()
    }
}

fn attribute(key: &str, value: String) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(text(value)),
        ..KeyValue::default()
    }
}

fn text(value: String) -> AnyValue {
    AnyValue {
        value: Some(Value::StringValue(value)),
    }
}

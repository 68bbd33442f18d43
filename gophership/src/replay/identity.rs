//! Who a record is: what a destination needs to tell that it has a record already.
//!
//! `gophership.record.id` is `HOST-LANE-SEGMENT-ENTRY-RECORD`: the machine's id in the vault, the lane, the segment's
//! number in hexadecimal, the entry's in the segment and the record's in the entry. It is the same however often the
//! entry is sent, by whichever run of the daemon. Only what comes out of the vault has one.

use std::fmt::Write as _;

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use prost::encoding::message;

use crate::{otel::append_to_records, vault::Entry};

/// The attribute.
const KEY: &str = "gophership.record.id";
/// `attributes` of a `LogRecord`.
const ATTRIBUTES: u32 = 6;
/// Bytes of an attribute at most: key, host, numbers, and what is around them.
const ATTRIBUTE_BYTES_MAX: usize = 128;

/// Gives records their ids.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    host: String,
}

impl Identity {
    /// On the machine of this id.
    pub(super) fn new(host: [u8; 16]) -> Self {
        let mut text = String::with_capacity(32);
        for byte in host {
            // Writing to a string doesn't fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self { host: text }
    }

    /// The entry's request, with its records' ids; without them if they might make it larger than `bytes_max`.
    pub(super) fn add(&self, entry: &Entry, request: Vec<u8>, bytes_max: usize) -> Vec<u8> {
        let ids_bytes = entry.records as usize * ATTRIBUTE_BYTES_MAX;
        if request.len().saturating_add(ids_bytes) > bytes_max {
            tracing::warn!(entry = ?entry.id, records = entry.records, "replay: sent without record ids, which would be too large");
            return request;
        }
        let id = entry.id;
        let of_entry = format!("{}-{}-{:x}-{}", self.host, id.lane, id.segment, id.index);
        let mut record = 0_u32;
        let with_ids = append_to_records(&request, |out| {
            let value = Value::StringValue(format!("{of_entry}-{record}"));
            let attribute = KeyValue {
                key: KEY.to_owned(),
                value: Some(AnyValue { value: Some(value) }),
                ..KeyValue::default()
            };
            message::encode(ATTRIBUTES, &attribute, out);
            record += 1;
        });
        with_ids.unwrap_or(request)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        collector::logs::v1::ExportLogsServiceRequest,
        logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
        resource::v1::Resource,
    };
    use prost::Message;

    use super::*;
    use crate::vault::{ContentEncoding, EntryId, Kind};

    fn entry(records: u32) -> Entry {
        Entry {
            id: EntryId {
                lane: 3,
                segment: 0x1a,
                index: 7,
            },
            kind: Kind::OtlpLogs,
            encoding: ContentEncoding::Identity,
            owed: 1,
            arrival_unix_ns: 0,
            records,
            bytes: Vec::new(),
        }
    }

    fn request() -> ExportLogsServiceRequest {
        let record = |name: &str| LogRecord {
            severity_text: name.to_owned(),
            ..LogRecord::default()
        };
        let scope = |names: &[&str]| ScopeLogs {
            log_records: names.iter().map(|name| record(name)).collect(),
            schema_url: "x".repeat(200),
            ..ScopeLogs::default()
        };
        let logs = |scopes: Vec<ScopeLogs>| ResourceLogs {
            resource: Some(Resource::default()),
            scope_logs: scopes,
            ..ResourceLogs::default()
        };
        ExportLogsServiceRequest {
            resource_logs: vec![
                logs(vec![scope(&["a", "b"]), scope(&[]), scope(&["c"])]),
                logs(vec![]),
                logs(vec![scope(&["d"])]),
            ],
        }
    }

    #[test]
    fn each_record_gets_an_id_and_nothing_else_changes() {
        // Fields that nobody knows, in front of and behind those that are known: a varint and a group.
        let unknown = [0x80, 0x7d, 0x05, 0x83, 0x7d, 0x08, 0x01, 0x84, 0x7d];
        let sent = [&unknown[..], &request().encode_to_vec(), &unknown].concat();
        let host = [0xab; 16];
        let got = Identity::new(host).add(&entry(4), sent, usize::MAX);
        assert!(got.starts_with(&unknown) && got.ends_with(&unknown));
        let mut got = ExportLogsServiceRequest::decode(&got[..]).unwrap();
        let scopes = got
            .resource_logs
            .iter_mut()
            .flat_map(|logs| &mut logs.scope_logs);
        let mut ids = Vec::new();
        for record in scopes.flat_map(|scope| &mut scope.log_records) {
            let attribute = record.attributes.pop().unwrap();
            assert_eq!(attribute.key, KEY);
            let Some(Value::StringValue(id)) = attribute.value.unwrap().value else {
                panic!("not a text");
            };
            ids.push(id);
        }
        let of = |record: u32| format!("{}-3-1a-7-{record}", "ab".repeat(16));
        assert_eq!(ids, [of(0), of(1), of(2), of(3)]);
        assert_eq!(got, request());
    }

    #[test]
    fn what_would_be_too_large_or_is_no_request_stays_as_it_is() {
        let sent = request().encode_to_vec();
        let identity = Identity::new([0xff; 16]);
        let room = sent.len() + 4 * ATTRIBUTE_BYTES_MAX;
        assert_eq!(identity.add(&entry(4), sent.clone(), room - 1), sent);
        let grown = identity.add(&entry(4), sent.clone(), room);
        assert!(sent.len() < grown.len() && grown.len() <= room);
        for end in 1..sent.len() {
            let cut = sent[..end].to_vec();
            // Must not panic; where a field ends it is a request again.
            identity.add(&entry(4), cut, usize::MAX);
        }
        let broken = vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(identity.add(&entry(4), broken.clone(), usize::MAX), broken);
    }
}

//! Entries of the vault put together into batches.

use super::identity::Identity;
use crate::{
    decompress::decompress,
    export::Batch,
    otel::{Enrichment, json},
    vault::{Entry, EntryId, Kind},
};

/// Entries in one batch.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) entries: Vec<Entry>,
    plain: Vec<u8>,
    records: u64,
}

/// An entry that can't be decompressed or read as JSON: the vault gave back what the producer sent, and that was
/// checked before it was acknowledged.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) entry: Entry,
    pub(super) reason: String,
}

impl Group {
    /// A group of one entry, of at most `limit` bytes, enriched, and with its records' ids if they get any.
    pub(super) fn of(
        entry: Entry,
        limit: usize,
        enrichment: &Enrichment,
        identity: Option<&Identity>,
    ) -> Result<Self, Unreadable> {
        let plain = match plain(&entry, limit) {
            Ok(plain) => {
                let enriched = enriched(plain, &entry, limit, enrichment);
                match identity {
                    // Enriched, it may be twice as large already.
                    Some(identity) => identity.add(&entry, enriched, limit.saturating_mul(2)),
                    None => enriched,
                }
            }
            Err(reason) => return Err(Unreadable { entry, reason }),
        };
        Ok(Self {
            records: u64::from(entry.records),
            plain,
            entries: vec![entry],
        })
    }

    /// Takes the entries of `other` in, if they fit.
    pub(super) fn join(&mut self, other: Self, bytes_max: usize) -> Option<Self> {
        if self.plain.len() + other.plain.len() > bytes_max {
            return Some(other);
        }
        self.plain.extend_from_slice(&other.plain);
        self.records += other.records;
        self.entries.extend(other.entries);
        None
    }

    /// Of its entries, in their order.
    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = EntryId> {
        self.entries.iter().map(|entry| entry.id)
    }

    pub(super) fn stored_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes.len()).sum()
    }

    /// Memory that it takes until its batch is taken, and until that is gone.
    pub(super) fn held_bytes(&self) -> usize {
        self.stored_bytes() + self.plain.len()
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// The batch, taken out of the group.
    pub(super) fn take_batch(&mut self) -> Batch {
        Batch {
            bytes: std::mem::take(&mut self.plain).into(),
            records: self.records,
        }
    }
}

/// The entry's request as a destination takes it: plain protobuf.
fn plain(entry: &Entry, limit: usize) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    decompress(entry.encoding, &entry.bytes[..], limit, &mut plain)
        .map_err(|error| error.to_string())?;
    match entry.kind {
        Kind::OtlpLogs => Ok(plain),
        Kind::OtlpLogsJson => {
            let mut protobuf = Vec::new();
            json::to_protobuf(&plain, &mut protobuf).map_err(|error| error.to_string())?;
            Ok(protobuf)
        }
    }
}

/// The request with what it lacks; as it is if that makes it more than twice as large as any request may be.
fn enriched(plain: Vec<u8>, entry: &Entry, limit: usize, enrichment: &Enrichment) -> Vec<u8> {
    let parts = [&plain];
    let splice = enrichment.splice(&parts);
    if splice.is_complete() {
        return plain;
    }
    let bytes = splice.enriched_bytes();
    if bytes > limit.saturating_mul(2) {
        tracing::warn!(entry = ?entry.id, bytes, "replay: not enriched, it would be too large");
        return plain;
    }
    let mut enriched = Vec::with_capacity(bytes);
    splice.write(entry.arrival_unix_ns, |bytes| {
        enriched.extend_from_slice(bytes);
    });
    enriched
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        collector::logs::v1::ExportLogsServiceRequest, common::v1::KeyValue,
    };
    use prost::Message as _;

    use super::*;
    use crate::vault::ContentEncoding;

    fn group(kind: Kind, encoding: ContentEncoding, bytes: &[u8]) -> Result<Vec<u8>, String> {
        enriched_group(kind, encoding, bytes, &Enrichment::default())
    }

    fn enriched_group(
        kind: Kind,
        encoding: ContentEncoding,
        bytes: &[u8],
        enrichment: &Enrichment,
    ) -> Result<Vec<u8>, String> {
        match Group::of(entry(kind, encoding, bytes), 1000, enrichment, None) {
            Ok(mut group) => Ok(group.take_batch().bytes.to_vec()),
            Err(unreadable) => Err(unreadable.reason),
        }
    }

    fn entry(kind: Kind, encoding: ContentEncoding, bytes: &[u8]) -> Entry {
        Entry {
            id: EntryId {
                lane: 0,
                segment: 1,
                index: 0,
            },
            kind,
            encoding,
            owed: 1,
            arrival_unix_ns: 7,
            records: 1,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn entries_become_plain_protobuf_whatever_they_are() {
        let protobuf = b"\x0a\x03\x1a\x01s";
        let json = br#"{"resourceLogs":[{"schemaUrl":"s"}]}"#;
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        for (kind, encoding, bytes) in [
            (Kind::OtlpLogs, ContentEncoding::Identity, protobuf.to_vec()),
            (Kind::OtlpLogs, ContentEncoding::Zstd, zstd(protobuf)),
            (Kind::OtlpLogsJson, ContentEncoding::Identity, json.to_vec()),
            (Kind::OtlpLogsJson, ContentEncoding::Zstd, zstd(json)),
        ] {
            let batch = group(kind, encoding, &bytes);
            assert_eq!(batch.as_deref(), Ok(&protobuf[..]), "{kind:?} {encoding:?}");
        }
    }

    #[test]
    fn entries_get_what_they_lack_unless_that_makes_them_much_too_large() {
        let enrichment = Enrichment::new(&[KeyValue {
            key: "k".repeat(50),
            ..KeyValue::default()
        }]);
        let enriched = |bytes: &[u8]| {
            let plain = ContentEncoding::Identity;
            enriched_group(Kind::OtlpLogs, plain, bytes, &enrichment).expect("it is read")
        };
        // Of one record without anything in it.
        let request = enriched(b"\x0a\x04\x12\x02\x12\x00");
        assert!(request.ends_with(b"\x12\x0b\x12\x09\x59\x07\0\0\0\0\0\0\0"));
        assert!(request.windows(50).any(|key| key == [b'k'; 50]));
        // Of resources without anything in them, which come to 58 bytes each.
        let few = [0x0a, 0].repeat(2000 / 58);
        assert!(enriched(&few).len() > 1900);
        let many = [0x0a, 0].repeat(2000 / 58 + 1);
        assert_eq!(enriched(&many), many);
    }

    #[test]
    fn records_get_ids_beside_what_they_lack() {
        let enrichment = Enrichment::new(&[KeyValue {
            key: "host.name".to_owned(),
            ..KeyValue::default()
        }]);
        let identity = Identity::new([0xab; 16]);
        let sent = entry(
            Kind::OtlpLogs,
            ContentEncoding::Identity,
            b"\x0a\x04\x12\x02\x12\x00",
        );
        let group = Group::of(sent, 1000, &enrichment, Some(&identity));
        let batch = group.expect("it is read").take_batch();
        let request = ExportLogsServiceRequest::decode(batch.bytes).expect("it decodes");
        let logs = &request.resource_logs[0];
        let resource = logs.resource.as_ref().expect("it got one");
        assert_eq!(resource.attributes[0].key, "host.name");
        let record = &logs.scope_logs[0].log_records[0];
        assert_eq!(record.observed_time_unix_nano, 7);
        assert_eq!(record.attributes[0].key, "gophership.record.id");
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        for (kind, encoding, bytes, reason) in [
            (Kind::OtlpLogs, ContentEncoding::Gzip, &b"no"[..], "gzip"),
            (Kind::OtlpLogs, ContentEncoding::Zstd, b"no", "zstd"),
            (
                Kind::OtlpLogs,
                ContentEncoding::Identity,
                &[0; 1001],
                "larger than 1000",
            ),
            (Kind::OtlpLogsJson, ContentEncoding::Identity, b"{", "EOF"),
        ] {
            let said = group(kind, encoding, bytes).unwrap_err();
            assert!(said.contains(reason), "{said}");
        }
    }
}

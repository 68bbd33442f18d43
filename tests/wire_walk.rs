//! The skim against `prost`, the decoder that everything downstream uses.

#[path = "common/arbitrary.rs"]
mod arbitrary;

use arbitrary::{Random, break_somewhere, field, request, split};
use gophership::otel::{Ahead, Skim, skim};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;

fn records(request: &ExportLogsServiceRequest) -> u32 {
    let scopes = request
        .resource_logs
        .iter()
        .flat_map(|logs| &logs.scope_logs);
    u32::try_from(scopes.map(|scope| scope.log_records.len()).sum::<usize>()).unwrap()
}

/// What is learnt of the parts while they come in, which must be what the judge says of the whole; `None` if that is
/// left to it.
fn ahead(parts: &[&[u8]]) -> Option<Skim> {
    let mut ahead = Ahead::default();
    parts.iter().for_each(|part| ahead.push(part));
    let learnt = ahead.finish();
    if let Some(learnt) = learnt {
        assert_eq!(skim(parts), Ok(learnt), "ahead of {parts:x?}");
    }
    learnt
}

#[test]
fn common_requests_are_known_when_they_are_here() {
    for seed in 0..400 {
        let mut random = Random(seed);
        // As encoders write them, without anything unknown.
        let request = ExportLogsServiceRequest::decode(request(&mut random).as_slice()).unwrap();
        let bytes = request.encode_to_vec();
        for parts in [vec![&*bytes], bytes.chunks(1).collect()] {
            assert!(ahead(&parts).is_some(), "seed {seed}");
        }
        for _ in 0..20 {
            let parts = split(&mut random, &bytes);
            assert!(ahead(&parts).is_some(), "seed {seed}");
            // Nothing is known of what ends too early.
            let mut short = parts.clone();
            while let Some(&last) = short.last()
                && last.is_empty()
            {
                short.pop();
            }
            if let Some(last) = short.last_mut() {
                *last = &last[..last.len() - 1];
                ahead(&short);
            }
        }
    }
}

#[test]
fn agrees_with_prost_on_valid_requests_however_they_are_split() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let bytes = request(&mut random);
        let decoded = ExportLogsServiceRequest::decode(bytes.as_slice()).unwrap();
        let expected = Ok(Skim {
            records: records(&decoded),
            bytes: bytes.len() as u64,
        });
        assert_eq!(skim(&[&bytes]), expected, "seed {seed}");
        assert_eq!(
            skim(&bytes.chunks(1).collect::<Vec<_>>()),
            expected,
            "seed {seed}, bytes"
        );
        for _ in 0..20 {
            let parts = split(&mut random, &bytes);
            ahead(&parts);
            assert_eq!(
                skim(&parts),
                expected,
                "seed {seed}, cut to {:?}",
                parts.iter().map(|part| part.len())
            );
        }
    }
}

#[test]
fn an_empty_request_is_valid() {
    let empty = Ok(Skim {
        records: 0,
        bytes: 0,
    });
    assert_eq!(skim::<&[u8]>(&[]), empty);
    assert_eq!(skim(&[b"", b""]), empty);
}

/// The path that the skim walks, as messages of their own: what is stepped over is bytes here, so `prost` refuses just
/// what is misframed.
mod path {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Request {
        #[prost(message, repeated, tag = "1")]
        pub(crate) resource_logs: Vec<ResourceLogs>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ResourceLogs {
        #[prost(bytes = "vec", tag = "1")]
        resource: Vec<u8>,
        #[prost(message, repeated, tag = "2")]
        pub(crate) scope_logs: Vec<ScopeLogs>,
        #[prost(bytes = "vec", tag = "3")]
        schema_url: Vec<u8>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ScopeLogs {
        #[prost(bytes = "vec", tag = "1")]
        scope: Vec<u8>,
        #[prost(message, repeated, tag = "2")]
        pub(crate) log_records: Vec<LogRecord>,
        #[prost(bytes = "vec", tag = "3")]
        schema_url: Vec<u8>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LogRecord {
        #[prost(fixed64, tag = "1")]
        time_unix_nano: u64,
        #[prost(int32, tag = "2")]
        severity_number: i32,
        #[prost(bytes = "vec", tag = "3")]
        severity_text: Vec<u8>,
        #[prost(bytes = "vec", tag = "5")]
        body: Vec<u8>,
        #[prost(bytes = "vec", repeated, tag = "6")]
        attributes: Vec<Vec<u8>>,
        #[prost(uint32, tag = "7")]
        dropped_attributes_count: u32,
        #[prost(fixed32, tag = "8")]
        flags: u32,
        #[prost(bytes = "vec", tag = "9")]
        trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "10")]
        span_id: Vec<u8>,
        #[prost(fixed64, tag = "11")]
        observed_time_unix_nano: u64,
        #[prost(bytes = "vec", tag = "12")]
        event_name: Vec<u8>,
    }
}

/// What `prost` makes of the walked path: the number of records, or a refusal.
fn prost_on_path(bytes: &[u8]) -> Option<u32> {
    let request = path::Request::decode(bytes).ok()?;
    let scopes = request
        .resource_logs
        .iter()
        .flat_map(|logs| &logs.scope_logs);
    Some(u32::try_from(scopes.map(|scope| scope.log_records.len()).sum::<usize>()).unwrap())
}

#[test]
fn agrees_with_prost_on_broken_requests() {
    let (mut refused, mut accepted, mut left_to_decoding) = (0, 0, 0);
    let mut known_ahead = 0;
    for seed in 0..30_000 {
        let mut random = Random(seed);
        let mut bytes = request(&mut random);
        break_somewhere(&mut random, &mut bytes);
        let parts = split(&mut random, &bytes);
        let skimmed = skim(&parts);
        known_ahead += u32::from(ahead(&parts).is_some());
        assert_eq!(
            skimmed,
            skim(&[&bytes]),
            "seed {seed}: the split changes the answer"
        );
        assert_eq!(
            skimmed.map(|skim| skim.records).ok(),
            prost_on_path(&bytes),
            "seed {seed}: {skimmed:?}"
        );
        let decoded = ExportLogsServiceRequest::decode(bytes.as_slice());
        match (skimmed, decoded) {
            (Ok(skim), Ok(decoded)) => {
                assert_eq!(skim.records, records(&decoded), "seed {seed}");
                accepted += 1;
            }
            (Ok(_), Err(_)) => left_to_decoding += 1,
            (Err(_), Err(_)) => refused += 1,
            (Err(malformed), Ok(_)) => panic!("seed {seed}: stricter than prost: {malformed}"),
        }
    }
    // All three must occur, or the test shows nothing.
    assert!(
        refused > 1000 && accepted > 1000 && left_to_decoding > 100,
        "{refused} {accepted} {left_to_decoding}"
    );
    assert!(known_ahead > 1000, "{known_ahead}");
}

#[test]
fn agrees_with_prost_on_noise() {
    for seed in 0..50_000 {
        let mut random = Random(seed);
        let mut bytes = random.bytes(24);
        if let [first, second, ..] = bytes.as_mut_slice() {
            (*first, *second) = (0x0a, u8::try_from(random.below(30)).unwrap());
        }
        let parts = split(&mut random, &bytes);
        ahead(&parts);
        assert_eq!(
            skim(&parts).map(|skim| skim.records).ok(),
            prost_on_path(&bytes),
            "seed {seed}: {bytes:x?}"
        );
    }
}

#[test]
fn groups_nest_as_deep_as_prost_follows() {
    for depth in 95..105 {
        for inside in [&b""[..], b"\x98\x06\x01"] {
            let mut bytes = [0xa3, 0x06].repeat(depth);
            bytes.extend_from_slice(inside);
            bytes.extend([0xa4, 0x06].repeat(depth));
            let mut nested = Vec::new();
            field(1, &bytes, &mut nested);
            for bytes in [bytes, nested] {
                assert_eq!(
                    skim(&[&bytes]).map(|skim| skim.records).ok(),
                    prost_on_path(&bytes),
                    "{depth} {inside:?}"
                );
            }
        }
    }
}

#[test]
fn refusals_name_the_field_and_the_fault() {
    let cases: &[(&[u8], &str)] = &[
        (b"\x0a", "at byte 0: it ends in the middle"),
        (b"\x0a\x05\x12\x00", "at byte 0: its length exceeds"),
        (b"\x0a\x02\x12\x01", "at byte 2: its length exceeds"),
        (b"\x00\x00", "at byte 0: field number 0"),
        (b"\x0f", "at byte 0: a wire type that doesn't exist"),
        (b"\x0c", "at byte 0: a known field with another wire type"),
        (b"\x84\x01", "at byte 0: the end of a group that isn't open"),
        (b"\x83\x01", "at byte 0: a group that doesn't end"),
        (
            b"\x80\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            "at byte 0: a varint exceeds 64 bits",
        ),
        (
            b"\xff\xff\xff\xff\x7f\x00",
            "at byte 0: its key exceeds 32 bits",
        ),
        (
            b"\x0a\x00\x08\x01",
            "at byte 2: a known field with another wire type",
        ),
    ];
    for (bytes, reason) in cases {
        let refusal = skim(&[bytes]).unwrap_err().to_string();
        assert!(refusal.contains(reason), "{bytes:x?}: {refusal}");
    }
}

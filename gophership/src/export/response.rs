//! What the answers of both protocols have in common.

use std::time::{Duration, Instant};

use http::{HeaderMap, header::RETRY_AFTER};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message as _;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::otlp::Target;

/// Bytes of a response's message that are kept; partial success takes a few hundred.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a server's text that go into a reason.
const TEXT_BYTES_MAX: usize = 512;

/// Records that an `ExportLogsServiceResponse` rejects. One that can't be read rejects none: the status says that the
/// server has the batch.
pub(super) fn rejected_records(message: &[u8], target: &Target) -> u64 {
    match ExportLogsServiceResponse::decode(message) {
        Ok(ExportLogsServiceResponse {
            partial_success: Some(partial),
        }) => rejected(partial.rejected_log_records, &partial.error_message, target),
        _ => 0,
    }
}

/// The same of one in JSON, whose 64-bit integers are strings or numbers.
pub(super) fn rejected_records_of_json(message: &[u8], target: &Target) -> u64 {
    let Ok(message) = serde_json::from_slice::<serde_json::Value>(message) else {
        return 0;
    };
    let partial = &message["partialSuccess"];
    let records = &partial["rejectedLogRecords"];
    let records = records
        .as_i64()
        .or_else(|| records.as_str()?.parse().ok())
        .unwrap_or(0);
    let said = partial["errorMessage"].as_str().unwrap_or_default();
    rejected(records, said, target)
}

fn rejected(records: i64, said: &str, target: &Target) -> u64 {
    let records = u64::try_from(records).unwrap_or(0);
    let endpoint = target.shown();
    if records > 0 {
        if let Some(left_out) = target.admit_a_line(Instant::now()) {
            tracing::warn!(
                endpoint,
                records,
                reason = shorten(said),
                left_out,
                "the destination rejected records for good"
            );
        }
    } else if !said.is_empty() {
        tracing::debug!(endpoint, warning = shorten(said), "the destination warns");
    }
    records
}

/// Whether a server means the size of a message, which no later try changes.
///
/// gRPC has no code of its own for that. What its implementations say: "received message larger than max (5 vs. 4)" (Go, C++,
/// Node), "gRPC message exceeds maximum size 4: 5" (Java), "exceeds the maximum configured message size" (.NET), "decoded
/// message length too large" (tonic).
pub(super) fn is_about_size(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    let is_said = |text: &&str| said.contains(*text);
    [
        "larger than max",
        "exceeds maximum size",
        "exceeds the maximum",
        "message length too large",
        "message too large",
        "request entity too large",
    ]
    .iter()
    .any(is_said)
}

/// `Retry-After`: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(value, &Rfc2822).ok()?;
    // A date that has passed is zero.
    Some(
        (date - OffsetDateTime::now_utc())
            .try_into()
            .unwrap_or_default(),
    )
}

/// A server's text, bounded.
pub(super) fn shorten(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_memory_is_no_matter_of_the_messages_size() {
        for said in [
            "grpc: received message larger than max (5000000 vs. 4194304)",
            "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes",
            "gRPC message exceeds maximum size 4194304: 5000000",
            "Received message exceeds the maximum configured message size.",
        ] {
            assert!(is_about_size(said), "{said}");
        }
        for said in [
            "",
            "data refused due to high memory usage",
            "quota exceeded",
        ] {
            assert!(!is_about_size(said), "{said}");
        }
    }

    fn after(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().expect("a header value"));
        retry_after(&headers)
    }

    #[test]
    fn a_delay_is_seconds_or_a_date() {
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let future = after("Fri, 01 Jan 2100 00:00:00 GMT").expect("a date");
        assert!(future > Duration::from_secs(3600), "{future:?}");
        for garbage in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(after(garbage), None, "{garbage}");
        }
    }
}

//! What the answers of both protocols have in common.

use std::time::Duration;

use http::{HeaderMap, header::RETRY_AFTER};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message as _;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

/// Bytes of a response's message that are kept; partial success takes a few hundred.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a server's text that go into a reason.
const TEXT_BYTES_MAX: usize = 512;

/// Records that an `ExportLogsServiceResponse` rejects. One that can't be read rejects none: the status says that the
/// server has the batch.
pub(super) fn rejected_records(message: &[u8], endpoint: &str) -> u64 {
    let Ok(ExportLogsServiceResponse {
        partial_success: Some(partial),
    }) = ExportLogsServiceResponse::decode(message)
    else {
        return 0;
    };
    let rejected = u64::try_from(partial.rejected_log_records).unwrap_or(0);
    if rejected > 0 {
        tracing::warn!(
            endpoint,
            records = rejected,
            reason = shorten(&partial.error_message),
            "the destination rejected records for good"
        );
    } else if !partial.error_message.is_empty() {
        tracing::debug!(
            endpoint,
            warning = shorten(&partial.error_message),
            "the destination warns"
        );
    }
    rejected
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

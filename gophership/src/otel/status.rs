//! `google.rpc.Status` with `RetryInfo`: how a gRPC server says when to come again (`grpc-status-details-bin`).
//!
//! Source: <https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto> and `error_details.proto`.

use std::time::Duration;

use prost::Message;

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The delay that a status' details ask for; `None` without `RetryInfo` or if they can't be read.
///
/// A `RetryInfo` without a delay, or with a negative one, means zero.
#[must_use]
pub fn retry_delay(details: &[u8]) -> Option<Duration> {
    let status = Status::decode(details).ok()?;
    let info = status.details.iter().find(|detail| {
        // Any prefix up to the last slash is allowed before the type's name.
        detail.type_url.rsplit('/').next() == Some("google.rpc.RetryInfo")
    })?;
    let delay = RetryInfo::decode(info.value.as_slice())
        .ok()?
        .retry_delay
        .unwrap_or_default();
    let seconds = u64::try_from(delay.seconds).unwrap_or(0);
    let nanos = u32::try_from(delay.nanos).unwrap_or(0).min(999_999_999);
    Some(Duration::new(seconds, nanos))
}

/// The message of a status; `None` if it has none, or can't be read.
#[must_use]
pub fn message(status: &[u8]) -> Option<String> {
    let status = Status::decode(status).ok()?;
    (!status.message.is_empty()).then_some(status.message)
}

/// A status without details.
#[must_use]
pub fn plain(code: i32, message: &str) -> Vec<u8> {
    Status {
        code,
        message: message.to_owned(),
        details: Vec::new(),
    }
    .encode_to_vec()
}

/// A status without details in the JSON of proto3, as OTLP/HTTP answers a request in JSON.
#[must_use]
pub fn plain_json(code: i32, message: &str) -> Vec<u8> {
    serde_json::json!({ "code": code, "message": message })
        .to_string()
        .into_bytes()
}

/// The details of a status that asks to come again after `delay`.
#[must_use]
pub fn with_retry_delay(code: i32, message: &str, delay: Duration) -> Vec<u8> {
    let info = RetryInfo {
        retry_delay: Some(prost_types::Duration {
            seconds: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            // Below 10^9, so it fits.
            nanos: delay.subsec_nanos().cast_signed(),
        }),
    };
    Status {
        code,
        message: message.to_owned(),
        details: vec![prost_types::Any {
            type_url: RETRY_INFO.to_owned(),
            value: info.encode_to_vec(),
        }],
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_come_back() {
        for delay in [
            Duration::ZERO,
            Duration::from_millis(1500),
            Duration::from_secs(86_400),
        ] {
            assert_eq!(
                retry_delay(&with_retry_delay(14, "busy", delay)),
                Some(delay)
            );
        }
    }

    #[test]
    fn garbage_and_other_details_ask_for_nothing() {
        assert_eq!(retry_delay(b"\xff\xff"), None);
        assert_eq!(retry_delay(b""), None);
    }
}

//! What a gRPC server's answer to an export means.
//!
//! Which codes are retryable: <https://opentelemetry.io/docs/specs/otlp/#failures>. How answers without a gRPC status
//! are read: <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
//!
//! The status is read here and not by tonic's client, which panics on a `grpc-status-details-bin` that isn't base64
//! (0.14.9, `Status::from_header_map`): a destination must not be able to stop the daemon.

use std::time::Duration;

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::{Buf, Bytes};
use http::{HeaderMap, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tonic::Code;

use super::{
    Outcome,
    otlp::Target,
    response::{self, MESSAGE_BYTES_MAX, is_about_size, retry_after, shorten},
};
use crate::otel::status;

/// gRPC sends binary headers in base64 with or without padding.
const HEADER_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One whole answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    http: StatusCode,
    /// `None`: the stream ended without one.
    status: Option<Status>,
    /// `Retry-After`, which proxies send with HTTP statuses.
    retry_after: Option<Duration>,
    /// The message with its gRPC prefix, cut off at `MESSAGE_BYTES_MAX`.
    message: Vec<u8>,
}

#[derive(Debug)]
struct Status {
    code: Code,
    message: String,
    retry_delay: Option<Duration>,
}

impl Status {
    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
        let message = headers
            .get("grpc-message")
            .map_or(&b""[..], |value| value.as_bytes());
        let retry_delay = headers
            .get("grpc-status-details-bin")
            .and_then(|value| HEADER_BASE64.decode(value.as_bytes()).ok())
            .and_then(|details| status::retry_delay(&details));
        Some(Self {
            code,
            message: shorten(&percent_encoding::percent_decode(message).decode_utf8_lossy()),
            retry_delay,
        })
    }
}

impl Answer {
    /// Reads a response to its end.
    ///
    /// # Errors
    /// Those of the body: the connection broke, so the outcome is unknown.
    pub(super) async fn read<B>(response: http::Response<B>) -> Result<Self, B::Error>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (head, mut body) = response.into_parts();
        let mut answer = Self {
            http: head.status,
            status: Status::from_headers(&head.headers),
            retry_after: retry_after(&head.headers),
            message: Vec::new(),
        };
        // Whatever a proxy has to say in its body isn't gRPC.
        if answer.status.is_some() || head.status != StatusCode::OK {
            return Ok(answer);
        }
        while let Some(frame) = body.frame().await.transpose()? {
            if let Some(trailers) = frame.trailers_ref() {
                answer.status = Status::from_headers(trailers);
            } else if let Ok(mut data) = frame.into_data() {
                data.truncate(MESSAGE_BYTES_MAX - answer.message.len());
                answer.message.extend_from_slice(&data);
            }
        }
        Ok(answer)
    }

    /// Decides what becomes of a batch of `records` that `target` was sent.
    pub(super) fn outcome(&self, target: &Target, records: u64) -> Outcome {
        let endpoint = target.shown();
        let Some(status) = &self.status else {
            return self.outcome_without_status(endpoint);
        };
        let reason = || format!("{endpoint}: {}: {}", code_name(status.code), status.message);
        match status.code {
            Code::Ok => Outcome::Accepted {
                rejected_records: self.rejected_records(target).min(records),
            },
            // The one case in which these mean the batch itself.
            Code::OutOfRange | Code::ResourceExhausted
                if status.retry_delay.is_none() && is_about_size(&status.message) =>
            {
                Outcome::Rejected { reason: reason() }
            }
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => Outcome::Retry {
                after: status.retry_delay,
                reason: reason(),
            },
            // These tell of the configuration or the load here or there, not of the batch: OTLP has the client drop it,
            // but what is owed must outlive an expired token, and a collector whose memory limiter refuses without
            // RetryInfo.
            Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::NotFound => Outcome::Retry {
                after: status.retry_delay,
                reason: reason(),
            },
            Code::Unknown
            | Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Internal => Outcome::Rejected { reason: reason() },
        }
    }

    /// The answer of something in between: a proxy or load balancer.
    fn outcome_without_status(&self, endpoint: &str) -> Outcome {
        match self.http {
            // The server's verdict was cut off; asking again can only duplicate.
            StatusCode::OK => Outcome::Retry {
                after: None,
                reason: format!("{endpoint}: the answer ended without a gRPC status"),
            },
            // The only two that can be the batch's fault.
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Outcome::Rejected {
                reason: format!("{endpoint}: HTTP {} instead of gRPC", self.http),
            },
            // A route, a token or a server that is missing for now must not make dead letters.
            other => Outcome::Retry {
                after: self.retry_after,
                reason: format!("{endpoint}: HTTP {other} instead of gRPC"),
            },
        }
    }

    /// Partial success. A message that can't be read rejects nothing: the status says that the server has the batch.
    fn rejected_records(&self, target: &Target) -> u64 {
        let mut message = self.message.as_slice();
        // Compressed (flag 1) it can't be: we offered no encoding.
        if message.len() < 5 || message.get_u8() != 0 {
            return 0;
        }
        let length = message.get_u32() as usize;
        message
            .get(..length)
            .map_or(0, |message| response::rejected_records(message, target))
    }
}

/// The code's name in the gRPC specification.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

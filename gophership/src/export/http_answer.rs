//! What an OTLP/HTTP server's answer to an export means.
//!
//! Which statuses are retryable: <https://opentelemetry.io/docs/specs/otlp/#failures-1>.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::BodyExt;

use super::{
    Outcome,
    response::{self, MESSAGE_BYTES_MAX, retry_after, shorten},
};
use crate::otel::status;

/// One answer, its body cut off at `MESSAGE_BYTES_MAX`.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    status: StatusCode,
    retry_after: Option<Duration>,
    /// Nothing if it isn't protobuf: a proxy's page says nothing that its status doesn't.
    message: Vec<u8>,
}

impl HttpAnswer {
    /// Reads a response, but not more of it than is kept.
    ///
    /// # Errors
    /// Those of the body: the connection broke, so the outcome is unknown.
    pub(super) async fn read<B>(response: http::Response<B>) -> Result<Self, B::Error>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (head, mut body) = response.into_parts();
        let mut answer = Self {
            status: head.status,
            retry_after: retry_after(&head.headers),
            message: Vec::new(),
        };
        if !is_protobuf(&head.headers) {
            return Ok(answer);
        }
        while let Some(frame) = body.frame().await.transpose()? {
            if let Ok(mut data) = frame.into_data() {
                data.truncate(MESSAGE_BYTES_MAX - answer.message.len());
                answer.message.extend_from_slice(&data);
            }
            if answer.message.len() == MESSAGE_BYTES_MAX {
                break;
            }
        }
        Ok(answer)
    }

    /// Decides what becomes of a batch of `records`; `endpoint` goes into reasons.
    pub(super) fn outcome(&self, endpoint: &str, records: u64) -> Outcome {
        let status = self.status;
        if status.is_success() {
            let rejected = response::rejected_records(&self.message, endpoint);
            return Outcome::Accepted {
                rejected_records: rejected.min(records),
            };
        }
        let reason = match status::message(&self.message) {
            Some(said) => format!("{endpoint}: HTTP {status}: {}", shorten(&said)),
            None => format!("{endpoint}: HTTP {status}"),
        };
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Outcome::Retry {
                after: self.retry_after,
                reason,
            },
            // As with gRPC, these tell of the configuration here or there, not of the batch: OTLP has the client drop
            // it, but what is owed must outlive an expired token or a route that is missing for now.
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED => Outcome::Retry {
                after: self.retry_after,
                reason,
            },
            // Nor is it the batch's fault that the server has moved.
            status if status.is_redirection() => Outcome::Retry {
                after: self.retry_after,
                reason: format!("{reason}: redirects aren't followed"),
            },
            _ => Outcome::Rejected { reason },
        }
    }
}

fn is_protobuf(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-protobuf"))
}

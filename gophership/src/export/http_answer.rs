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
    otlp::Target,
    response::{self, MESSAGE_BYTES_MAX, retry_after, shorten},
};
use crate::otel::status;

/// One answer, its body cut off at `MESSAGE_BYTES_MAX`.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    status: StatusCode,
    retry_after: Option<Duration>,
    kind: Kind,
    message: Vec<u8>,
}

/// What a body is, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Protobuf,
    /// Some receivers answer so, whatever they were sent.
    Json,
    /// A page of something in between, of which nothing is kept but that it is there.
    Page,
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
            kind: Kind::of(&head.headers),
            message: Vec::new(),
        };
        let most = match answer.kind {
            Kind::Protobuf | Kind::Json => MESSAGE_BYTES_MAX,
            Kind::Page => 1,
        };
        while let Some(frame) = body.frame().await.transpose()? {
            if let Ok(mut data) = frame.into_data() {
                data.truncate(most - answer.message.len());
                answer.message.extend_from_slice(&data);
            }
            if answer.message.len() == most {
                break;
            }
        }
        Ok(answer)
    }

    /// Decides what becomes of a batch of `records` that `target` was sent.
    pub(super) fn outcome(&self, target: &Target, records: u64) -> Outcome {
        let (status, endpoint) = (self.status, target.shown());
        if status.is_success() {
            let rejected = match self.kind {
                Kind::Protobuf => response::rejected_records(&self.message, target),
                Kind::Json => response::rejected_records_of_json(&self.message, target),
                Kind::Page if self.message.is_empty() => 0,
                // A login page, say: whoever sent it knows nothing of logs.
                Kind::Page => {
                    return Outcome::Retry {
                        after: self.retry_after,
                        reason: format!(
                            "{endpoint}: HTTP {status} with a page, not with OTLP's answer"
                        ),
                    };
                }
            };
            return Outcome::Accepted {
                rejected_records: rejected.min(records),
            };
        }
        let said = match self.kind {
            Kind::Protobuf => status::message(&self.message),
            // What a proxy has to say isn't repeated.
            Kind::Json | Kind::Page => None,
        };
        let reason = match said {
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
            // And that the request was long on its way (408) is said of the way.
            StatusCode::UNAUTHORIZED
            | StatusCode::REQUEST_TIMEOUT
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

impl Kind {
    fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
        let is = |known: &str| {
            let begin = kind.and_then(|kind| kind.get(..known.len()));
            begin.is_some_and(|begin| begin.eq_ignore_ascii_case(known.as_bytes()))
        };
        if is("application/x-protobuf") {
            Self::Protobuf
        } else if is("application/json") {
            Self::Json
        } else {
            Self::Page
        }
    }
}

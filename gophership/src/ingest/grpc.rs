//! gRPC over HTTP/2 as far as a raw unary endpoint needs it: paths, response bodies, statuses.
//!
//! Statuses follow OTLP 1.11: what may be retried is `UNAVAILABLE` with `RetryInfo`, what may not
//! is `INVALID_ARGUMENT` or `RESOURCE_EXHAUSTED` without it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tonic::{Code, Status};

use super::{connection::Context, export};
use crate::otel::status::with_retry_delay;

const LOGS_EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
/// An empty message, not compressed: an `ExportLogsServiceResponse` without `partial_success`.
const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; 5]);

/// Answers one HTTP/2 request.
pub(super) async fn respond(context: &Context, request: Request<Incoming>) -> Response<GrpcBody> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if !content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        let mut response = Response::new(GrpcBody::default());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let status = match (request.method(), request.uri().path()) {
        (&Method::POST, LOGS_EXPORT) => match export::export(context, request).await {
            Ok(()) => return success(),
            Err(status) => status,
        },
        (_, path) => Status::unimplemented(format!(
            "{path} is not served here; GopherShip takes logs: {LOGS_EXPORT}"
        )),
    };
    let mut response = status.into_http();
    response
        .headers_mut()
        .insert(ACCEPT_ENCODING, HeaderValue::from_static("identity,gzip"));
    response
}

const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

fn success() -> Response<GrpcBody> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let mut response = Response::new(GrpcBody {
        data: Some(EMPTY_MESSAGE),
        trailers: Some(trailers),
    });
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// A response: at most one message and the trailers.
#[derive(Debug, Default)]
pub(super) struct GrpcBody {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(
            data.or_else(|| self.trailers.take().map(Frame::trailers))
                .map(Ok),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }
}

/// `UNAVAILABLE` with a `google.rpc.RetryInfo` detail, as OTLP clients need it to try again.
pub(super) fn unavailable(reason: &str, retry_after: Duration) -> Status {
    let details = with_retry_delay(Code::Unavailable as i32, reason, retry_after);
    Status::with_details(Code::Unavailable, reason, details.into())
}

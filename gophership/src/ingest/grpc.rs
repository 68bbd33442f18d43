//! gRPC over HTTP/2 as far as a raw unary endpoint needs it: paths, response bodies, statuses.
//!
//! Statuses follow OTLP 1.11: what may be retried is `UNAVAILABLE` with `RetryInfo`, what may not
//! is `INVALID_ARGUMENT` or `RESOURCE_EXHAUSTED` without it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tonic::{Code, Status};

use super::{
    body::{Pace, next_frame},
    export::{Received, admit, export, needed},
    message::{Gather, Progress},
    refusal::Refusal,
    state::{Request as Begun, State},
};
use crate::{
    otel::status::with_retry_delay,
    telemetry::counters::Protocol,
    vault::{ContentEncoding, Kind},
};

const LOGS_EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("identity,gzip,zstd");
/// An empty message, not compressed: an `ExportLogsServiceResponse` without `partial_success`.
const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; 5]);

/// Answers one HTTP/2 request.
pub(super) async fn respond(begun: &Begun, request: Request<Incoming>) -> Response<GrpcBody> {
    let state = begun.state();
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if !content_type.is_some_and(is_served) {
        let mut response = Response::new(GrpcBody::default());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let status = match (request.method(), request.uri().path()) {
        (&Method::POST, LOGS_EXPORT) => {
            // The head ends here: headers aren't held while the body comes.
            let (codec, body) = (codec(request.headers()), request.into_body());
            let received = receive(state, codec, body).await;
            match export(state, Protocol::Grpc, begun.read_since(), received).await {
                Ok(()) => return success(),
                Err(refusal) => status(refusal),
            }
        }
        (_, path) => Status::unimplemented(format!(
            "{path} is not served here; GopherShip takes logs: {LOGS_EXPORT}"
        )),
    };
    let mut response = status.into_http();
    let headers = response.headers_mut();
    headers.insert(ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
    response
}

/// Whether messages of the type are protobuf in gRPC's frames; gRPC-Web's aren't.
fn is_served(content_type: &HeaderValue) -> bool {
    let mut parts = content_type.as_bytes().split(|byte| *byte == b';');
    let name = parts.next().unwrap_or_default().trim_ascii();
    let served: [&[u8]; 2] = [b"application/grpc", b"application/grpc+proto"];
    served
        .iter()
        .any(|served| name.eq_ignore_ascii_case(served))
}

fn success() -> Response<GrpcBody> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let mut response = Response::new(GrpcBody {
        data: Some(EMPTY_MESSAGE),
        trailers: Some(trailers),
    });
    // And the date, which hyper adds.
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    headers.insert(ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
    *response.headers_mut() = headers;
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

/// Reads the body: the length is reserved before any of it is kept.
async fn receive<'a>(
    state: &'a State,
    codec: Codec,
    mut body: Incoming,
) -> Result<Received<'a>, Refusal> {
    let malformed = |error: super::message::Error| Refusal::Malformed(error.to_string());
    let mut gather = Gather::default();
    let mut announced = None;
    let mut pace = Pace::unadmitted(&state.context.budget);
    while let Some(frame) = next_frame(&mut body, &mut pace).await? {
        let received = frame.len();
        let progress = gather.push(frame).map_err(malformed)?;
        if let Progress::Announced { compressed, len } = progress {
            let encoding = encoding(&codec, compressed)?;
            let bytes = needed(&state.context, Kind::OtlpLogs, encoding, len)?;
            let admitted = admit(state, bytes).await?;
            pace = Pace::admitted(&state.context.budget, bytes, received);
            announced = Some((len, encoding, admitted, state.finish()));
        }
    }
    let skimmed = gather.skimmed();
    let parts = gather.finish().map_err(malformed)?;
    // A whole message has announced its length.
    let (len, encoding, admitted, _) =
        announced.ok_or_else(|| Refusal::Malformed("the message has no prefix".to_owned()))?;
    Ok(Received {
        parts,
        len,
        kind: Kind::OtlpLogs,
        encoding,
        skimmed,
        admitted,
    })
}

/// What `grpc-encoding` names.
enum Codec {
    Identity,
    Gzip,
    Zstd,
    /// Something that isn't served.
    Other(String),
}

fn codec(headers: &HeaderMap) -> Codec {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Codec::Identity,
        Some(b"gzip") => Codec::Gzip,
        Some(b"zstd") => Codec::Zstd,
        Some(other) => Codec::Other(String::from_utf8_lossy(other).into_owned()),
    }
}

fn encoding(codec: &Codec, compressed: bool) -> Result<ContentEncoding, Refusal> {
    match (compressed, codec) {
        (false, _) => Ok(ContentEncoding::Identity),
        (true, Codec::Gzip) => Ok(ContentEncoding::Gzip),
        (true, Codec::Zstd) => Ok(ContentEncoding::Zstd),
        (true, Codec::Identity) => Err(Refusal::Malformed(
            "the compressed flag is set, but grpc-encoding names no codec".to_owned(),
        )),
        (true, Codec::Other(name)) => Err(Refusal::Unsupported(format!(
            "grpc-encoding {name:?} is not served; identity, gzip and zstd are"
        ))),
    }
}

/// A refusal in gRPC's words. OTLP clients need `RetryInfo` to try again.
fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Malformed(what) => Status::invalid_argument(what),
        Refusal::TooLarge(what) => Status::resource_exhausted(what),
        Refusal::Unsupported(what) => Status::unimplemented(what),
        Refusal::TooSlow(what) => Status::deadline_exceeded(what),
        Refusal::Gone(what) => Status::cancelled(what),
        Refusal::Busy {
            reason,
            retry_after,
        } => {
            let details = with_retry_delay(Code::Unavailable as i32, &reason, retry_after);
            Status::with_details(Code::Unavailable, reason, details.into())
        }
    }
}

//! OTLP/HTTP: `POST /v1/logs` with a protobuf message, over HTTP/1.1 or HTTP/2.
//!
//! Answers follow OTLP 1.11 (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>): the response has the request's
//! content type; errors have a `google.rpc.Status` as their body; what may be retried is 503 with `Retry-After`.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::Code;

use super::{
    body::{Deadline, next_frame},
    export::{Received, admit, export},
    message::Parts,
    refusal::Refusal,
    state::State,
};
use crate::{otel::status, telemetry::counters::Protocol, vault::ContentEncoding};

const LOGS: &str = "/v1/logs";
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("gzip");

/// Answers one request.
pub(super) async fn respond(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.uri.path() != LOGS {
        let what = format!(
            "{} is not served here; GopherShip takes logs: {LOGS}",
            head.uri.path()
        );
        return error(StatusCode::NOT_FOUND, Code::Unimplemented, &what);
    }
    if head.method != Method::POST {
        let what = format!("{} {LOGS} is not served here; POST is", head.method);
        let mut response = error(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, &what);
        let allowed = HeaderValue::from_static("POST");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    // The head ends here: headers aren't held while the body comes.
    let encoding = content_type(&head.headers).and_then(|()| encoding(&head.headers));
    drop(head);
    let received = match encoding {
        Ok(encoding) => receive(state, encoding, body).await,
        Err(refusal) => Err(refusal),
    };
    match export(&state.context, Protocol::Http, received).await {
        // An ExportLogsServiceResponse without `partial_success` has no bytes.
        Ok(()) => with_body(StatusCode::OK, Bytes::new()),
        Err(refusal) => refused(&refusal),
    }
}

/// Reads the body: its length is reserved before any of it is kept, or the most it may have, where it isn't said.
async fn receive<'a>(
    state: &'a State,
    encoding: ContentEncoding,
    mut body: Incoming,
) -> Result<Received<'a>, Refusal> {
    let limit = state.context.max_request_bytes;
    let announced = match body.size_hint().exact() {
        Some(exact) => usize::try_from(exact).map_err(|_| Refusal::too_large(exact, limit))?,
        None => limit,
    };
    let mut admitted = admit(&state.context, announced).await?;
    let _finishing = state.finish();
    let deadline = Deadline::of(announced);
    let (mut parts, mut len) = (Parts::default(), 0_usize);
    while let Some(frame) = next_frame(&mut body, &deadline).await? {
        len += frame.len();
        if len > announced {
            return Err(Refusal::too_large(format_args!("more than {limit}"), limit));
        }
        parts.push(frame);
    }
    drop(admitted.split(announced - len));
    Ok(Received {
        parts,
        len,
        encoding,
        admitted,
    })
}

fn content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let essence = given
        .and_then(|value| value.split(|&byte| byte == b';').next())
        .map(<[u8]>::trim_ascii);
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case(b"application/x-protobuf") => Ok(()),
        _ => {
            let given = given.map_or("none".into(), String::from_utf8_lossy);
            Err(Refusal::Unsupported(format!(
                "content type {given:?} is not served; application/x-protobuf is"
            )))
        }
    }
}

fn encoding(headers: &HeaderMap) -> Result<ContentEncoding, Refusal> {
    let given = headers.get(header::CONTENT_ENCODING);
    match given.map_or(&b"identity"[..], HeaderValue::as_bytes) {
        b"" | b"identity" => Ok(ContentEncoding::Identity),
        b"gzip" => Ok(ContentEncoding::Gzip),
        other => {
            let name = String::from_utf8_lossy(other);
            Err(Refusal::Unsupported(format!(
                "content encoding {name:?} is not served; identity and gzip are"
            )))
        }
    }
}

/// A refusal in HTTP's words.
fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    match refusal {
        Refusal::Malformed(what) => error(StatusCode::BAD_REQUEST, Code::InvalidArgument, what),
        Refusal::TooLarge(what) => {
            error(StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, what)
        }
        Refusal::Unsupported(what) => {
            let mut response = error(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::Unimplemented,
                what,
            );
            let headers = response.headers_mut();
            headers.insert(header::ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
            response
        }
        Refusal::TooSlow(what) | Refusal::Gone(what) => busy(what, 1),
        Refusal::Busy {
            reason,
            retry_after,
        } => {
            // Whole seconds, never earlier than asked.
            let seconds = retry_after.as_millis().div_ceil(1000);
            busy(reason, u64::try_from(seconds).unwrap_or(u64::MAX))
        }
    }
}

fn busy(reason: &str, retry_after_s: u64) -> Response<Full<Bytes>> {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, reason);
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
    response
}

fn error(http: StatusCode, grpc: Code, what: &str) -> Response<Full<Bytes>> {
    with_body(http, status::plain(grpc as i32, what).into())
}

fn with_body(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, PROTOBUF);
    response
}

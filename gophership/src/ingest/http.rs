//! OTLP/HTTP: `POST /v1/logs` with a message in protobuf or JSON, over HTTP/1.1 or HTTP/2.
//!
//! Answers follow OTLP 1.11 (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>): the response has the request's
//! content type; errors have a `google.rpc.Status` as their body; what may be retried is 503 with `Retry-After`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::Code;

use super::{
    body::{Pace, next_frame},
    export::{Received, admit, busy, export, needed},
    message::Joined,
    refusal::Refusal,
    state::{Request as Begun, State},
};
use crate::{
    otel::{Ahead, status},
    telemetry::counters::Protocol,
    vault::{ContentEncoding, Kind},
};

const LOGS: &str = "/v1/logs";
const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("gzip, zstd");

/// Bytes of a refused body that are read and dropped, and how long for. HTTP/1.1 clients that are still sending when
/// the connection is closed may never see the answer, and would send it all again.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

const NO_ROOM_FOR_MORE: &str =
    "the ingest budget has no room for more of a message whose length isn't known";

/// What a request is written in, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Protobuf,
    Json,
}

/// Answers one request.
pub(super) async fn respond(begun: &Begun, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let state = begun.state();
    let (head, mut body) = request.into_parts();
    let given = Format::of(&head.headers);
    // Whoever names no type that is served is told in the one that people can read.
    let format = given.unwrap_or(Format::Json);
    // Who expects to be told to go on hasn't sent anything, and isn't told.
    let is_sending = head.version < Version::HTTP_2 && !head.headers.contains_key(header::EXPECT);
    let response = if head.uri.path() != LOGS {
        let what = format!(
            "{} is not served here; GopherShip takes logs: {LOGS}",
            head.uri.path()
        );
        format.error(StatusCode::NOT_FOUND, Code::Unimplemented, &what)
    } else if head.method != Method::POST {
        let what = format!("{} {LOGS} is not served here; POST is", head.method);
        let mut response = format.error(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, &what);
        let allowed = HeaderValue::from_static("POST");
        response.headers_mut().insert(header::ALLOW, allowed);
        response
    } else {
        let what = what(&head.headers, given);
        // The head ends here: headers aren't held while the body comes.
        drop(head);
        let received = receive(state, what, &mut body).await;
        match export(state, Protocol::Http, begun.read_since(), received).await {
            Ok(()) => format.success(),
            Err(refusal) => format.refused(&refusal),
        }
    };
    if is_sending && !response.status().is_success() {
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, discard(state, &mut body)).await;
    }
    response
}

async fn discard(state: &State, body: &mut Incoming) {
    let mut pace = Pace::unadmitted(&state.context.budget);
    let mut discarded = 0;
    while let Ok(Some(frame)) = next_frame(body, &mut pace).await {
        discarded += frame.len();
        if discarded > DISCARD_BYTES_MAX {
            return;
        }
    }
}

/// What a request says that its body is.
fn what(headers: &HeaderMap, format: Option<Format>) -> Result<(Kind, ContentEncoding), Refusal> {
    let kind = match format.ok_or_else(|| unserved_type(headers))? {
        Format::Protobuf => Kind::OtlpLogs,
        Format::Json => Kind::OtlpLogsJson,
    };
    Ok((kind, encoding(headers)?))
}

/// Reads the body: what it needs is reserved before any of it is kept, by its length, or step by
/// step, where it isn't said.
async fn receive<'a>(
    state: &'a State,
    what: Result<(Kind, ContentEncoding), Refusal>,
    body: &mut Incoming,
) -> Result<Received<'a>, Refusal> {
    let (kind, encoding) = what?;
    let (needs, budget) = (&state.context.needs, &state.context.budget);
    let limit = needs.max_request_bytes();
    let check = |len| match needs.too_much(kind, encoding, len) {
        Some(needed) => Err(Refusal::needs_too_much(len, needed, needs.most_bytes())),
        None => Ok(()),
    };
    let needed = |len| needed(&state.context, kind, encoding, len);
    let announced = announced(body, limit)?;
    let at_first = match announced {
        Some(len) => {
            let bytes = needed(len)?;
            check(len)?;
            bytes
        }
        None => needs.first_step(),
    };
    let mut admitted = admit(state, at_first).await?;
    let _finishing = state.finish();
    let mut pace = Pace::admitted(budget, at_first, 0);
    let is_plain = (kind, encoding) == (Kind::OtlpLogs, ContentEncoding::Identity);
    let mut ahead = Ahead::default();
    let (mut joined, mut len) = (Joined::default(), 0_usize);
    while let Some(frame) = next_frame(body, &mut pace).await? {
        len += frame.len();
        if len > limit {
            return Err(Refusal::too_large(format_args!("more than {limit}"), limit));
        }
        if let Some(missing @ 1..) = len.checked_sub(admitted.bytes()) {
            // By doubling, if it may have as much.
            let step = missing.max(admitted.bytes().min(limit - admitted.bytes()));
            if !admitted.grow(step) {
                return Err(busy(budget, NO_ROOM_FOR_MORE));
            }
            pace.holds(admitted.bytes());
        }
        if is_plain {
            ahead.push(&frame);
        }
        joined.push(frame, Some(len) == announced);
    }
    check(len)?;
    let needed = needed(len)?;
    // It holds a part, so it must not wait for the rest.
    if let Some(missing @ 1..) = needed.checked_sub(admitted.bytes())
        && !admitted.grow(missing)
    {
        return Err(busy(budget, NO_ROOM_FOR_MORE));
    }
    admitted.shrink_to(needed);
    Ok(Received {
        parts: joined.finish(),
        len,
        kind,
        encoding,
        skimmed: is_plain.then(|| ahead.finish()).flatten(),
        admitted,
    })
}

/// The content length, if it is said.
fn announced(body: &Incoming, limit: usize) -> Result<Option<usize>, Refusal> {
    let exact = body.size_hint().exact();
    let len = |exact| usize::try_from(exact).map_err(|_| Refusal::too_large(exact, limit));
    exact.map(len).transpose()
}

fn unserved_type(headers: &HeaderMap) -> Refusal {
    let given = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let given = given.map_or("none".into(), String::from_utf8_lossy);
    Refusal::Unsupported(format!(
        "content type {given:?} is not served; application/x-protobuf and application/json are"
    ))
}

fn encoding(headers: &HeaderMap) -> Result<ContentEncoding, Refusal> {
    let given = headers.get(header::CONTENT_ENCODING);
    let given = given.map_or(&b"identity"[..], HeaderValue::as_bytes);
    match given.trim_ascii().to_ascii_lowercase().as_slice() {
        b"" | b"identity" => Ok(ContentEncoding::Identity),
        b"gzip" => Ok(ContentEncoding::Gzip),
        b"zstd" => Ok(ContentEncoding::Zstd),
        other => {
            let name = String::from_utf8_lossy(other);
            Err(Refusal::Unsupported(format!(
                "content encoding {name:?} is not served; identity, gzip and zstd are"
            )))
        }
    }
}

impl Format {
    /// Of a request; `None` if its content type is another. Parameters, such as a charset, change nothing: both are
    /// always in UTF-8.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let given = headers.get(header::CONTENT_TYPE)?.as_bytes();
        let essence = given.split(|&byte| byte == b';').next()?.trim_ascii();
        let is = |name: &[u8]| essence.eq_ignore_ascii_case(name);
        match () {
            () if is(b"application/x-protobuf") => Some(Self::Protobuf),
            () if is(b"application/json") => Some(Self::Json),
            () => None,
        }
    }

    /// An `ExportLogsServiceResponse` without `partial_success`.
    fn success(self) -> Response<Full<Bytes>> {
        let body = match self {
            Self::Protobuf => Bytes::new(),
            Self::Json => Bytes::from_static(b"{}"),
        };
        self.with_body(StatusCode::OK, body)
    }

    /// A refusal in HTTP's words.
    fn refused(self, refusal: &Refusal) -> Response<Full<Bytes>> {
        match refusal {
            Refusal::Malformed(what) => {
                self.error(StatusCode::BAD_REQUEST, Code::InvalidArgument, what)
            }
            Refusal::TooLarge(what) => {
                self.error(StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, what)
            }
            Refusal::Unsupported(what) => {
                let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                let mut response = self.error(status, Code::Unimplemented, what);
                let headers = response.headers_mut();
                headers.insert(header::ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
                response
            }
            Refusal::TooSlow(what) | Refusal::Gone(what) => self.busy(what, 1),
            Refusal::Busy {
                reason,
                retry_after,
            } => {
                // Whole seconds, never earlier than asked.
                let seconds = retry_after.as_millis().div_ceil(1000);
                self.busy(reason, u64::try_from(seconds).unwrap_or(u64::MAX))
            }
        }
    }

    fn busy(self, reason: &str, retry_after_s: u64) -> Response<Full<Bytes>> {
        let mut response = self.error(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, reason);
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        response
    }

    fn error(self, http: StatusCode, grpc: Code, what: &str) -> Response<Full<Bytes>> {
        let body = match self {
            Self::Protobuf => status::plain(grpc as i32, what),
            Self::Json => status::plain_json(grpc as i32, what),
        };
        self.with_body(http, body.into())
    }

    fn with_body(self, status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let content_type = HeaderValue::from_static(match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        });
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        response
    }
}

//! `LogsService/Export` as a raw service: frames in, one copy, an answer out; nothing is decoded.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::SemaphorePermit;
use tonic::{Code, Status};

use super::{
    connection::Context,
    grpc::unavailable,
    inflate,
    message::{Gather, Parts, Progress},
};
use crate::{
    otel::skim,
    somatic::{Answer, Placed, Request as Placeable},
    telemetry::counters::Fate,
    vault::ContentEncoding,
};

/// A producer that sends nothing of an announced message for this long loses its stream, since
/// it holds a part of the budget.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A whole message, and its share of the budget.
struct Received<'a> {
    parts: Parts,
    len: usize,
    encoding: ContentEncoding,
    _admitted: SemaphorePermit<'a>,
}

pub(super) async fn export(context: &Context, request: Request<Incoming>) -> Result<(), Status> {
    let (head, body) = request.into_parts();
    let received = match receive(context, &head.headers, body).await {
        Ok(received) => received,
        Err(status) => {
            if let Some(fate) = fate_of(&status) {
                context.counters.finished(fate, 0, 0, 0);
            }
            return Err(status);
        }
    };
    let arrived = Instant::now();
    if received.len == 0 {
        // OTLP: an empty request succeeds. There is nothing to deliver or to keep.
        context.counters.finished(Fate::Delivered, 0, 0, 0);
        return Ok(());
    }
    let bytes = received.len as u64;
    let (placed, placeable) = match place(context, &received) {
        Ok(placed) => placed,
        Err(status) => {
            context.counters.finished(Fate::Invalid, 0, bytes, 0);
            return Err(status);
        }
    };
    let answer = context
        .reflex
        .answer(placed, placeable, received.parts.as_slice())
        .await;
    let ack_us = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
    let fate = match answer {
        Answer::Delivered => Fate::Delivered,
        Answer::Vaulted => Fate::Vaulted,
        Answer::Refused { .. } => Fate::Refused,
    };
    context
        .counters
        .finished(fate, u64::from(placeable.records), bytes, ack_us);
    match answer {
        Answer::Delivered | Answer::Vaulted => Ok(()),
        Answer::Refused {
            retry_after,
            reason,
        } => Err(unavailable(&reason, retry_after)),
    }
}

/// What a request that never became whole counts as; `None` if nobody hears the answer.
fn fate_of(status: &Status) -> Option<Fate> {
    match status.code() {
        Code::Cancelled => None,
        Code::DeadlineExceeded | Code::Unavailable => Some(Fate::Refused),
        _ => Some(Fate::Invalid),
    }
}

/// Reads the body: the length is reserved before any of it is kept.
async fn receive<'a>(
    context: &'a Context,
    headers: &HeaderMap,
    mut body: Incoming,
) -> Result<Received<'a>, Status> {
    let mut gather = Gather::default();
    let mut admitted = None;
    while let Some(frame) = next_frame(&mut body).await? {
        let progress = gather
            .push(frame)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Progress::Announced { compressed, len } = progress {
            let encoding = encoding(headers, compressed)?;
            if len > context.max_request_bytes {
                return Err(too_large(len, context.max_request_bytes));
            }
            let permits =
                u32::try_from(len).map_err(|_| too_large(len, context.max_request_bytes))?;
            let permit = context.budget.acquire_many(permits).await;
            admitted = Some((
                permit
                    .map_err(|_| unavailable("the daemon is stopping", Duration::from_secs(1)))?,
                len,
                encoding,
            ));
        }
    }
    let parts = gather
        .finish()
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let (_admitted, len, encoding) =
        admitted.ok_or_else(|| Status::internal("a whole message has announced its length"))?;
    Ok(Received {
        parts,
        len,
        encoding,
        _admitted,
    })
}

async fn next_frame(body: &mut Incoming) -> Result<Option<bytes::Bytes>, Status> {
    loop {
        let frame = tokio::time::timeout(BODY_IDLE_TIMEOUT, body.frame())
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "nothing of the message came for {} s",
                    BODY_IDLE_TIMEOUT.as_secs()
                ))
            })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame =
            frame.map_err(|error| Status::cancelled(format!("the stream broke off: {error}")))?;
        // Anything but DATA (trailers of the request) says nothing here.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

fn encoding(headers: &HeaderMap, compressed: bool) -> Result<ContentEncoding, Status> {
    let name = headers
        .get("grpc-encoding")
        .map_or(&b"identity"[..], |value| value.as_bytes());
    match (compressed, name) {
        (false, _) => Ok(ContentEncoding::Identity),
        (true, b"gzip") => Ok(ContentEncoding::Gzip),
        (true, b"identity") => Err(Status::internal(
            "the compressed flag is set, but grpc-encoding names no codec",
        )),
        (true, other) => {
            let name = String::from_utf8_lossy(other);
            Err(Status::unimplemented(format!(
                "grpc-encoding {name:?} is not served; identity and gzip are"
            )))
        }
    }
}

fn too_large(len: usize, limit: usize) -> Status {
    Status::resource_exhausted(format!(
        "the message has {len} bytes, more than {limit} (ingest.max_request_bytes)"
    ))
}

/// Checks the wire shape, counts the records and lets the reflex decide: no `await` in here.
fn place(context: &Context, received: &Received<'_>) -> Result<(Placed, Placeable), Status> {
    let placeable = |records| Placeable {
        encoding: received.encoding,
        arrival_unix_ns: unix_ns(),
        records,
    };
    let malformed =
        |error| Status::invalid_argument(format!("not an ExportLogsServiceRequest: {error}"));
    match received.encoding {
        ContentEncoding::Identity => {
            let parts = received.parts.as_slice();
            let records = skim(parts).map_err(malformed)?.records;
            Ok((
                context.reflex.place(parts, received.len, records),
                placeable(records),
            ))
        }
        ContentEncoding::Gzip | ContentEncoding::Zstd => {
            let plain = context
                .inflater
                .gunzip(&received.parts, context.max_request_bytes)
                .map_err(|error| match error {
                    inflate::Error::Gzip(_) => Status::invalid_argument(error.to_string()),
                    inflate::Error::TooLarge { .. } => {
                        Status::resource_exhausted(error.to_string())
                    }
                })?;
            let plain = [plain.as_slice()];
            let records = skim(&plain).map_err(malformed)?.records;
            Ok((
                context.reflex.place(&plain, plain[0].len(), records),
                placeable(records),
            ))
        }
    }
}

fn unix_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

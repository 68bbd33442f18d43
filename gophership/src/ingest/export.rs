//! One whole message: its shape is checked, it is placed by the reflex, and answered. Plain protobuf is not decoded.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::SemaphorePermit;

use super::{connection::Context, message::Parts, refusal::Refusal, unpack};
use crate::{
    decompress,
    otel::{Skim, skim},
    somatic::{Answer, Placed, Request as Placeable},
    telemetry::counters::{Fate, Protocol},
    vault::{ContentEncoding, Kind},
};

/// A whole message, and its share of the budget.
pub(super) struct Received<'a> {
    pub(super) parts: Parts,
    pub(super) len: usize,
    pub(super) kind: Kind,
    pub(super) encoding: ContentEncoding,
    /// What was learnt of plain protobuf while it came in.
    pub(super) skimmed: Option<Skim>,
    pub(super) admitted: SemaphorePermit<'a>,
}

/// A request waits this long for its bytes of the budget. Bounded, because what it has sent already fills its
/// connection's window, which an admitted request of the same connection may need to become whole.
const ADMITTED_WITHIN: Duration = Duration::from_secs(5);

/// Reserves `len` bytes of the ingest budget, once there are as many; `limit` is the most a request may have.
pub(super) async fn admit(context: &Context, len: usize) -> Result<SemaphorePermit<'_>, Refusal> {
    let limit = context.max_request_bytes;
    let bytes = u32::try_from(len)
        .ok()
        .filter(|_| len <= limit)
        .ok_or_else(|| Refusal::too_large(len, limit))?;
    let admitted = context.budget.take(bytes, ADMITTED_WITHIN).await;
    admitted.ok_or_else(|| Refusal::Busy {
        reason: "requests that are being received have spent the ingest budget".to_owned(),
        retry_after: Duration::from_secs(1),
    })
}

/// Brings what was received to its answer, and counts it; its first byte was read at `read_since`.
pub(super) async fn export(
    context: &Context,
    protocol: Protocol,
    read_since: Instant,
    received: Result<Received<'_>, Refusal>,
) -> Result<(), Refusal> {
    let finished = |fate, records, bytes, ack_us| {
        context
            .counters
            .finished(protocol, fate, records, bytes, ack_us);
    };
    let received = received.inspect_err(|refusal| {
        if let Some(fate) = refusal.fate() {
            finished(fate, 0, 0, 0);
        }
    })?;
    let arrived = Instant::now();
    let bytes = received.len as u64;
    let placed = place(context, &received).inspect_err(|_| finished(Fate::Invalid, 0, bytes, 0))?;
    let Some((placed, placeable)) = placed else {
        // OTLP: an empty request succeeds. There is nothing to deliver or to keep.
        finished(Fate::Delivered, 0, bytes, 0);
        return Ok(());
    };
    context.counters.placed(micros(read_since.elapsed()));
    let answer = context
        .reflex
        .answer(placed, placeable, received.parts.as_slice())
        .await;
    let ack_us = micros(arrived.elapsed());
    let fate = match answer {
        Answer::Delivered => Fate::Delivered,
        Answer::Vaulted => Fate::Vaulted,
        Answer::Refused { .. } => Fate::Refused,
    };
    finished(fate, u64::from(placeable.records), bytes, ack_us);
    // Held until here: what waits for its answer may have to go to the vault as it came.
    drop(received.admitted);
    match answer {
        Answer::Delivered | Answer::Vaulted => Ok(()),
        Answer::Refused {
            retry_after,
            reason,
        } => Err(Refusal::Busy {
            reason,
            retry_after,
        }),
    }
}

/// Checks the shape, counts the records and lets the reflex decide: no `await` in here. `None` if nothing is in it.
fn place(
    context: &Context,
    received: &Received<'_>,
) -> Result<Option<(Placed, Placeable)>, Refusal> {
    let placeable = |records| Placeable {
        kind: received.kind,
        encoding: received.encoding,
        arrival_unix_ns: unix_ns(),
        records,
    };
    if (received.kind, received.len) == (Kind::OtlpLogs, 0) {
        return Ok(None);
    }
    if (received.kind, received.encoding) == (Kind::OtlpLogs, ContentEncoding::Identity) {
        let parts = received.parts.as_slice();
        let skimmed = received.skimmed.map_or_else(|| skim(parts), Ok);
        let records = skimmed
            .map_err(|error| refusal(&unpack::Error::Protobuf(error)))?
            .records;
        let placed = context.reflex.place(parts, received.len, records);
        return Ok(Some((placed, placeable(records))));
    }
    let unpack::Unpacked { bytes, records } = context
        .unpacker
        .unpack(
            received.kind,
            received.encoding,
            &received.parts,
            context.max_request_bytes,
        )
        .map_err(|error| refusal(&error))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let placed = context.reflex.place(&[&*bytes], bytes.len(), records);
    Ok(Some((placed, placeable(records))))
}

fn refusal(error: &unpack::Error) -> Refusal {
    match error {
        unpack::Error::Compressed(decompress::Error::TooLarge { .. }) => {
            Refusal::TooLarge(format!("{error} (ingest.max_request_bytes)"))
        }
        unpack::Error::Compressed(_) | unpack::Error::Protobuf(_) | unpack::Error::Json(_) => {
            Refusal::Malformed(error.to_string())
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn unix_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

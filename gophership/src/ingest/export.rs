//! One whole message: its shape is checked, it is placed by the reflex, and answered. Plain protobuf is not decoded.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{
    budget::{Budget, Taken},
    connection::Context,
    message::Parts,
    packed,
    refusal::Refusal,
    state::State,
    unpack,
};
use crate::{
    otel::{Skim, skim},
    somatic::{Answer, Placed, Request as Placeable},
    telemetry::counters::{Fate, Protocol},
    vault::{ContentEncoding, Kind},
};

/// A whole message, and its share of the budget: its length, and what it may unpack to.
pub(super) struct Received<'a> {
    pub(super) parts: Parts,
    pub(super) len: usize,
    pub(super) kind: Kind,
    pub(super) encoding: ContentEncoding,
    /// What was learnt of plain protobuf while it came in.
    pub(super) skimmed: Option<Skim>,
    pub(super) admitted: Taken<'a>,
}

/// A request waits this long for its bytes of the budget. Bounded, because what it has sent already fills its
/// connection's window, which an admitted request of the same connection may need to become whole.
const ADMITTED_WITHIN: Duration = Duration::from_secs(5);

/// What a message of `len` bytes needs of the ingest budget.
pub(super) fn needed(
    context: &Context,
    kind: Kind,
    encoding: ContentEncoding,
    len: usize,
) -> Result<usize, Refusal> {
    let limit = context.needs.max_request_bytes();
    if len > limit {
        return Err(Refusal::too_large(len, limit));
    }
    Ok(context.needs.reserve(kind, encoding, len))
}

/// Reserves `bytes` of the ingest budget, once there are as many. Connections wait by turns: each for one request at a
/// time.
pub(super) async fn admit(state: &State, bytes: usize) -> Result<Taken<'_>, Refusal> {
    let budget = &state.context.budget;
    if let Some(admitted) = budget.take_at_once(bytes) {
        return Ok(admitted);
    }
    let admitted = async {
        let _turn = state.waits.lock().await;
        budget.take(bytes).await
    };
    tokio::time::timeout(ADMITTED_WITHIN, admitted)
        .await
        .map_err(|_| {
            busy(
                budget,
                "requests that are being received have spent the ingest budget",
            )
        })
}

/// A refusal for want of memory.
pub(super) fn busy(budget: &Budget, reason: &str) -> Refusal {
    Refusal::Busy {
        reason: reason.to_owned(),
        retry_after: budget.return_time(),
    }
}

/// Brings what was received to its answer, and counts it; its first byte was read at `read_since`.
pub(super) async fn export(
    state: &State,
    protocol: Protocol,
    read_since: Instant,
    received: Result<Received<'_>, Refusal>,
) -> Result<(), Refusal> {
    let context = &*state.context;
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
    let mut received = received;
    let arrived = Instant::now();
    let bytes = received.len as u64;
    let is_plain =
        (received.kind, received.encoding) == (Kind::OtlpLogs, ContentEncoding::Identity);
    let placed = if is_plain {
        place(context, &received)
    } else {
        unpack_and_place(state, &mut received).await
    };
    let placed = placed.inspect_err(|refusal| {
        if let Some(fate) = refusal.fate() {
            finished(fate, 0, bytes, 0);
        }
    })?;
    // It is in a batch or a block now.
    received.admitted.shrink_to(received.len);
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
    if received.len == 0 {
        return Ok(None);
    }
    let parts = received.parts.as_slice();
    let skimmed = received.skimmed.map_or_else(|| skim(parts), Ok);
    let records = skimmed
        .map_err(|error| Refusal::Malformed(unpack::Error::Protobuf(error).to_string()))?
        .records;
    let placeable = placeable(received, unix_ns(), records);
    let placed = context.reflex.place(parts, &placeable);
    Ok(Some((placed, placeable)))
}

/// As [`place`], of what isn't plain protobuf.
async fn unpack_and_place<'a>(
    state: &'a State,
    received: &mut Received<'a>,
) -> Result<Option<(Placed, Placeable)>, Refusal> {
    if (received.kind, received.len) == (Kind::OtlpLogs, 0) {
        return Ok(None);
    }
    let arrival_unix_ns = unix_ns();
    let unpacked = packed::unpack(state, received).await?;
    let (bytes, records) = (unpacked.bytes(), unpacked.records);
    if bytes.is_empty() {
        return Ok(None);
    }
    let placeable = placeable(received, arrival_unix_ns, records);
    let placed = state.context.reflex.place(&[bytes], &placeable);
    Ok(Some((placed, placeable)))
}

fn placeable(received: &Received<'_>, arrival_unix_ns: u64, records: u32) -> Placeable {
    Placeable {
        kind: received.kind,
        encoding: received.encoding,
        arrival_unix_ns,
        records,
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

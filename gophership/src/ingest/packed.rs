//! What isn't plain protobuf: unpacked on the worker's own thread if it is small, else on another one.
//!
//! Unpacking can't be interrupted, and some hundred bytes may unpack to megabytes. So what may take longer than a
//! millisecond is done aside, by one thread for each worker, while that serves others. What the message holds of the
//! budget goes with it: it is given back when the thread has ended, also if nobody waits for it any more.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};

use super::{
    budget::{Budget, Part},
    export::{Received, busy},
    message::Parts,
    needs::Needs,
    refusal::Refusal,
    state::State,
    unpack::{self, Lent, Unpacked},
};
use crate::{
    decompress,
    vault::{ContentEncoding, Kind},
};

/// A message waits this long for those before it: as long as for its bytes of the budget, which it holds meanwhile.
const UNPACKED_WITHIN: Duration = Duration::from_secs(5);

/// Makes plain protobuf of what was received, within what is reserved; if that isn't enough, within what there is, which is
/// `received`'s then.
pub(super) async fn unpack<'a>(
    state: &'a State,
    received: &mut Received<'a>,
) -> Result<Unpacked, Refusal> {
    let context = &state.context;
    let (kind, encoding, needs) = (received.kind, received.encoding, &context.needs);
    if needs.may_be_small(encoding, received.len) {
        let mut lent = context.unpacker.inline().await;
        match lent.unpack(kind, encoding, &received.parts, needs.small()) {
            // It isn't small.
            Err(unpack::Error::Compressed(decompress::Error::TooLarge { .. })) => {}
            Ok(records) => return Ok(lent.unpacked(kind, records)),
            Err(error) => return Err(refused(&error, needs)),
        }
    }
    // Few need it, and all others would carry its state.
    Box::pin(unpack_aside(state, received)).await
}

/// As [`unpack`], on another thread. Connections take turns: each has one message that waits or is unpacked.
async fn unpack_aside<'a>(
    state: &'a State,
    received: &mut Received<'a>,
) -> Result<Unpacked, Refusal> {
    let context = &state.context;
    let turn = async { (state.unpacks.lock().await, context.unpacker.aside().await) };
    let Ok((_turn, lent)) = timeout(UNPACKED_WITHIN, turn).await else {
        let reason = "messages that came before take long to be unpacked";
        return Err(busy(&context.budget, reason));
    };
    let mut packed = Packed {
        lent,
        parts: std::mem::take(&mut received.parts),
        len: received.len,
        kind: received.kind,
        encoding: received.encoding,
        needs: context.needs,
        part: Part::none(Arc::clone(&context.budget)),
    };
    received.admitted.hand_over(&mut packed.part);
    let done = spawn_blocking(move || {
        let records = packed.unpack();
        (packed, records)
    });
    let (mut packed, records) = match done.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(error) => return Err(Refusal::Gone(format!("the worker ends: {error}"))),
        },
    };
    packed.part.hand_over(&mut received.admitted);
    received.parts = packed.parts;
    Ok(packed.lent.unpacked(packed.kind, records?))
}

/// A message on its way through another thread, with all that it holds.
struct Packed {
    lent: Lent,
    parts: Parts,
    len: usize,
    kind: Kind,
    encoding: ContentEncoding,
    needs: Needs,
    /// Lives longer than what it covers.
    part: Part<Arc<Budget>>,
}

impl Packed {
    /// The number of its records.
    fn unpack(&mut self) -> Result<u32, Refusal> {
        let (needs, kind, len) = (self.needs, self.kind, self.len);
        let surely = needs.surely(kind, self.encoding, len);
        self.take(surely.saturating_sub(self.extra()))?;
        let unpacked = match self.within() {
            Err(unpack::Error::Compressed(decompress::Error::TooLarge { limit })) => {
                let Some(missing) = needs.missing(kind, len, self.extra()) else {
                    return Err(Refusal::unpacks_to_more(limit, needs.max_request_bytes()));
                };
                self.take(missing)?;
                self.within()
            }
            unpacked => unpacked,
        };
        unpacked.map_err(|error| refused(&error, &needs))
    }

    /// What is reserved beside its length.
    fn extra(&self) -> usize {
        self.part.bytes().saturating_sub(self.len)
    }

    /// It has a part of the budget, so it must not wait for more.
    fn take(&mut self, missing: usize) -> Result<(), Refusal> {
        if missing == 0 || self.part.grow(missing) {
            return Ok(());
        }
        let reason = "the ingest budget has no room for what the message unpacks to";
        Err(busy(self.part.budget(), reason))
    }

    fn within(&mut self) -> Result<u32, unpack::Error> {
        let covered = self.needs.covered(self.kind, self.extra());
        let (kind, encoding) = (self.kind, self.encoding);
        self.lent.unpack(kind, encoding, &self.parts, covered)
    }
}

fn refused(error: &unpack::Error, needs: &Needs) -> Refusal {
    match error {
        unpack::Error::Compressed(decompress::Error::TooLarge { limit }) => {
            Refusal::unpacks_to_more(*limit, needs.max_request_bytes())
        }
        error => Refusal::Malformed(error.to_string()),
    }
}

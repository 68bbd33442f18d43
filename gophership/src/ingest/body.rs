//! Reading a request's body frame by frame.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::refusal::Refusal;

/// A producer that sends nothing of an announced message for this long loses its stream, since
/// it holds a part of the budget.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// So does one that sends less a second, beyond that time.
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

/// How long a body may take: its length must be known within [`IDLE_TIMEOUT`], and all of it then in proportion.
pub(super) struct Deadline(Instant);

impl Deadline {
    /// Of a body whose length isn't known yet.
    pub(super) fn unannounced() -> Self {
        Self(Instant::now() + IDLE_TIMEOUT)
    }

    /// Of a body of at most `len` bytes that is read from now on.
    pub(super) fn of(len: usize) -> Self {
        let seconds = len as u64 / BYTES_PER_SECOND_MIN;
        Self(Instant::now() + IDLE_TIMEOUT + Duration::from_secs(seconds))
    }
}

/// The next frame with data; `None` at the end.
pub(super) async fn next_frame(
    body: &mut Incoming,
    deadline: &Deadline,
) -> Result<Option<Bytes>, Refusal> {
    loop {
        let until = deadline.0.min(Instant::now() + IDLE_TIMEOUT);
        let frame = tokio::time::timeout_at(until, body.frame())
            .await
            .map_err(|_| {
                Refusal::TooSlow(format!(
                    "the message comes too slowly: nothing for {} s, or less than {} KiB/s",
                    IDLE_TIMEOUT.as_secs(),
                    BYTES_PER_SECOND_MIN / 1024
                ))
            })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame =
            frame.map_err(|error| Refusal::Gone(format!("the stream broke off: {error}")))?;
        // Anything but DATA (trailers of the request) says nothing here.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

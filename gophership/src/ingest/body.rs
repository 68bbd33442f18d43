//! Reading a request's body frame by frame.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::refusal::Refusal;

/// A producer that sends nothing of an announced message for this long loses its stream, since
/// it holds a part of the budget.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The next frame with data; `None` at the end.
pub(super) async fn next_frame(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame())
            .await
            .map_err(|_| {
                Refusal::TooSlow(format!(
                    "nothing of the message came for {} s",
                    IDLE_TIMEOUT.as_secs()
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

//! Reading a request's body frame by frame.

use std::{
    error::Error as _,
    io::{self, ErrorKind},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until};

use super::{
    budget::{Budget, PATIENCE},
    refusal::Refusal,
    slow::Unfinished,
};

/// A producer that sends nothing of a message for this long loses its stream, and so does one that doesn't say within this
/// how long it is.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// So does one that sends less a second of a message that holds a part of the budget,
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
/// but for so long.
const GRACE: Duration = Duration::from_secs(5);

/// How fast a body comes, and whether that is fast enough.
pub(super) struct Pace<'a> {
    budget: &'a Budget,
    since: Instant,
    /// Bytes of the budget.
    held: usize,
    received: usize,
    /// Once it takes long.
    unfinished: Option<Unfinished>,
}

impl<'a> Pace<'a> {
    /// Of a body that holds nothing.
    pub(super) fn unadmitted(budget: &'a Budget) -> Self {
        Self::admitted(budget, 0, 0)
    }

    /// Of a body that holds so many bytes from now on, of which some have come.
    pub(super) fn admitted(budget: &'a Budget, held: usize, received: usize) -> Self {
        Self {
            budget,
            since: Instant::now(),
            held,
            received,
            unfinished: None,
        }
    }

    /// It holds so many now.
    pub(super) fn holds(&mut self, held: usize) {
        self.held = held;
        self.note();
    }

    fn receives(&mut self, bytes: usize) {
        self.received += bytes;
        self.note();
    }

    fn note(&self) {
        if let Some(unfinished) = &self.unfinished {
            unfinished.note(self.held, self.received);
        }
    }

    /// When the next byte must have come.
    fn deadline(&self) -> Instant {
        if self.held == 0 {
            return self.since + IDLE_TIMEOUT;
        }
        let micros = self.received as u64 * 1_000_000 / BYTES_PER_SECOND_MIN;
        self.since + GRACE + Duration::from_micros(micros)
    }

    /// What comes of `frame`, if it comes in time and needn't make way.
    async fn keep<T>(&mut self, frame: impl Future<Output = T>) -> Result<T, Refusal> {
        let until = self.deadline().min(Instant::now() + IDLE_TIMEOUT);
        let mut frame = pin!(frame);
        loop {
            let is_listed = self.held == 0 || self.unfinished.is_some();
            let look_at = if is_listed {
                until
            } else {
                until.min(self.since + PATIENCE)
            };
            tokio::select! {
                biased;
                frame = &mut frame => return Ok(frame),
                () = asked_to_make_way(self.unfinished.as_ref()) => return Err(Refusal::Busy {
                    reason: "others wait for the ingest budget, and this message comes the slowest".to_owned(),
                    retry_after: self.budget.return_time(),
                }),
                () = sleep_until(look_at) => {}
            }
            if Instant::now() >= until {
                return Err(too_slow());
            }
            if !is_listed {
                let since = self.since.into_std();
                let listed = self.budget.unfinished(since, self.held, self.received);
                self.unfinished = Some(listed);
            }
        }
    }
}

impl Drop for Pace<'_> {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            self.budget.finished(unfinished);
        }
    }
}

async fn asked_to_make_way(unfinished: Option<&Unfinished>) {
    match unfinished {
        Some(unfinished) => unfinished.asked_to_make_way().await,
        None => std::future::pending().await,
    }
}

fn too_slow() -> Refusal {
    Refusal::TooSlow(format!(
        "the message comes too slowly: nothing for {} s, or less than {} KiB/s for {} s",
        IDLE_TIMEOUT.as_secs(),
        BYTES_PER_SECOND_MIN / 1024,
        GRACE.as_secs()
    ))
}

/// The next frame with data; `None` at the end.
pub(super) async fn next_frame(
    body: &mut Incoming,
    pace: &mut Pace<'_>,
) -> Result<Option<Bytes>, Refusal> {
    loop {
        let Some(frame) = pace.keep(body.frame()).await? else {
            return Ok(None);
        };
        let frame = frame.map_err(|error| broken(&error))?;
        // Anything but DATA (trailers of the request) says nothing here.
        if let Ok(data) = frame.into_data() {
            pace.receives(data.len());
            return Ok(Some(data));
        }
    }
}

/// Why a body doesn't come to its end. That HTTP/1.1's chunks aren't any, hyper tells by errors of input; so does TLS of a
/// connection that nothing can be answered on.
fn broken(error: &hyper::Error) -> Refusal {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    let is_of_tls = |cause: &io::Error| cause.get_ref().is_some_and(|by| by.is::<rustls::Error>());
    match cause.filter(|&cause| !is_of_tls(cause)) {
        Some(cause)
            if matches!(
                cause.kind(),
                ErrorKind::InvalidInput | ErrorKind::InvalidData
            ) =>
        {
            Refusal::Malformed(format!("the body isn't in valid chunks: {cause}"))
        }
        _ => Refusal::Gone(format!("the stream broke off: {error}")),
    }
}

//! The end: signals, a bounded drain, and threads that are waited for, but not forever.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use super::{Error, daemon::Daemon, drain::Phase};
use crate::{export::Destinations, ingest::Mode, local_socket, pressure::WatchHandle};

/// Longest that a stop waits for requests and destinations; then the vault has what was
/// acknowledged and the rest was not.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a stop waits for threads: a disk or a destination may hang.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The daemon and what has to be taken down with it.
pub(super) struct Running {
    pub(super) daemon: Arc<Daemon>,
    pub(super) destinations: Destinations,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) watch: WatchHandle,
    pub(super) control: tokio::task::JoinHandle<()>,
    /// The socket of local producers, whose file goes with it.
    pub(super) unix: Option<local_socket::Socket>,
}

impl Running {
    /// Waits for SIGTERM, SIGINT or `drain --exit`, then drains and stops.
    pub(super) async fn until_told_to_stop(self) -> Result<(), Error> {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(Error::system("the SIGTERM handler"))?;
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(Error::system("the SIGINT handler"))?;
        let why = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = self.daemon.exit.notified() => "drain --exit",
        };
        tracing::info!(why, "stopping");
        self.stop().await;
        Ok(())
    }

    async fn stop(self) {
        let Self {
            daemon,
            destinations,
            threads,
            watch,
            control,
            unix,
        } = self;
        let order = daemon.begin_last_drain();
        let ended = daemon.drained_within(order, DRAIN_TIMEOUT).await;
        if ended != Some(Phase::Drained) {
            tracing::warn!(
                seconds = DRAIN_TIMEOUT.as_secs(),
                "stopping with requests unanswered: their producers will retry"
            );
        }
        daemon.mode.send_replace(Mode::Stopping);
        drop(unix);
        daemon.replay.order(|orders| orders.stop = true);
        let deadline = Instant::now() + JOIN_TIMEOUT;
        let mut left = threads;
        while !left.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
            left.retain(|thread| !thread.is_finished());
        }
        for thread in &left {
            tracing::warn!(
                thread = thread.thread().name(),
                "a thread did not end in time"
            );
        }
        if left.is_empty() {
            destinations.close();
        }
        if let Err(error) = daemon.vault.close() {
            tracing::error!(%error, "vault: not closed cleanly; the next start recovers it");
        }
        drop(watch);
        daemon.tell_stopped();
        // The service bounds its own end; then its socket is gone.
        let _ = control.await;
        tracing::info!("stopped");
    }
}

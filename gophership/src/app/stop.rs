//! The end: signals, a bounded drain, and threads that are waited for, but not forever.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{Error, daemon::Daemon, drain::Phase};
use crate::{export::Destinations, ingest::Mode, local_socket, pressure::WatchHandle};

/// Longest that a stop waits for requests and destinations; then the vault has what was
/// acknowledged and the rest was not.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a stop waits for threads: a disk or a destination may hang.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that a stop waits for the vault and the destinations to be closed after that. All of it together
/// stays within the 30 s that a container has.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

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
        let undone = self.stop().await;
        if undone.is_empty() {
            tracing::info!("stopped");
            Ok(())
        } else {
            let undone = undone.join("; ");
            tracing::error!(
                undone,
                "stopped, but not in order; nothing acknowledged is lost"
            );
            Err(Error::Undone(undone))
        }
    }

    /// Takes everything down; gives what couldn't be.
    async fn stop(self) -> Vec<String> {
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
        let left = left_of(threads).await;
        let mut undone: Vec<_> = left
            .iter()
            .map(|thread| {
                let name = thread.thread().name().unwrap_or_default();
                format!("thread {name} has not ended")
            })
            .collect();
        daemon.note_direct();
        let vault = daemon.vault.clone();
        let vault = Closing::begin("vault", move || {
            let closed = vault.close();
            closed.map_err(|error| format!("not closed in order: {error}"))
        });
        let destinations = left.is_empty().then(|| {
            Closing::begin("destinations", move || {
                destinations.close();
                Ok(())
            })
        });
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        for closing in [Some(vault), destinations].into_iter().flatten() {
            undone.extend(closing.undone(deadline).await);
        }
        drop(watch);
        daemon.tell_stopped();
        // The service bounds its own end; then its socket is gone.
        let _ = control.await;
        undone
    }
}

/// Waits for threads; gives those that didn't end in time.
async fn left_of(threads: Vec<JoinHandle<()>>) -> Vec<JoinHandle<()>> {
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let mut left = threads;
    while !left.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        left.retain(|thread| !thread.is_finished());
    }
    left
}

/// Something that is being closed, on a thread that may hang.
struct Closing {
    what: &'static str,
    ended: oneshot::Receiver<Result<(), String>>,
}

impl Closing {
    fn begin(
        what: &'static str,
        close: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Self {
        let (tell, ended) = oneshot::channel();
        // Without a thread `tell` is dropped, which reads as not closed.
        let _ = std::thread::Builder::new()
            .name(format!("stop-{what}"))
            .spawn(move || drop(tell.send(close())));
        Self { what, ended }
    }

    /// What isn't closed by then.
    async fn undone(self, deadline: Instant) -> Option<String> {
        let what = self.what;
        match tokio::time::timeout_at(deadline.into(), self.ended).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(why))) => Some(format!("{what}: {why}")),
            Ok(Err(_)) => Some(format!("{what}: not closed")),
            Err(_) => Some(format!("{what}: not closed in time, a disk may hang")),
        }
    }
}

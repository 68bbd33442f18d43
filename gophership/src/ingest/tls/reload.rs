//! Certificates that change while the daemon runs: noticed, read as a whole, and swapped in or left.
//!
//! The files are looked at every few seconds, whose cost is a `stat` each: what watches directories would have to
//! follow links as Kubernetes turns them, renames as certbot does them, and can't watch network file systems at all. A
//! thread of its own does it, since file systems may hang. Whoever accepts takes the set in force, and keeps it for
//! that connection.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use tokio::sync::watch;

use super::{
    Error, Expiry, Tls,
    changes::{Changes, State},
};
use crate::ingest::TlsConfig;

/// What became of the reloads.
#[derive(Debug, Clone)]
pub struct Status {
    /// Sets that were swapped in, the first one not counted.
    pub reloaded: u64,
    /// Sets that couldn't be used.
    pub failed: u64,
    /// Why the last one couldn't; `None` if it is in force.
    pub failure: Option<String>,
    /// When the certificates in force end.
    pub expiries: Vec<Expiry>,
}

/// The certificates at the start, and how the files were before they were read.
pub struct Loaded {
    config: TlsConfig,
    state: State,
    tls: Tls,
}

impl Loaded {
    /// Reads the files.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn load(config: &TlsConfig) -> Result<Self, Error> {
        let state = State::of(&paths(config));
        Ok(Self {
            config: config.clone(),
            state,
            tls: Tls::load(config)?,
        })
    }

    /// Starts the thread that keeps the set up to date; it ends with the last clone of the handle.
    ///
    /// # Errors
    /// If the thread can't be made.
    pub fn keep(self) -> io::Result<(watch::Receiver<Tls>, Handle)> {
        let status = Arc::new(Mutex::new(Status {
            reloaded: 0,
            failed: 0,
            failure: None,
            expiries: self.tls.expiries().to_vec(),
        }));
        // One order that waits stands for all that come meanwhile.
        let (order, orders) = sync_channel(1);
        let (set, in_force) = watch::channel(self.tls);
        let keeper = Keeper {
            paths: paths(&self.config),
            config: self.config,
            changes: Changes::since(self.state),
            set,
            status: Arc::clone(&status),
        };
        thread::Builder::new()
            .name("tls-reload".to_owned())
            .spawn(move || keeper.run(&orders))?;
        Ok((in_force, Handle { order, status }))
    }
}

fn paths(config: &TlsConfig) -> Vec<PathBuf> {
    let files = [
        Some(&config.cert),
        Some(&config.key),
        config.client_ca.as_ref(),
    ];
    files.into_iter().flatten().cloned().collect()
}

/// Asks for reloads, and sees what became of them.
#[derive(Debug, Clone)]
pub struct Handle {
    order: SyncSender<()>,
    status: Arc<Mutex<Status>>,
}

impl Handle {
    /// Has the files read now, whether or not they have changed.
    pub fn reload(&self) {
        // Full: that order is still to be carried out.
        let _ = self.order.try_send(());
    }

    /// What became of the reloads.
    #[must_use]
    pub fn status(&self) -> Status {
        lock(&self.status).clone()
    }
}

struct Keeper {
    config: TlsConfig,
    paths: Vec<PathBuf>,
    changes: Changes,
    set: watch::Sender<Tls>,
    status: Arc<Mutex<Status>>,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<()>) {
        loop {
            let is_ordered = match orders.recv_timeout(self.changes.pause()) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Before they are read: what changes meanwhile is another change.
            let state = State::of(&self.paths);
            if self.changes.is_time(&state, Instant::now()) || is_ordered {
                let is_usable = self.reload();
                self.changes.were_read(state, is_usable, Instant::now());
            }
        }
    }

    fn reload(&self) -> bool {
        let loaded = Tls::load(&self.config);
        let mut status = lock(&self.status);
        match loaded {
            Ok(tls) => {
                status.reloaded += 1;
                status.failure = None;
                status.expiries = tls.expiries().to_vec();
                self.set.send_replace(tls);
                let expiries = status.expiries.iter().map(Expiry::to_string);
                let valid = expiries.collect::<Vec<_>>().join(", ");
                tracing::info!(valid, "ingest.tls: certificates reloaded");
                true
            }
            Err(error) => {
                let reason = error.to_string();
                status.failed += 1;
                // Tried again each minute, so said once.
                if status.failure.as_ref() != Some(&reason) {
                    tracing::error!(
                        reason,
                        "ingest.tls: certificates not reloaded: the old ones stay in force"
                    );
                }
                status.failure = Some(reason);
                false
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

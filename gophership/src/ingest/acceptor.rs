//! Accepts connections and hands each to the worker that has the fewest.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use super::Mode;
use crate::telemetry::counters::WorkerCounters;

/// A connection on its way to a worker; `std`'s, since runtimes don't share sockets.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, non-blocking.
    pub stream: std::net::TcpStream,
    /// The producer.
    pub peer: SocketAddr,
}

/// Where one worker takes its connections from.
#[derive(Debug, Clone)]
pub struct Inbox {
    /// To the worker.
    pub sender: mpsc::Sender<Accepted>,
    /// Its counters, with the connections it has.
    pub counters: Arc<WorkerCounters>,
}

/// Connections on their way to one worker; more wait in the listener's backlog.
pub const INBOX_CAPACITY: usize = 64;

/// Accepts while the mode is [`Mode::Serving`]; otherwise connections wait in the backlog. Returns
/// when the daemon stops or every worker is gone.
pub async fn run(listener: TcpListener, workers: Vec<Inbox>, mut mode: watch::Receiver<Mode>) {
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Serving => {}
            Mode::Draining => {
                if mode.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Mode::Stopping => return,
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if !hand_over(stream, peer, &workers).await {
                        return;
                    }
                }
                Err(error) => {
                    // Descriptors or memory have run out; the connection stays in the backlog.
                    tracing::warn!(%error, "ingest: accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            changed = mode.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

async fn hand_over(stream: TcpStream, peer: SocketAddr, workers: &[Inbox]) -> bool {
    let stream = match stream.set_nodelay(true).and_then(|()| stream.into_std()) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%peer, %error, "ingest: connection lost before it was served");
            return true;
        }
    };
    let load = |worker: &&Inbox| worker.counters.connections.load(Relaxed);
    // A worker that is stuck must not keep connections from the others.
    let free = workers.iter().filter(|worker| worker.sender.capacity() > 0);
    let Some(least) = free.min_by_key(load).or(workers.iter().min_by_key(load)) else {
        return false;
    };
    // Counted here, so that a burst of connections spreads before a worker has looked.
    least.counters.connections.fetch_add(1, Relaxed);
    let sent = least.sender.send(Accepted { stream, peer }).await;
    if sent.is_err() {
        tracing::error!("ingest: a worker has ended; no more connections are accepted");
    }
    sent.is_ok()
}

//! Accepts connections and hands each to the worker that has the fewest.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::net::UnixStream,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
};

use super::Mode;
use crate::{
    pressure::EngineLine,
    telemetry::counters::{Protocol, WorkerCounters},
};

/// Where connections come in.
#[derive(Debug)]
pub enum Listener {
    /// OTLP/gRPC or OTLP/HTTP over TCP.
    Tcp(TcpListener, Protocol),
    /// OTLP/gRPC of local producers.
    Unix(UnixListener),
}

/// A connection's socket, non-blocking; `std`'s, since runtimes don't share sockets.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(std::net::TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP peer.
    Tcp(SocketAddr),
    /// A local process, by `SO_PEERCRED`.
    Local {
        /// Its user.
        uid: u32,
        /// Its process id as seen from here; 0 if it is in another namespace.
        pid: i32,
    },
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub socket: Socket,
    /// The producer.
    pub peer: Peer,
    /// What it speaks.
    pub protocol: Protocol,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Local { uid, pid } => write!(f, "uid {uid}, pid {pid}"),
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener, protocol) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted {
                    socket: Socket::Tcp(stream.into_std()?),
                    peer: Peer::Tcp(address),
                    protocol: *protocol,
                })
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred()?;
                let peer = Peer::Local {
                    uid: credentials.uid(),
                    pid: credentials.pid().unwrap_or(0),
                };
                tracing::info!(%peer, "ingest: a local producer has connected");
                Ok(Accepted {
                    socket: Socket::Unix(stream.into_std()?),
                    peer,
                    protocol: Protocol::Grpc,
                })
            }
        }
    }
}

/// Where one worker takes its connections from.
#[derive(Clone)]
pub struct Inbox {
    /// To the worker.
    pub sender: mpsc::Sender<Accepted>,
    /// Its counters, with the connections it has.
    pub counters: Arc<WorkerCounters>,
    /// Its heartbeat.
    pub engine: EngineLine,
    /// A worker whose heartbeat is older than this is stuck.
    pub heartbeat_limit: Duration,
}

impl Inbox {
    /// Whether the worker isn't running; neither is one that hasn't begun.
    fn is_stuck(&self) -> bool {
        let age = self.engine.beat_age();
        age.is_none_or(|age| age > self.heartbeat_limit)
    }
}

/// Connections on their way to one worker; more wait in the listener's backlog.
pub const INBOX_CAPACITY: usize = 64;

/// Accepts while the mode is [`Mode::Serving`]; otherwise connections wait in the backlog. Returns
/// when the daemon stops or every worker is gone.
pub async fn run(listener: Listener, workers: Vec<Inbox>, mut mode: watch::Receiver<Mode>) {
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
                Ok(accepted) => {
                    if !hand_over(accepted, &workers).await {
                        return;
                    }
                }
                Err(error) if is_of_the_peer(&error) => {
                    tracing::debug!(%error, "ingest: connection lost before it was served");
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

/// Whether a connection was gone before it could be served, which says nothing of the next one.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

async fn hand_over(accepted: Accepted, workers: &[Inbox]) -> bool {
    let Some(chosen) = choose(workers) else {
        return false;
    };
    // Counted here, so that a burst of connections spreads before a worker has looked.
    chosen.counters.connections.fetch_add(1, Relaxed);
    let sent = chosen.sender.send(accepted).await;
    if sent.is_err() {
        tracing::error!("ingest: a worker has ended; no more connections are accepted");
    }
    sent.is_ok()
}

/// The worker with the fewest connections, of those that run and have room: one that is stuck must neither
/// get any nor keep them from the others. If there is none, any will do.
fn choose(workers: &[Inbox]) -> Option<&Inbox> {
    let load = |worker: &&Inbox| worker.counters.connections.load(Relaxed);
    let has_room = |worker: &&Inbox| worker.sender.capacity() > 0;
    let able = workers.iter().filter(|worker| !worker.is_stuck());
    let able = able.filter(has_room).min_by_key(load);
    able.or_else(|| workers.iter().filter(has_room).min_by_key(load))
        .or_else(|| workers.iter().min_by_key(load))
}

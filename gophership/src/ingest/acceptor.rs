//! Accepts connections, finds room for them, and hands each to the worker that has the fewest.
//!
//! Where a connection comes from is known only once it is accepted. So remote ones that find no room wait here, not read,
//! or there would be no way past them for local ones; of too many, the newest is closed. A local one that finds no room
//! stops the accepting: it and those behind it wait in the backlog.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
};

use super::{
    Mode,
    room::{Full, Room, Seat, is_local},
};
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
    /// Its place.
    pub seat: Seat,
}

/// A connection that has no place yet.
#[derive(Debug)]
struct Newcomer {
    socket: Socket,
    peer: Peer,
    protocol: Protocol,
    is_remote: bool,
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
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Newcomer>> {
        match self {
            Self::Tcp(listener, protocol) => {
                let (stream, address) = ready!(listener.poll_accept(cx))?;
                stream.set_nodelay(true)?;
                let is_remote = !is_local(address, stream.local_addr()?);
                Poll::Ready(Ok(Newcomer {
                    socket: Socket::Tcp(stream.into_std()?),
                    peer: Peer::Tcp(address),
                    protocol: *protocol,
                    is_remote,
                }))
            }
            Self::Unix(listener) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                let credentials = stream.peer_cred()?;
                let peer = Peer::Local {
                    uid: credentials.uid(),
                    pid: credentials.pid().unwrap_or(0),
                };
                tracing::info!(%peer, "ingest: a local producer has connected");
                Poll::Ready(Ok(Newcomer {
                    socket: Socket::Unix(stream.into_std()?),
                    peer,
                    protocol: Protocol::Grpc,
                    is_remote: false,
                }))
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

/// Remote connections that wait for room.
const WAITING_MAX: usize = 256;
/// Descriptors for everything else: segments, destinations, logs, the kernel half.
const OTHER_FILES: usize = 512;
/// How often those who wait look for room.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Descriptors or memory have run out: others may give some back meanwhile.
const OUT_OF_SOMETHING: Duration = Duration::from_millis(50);

/// Descriptors that a daemon needs for `max_connections` remote ones, and as many local ones as there mostly are.
#[must_use]
pub const fn files_wanted(max_connections: usize) -> u64 {
    (max_connections + WAITING_MAX + OTHER_FILES) as u64
}

/// The way in.
struct Door {
    listeners: Vec<Listener>,
    /// Which listener is asked first, so that none keeps the others out.
    turn: usize,
    workers: Vec<Inbox>,
    room: Arc<Room>,
    local: Option<Newcomer>,
    remote: VecDeque<Newcomer>,
}

/// Accepts while the mode is [`Mode::Serving`]; otherwise connections wait in the backlog. Returns
/// when the daemon stops or every worker is gone.
pub async fn run(
    listeners: Vec<Listener>,
    workers: Vec<Inbox>,
    room: Arc<Room>,
    mut mode: watch::Receiver<Mode>,
) {
    let mut door = Door {
        listeners,
        turn: 0,
        workers,
        room,
        local: None,
        remote: VecDeque::new(),
    };
    let room = Arc::clone(&door.room);
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
            accepted = door.accept(), if door.local.is_none() => match accepted {
                Ok(newcomer) => door.welcome(newcomer),
                Err(error) if is_of_the_peer(&error) => {
                    tracing::debug!(%error, "ingest: connection lost before it was served");
                }
                Err(error) => {
                    tracing::warn!(%error, "ingest: accept failed");
                    tokio::time::sleep(OUT_OF_SOMETHING).await;
                }
            },
            () = room.freed(), if door.is_waited_at() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if door.is_waited_at() => {}
            changed = mode.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        if !door.seat_those_who_wait().await {
            return;
        }
    }
}

impl Door {
    fn accept(&mut self) -> impl Future<Output = io::Result<Newcomer>> {
        self.turn = (self.turn + 1) % self.listeners.len().max(1);
        let (first, rest) = self.listeners.split_at(self.turn);
        poll_fn(move |cx| {
            let mut asked = rest.iter().chain(first);
            let accepted = asked.find_map(|listener| match listener.poll_accept(cx) {
                Poll::Ready(accepted) => Some(accepted),
                Poll::Pending => None,
            });
            accepted.map_or(Poll::Pending, Poll::Ready)
        })
    }

    fn is_waited_at(&self) -> bool {
        self.local.is_some() || !self.remote.is_empty()
    }

    fn welcome(&mut self, newcomer: Newcomer) {
        if !newcomer.is_remote {
            self.local = Some(newcomer);
        } else if self.remote.len() < WAITING_MAX {
            self.remote.push_back(newcomer);
        } else {
            self.room.turned_away.fetch_add(1, Relaxed);
        }
    }

    /// Local ones first. False if there is no worker any more.
    async fn seat_those_who_wait(&mut self) -> bool {
        let mut full = None;
        while full.is_none() {
            let next = self.local.take().or_else(|| self.remote.pop_front());
            let Some(newcomer) = next else { break };
            match self.room.seat(newcomer.is_remote) {
                Ok(seat) => {
                    if !hand_over(newcomer.take(seat), &self.workers).await {
                        return false;
                    }
                }
                Err(why) => {
                    full = Some(why);
                    if newcomer.is_remote {
                        self.remote.push_front(newcomer);
                    } else {
                        self.local = Some(newcomer);
                    }
                }
            }
        }
        let waiting = usize::from(self.local.is_some()) + self.remote.len();
        self.room.waiting.store(waiting, Relaxed);
        if full == Some(Full::Connections) {
            // One local one waits at a time, and remote ones wait for that.
            let (wanted, is_for_remote) = match self.local {
                Some(_) => (1, false),
                None => (waiting, true),
            };
            self.room.make_room(wanted, is_for_remote, Instant::now());
        }
        true
    }
}

impl Newcomer {
    fn take(self, seat: Seat) -> Accepted {
        // The kernel doubles it, for its own overhead.
        let buffer = seat
            .windows()
            .receive_buffer(self.protocol == Protocol::Http);
        if let (Socket::Tcp(socket), Some(bytes)) = (&self.socket, buffer)
            && let Err(error) = setsockopt(&socket.as_fd(), RcvBuf, &bytes)
        {
            tracing::debug!(%error, "ingest: the socket's buffer stays as it is");
        }
        Accepted {
            socket: self.socket,
            peer: self.peer,
            protocol: self.protocol,
            seat,
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

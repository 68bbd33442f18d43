//! Accepts connections, finds room for them, and hands each to the worker that has the least to do.
//!
//! Where a connection comes from is known only once it is accepted. So remote ones that find no room wait here, not read,
//! or there would be no way past them for local ones; of too many, the newest is closed. A local one that finds no room
//! stops the accepting: it and those behind it wait in the backlog.
//!
//! A worker that is stuck must neither get any nor keep them from the others: as long as one runs, connections wait for
//! that one rather than for one that doesn't.

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
    Mode, load,
    room::{Full, Origin, Room, Seat},
};
use crate::{
    pressure::EngineLine,
    telemetry::{
        counters::{Protocol, WorkerCounters},
        throttle::Throttle,
    },
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
    origin: Origin,
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
                let origin = Origin::of(address, stream.local_addr()?);
                Poll::Ready(Ok(Newcomer {
                    socket: Socket::Tcp(stream.into_std()?),
                    peer: Peer::Tcp(address),
                    protocol: *protocol,
                    origin,
                }))
            }
            Self::Unix(listener) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                let credentials = stream.peer_cred()?;
                let peer = Peer::Local {
                    uid: credentials.uid(),
                    pid: credentials.pid().unwrap_or(0),
                };
                Poll::Ready(Ok(Newcomer {
                    socket: Socket::Unix(stream.into_std()?),
                    peer,
                    protocol: Protocol::Grpc,
                    origin: Origin::Local,
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
/// Those of one origin.
const WAITING_OF_ORIGIN_MAX: usize = WAITING_MAX / 2;
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
    /// Any local process can connect, as often as it likes.
    told: Throttle,
}

/// Accepts while the mode is [`Mode::Serving`]; otherwise connections wait in the backlog. Returns
/// when the daemon stops.
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
        told: Throttle::new(Instant::now()),
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
        door.seat_those_who_wait();
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
        let peer = newcomer.peer;
        if matches!(peer, Peer::Local { .. })
            && let Some(left_out) = self.told.admit(Instant::now())
        {
            tracing::info!(%peer, left_out, "ingest: a local producer has connected");
        }
        if !newcomer.origin.is_remote() {
            self.local = Some(newcomer);
        } else if self.remote.len() < WAITING_MAX
            && self.waiting_of(newcomer.origin) < WAITING_OF_ORIGIN_MAX
        {
            self.remote.push_back(newcomer);
        } else {
            self.room.turned_away.fetch_add(1, Relaxed);
        }
    }

    fn waiting_of(&self, origin: Origin) -> usize {
        let of_origin = |newcomer: &&Newcomer| newcomer.origin == origin;
        self.remote.iter().filter(of_origin).count()
    }

    /// Local ones first.
    fn seat_those_who_wait(&mut self) {
        let mut full = None;
        if let Some(newcomer) = self.local.take()
            && let Err((newcomer, why)) = self.seat(newcomer)
        {
            (self.local, full) = (Some(newcomer), Some(why));
        }
        // Two at most: each has half of the handshakes.
        let mut at_limit = Vec::new();
        let mut wait = VecDeque::new();
        while full.is_none()
            && let Some(newcomer) = self.remote.pop_front()
        {
            if at_limit.contains(&newcomer.origin) {
                wait.push_back(newcomer);
            } else if let Err((newcomer, why)) = self.seat(newcomer) {
                match why {
                    Full::Origin => at_limit.push(newcomer.origin),
                    _ => full = Some(why),
                }
                wait.push_back(newcomer);
            }
        }
        wait.append(&mut self.remote);
        self.remote = wait;
        let waiting = usize::from(self.local.is_some()) + self.remote.len();
        self.room.waiting.store(waiting, Relaxed);
        let now = Instant::now();
        for origin in at_limit {
            let wanted = self.waiting_of(origin);
            self.room.end_handshakes(wanted, Some(origin), now);
        }
        match full {
            Some(Full::Handshakes) => self.room.end_handshakes(waiting, None, now),
            // One local one waits at a time, and remote ones wait for that.
            Some(Full::Connections) if self.local.is_some() => self.room.make_room(1, false, now),
            Some(Full::Connections) => self.room.make_room(waiting, true, now),
            Some(Full::Origin | Full::Requests | Full::Workers) | None => {}
        }
    }

    /// Hands it to a worker, or gives it back with what is full.
    fn seat(&self, newcomer: Newcomer) -> Result<(), (Newcomer, Full)> {
        let Some((worker, place)) = choose(&self.workers) else {
            return Err((newcomer, Full::Workers));
        };
        match self.room.seat(newcomer.origin) {
            Ok(seat) => {
                // Counted here, so that a burst of connections spreads before a worker has looked.
                worker.counters.connections.fetch_add(1, Relaxed);
                place.send(newcomer.take(seat));
                Ok(())
            }
            Err(full) => Err((newcomer, full)),
        }
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

/// A place with the worker that has the least to do, of those that run, or of all if none does.
fn choose(workers: &[Inbox]) -> Option<(&Inbox, mpsc::Permit<'_, Accepted>)> {
    let stuck: Vec<_> = workers.iter().map(Inbox::is_stuck).collect();
    let none_runs = stuck.iter().all(|is_stuck| *is_stuck);
    let loads = load::expected(workers.iter().map(|worker| &*worker.counters));
    let able = workers.iter().zip(stuck).zip(loads);
    let able = able.filter(|((_, is_stuck), _)| none_runs || !is_stuck);
    let with_room = able.filter_map(|((worker, _), load)| {
        let place = worker.sender.try_reserve().ok()?;
        Some((load, worker, place))
    });
    let (_, worker, place) = with_room.min_by_key(|(load, _, _)| *load)?;
    Some((worker, place))
}

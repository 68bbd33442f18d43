//! Room for connections: who is seated, with which windows, and who has to go.
//!
//! A *local* producer (loopback, Unix socket, one of this host's own addresses) is never turned away: it waits until
//! the ingest budget has room. *Remote* ones are limited in number, and in handshakes under way. One that finds no room
//! makes the newest idle remote one leave; if none is idle, it waits.
//!
//! Who hasn't finished the handshake hasn't said who he is. So that nobody can keep local producers out by what he never
//! finishes, one of them that finds no room makes the oldest handshake leave that has had a second, local or not.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{budget::Budget, window::Windows};

/// Remote connections of each worker whose TLS handshake isn't done.
const HANDSHAKES_PER_WORKER: usize = 64;

/// What a handshake may take when a local producer waits for its room: some milliseconds are usual.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);

/// Whether a peer is on this host: loopback, or where it called is where it called from.
#[must_use]
pub fn is_local(peer: SocketAddr, own: SocketAddr) -> bool {
    let ip = |address: SocketAddr| -> IpAddr { address.ip().to_canonical() };
    ip(peer).is_loopback() || ip(peer) == ip(own)
}

/// Room for connections, over all workers.
#[derive(Debug)]
pub struct Room {
    budget: Arc<Budget>,
    share_bytes: usize,
    remote_max: usize,
    handshakes_max: usize,
    charged_bytes: AtomicUsize,
    remote: AtomicUsize,
    handshakes: AtomicUsize,
    /// In the order in which they came; who is gone may still be among them.
    seated: Mutex<Vec<Arc<Presence>>>,
    /// A seat was given back.
    freed: Notify,
    /// Connections that are accepted and not yet served.
    pub waiting: AtomicUsize,
    /// Idle ones that had to go for others.
    pub evicted: AtomicU64,
    /// New ones closed because too many waited already.
    pub turned_away: AtomicU64,
}

/// A connection as the acceptor sees it; its worker alone changes the phase.
#[derive(Debug, Default)]
pub struct Presence {
    is_remote: bool,
    phase: AtomicU8,
    shakes_hands_since: OnceLock<Instant>,
    asked_to_leave: AtomicBool,
    is_gone: AtomicBool,
    leave: Notify,
}

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Its worker hasn't looked at it.
    New = 0,
    /// Its handshake is under way.
    Handshake = 1,
    /// It has no request.
    Idle = 2,
    /// It has requests.
    Busy = 3,
}

impl Presence {
    /// Says what it is about.
    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    /// The handshake begins.
    pub fn shake_hands(&self) {
        self.shakes_hands_since.get_or_init(Instant::now);
        self.set(Phase::Handshake);
    }

    fn dawdles(&self, now: Instant) -> bool {
        let since = self.shakes_hands_since.get();
        let is_late = |since: &Instant| now.saturating_duration_since(*since) > HANDSHAKE_GRACE;
        self.is(Phase::Handshake) && since.is_some_and(is_late)
    }

    /// Asks the connection to close.
    pub fn ask_to_leave(&self) {
        self.asked_to_leave.store(true, Relaxed);
        self.leave.notify_one();
    }

    /// Completes when it has to close.
    pub async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

/// Why there is no place now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Too many handshakes are under way: they end soon.
    Handshakes,
    /// There are as many connections as there may be.
    Connections,
    /// Requests have taken the bytes: they give them back soon.
    Requests,
}

/// A connection's place, with its charge; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    room: Arc<Room>,
    windows: Windows,
    is_remote: bool,
    shakes_hands: bool,
    presence: Arc<Presence>,
}

impl Room {
    /// Room for as many connections as `share_bytes` of the budget allow.
    #[must_use]
    pub fn new(budget: Arc<Budget>, share_bytes: usize, remote_max: usize, workers: usize) -> Self {
        Self {
            budget,
            share_bytes,
            remote_max,
            handshakes_max: HANDSHAKES_PER_WORKER * workers,
            charged_bytes: AtomicUsize::new(0),
            remote: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            seated: Mutex::default(),
            freed: Notify::new(),
            waiting: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        }
    }

    /// Most remote connections.
    #[must_use]
    pub const fn remote_max(&self) -> usize {
        self.remote_max
    }

    /// Remote connections now.
    #[must_use]
    pub fn remote(&self) -> usize {
        self.remote.load(Relaxed)
    }

    /// Bytes that connections are charged with.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        self.charged_bytes.load(Relaxed)
    }

    /// A place, if there is one now. Only the acceptor asks, so nobody comes in between.
    ///
    /// # Errors
    /// If there is none.
    pub fn seat(self: &Arc<Self>, is_remote: bool) -> Result<Seat, Full> {
        if is_remote && self.handshakes.load(Relaxed) >= self.handshakes_max {
            return Err(Full::Handshakes);
        }
        if is_remote && self.remote.load(Relaxed) >= self.remote_max {
            return Err(Full::Connections);
        }
        let charged = self.charged_bytes.load(Relaxed);
        let free = self.share_bytes.saturating_sub(charged);
        let windows = Windows::fitting(free, self.share_bytes);
        if windows.charge() > free {
            return Err(Full::Connections);
        }
        if !self
            .budget
            .try_take_or_wait(windows.charge(), Instant::now())
        {
            return Err(Full::Requests);
        }
        self.charged_bytes.fetch_add(windows.charge(), Relaxed);
        let presence = Arc::new(Presence {
            is_remote,
            ..Presence::default()
        });
        if is_remote {
            self.remote.fetch_add(1, Relaxed);
            self.handshakes.fetch_add(1, Relaxed);
        }
        self.list(Arc::clone(&presence));
        Ok(Seat {
            room: Arc::clone(self),
            windows,
            is_remote,
            shakes_hands: is_remote,
            presence,
        })
    }

    /// Completes when a place has become free.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    fn list(&self, presence: Arc<Presence>) {
        let mut seated = self.seated();
        // Else it would grow with every connection that there ever was.
        if seated.len() == seated.capacity() {
            seated.retain(|presence| !presence.is_gone.load(Relaxed));
        }
        seated.push(presence);
    }

    /// Asks connections to leave, so that `wanted` of them are on their way out: for local ones who wait the oldest
    /// handshakes that have had their time, and then, as for remote ones, the newest idle remote connections.
    pub fn make_room(&self, wanted: usize, is_for_remote: bool, now: Instant) {
        let mut seated = self.seated();
        seated.retain(|presence| !presence.is_gone.load(Relaxed));
        let leaving = seated
            .iter()
            .filter(|presence| presence.asked_to_leave.load(Relaxed))
            .count();
        let oldest_first = seated.iter();
        let dawdling = oldest_first.filter(|presence| !is_for_remote && presence.dawdles(now));
        let newest_first = seated.iter().rev();
        let idle = newest_first.filter(|presence| presence.is_remote && presence.is(Phase::Idle));
        let stays = |presence: &&Arc<Presence>| !presence.asked_to_leave.load(Relaxed);
        let ends = dawdling.chain(idle).filter(stays);
        for presence in ends.take(wanted.saturating_sub(leaving)) {
            presence.ask_to_leave();
            if !presence.is(Phase::Handshake) {
                self.evicted.fetch_add(1, Relaxed);
            }
        }
    }

    fn seated(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Presence>>> {
        self.seated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Its limits.
    #[must_use]
    pub const fn windows(&self) -> Windows {
        self.windows
    }

    /// Where its worker says what it is about.
    #[must_use]
    pub const fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// The handshake is done, or there is none.
    pub fn shook_hands(&mut self) {
        if std::mem::take(&mut self.shakes_hands) {
            self.room.handshakes.fetch_sub(1, Relaxed);
        }
        self.presence.set(Phase::Idle);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shook_hands();
        self.presence.is_gone.store(true, Relaxed);
        let charge = self.windows.charge();
        self.room.charged_bytes.fetch_sub(charge, AcqRel);
        self.room.budget.give_back(charge);
        if self.is_remote {
            self.room.remote.fetch_sub(1, Relaxed);
        }
        self.room.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn room(remote_max: usize) -> Arc<Room> {
        let budget = Arc::new(Budget::new(16 * MIB));
        Arc::new(Room::new(budget, 12 * MIB, remote_max, 1))
    }

    fn idle(room: &Arc<Room>) -> Seat {
        let mut seat = room.seat(true).expect("there is room");
        seat.shook_hands();
        seat
    }

    fn make_room(room: &Room, wanted: usize) {
        room.make_room(wanted, true, Instant::now());
    }

    fn has_to_go(seat: &Seat) -> bool {
        seat.presence.asked_to_leave.load(Relaxed)
    }

    #[test]
    fn loopback_and_own_addresses_are_local() {
        let local = |peer: &str, own: &str| is_local(peer.parse().unwrap(), own.parse().unwrap());
        assert!(local("127.0.0.1:5", "127.0.0.1:4317"));
        assert!(local("127.8.0.1:5", "127.0.0.1:4317"));
        assert!(local("[::1]:5", "[::1]:4317"));
        assert!(local("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:4317"));
        assert!(local("192.0.2.7:5", "192.0.2.7:4317"));
        assert!(local("[::ffff:192.0.2.7]:5", "192.0.2.7:4317"));
        assert!(!local("192.0.2.8:5", "192.0.2.7:4317"));
        assert!(!local("[2001:db8::8]:5", "[2001:db8::7]:4317"));
    }

    #[test]
    fn the_newest_idle_remote_connection_goes_first_and_one_for_each_who_waits() {
        let room = room(4);
        let (oldest, busy, newest) = (idle(&room), idle(&room), idle(&room));
        let shaking = room.seat(true).expect("a fourth");
        busy.presence.set(Phase::Busy);
        assert_eq!(room.seat(true).err(), Some(Full::Connections));
        make_room(&room, 1);
        make_room(&room, 1);
        assert!(has_to_go(&newest));
        assert!([&oldest, &busy, &shaking].map(has_to_go) == [false; 3]);
        drop(newest);
        let next = room.seat(true).expect("one has left");
        make_room(&room, 3);
        assert!(has_to_go(&oldest), "the only one that is idle");
        assert!([&busy, &shaking, &next].map(has_to_go) == [false; 3]);
        assert_eq!(room.evicted.load(Relaxed), 2);
    }

    #[test]
    fn local_connections_know_no_limit_but_the_budget() {
        let room = room(1);
        let remote = idle(&room);
        assert_eq!(room.seat(true).err(), Some(Full::Connections));
        let mut locals = Vec::new();
        while let Ok(seat) = room.seat(false) {
            locals.push(seat);
        }
        assert!(locals.len() > 10);
        assert!(room.charged_bytes() <= 12 * MIB);
        // A remote one makes room for a local one, not the other way round.
        room.make_room(1, false, Instant::now());
        assert!(has_to_go(&remote));
        assert!(!locals.iter().any(has_to_go));
        drop((remote, locals));
        assert_eq!((room.charged_bytes(), room.budget.used()), (0, 0));
        assert_eq!(room.remote(), 0);
    }

    #[test]
    fn the_oldest_handshake_that_has_had_its_time_makes_room_for_a_local_producer() {
        let room = room(8);
        let begun = Instant::now();
        let late = begun + HANDSHAKE_GRACE + Duration::from_millis(1);
        let shaking = |is_remote, since| {
            let seat = room.seat(is_remote).expect("there is room");
            seat.presence.shakes_hands_since.set(since).expect("once");
            seat.presence.shake_hands();
            seat
        };
        let new = room.seat(false).expect("there is room");
        let (first, second) = (shaking(true, begun), shaking(false, begun));
        let (busy, remote) = (shaking(false, begun), idle(&room));
        busy.presence.set(Phase::Busy);
        let later = shaking(false, late);

        // It isn't time yet, so whoever is idle goes, as for remote ones.
        room.make_room(1, false, begun);
        assert!(has_to_go(&remote));
        drop(remote);
        room.make_room(1, false, late);
        room.make_room(1, false, late);
        assert!(has_to_go(&first) && !has_to_go(&second));
        drop(first);
        // Remote ones wait for the end of handshakes.
        room.make_room(2, true, late);
        assert!(!has_to_go(&second));
        room.make_room(3, false, late);
        assert!(has_to_go(&second));
        assert!([&new, &busy, &later].map(has_to_go) == [false; 3]);
        assert_eq!(room.evicted.load(Relaxed), 1, "only one was idle");
    }

    #[test]
    fn who_is_gone_is_not_remembered() {
        let room = room(8);
        let stays = idle(&room);
        for _ in 0..10_000 {
            drop(idle(&room));
        }
        assert!(room.seated().len() < 100);
        make_room(&room, 1);
        assert!(has_to_go(&stays));
    }

    #[test]
    fn handshakes_under_way_are_limited_for_remote_connections() {
        let budget = Arc::new(Budget::new(1024 * MIB));
        let room = Arc::new(Room::new(budget, 768 * MIB, 4096, 1));
        let mut shaking: Vec<_> = (0..HANDSHAKES_PER_WORKER)
            .map(|_| room.seat(true).expect("below the limit"))
            .collect();
        assert_eq!(room.seat(true).err(), Some(Full::Handshakes));
        assert!(room.seat(false).is_ok());
        shaking[7].shook_hands();
        shaking.push(room.seat(true).expect("one is through"));
        assert_eq!(room.seat(true).err(), Some(Full::Handshakes));
        drop(shaking.pop());
        assert!(room.seat(true).is_ok());
    }
}

//! Room for connections: who is seated, with which windows, and who has to go.
//!
//! A *local* producer (loopback, Unix socket, one of this host's own addresses) is never turned away: it waits until
//! the ingest budget has room. *Remote* ones are limited in number, and in handshakes under way. One that finds no room
//! makes the newest idle remote one leave; if none is idle, it waits.
//!
//! Who hasn't finished the handshake, and said what he speaks, hasn't said who he is. So that nobody can keep producers
//! out by what he never finishes, one of them that finds no room makes the oldest handshake leave that has had a second:
//! a local one any, a remote one a remote one. And no one address has all handshakes.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
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

/// Remote connections of each worker whose handshake isn't done; half of them are of one origin at most.
const HANDSHAKES_PER_WORKER: usize = 64;

/// What a handshake may take when somebody waits for its room: some milliseconds are usual.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);

/// Within this, whoever is asked to leave does; who doesn't, such as one of a stuck worker, makes no room for anybody.
const LEAVE_GRACE: Duration = Duration::from_secs(5);

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// This host.
    #[default]
    Local,
    /// An address; of IPv6 the network, since one host has as many addresses of a /64 as it likes.
    Remote(IpAddr),
}

impl Origin {
    /// A peer is on this host if it is a loopback one, or if where it called is where it called from.
    #[must_use]
    pub fn of(peer: SocketAddr, own: SocketAddr) -> Self {
        let (peer, own) = (peer.ip().to_canonical(), own.ip().to_canonical());
        if peer.is_loopback() || peer == own {
            return Self::Local;
        }
        Self::Remote(match peer {
            IpAddr::V4(_) => peer,
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        })
    }

    /// Whether it is another host.
    #[must_use]
    pub const fn is_remote(self) -> bool {
        matches!(self, Self::Remote(_))
    }
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
    seated: Mutex<Seated>,
    /// A seat was given back.
    freed: Notify,
    /// Connections that are accepted and not yet served.
    pub waiting: AtomicUsize,
    /// Idle ones that had to go for others.
    pub evicted: AtomicU64,
    /// New ones closed because too many waited already.
    pub turned_away: AtomicU64,
}

/// Connections in the order in which they came; some may be gone.
#[derive(Debug, Default)]
struct Seated {
    all: Vec<Arc<Presence>>,
    /// Those whose handshake isn't done.
    shaking: Vec<Arc<Presence>>,
}

/// A connection as the acceptor sees it; its worker alone changes the phase.
#[derive(Debug, Default)]
pub struct Presence {
    origin: Origin,
    phase: AtomicU8,
    shakes_hands_since: OnceLock<Instant>,
    asked_to_leave: OnceLock<Instant>,
    is_gone: AtomicBool,
    leave: Notify,
}

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Its worker hasn't looked at it.
    New = 0,
    /// Its handshake is under way, or it hasn't said what it speaks.
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

    fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    fn is_leaving(&self) -> bool {
        self.asked_to_leave.get().is_some()
    }

    /// Whether it is sure to make room soon.
    fn is_on_its_way(&self, now: Instant) -> bool {
        let asked = self.asked_to_leave.get();
        asked.is_some_and(|asked| now.saturating_duration_since(*asked) < LEAVE_GRACE)
    }

    fn shakes_hands(&self) -> bool {
        !self.is_gone() && (self.is(Phase::New) || self.is(Phase::Handshake))
    }

    fn dawdles(&self, now: Instant) -> bool {
        let since = self.shakes_hands_since.get();
        let is_late = |since: &Instant| now.saturating_duration_since(*since) > HANDSHAKE_GRACE;
        self.is(Phase::Handshake) && since.is_some_and(is_late)
    }

    /// Asks the connection to close.
    pub fn ask_to_leave(&self) {
        self.asked_to_leave.get_or_init(Instant::now);
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
    /// Too many of them are of its origin.
    Origin,
    /// There are as many connections as there may be.
    Connections,
    /// Requests have taken the bytes: they give them back soon.
    Requests,
    /// The workers have as many that they haven't looked at as they may have.
    Workers,
}

/// A connection's place, with its charge; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    room: Arc<Room>,
    windows: Windows,
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
    pub fn seat(self: &Arc<Self>, origin: Origin) -> Result<Seat, Full> {
        if origin.is_remote() {
            self.may_shake_hands(origin)?;
            if self.remote.load(Relaxed) >= self.remote_max {
                return Err(Full::Connections);
            }
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
            origin,
            ..Presence::default()
        });
        if origin.is_remote() {
            self.remote.fetch_add(1, Relaxed);
        }
        self.list(&presence);
        Ok(Seat {
            room: Arc::clone(self),
            windows,
            presence,
        })
    }

    fn may_shake_hands(&self, origin: Origin) -> Result<(), Full> {
        let seated = self.seated();
        let shaking = || seated.shaking.iter().filter(|other| other.shakes_hands());
        let remote = shaking().filter(|other| other.origin.is_remote()).count();
        if remote >= self.handshakes_max {
            return Err(Full::Handshakes);
        }
        let of_origin = shaking().filter(|other| other.origin == origin).count();
        if of_origin >= self.handshakes_max / 2 {
            return Err(Full::Origin);
        }
        Ok(())
    }

    /// Completes when a place has become free, here or with a worker.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    fn list(&self, presence: &Arc<Presence>) {
        let mut seated = self.seated();
        // Else they would grow with every connection that there ever was.
        if seated.all.len() == seated.all.capacity() {
            seated.all.retain(|presence| !presence.is_gone());
        }
        if seated.shaking.len() == seated.shaking.capacity() {
            seated.shaking.retain(|presence| presence.shakes_hands());
        }
        seated.all.push(Arc::clone(presence));
        seated.shaking.push(Arc::clone(presence));
    }

    /// Asks connections to leave, so that `wanted` of them are on their way out: the oldest handshakes that have had
    /// their time, and then the newest idle remote connections.
    pub fn make_room(&self, wanted: usize, is_for_remote: bool, now: Instant) {
        let mut seated = self.seated();
        seated.all.retain(|presence| !presence.is_gone());
        let oldest_first = seated.all.iter();
        let dawdling = oldest_first.filter(|presence| {
            presence.dawdles(now) && (presence.origin.is_remote() || !is_for_remote)
        });
        let newest_first = seated.all.iter().rev();
        let idle =
            newest_first.filter(|presence| presence.origin.is_remote() && presence.is(Phase::Idle));
        let leaving = seated
            .all
            .iter()
            .filter(|presence| presence.is_on_its_way(now));
        let wanted = wanted.saturating_sub(leaving.count());
        let ends = dawdling.chain(idle);
        for presence in ends.filter(|one| !one.is_leaving()).take(wanted) {
            presence.ask_to_leave();
            if !presence.is(Phase::Handshake) {
                self.evicted.fetch_add(1, Relaxed);
            }
        }
    }

    /// Asks the oldest remote handshakes that have had their time to leave, of `origin` or of all, so that `wanted` of
    /// them are on their way out.
    pub fn end_handshakes(&self, wanted: usize, origin: Option<Origin>, now: Instant) {
        let mut seated = self.seated();
        seated.shaking.retain(|presence| presence.shakes_hands());
        let those = || {
            seated.shaking.iter().filter(|one| match origin {
                Some(origin) => one.origin == origin,
                None => one.origin.is_remote(),
            })
        };
        let leaving = those().filter(|one| one.is_on_its_way(now)).count();
        let dawdling = those().filter(|one| one.dawdles(now) && !one.is_leaving());
        for presence in dawdling.take(wanted.saturating_sub(leaving)) {
            presence.ask_to_leave();
        }
    }

    fn seated(&self) -> std::sync::MutexGuard<'_, Seated> {
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

    /// Its worker has taken it, and the handshake begins.
    pub fn shake_hands(&self) {
        let presence = &self.presence;
        presence.shakes_hands_since.get_or_init(Instant::now);
        presence.set(Phase::Handshake);
        self.room.freed.notify_one();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.presence.is_gone.store(true, Relaxed);
        let charge = self.windows.charge();
        self.room.charged_bytes.fetch_sub(charge, AcqRel);
        self.room.budget.give_back(charge);
        if self.presence.origin.is_remote() {
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

    const FAR: Origin = Origin::Remote(IpAddr::V6(Ipv6Addr::UNSPECIFIED));

    /// All of different origins.
    fn remote(host: usize) -> Origin {
        Origin::Remote(Ipv6Addr::from_bits((host as u128 + 1) << 64).into())
    }

    fn idle(room: &Arc<Room>) -> Seat {
        let seat = room.seat(FAR).expect("there is room");
        seat.presence.set(Phase::Idle);
        seat
    }

    fn make_room(room: &Room, wanted: usize) {
        room.make_room(wanted, true, Instant::now());
    }

    fn has_to_go(seat: &Seat) -> bool {
        seat.presence.is_leaving()
    }

    #[test]
    fn loopback_and_own_addresses_are_local() {
        let origin =
            |peer: &str, own: &str| Origin::of(peer.parse().unwrap(), own.parse().unwrap());
        let local = |peer: &str, own: &str| !origin(peer, own).is_remote();
        assert!(local("127.0.0.1:5", "127.0.0.1:4317"));
        assert!(local("127.8.0.1:5", "127.0.0.1:4317"));
        assert!(local("[::1]:5", "[::1]:4317"));
        assert!(local("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:4317"));
        assert!(local("192.0.2.7:5", "192.0.2.7:4317"));
        assert!(local("[::ffff:192.0.2.7]:5", "192.0.2.7:4317"));
        assert!(!local("192.0.2.8:5", "192.0.2.7:4317"));
        assert!(!local("[2001:db8::8]:5", "[2001:db8::7]:4317"));
        let far = |peer: &str| origin(peer, "[2001:db8:1::7]:4317");
        assert_eq!(far("192.0.2.8:5"), far("[::ffff:192.0.2.8]:6"));
        assert_ne!(far("192.0.2.8:5"), far("192.0.2.9:5"));
        assert_eq!(far("[2001:db8::8]:5"), far("[2001:db8::9:8:7:6]:5"));
        assert_ne!(far("[2001:db8::8]:5"), far("[2001:db8:0:1::8]:5"));
    }

    #[test]
    fn the_newest_idle_remote_connection_goes_first_and_one_for_each_who_waits() {
        let room = room(4);
        let (oldest, busy, newest) = (idle(&room), idle(&room), idle(&room));
        let shaking = room.seat(FAR).expect("a fourth");
        busy.presence.set(Phase::Busy);
        assert_eq!(room.seat(FAR).err(), Some(Full::Connections));
        make_room(&room, 1);
        make_room(&room, 1);
        assert!(has_to_go(&newest));
        assert!([&oldest, &busy, &shaking].map(has_to_go) == [false; 3]);
        drop(newest);
        let next = room.seat(FAR).expect("one has left");
        make_room(&room, 3);
        assert!(has_to_go(&oldest), "the only one that is idle");
        assert!([&busy, &shaking, &next].map(has_to_go) == [false; 3]);
        assert_eq!(room.evicted.load(Relaxed), 2);
    }

    #[test]
    fn local_connections_know_no_limit_but_the_budget() {
        let room = room(1);
        let remote = idle(&room);
        assert_eq!(room.seat(FAR).err(), Some(Full::Connections));
        let mut locals = Vec::new();
        while let Ok(seat) = room.seat(Origin::Local) {
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
    fn the_oldest_handshake_that_has_had_its_time_makes_room() {
        let room = room(8);
        let begun = Instant::now();
        let late = begun + HANDSHAKE_GRACE + Duration::from_millis(1);
        let shaking = |origin, since| {
            let seat = room.seat(origin).expect("there is room");
            seat.presence.shakes_hands_since.set(since).expect("once");
            seat.shake_hands();
            seat
        };
        let new = room.seat(Origin::Local).expect("there is room");
        let (first, second) = (shaking(Origin::Local, begun), shaking(FAR, begun));
        let third = shaking(Origin::Local, begun);
        let (busy, remote) = (shaking(Origin::Local, begun), idle(&room));
        busy.presence.set(Phase::Busy);
        let later = shaking(Origin::Local, late);

        // It isn't time yet, so whoever is idle goes.
        room.make_room(1, false, begun);
        assert!(has_to_go(&remote));
        drop(remote);
        room.make_room(1, false, late);
        room.make_room(1, false, late);
        assert!(has_to_go(&first) && !has_to_go(&second));
        drop(first);
        // For remote ones only remote ones.
        room.make_room(3, true, late);
        assert!(has_to_go(&second) && !has_to_go(&third));
        room.make_room(3, false, late);
        assert!(has_to_go(&third));
        assert!([&new, &busy, &later].map(has_to_go) == [false; 3]);
        assert_eq!(room.evicted.load(Relaxed), 1, "only one was idle");
    }

    #[test]
    fn who_is_asked_to_leave_and_stays_keeps_nobody_else_from_being_asked() {
        let room = room(8);
        let (other, stays) = (idle(&room), idle(&room));
        make_room(&room, 1);
        make_room(&room, 1);
        assert!(has_to_go(&stays) && !has_to_go(&other));
        room.make_room(1, true, Instant::now() + LEAVE_GRACE);
        assert!(has_to_go(&other));
    }

    #[test]
    fn who_is_gone_is_not_remembered() {
        let room = room(8);
        let stays = idle(&room);
        for _ in 0..10_000 {
            drop(idle(&room));
        }
        assert!(room.seated().all.len() < 100);
        assert!(room.seated().shaking.len() < 100);
        make_room(&room, 1);
        assert!(has_to_go(&stays));
    }

    fn large_room() -> Arc<Room> {
        let budget = Arc::new(Budget::new(1024 * MIB));
        Arc::new(Room::new(budget, 768 * MIB, 4096, 1))
    }

    #[test]
    fn handshakes_under_way_are_limited_for_remote_connections() {
        let room = large_room();
        let mut shaking: Vec<_> = (0..HANDSHAKES_PER_WORKER)
            .map(|host| room.seat(remote(host)).expect("below the limit"))
            .collect();
        assert_eq!(room.seat(FAR).err(), Some(Full::Handshakes));
        assert!(room.seat(Origin::Local).is_ok());
        shaking[7].presence.set(Phase::Idle);
        shaking.push(room.seat(FAR).expect("one is through"));
        assert_eq!(room.seat(FAR).err(), Some(Full::Handshakes));
        drop(shaking.pop());
        assert!(room.seat(FAR).is_ok());
    }

    #[test]
    fn one_origin_has_half_of_the_handshakes_and_ends_its_own() {
        let room = large_room();
        let shaking = |origin| {
            let seat = room.seat(origin).expect("below the limit");
            seat.shake_hands();
            seat
        };
        let other = shaking(remote(0));
        let its: Vec<_> = (0..HANDSHAKES_PER_WORKER / 2)
            .map(|_| shaking(FAR))
            .collect();
        assert_eq!(room.seat(FAR).err(), Some(Full::Origin));
        let late = Instant::now() + HANDSHAKE_GRACE + Duration::from_millis(1);
        room.end_handshakes(2, Some(FAR), late);
        room.end_handshakes(2, Some(FAR), late);
        assert!(has_to_go(&its[0]) && has_to_go(&its[1]));
        assert!(!has_to_go(&its[2]) && !has_to_go(&other));
        room.end_handshakes(3, None, late);
        assert!(has_to_go(&other), "the oldest");
        assert!(!has_to_go(&its[2]));
        drop(its);
        assert!(room.seat(FAR).is_ok());
    }
}

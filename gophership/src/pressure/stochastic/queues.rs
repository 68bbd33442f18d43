//! The ingest sockets' receive queues, sampled: the levels, stalls and sums that the probes keep in
//! the kernel half, by the same rules.
//!
//! What sampling can't see: a queue that was full only between two looks, and what a connection
//! brought that came and went between them. A stall is told from bytes received less bytes unread,
//! which is what the application has taken: equal twice, it has taken nothing.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use gophership_common::{
    ABOVE_RED, BELOW, Policy, SOCKETS_MAX, capacity_bytes, capacity_when_closed, level, permille,
};

use super::{
    super::clock::cpu_time,
    diag::{Connection, Diag, Found},
};

/// A look takes at most one part in this many of a CPU's time: with many connections it is taken
/// less often.
const SHARE: u32 = 20;
/// But at least this often.
const LATEST: Duration = Duration::from_secs(1);

/// What is remembered of one socket.
struct Followed {
    level: u32,
    received: u64,
    /// Bytes the application has taken.
    taken: u64,
    /// Above Red, and nothing taken, since then; 0: it isn't.
    stalled_since_ns: u64,
    /// The look that saw it last.
    look: u64,
}

/// All ingest sockets together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Queues {
    /// Fullest queue, permille of its capacity.
    pub(super) deepest_permille: u64,
    /// Longest time above Red without a dequeue.
    pub(super) stalled_ns: u64,
    /// Sockets above Yellow.
    pub(super) above_yellow: u64,
    /// Sockets above Red.
    pub(super) above_red: u64,
    /// Unread bytes.
    pub(super) unread_bytes: u64,
    /// Bytes that have arrived since the first look.
    pub(super) arrived_bytes: u64,
    /// Fullest accept queue, permille of its limit; `None`: nobody listens.
    pub(super) backlog_permille: Option<u64>,
    /// Sockets followed.
    pub(super) followed: u64,
    /// Sockets that found the table full, counted once a look.
    pub(super) untracked: u64,
}

/// Follows the sockets from look to look.
pub(super) struct Follower {
    diag: Diag,
    sockets: Sockets,
    /// Not before this.
    due: Option<Instant>,
    last: Queues,
}

#[derive(Default)]
struct Sockets {
    followed: HashMap<u64, Followed>,
    looks: u64,
    arrived_bytes: u64,
    untracked: u64,
}

impl Follower {
    pub(super) fn of(ports: &[u16]) -> Self {
        Self {
            diag: Diag::new(ports),
            sockets: Sockets::default(),
            due: None,
            last: Queues::default(),
        }
    }

    /// Looks at all sockets; what it saw last if that cost too much to be repeated already.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn look(&mut self, policy: &Policy, now_ns: u64) -> io::Result<Queues> {
        let now = Instant::now();
        if self.due.is_some_and(|due| now < due) {
            return Ok(self.last);
        }
        let start = cpu_time();
        let mut look = self.sockets.begin();
        let asked = self
            .diag
            .ask(|found| self.sockets.see(&mut look, &found, policy, now_ns));
        let cost = cpu_time().saturating_sub(start);
        self.due = Some(now + (cost * SHARE).min(LATEST));
        asked?;
        self.last = self.sockets.end(look);
        Ok(self.last)
    }
}

impl Sockets {
    fn begin(&mut self) -> Queues {
        self.looks += 1;
        Queues::default()
    }

    fn see(&mut self, look: &mut Queues, found: &Found, policy: &Policy, now_ns: u64) {
        match *found {
            Found::Connection(connection) => self.follow(look, &connection, policy, now_ns),
            Found::Listener { waiting, backlog } => {
                // `sk_acceptq_is_full` of include/net/sock.h: one more than the backlog fits.
                let fullest = permille(waiting.into(), u64::from(backlog) + 1).into();
                look.backlog_permille = look.backlog_permille.max(Some(fullest));
            }
        }
    }

    fn follow(&mut self, look: &mut Queues, seen: &Connection, policy: &Policy, now_ns: u64) {
        let taken = seen.received.wrapping_sub(seen.unread.into());
        let full = self.followed.len() >= SOCKETS_MAX as usize;
        if full && !self.followed.contains_key(&seen.cookie) {
            self.untracked += 1;
            return;
        }
        // Before the first look, nothing is known to have arrived lately.
        let received = if self.looks == 1 { seen.received } else { 0 };
        let followed = self.followed.entry(seen.cookie).or_insert(Followed {
            level: BELOW,
            received,
            taken,
            stalled_since_ns: 0,
            look: 0,
        });
        if followed.look == self.looks {
            // The kernel tells of a socket twice when its table changes meanwhile.
            return;
        }
        followed.look = self.looks;
        self.arrived_bytes += seen.received.saturating_sub(followed.received);
        followed.received = seen.received;

        let value = permille(seen.unread.into(), capacity(seen, policy).into());
        let was = followed.level;
        followed.level = level(policy.receive_queue, value, was);
        let restart = was != ABOVE_RED || taken != followed.taken;
        followed.taken = taken;
        if followed.level != ABOVE_RED {
            followed.stalled_since_ns = 0;
        } else if restart {
            followed.stalled_since_ns = now_ns;
        }

        look.deepest_permille = look.deepest_permille.max(value.into());
        look.unread_bytes += u64::from(seen.unread);
        look.above_yellow += u64::from(followed.level != BELOW);
        look.above_red += u64::from(followed.level == ABOVE_RED);
        if followed.stalled_since_ns != 0 {
            let stalled_ns = now_ns.saturating_sub(followed.stalled_since_ns);
            look.stalled_ns = look.stalled_ns.max(stalled_ns);
        }
    }

    /// Forgets who wasn't seen.
    fn end(&mut self, look: Queues) -> Queues {
        let looks = self.looks;
        self.followed.retain(|_, followed| followed.look == looks);
        Queues {
            arrived_bytes: self.arrived_bytes,
            followed: self.followed.len() as u64,
            untracked: self.untracked,
            ..look
        }
    }
}

/// Bytes that stop the peer. Nobody tells the socket's scaling ratio, so it is taken from what
/// waits: payload over what it is charged with, which is what the kernel makes it of.
fn capacity(seen: &Connection, policy: &Policy) -> u32 {
    let ratio = (u64::from(seen.unread) << 8)
        .checked_div(seen.charged.into())
        .unwrap_or(u64::MAX);
    let ratio = u8::try_from(ratio).unwrap_or(u8::MAX).max(1);
    let capacity = capacity_bytes(seen.buffer, ratio, policy.h2_window_bytes);
    if seen.window_closed {
        capacity_when_closed(capacity, seen.unread)
    } else {
        capacity
    }
}

#[cfg(test)]
#[path = "queues_tests.rs"]
mod tests;

//! The ingest budget: one count of bytes for all workers, of which connections and requests take their parts.
//!
//! Nothing is ever held while waiting for more: a request takes its whole length, and what it may unpack to, at once or
//! waits with nothing, first come, first served; and a connection is charged once, when it is accepted, from a share that
//! leaves the largest request its room. Who waits for long has those make way whose bodies come slowest ([`super::slow`]).
//! So whatever holds a part can end, and does within the deadlines of bodies and answers.

use std::{
    collections::VecDeque,
    ops::Deref,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, futures::Notified, oneshot};

use super::{
    return_time::Releases,
    slow::{Slow, Unfinished},
};

/// Who has waited for so long has others make way.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// And again after this, if it still waits.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Bytes, over all workers.
#[derive(Debug)]
pub struct Budget {
    count: Count,
    limit: usize,
    waits: Waits,
    queue: Mutex<Queue>,
    releases: Releases,
}

/// What every request writes: once when it takes its part, and once when it gives it back. Both only grow, and wrap.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count {
    taken: AtomicUsize,
    given_back: AtomicUsize,
}

/// Apart from the count: readers look at it before each read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Waits {
    requests: AtomicUsize,
    /// What the connection needs that waits for a place; requests leave it free.
    connection: AtomicUsize,
    /// What connections and buffers hold.
    kept: AtomicUsize,
    /// What connections have given back.
    kept_given_back: AtomicUsize,
    ended: Notify,
}

/// Looked at by those who wait, those who end while others do, and those who take long.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<Waiting>,
    unfinished: Slow,
    connection_since: Option<Instant>,
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    number: u64,
    bytes: usize,
    since: Instant,
    served: oneshot::Sender<()>,
}

/// Its place in the queue; leaves it, or gives back what it was served with, unless that is taken.
struct Place<'a> {
    budget: &'a Budget,
    number: u64,
    bytes: usize,
    served: oneshot::Receiver<()>,
    is_taken: bool,
}

/// A request's part, given back when dropped; it may share the budget with threads that outlive the request.
#[derive(Debug)]
pub struct Part<B: Deref<Target = Budget>> {
    budget: B,
    bytes: usize,
}

/// A part that the request has itself.
pub type Taken<'a> = Part<&'a Budget>;

impl Budget {
    /// With `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            count: Count::default(),
            limit,
            waits: Waits::default(),
            queue: Mutex::default(),
            releases: Releases::default(),
        }
    }

    /// All of it.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// What is held.
    #[must_use]
    pub fn used(&self) -> usize {
        // In this order it is never too little; what was taken in between is too much.
        let given_back = self.count.given_back.load(SeqCst);
        let used = self.count.taken.load(SeqCst).wrapping_sub(given_back);
        used.min(self.limit)
    }

    /// What requests hold of that.
    #[must_use]
    pub fn used_by_requests(&self) -> usize {
        let kept = self.waits.kept.load(Relaxed);
        self.used().saturating_sub(kept)
    }

    /// Whether a request waits for bytes: readers stop.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.waits.requests.load(Relaxed) > 0
    }

    /// Completes when the last request that waits does so no longer.
    pub fn no_longer_spent(&self) -> Notified<'_> {
        self.waits.ended.notified()
    }

    /// Takes `bytes` for a request, if there are as many and none waits.
    pub fn take_at_once(&self, bytes: usize) -> Option<Taken<'_>> {
        if self.waits.requests.load(SeqCst) > 0 {
            return None;
        }
        self.take_now(bytes)
    }

    /// Takes `bytes` for a request behind those who wait already.
    pub async fn take(&self, bytes: usize) -> Taken<'_> {
        let mut place = self.queue_up(bytes);
        let mut ask_at = tokio::time::Instant::now() + PATIENCE;
        loop {
            let served = tokio::time::timeout_at(ask_at, &mut place.served).await;
            if served.is_ok() {
                place.is_taken = true;
                return Taken {
                    budget: self,
                    bytes,
                };
            }
            self.have_others_make_way(&mut self.queue());
            ask_at += ASK_AGAIN;
        }
    }

    /// Takes `bytes` more for a request that has some: it must not wait, so it has them now or not at all.
    pub fn take_now(&self, bytes: usize) -> Option<Taken<'_>> {
        if !self.count_in(bytes, self.waits.connection.load(Relaxed)) {
            return None;
        }
        Some(Taken {
            budget: self,
            bytes,
        })
    }

    /// Takes `bytes` for a connection or for good, whoever waits, if there are as many; they are given back by
    /// [`Self::give_back`].
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> bool {
        let is_taken = self.count_in(bytes, 0);
        if is_taken {
            self.waits.kept.fetch_add(bytes, Relaxed);
        }
        is_taken
    }

    /// As [`Self::try_take`], for a connection that waits for them if there aren't as many now, and asks again.
    #[must_use]
    pub fn try_take_or_wait(&self, bytes: usize, now: Instant) -> bool {
        let is_taken = self.try_take(bytes);
        let waited = !is_taken || self.waits.connection.load(Relaxed) > 0;
        if waited {
            let mut queue = self.queue();
            let wanted = if is_taken { 0 } else { bytes };
            self.waits.connection.store(wanted, Relaxed);
            if is_taken {
                queue.connection_since = None;
                self.serve(&mut queue);
            } else {
                queue.connection_since.get_or_insert(now);
                self.have_others_make_way(&mut queue);
            }
        }
        is_taken
    }

    /// Gives back what [`Self::try_take`] took.
    pub fn give_back(&self, bytes: usize) {
        self.waits.kept.fetch_sub(bytes, Relaxed);
        self.waits.kept_given_back.fetch_add(bytes, Relaxed);
        self.count_out(bytes);
    }

    /// Notes how fast requests give bytes back; a few times a second.
    pub fn measure(&self, now: Instant) {
        let all = self.count.given_back.load(Relaxed);
        let by_requests = all.wrapping_sub(self.waits.kept_given_back.load(Relaxed));
        self.releases
            .measure(by_requests, self.used_by_requests(), now);
    }

    /// When who is refused for want of memory should come again.
    #[must_use]
    pub fn return_time(&self) -> Duration {
        let waiting: usize = self.queue().waiting.iter().map(|other| other.bytes).sum();
        self.releases.return_time(self.used_by_requests() + waiting)
    }

    /// Lists a request that holds `bytes`, of which `received` have come by now: it may have to make way.
    pub(super) fn unfinished(&self, since: Instant, bytes: usize, received: usize) -> Unfinished {
        self.queue().unfinished.add(since, bytes, received)
    }

    /// Takes it off the list.
    pub(super) fn finished(&self, unfinished: &Unfinished) {
        self.queue().unfinished.remove(unfinished);
    }

    fn count_in(&self, bytes: usize, left_free: usize) -> bool {
        let Count { taken, given_back } = &self.count;
        let wanted = bytes.saturating_add(left_free);
        let mut given = given_back.load(SeqCst);
        let mut had = taken.load(SeqCst);
        loop {
            // What was given back since can only make it less.
            let used = had.wrapping_sub(given);
            if used.saturating_add(wanted) <= self.limit {
                let all = had.wrapping_add(bytes);
                match taken.compare_exchange_weak(had, all, SeqCst, SeqCst) {
                    Ok(_) => return true,
                    Err(now) => had = now,
                }
                continue;
            }
            let before = std::mem::replace(&mut given, given_back.load(SeqCst));
            if given == before {
                return false;
            }
            had = taken.load(SeqCst);
        }
    }

    /// Sequentially consistent, as what [`Self::queue_up`] does: either this sees who waits, or that what is free now.
    fn count_out(&self, bytes: usize) {
        self.count.given_back.fetch_add(bytes, SeqCst);
        if self.waits.requests.load(SeqCst) > 0 {
            self.serve(&mut self.queue());
        }
    }

    fn queue_up(&self, bytes: usize) -> Place<'_> {
        let mut queue = self.queue();
        self.waits.requests.fetch_add(1, SeqCst);
        let (sender, served) = oneshot::channel();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Waiting {
            number,
            bytes,
            since: Instant::now(),
            served: sender,
        });
        self.serve(&mut queue);
        Place {
            budget: self,
            number,
            bytes,
            served,
            is_taken: false,
        }
    }

    /// Serves who is first, as long as there is enough.
    fn serve(&self, queue: &mut Queue) {
        while let Some(first) = queue.waiting.front() {
            if !self.count_in(first.bytes, self.waits.connection.load(Relaxed)) {
                return;
            }
            if let Some(first) = queue.waiting.pop_front() {
                self.waits_no_longer();
                // Its place is there until it has left the queue, which is locked.
                let _ = first.served.send(());
            }
        }
    }

    fn waits_no_longer(&self) {
        if self.waits.requests.fetch_sub(1, SeqCst) == 1 {
            self.waits.ended.notify_waiters();
        }
    }

    /// Has the slowest make way for the first request and the connection, if they have waited for long.
    fn have_others_make_way(&self, queue: &mut Queue) {
        let now = Instant::now();
        let is_late = |since: Instant| now.saturating_duration_since(since) >= PATIENCE;
        let first = queue.waiting.front();
        let for_request = first.filter(|first| is_late(first.since));
        let for_connection = queue.connection_since.filter(|&since| is_late(since));
        if for_request.is_none() && for_connection.is_none() {
            return;
        }
        let connection = self.waits.connection.load(Relaxed);
        let wanted = connection + for_request.map_or(0, |first| first.bytes);
        let free = self.limit.saturating_sub(self.used());
        queue.unfinished.make_way(wanted.saturating_sub(free), now);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Deref<Target = Budget>> Part<B> {
    /// Nothing yet.
    #[must_use]
    pub const fn none(budget: B) -> Self {
        Self { budget, bytes: 0 }
    }

    /// The budget that it is of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// So many.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more, or leaves it as it is: false if there isn't enough now.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        self.budget.take_now(bytes).is_some_and(|mut more| {
            self.bytes += std::mem::take(&mut more.bytes);
            true
        })
    }

    /// Gives back what is beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let beyond = self.bytes.saturating_sub(bytes);
        self.bytes -= beyond;
        drop(Part {
            budget: self.budget(),
            bytes: beyond,
        });
    }

    /// All of it becomes `other`'s, which is of the same budget.
    pub fn hand_over<C: Deref<Target = Budget>>(&mut self, other: &mut Part<C>) {
        other.bytes += std::mem::take(&mut self.bytes);
    }
}

impl<B: Deref<Target = Budget>> Drop for Part<B> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.count_out(self.bytes);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        let mut queue = self.budget.queue();
        let place = queue
            .waiting
            .iter()
            .position(|waiting| waiting.number == self.number);
        if let Some(place) = place {
            queue.waiting.remove(place);
            self.budget.waits_no_longer();
            self.budget.serve(&mut queue);
        } else {
            drop(queue);
            self.budget.count_out(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests;

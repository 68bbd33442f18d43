//! The ingest budget: one count of bytes for all workers, of which connections and requests take their parts.
//!
//! Nothing is ever held while waiting for more: a request takes its whole length, and what it may unpack to, at once or
//! waits with nothing, and a connection is charged once, when it is accepted, from a share that leaves the largest request
//! its room. So whatever holds a part can end, and does within the deadlines of bodies and answers.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// Bytes, over all workers.
#[derive(Debug)]
pub struct Budget {
    bytes: Semaphore,
    limit: usize,
    waits: Waits,
}

/// Apart from the count, which every request writes: readers look at it before each read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Waits {
    requests: AtomicUsize,
    ended: Notify,
}

/// A request that waits.
struct Waiting<'a>(&'a Waits);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.requests.fetch_sub(1, Relaxed) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

impl Budget {
    /// With `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Semaphore::new(limit),
            limit,
            waits: Waits::default(),
        }
    }

    /// All of it.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// What is taken.
    #[must_use]
    pub fn used(&self) -> usize {
        self.limit.saturating_sub(self.bytes.available_permits())
    }

    /// Whether a request waits for bytes: readers stop.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.waits.requests.load(Relaxed) > 0
    }

    /// Completes when the last request that waits does so no longer.
    pub fn no_longer_spent(&self) -> tokio::sync::futures::Notified<'_> {
        self.waits.ended.notified()
    }

    /// Takes `bytes` for a request; `None` if there weren't as many `within` that time. First come, first served.
    pub async fn take(&self, bytes: u32, within: Duration) -> Option<SemaphorePermit<'_>> {
        if let Ok(taken) = self.bytes.try_acquire_many(bytes) {
            return Some(taken);
        }
        self.waits.requests.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waits);
        let taken = tokio::time::timeout(within, self.bytes.acquire_many(bytes)).await;
        taken.ok()?.ok()
    }

    /// Takes `bytes` more for a request that has some: it must not wait, so it has them now or not at all.
    pub fn take_now(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let permits = u32::try_from(bytes).ok()?;
        self.bytes.try_acquire_many(permits).ok()
    }

    /// Takes `bytes` for a connection or for good, if there are as many; they are given back by [`Self::give_back`].
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> bool {
        self.take_now(bytes).map(SemaphorePermit::forget).is_some()
    }

    /// Gives back what [`Self::try_take`] took.
    pub fn give_back(&self, bytes: usize) {
        self.bytes.add_permits(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(60);

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    #[test]
    fn a_request_that_waits_stops_readers_until_it_is_served_or_gives_up() {
        run(async {
            let budget = Budget::new(100);
            let first = budget.take(60, SOON).await.expect("there is room");
            assert!(!budget.is_spent());
            assert!(budget.take(50, SOON).await.is_none());
            assert!(!budget.is_spent(), "nobody waits any longer");
            let waiting = budget.take(50, LONG);
            let freed = async {
                tokio::task::yield_now().await;
                assert!(budget.is_spent());
                // What is left isn't given to those who come later and want less.
                assert!(!budget.try_take(10));
                drop(first);
            };
            let (taken, ()) = tokio::join!(waiting, freed);
            assert_eq!(budget.used(), 50);
            assert!(!budget.is_spent());
            drop(taken);
            assert_eq!(budget.used(), 0);
        });
    }

    #[test]
    fn a_connections_bytes_are_given_back_once() {
        let budget = Budget::new(100);
        assert!(budget.try_take(70));
        assert!(!budget.try_take(31));
        assert_eq!(budget.used(), 70);
        budget.give_back(70);
        assert_eq!(budget.used(), 0);
    }
}

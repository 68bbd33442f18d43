//! Requests whose bodies take longer than others wait in patience: while one waits for bytes of the budget, those that come
//! slowest make way, whoever sends them, and are refused for now.
//!
//! How slow one is goes by the share of what it holds that has come a second: so it is the one that would hold most for
//! longest, and no small one that frees nothing.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Whoever has to make way does so in milliseconds, unless its worker is stuck: then others have to.
const MAKES_WAY_WITHIN: Duration = Duration::from_secs(1);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Slow(Vec<Arc<Request>>);

/// One of them, as its reader sees it.
#[derive(Debug)]
pub(super) struct Unfinished(Arc<Request>);

#[derive(Debug)]
struct Request {
    since: Instant,
    bytes: AtomicUsize,
    received: AtomicUsize,
    asked: OnceLock<Instant>,
    makes_way: Notify,
}

impl Slow {
    pub(super) fn add(&mut self, since: Instant, bytes: usize, received: usize) -> Unfinished {
        let request = Arc::new(Request {
            since,
            bytes: AtomicUsize::new(bytes),
            received: AtomicUsize::new(received),
            asked: OnceLock::new(),
            makes_way: Notify::new(),
        });
        self.0.push(Arc::clone(&request));
        Unfinished(request)
    }

    pub(super) fn remove(&mut self, unfinished: &Unfinished) {
        self.0.retain(|other| !Arc::ptr_eq(other, &unfinished.0));
    }

    /// Asks the slowest ones, until those on their way out hold `wanted` bytes.
    pub(super) fn make_way(&self, wanted: usize, now: Instant) {
        let is_leaving = |request: &&Arc<Request>| {
            let asked = request.asked.get();
            asked.is_some_and(|&asked| now.saturating_duration_since(asked) < MAKES_WAY_WITHIN)
        };
        let bytes = |request: &Arc<Request>| request.bytes.load(Relaxed);
        let mut leaving: usize = self.0.iter().filter(is_leaving).map(bytes).sum();
        while leaving < wanted {
            let stays = self.0.iter().filter(|other| other.asked.get().is_none());
            let share = |request: &Arc<Request>| request.share_in_a_second(now);
            let Some(slowest) = stays.min_by(|a, b| share(a).total_cmp(&share(b))) else {
                return;
            };
            leaving += bytes(slowest);
            slowest.asked.get_or_init(|| now);
            slowest.makes_way.notify_one();
        }
    }
}

impl Request {
    #[expect(clippy::cast_precision_loss, reason = "it is compared")]
    fn share_in_a_second(&self, now: Instant) -> f64 {
        let (bytes, received) = (self.bytes.load(Relaxed), self.received.load(Relaxed));
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        received as f64 / bytes.max(1) as f64 / seconds.max(1e-3)
    }
}

impl Unfinished {
    /// So many bytes have come, of what it holds now.
    pub(super) fn note(&self, bytes: usize, received: usize) {
        self.0.bytes.store(bytes, Relaxed);
        self.0.received.store(received, Relaxed);
    }

    /// Completes when it has to.
    pub(super) async fn asked_to_make_way(&self) {
        self.0.makes_way.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_asked(unfinished: &Unfinished) -> bool {
        unfinished.0.asked.get().is_some()
    }

    #[test]
    fn the_slowest_make_way_and_no_more_than_it_takes() {
        let mut slow = Slow::default();
        let since = Instant::now();
        let [small, fast, slower, slowest] =
            [(10, 1), (1000, 500), (1000, 20), (1000, 10)].map(|(b, r)| slow.add(since, b, r));
        let asked = || [&small, &fast, &slower, &slowest].map(is_asked);
        let later = since + Duration::from_secs(2);
        slow.make_way(0, later);
        assert_eq!(asked(), [false; 4]);
        slow.make_way(900, later);
        slow.make_way(1000, later);
        assert_eq!(asked(), [false, false, false, true]);
        slow.make_way(1001, later);
        assert_eq!(asked(), [false, false, true, true]);
        // What has come since counts.
        fast.note(1_000_000, 501);
        slow.make_way(2001, later);
        assert_eq!(asked(), [false, true, true, true]);
    }

    #[test]
    fn others_have_to_if_the_slowest_does_not() {
        let mut slow = Slow::default();
        let since = Instant::now();
        let (stuck, other) = (slow.add(since, 1000, 0), slow.add(since, 1000, 1));
        let later = since + Duration::from_secs(2);
        slow.make_way(1, later);
        slow.make_way(1, later + MAKES_WAY_WITHIN / 2);
        assert!(is_asked(&stuck) && !is_asked(&other));
        slow.make_way(1, later + MAKES_WAY_WITHIN);
        assert!(is_asked(&other));
        slow.remove(&stuck);
        slow.remove(&other);
        assert!(slow.0.is_empty());
    }
}

//! Several servers that are one destination: which of them gets a batch.
//!
//! One that fails is left out until its wait is over, as [`Retry`] says; then one batch is its trial, while the others
//! go on without it. One that asked for a delay is left out for as long, whatever it takes meanwhile. All workers share
//! what is known of a server.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::Retry;

/// Which of several servers is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The first in the list that works.
    Failover,
    /// Each in turn.
    RoundRobin,
}

/// What is known of the servers, by their position in the list.
#[derive(Debug)]
pub(super) struct Endpoints {
    balance: Balance,
    retry: Retry,
    /// Of one call: a trial lasts no longer.
    timeout: Duration,
    started: Instant,
    turn: AtomicUsize,
    states: Box<[State]>,
}

#[derive(Debug, Default)]
struct State {
    /// In a row; 0: it works.
    failures: AtomicU32,
    /// Milliseconds since `started`; it is left out until then.
    out_until_ms: AtomicU64,
    /// So it asked; only time ends that.
    asked_until_ms: AtomicU64,
}

impl Endpoints {
    pub(super) fn new(count: usize, balance: Balance, retry: Retry, timeout: Duration) -> Self {
        Self {
            balance,
            retry,
            timeout,
            started: Instant::now(),
            turn: AtomicUsize::new(0),
            states: (0..count).map(|_| State::default()).collect(),
        }
    }

    /// The servers in the order in which they are to be asked. Each must be claimed before.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.states.len();
        let first = match self.balance {
            Balance::Failover => 0,
            Balance::RoundRobin => self.turn.fetch_add(1, Relaxed) % count,
        };
        (0..count).map(move |offset| (first + offset) % count)
    }

    /// Whether this server may be asked: it works, or its wait is over and nobody else tries it. The only one is always
    /// asked: when, is decided elsewhere.
    pub(super) fn claim(&self, index: usize) -> bool {
        let state = &self.states[index];
        if self.states.len() == 1 {
            return true;
        }
        let now = self.now_ms();
        if now < state.asked_until_ms.load(Relaxed) {
            return false;
        }
        if state.failures.load(Relaxed) == 0 {
            return true;
        }
        let until = state.out_until_ms.load(Relaxed);
        let trial_ends = now.saturating_add(millis(self.timeout));
        now >= until
            && state
                .out_until_ms
                .compare_exchange(until, trial_ends, Relaxed, Relaxed)
                .is_ok()
    }

    pub(super) fn works(&self, index: usize) {
        self.states[index].failures.store(0, Relaxed);
    }

    /// `asked`: what the server asked for. `seen`: [`Self::failures`] when it was asked; of calls that fail together, one
    /// counts.
    pub(super) fn failed(&self, index: usize, asked: Option<Duration>, seen: u32) {
        let state = &self.states[index];
        let (now, chance) = (self.now_ms(), RandomState::new().hash_one(index));
        if let Some(asked) = asked {
            let until = now.saturating_add(millis(self.retry.asked(asked, chance)));
            state.asked_until_ms.fetch_max(until, Relaxed);
        }
        let counted =
            state
                .failures
                .compare_exchange(seen, seen.saturating_add(1), Relaxed, Relaxed);
        if counted.is_ok() {
            let until = now.saturating_add(millis(self.retry.backoff(seen, chance)));
            state.out_until_ms.store(until, Relaxed);
        }
    }

    pub(super) fn failures(&self, index: usize) -> u32 {
        self.states[index].failures.load(Relaxed)
    }

    /// How long until one of several may be asked again.
    pub(super) fn wait(&self) -> Duration {
        let now = self.now_ms();
        let due = self.states.iter().map(|state| {
            let asked = state.asked_until_ms.load(Relaxed);
            match state.failures.load(Relaxed) {
                0 => asked,
                _ => asked.max(state.out_until_ms.load(Relaxed)),
            }
        });
        Duration::from_millis(due.min().unwrap_or(0).saturating_sub(now))
    }

    fn now_ms(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Retry = Retry {
        initial: Duration::from_secs(3600),
        max: Duration::from_secs(3600),
        multiplier_permille: 1000,
        jitter_permille: 0,
    };

    fn claimed(endpoints: &Endpoints) -> Vec<usize> {
        let order = endpoints.order();
        order.filter(|index| endpoints.claim(*index)).collect()
    }

    #[test]
    fn what_failed_is_left_out_and_tried_by_one_when_its_wait_is_over() {
        let hour = Duration::from_secs(3600);
        let endpoints = Endpoints::new(3, Balance::Failover, LONG, hour);
        assert_eq!(claimed(&endpoints), [0, 1, 2]);
        // What fails together counts once.
        for _ in 0..3 {
            endpoints.failed(0, None, 0);
        }
        assert_eq!(endpoints.failures(0), 1);
        assert_eq!(claimed(&endpoints), [1, 2]);
        // That its time is up is all that is asked of the second.
        endpoints.failed(1, None, 0);
        endpoints.states[1].out_until_ms.store(0, Relaxed);
        assert_eq!(claimed(&endpoints), [1, 2]);
        assert_eq!(claimed(&endpoints), [2], "the first one tries it");
        endpoints.failed(2, None, 0);
        assert!(endpoints.wait() > hour / 2);
        endpoints.works(1);
        assert_eq!(claimed(&endpoints), [1]);
        assert_eq!(endpoints.wait(), Duration::ZERO);
    }

    #[test]
    fn one_that_asks_for_no_delay_is_left_out_for_its_backoff() {
        let endpoints = Endpoints::new(2, Balance::Failover, LONG, Duration::from_secs(1));
        endpoints.failed(0, Some(Duration::ZERO), 0);
        assert_eq!(claimed(&endpoints), [1]);
    }

    #[test]
    fn what_a_server_asked_for_is_kept_whatever_it_takes_meanwhile() {
        let (minute, quick) = (
            Duration::from_secs(60),
            Retry {
                initial: Duration::ZERO,
                max: Duration::ZERO,
                ..LONG
            },
        );
        let endpoints = Endpoints::new(2, Balance::Failover, quick, minute);
        endpoints.failed(0, None, 0);
        // Not the first to fail, and still heard.
        endpoints.failed(0, Some(minute), 0);
        endpoints.failed(0, Some(Duration::ZERO), 1);
        endpoints.works(0);
        assert_eq!(claimed(&endpoints), [1]);
        endpoints.failed(1, Some(minute * 2), 0);
        assert!(claimed(&endpoints).is_empty());
        assert!((minute / 2..=minute).contains(&endpoints.wait()));
    }

    #[test]
    fn in_turn_means_each_first_once() {
        let second = Duration::from_secs(1);
        let endpoints = Endpoints::new(3, Balance::RoundRobin, LONG, second);
        let first = || claimed(&endpoints)[0];
        assert_eq!([first(), first(), first(), first()], [0, 1, 2, 0]);
        assert_eq!(claimed(&endpoints), [1, 2, 0]);
    }
}

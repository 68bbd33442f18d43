//! The kernel half judging without a daemon, and what it told.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use gophership::pressure::{
    Cause, Config, Error, IngestScope, Occurrence, Pressure, Signal, Transition, WatchHandle, Word,
    Zone,
};

/// Far beyond anything that should take a second or two, for machines with other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running judge.
pub(crate) struct Judging {
    pub(crate) pressure: Arc<Pressure>,
    seen: Arc<Mutex<Vec<Occurrence>>>,
    _watch: WatchHandle,
}

impl Judging {
    /// `None` where the kernel half can't run and needn't.
    pub(crate) fn start(config: &Config, scope: &IngestScope) -> Option<Self> {
        let pressure = match Pressure::start(config, scope, 2) {
            Ok(pressure) => Arc::new(pressure),
            Err(error @ Error::KernelRequired(_)) => {
                assert!(
                    std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL").is_none_or(|value| value != "1"),
                    "GOPHERSHIP_REQUIRE_KERNEL=1, but: {error}"
                );
                eprintln!("nothing tested: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let watch = pressure
            .spawn_watch(move |occurrence| sink.lock().unwrap().push(occurrence.clone()))
            .unwrap();
        Some(Self {
            pressure,
            seen,
            _watch: watch,
        })
    }

    /// The verdict.
    pub(crate) fn word(&self) -> Word {
        self.pressure.verdict().load()
    }

    /// A signal's value in its shown unit; `None` while it is unavailable.
    pub(crate) fn signal(&self, signal: Signal) -> Option<f64> {
        let snapshot = self.pressure.snapshot();
        let reading = snapshot
            .signals
            .iter()
            .find(|reading| reading.signal == signal)
            .unwrap();
        reading.available.then_some(reading.value)
    }

    /// What was told so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<Occurrence>> {
        self.seen.lock().unwrap()
    }

    /// The transitions among it.
    pub(crate) fn transitions(&self) -> Vec<Transition> {
        let transition = |occurrence: &Occurrence| match occurrence {
            Occurrence::Transition(transition) => Some(*transition),
            Occurrence::OomKill { .. }
            | Occurrence::Source { .. }
            | Occurrence::EventsLost { .. } => None,
        };
        self.seen().iter().filter_map(transition).collect()
    }

    /// The first of them; the word is written before it is told.
    #[track_caller]
    pub(crate) fn first_transition(&self) -> Transition {
        self.wait("transition", || !self.transitions().is_empty());
        self.transitions()[0]
    }

    /// Waits for something, and shows all there is if it doesn't come.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(
                start.elapsed() < PATIENCE,
                "no {what} within {PATIENCE:?}\n{}",
                self.explained()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the zone is at least `zone`, by `cause`.
    #[track_caller]
    pub(crate) fn wait_for(&self, zone: Zone, cause: Cause) {
        self.wait(&format!("{zone:?} or worse by {cause:?}"), || {
            let word = self.word();
            word.zone() >= zone && word.cause() == cause
        });
    }

    /// Waits for Green.
    #[track_caller]
    pub(crate) fn wait_for_green(&self) {
        self.wait("Green", || self.word().zone() == Zone::Green);
    }

    /// Checks that it was Green all the time.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        assert!(self.transitions().is_empty(), "{}", self.explained());
        assert_eq!(self.word().zone(), Zone::Green, "{}", self.explained());
    }

    /// Everything, for a failed test.
    pub(crate) fn explained(&self) -> String {
        let snapshot = self.pressure.snapshot();
        let signals: Vec<_> = snapshot
            .signals
            .iter()
            .filter(|reading| reading.available)
            .map(|reading| format!("{} {}", reading.signal.as_str(), reading.value))
            .collect();
        let steps: Vec<_> = self
            .transitions()
            .iter()
            .map(|step| format!("{:?} {:?}", step.to.zone(), step.to.cause()))
            .collect();
        format!(
            "{:?}\n{}\n{}",
            self.word(),
            steps.join(", "),
            signals.join("\n")
        )
    }
}

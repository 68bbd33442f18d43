//! The kernel half judging without a daemon, and what it told.
//!
//! Needs root and a build with `GOPHERSHIP_EBPF_OBJ`. Otherwise each test says why it did nothing and
//! passes, unless `GOPHERSHIP_REQUIRE_KERNEL=1`.

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
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Of the judges that tests start.
const WORKERS: usize = 2;

/// Starts the judge alone, unwatched. `None` where the kernel half can't run and needn't.
#[track_caller]
pub(crate) fn start(config: &Config, scope: &IngestScope) -> Option<Arc<Pressure>> {
    match Pressure::start(config, scope, WORKERS) {
        Ok(pressure) => Some(Arc::new(pressure)),
        Err(error @ Error::KernelRequired(_)) => {
            assert!(
                std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL").is_none_or(|value| value != "1"),
                "GOPHERSHIP_REQUIRE_KERNEL=1, but: {error}"
            );
            eprintln!("nothing tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Waits for something, and shows the state if it doesn't come.
#[track_caller]
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool, state: impl FnOnce() -> String) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < PATIENCE,
            "no {what} within {PATIENCE:?}\n{}",
            state()
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// A running judge.
pub(crate) struct Judging {
    pub(crate) pressure: Arc<Pressure>,
    seen: Arc<Mutex<Vec<Occurrence>>>,
    watch: Option<WatchHandle>,
}

impl Judging {
    /// `None` where the kernel half can't run and needn't.
    #[track_caller]
    pub(crate) fn start(config: &Config, scope: &IngestScope) -> Option<Self> {
        let pressure = start(config, scope)?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let watch = pressure
            .spawn_watch(move |occurrence| sink.lock().unwrap().push(occurrence.clone()))
            .unwrap();
        Some(Self {
            pressure,
            seen,
            watch: Some(watch),
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

    /// A signal's value in its shown unit, which must be available.
    #[track_caller]
    pub(crate) fn value(&self, signal: Signal) -> f64 {
        let value = self.signal(signal);
        value.unwrap_or_else(|| panic!("{} is unavailable", signal.as_str()))
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
    pub(crate) fn wait(&self, what: &str, holds: impl FnMut() -> bool) {
        wait(what, holds, || self.explained());
    }

    /// What the verdict says.
    pub(crate) fn zone_and_cause(&self) -> (Zone, Cause) {
        let word = self.word();
        (word.zone(), word.cause())
    }

    /// Waits for just this.
    #[track_caller]
    pub(crate) fn wait_for(&self, zone: Zone, cause: Cause) {
        self.wait(&format!("{zone:?} by {cause:?}"), || {
            self.zone_and_cause() == (zone, cause)
        });
    }

    /// Waits until the zone is at least `zone`, by `cause`.
    #[track_caller]
    pub(crate) fn wait_for_at_least(&self, zone: Zone, cause: Cause) {
        self.wait(&format!("{zone:?} or worse by {cause:?}"), || {
            let word = self.word();
            word.zone() >= zone && word.cause() == cause
        });
    }

    /// Waits until it has judged `times` more, so that what happened before was seen.
    #[track_caller]
    pub(crate) fn wait_for_ticks(&self, times: u32) {
        /// By which the age, which is read a little later than the clock, may seem to vary.
        const INEXACT: Duration = Duration::from_millis(5);
        for _ in 0..times {
            let judged_at = || Instant::now().checked_sub(self.pressure.snapshot().judged_age);
            let last = judged_at().map(|at| at + INEXACT);
            self.wait("tick", || judged_at() > last);
        }
    }

    /// Ends the watch after it has told all that there was to tell.
    pub(crate) fn stop_watching(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.stop();
        }
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

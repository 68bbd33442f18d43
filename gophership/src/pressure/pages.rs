//! The four shared pages as user space uses them, whichever half judges.

use std::{
    io,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use gophership_common::{
    Aggregates, EnginePage, Policy, PolicyPage, Posted, SIGNALS, Signals, SignalsPage, State,
    VerdictPage, WatchSlot, Word, WorkerLine,
};

use super::kernel::Page;

/// Handles to the mapped pages.
#[derive(Clone, Copy)]
pub(super) struct Pages {
    pub(super) verdict: Page<VerdictPage>,
    pub(super) signals: Page<SignalsPage>,
    pub(super) policy: Page<PolicyPage>,
    pub(super) engine: Page<EnginePage>,
}

impl Pages {
    /// Pages nobody else sees, for the fallback.
    pub(super) fn anonymous() -> io::Result<Self> {
        Ok(Self {
            verdict: Page::anonymous()?,
            signals: Page::anonymous()?,
            policy: Page::anonymous()?,
            engine: Page::anonymous()?,
        })
    }

    /// The verdict's word.
    pub(super) fn word(&self) -> &'static AtomicU64 {
        self.verdict.word(offset_of!(VerdictPage, word))
    }

    /// Says that the zone began now, unless it has changed already: pages begin with zeros, and the
    /// clock's zero is the machine's start.
    pub(super) fn begin(&self, now_ns: u64) {
        let since = self.verdict.word(offset_of!(VerdictPage, since_ns));
        // If it isn't 0, the first change was faster.
        let _ = since.compare_exchange(0, now_ns, Ordering::AcqRel, Ordering::Acquire);
    }

    /// A field of the verdict's page, by `offset_of!`.
    pub(super) fn verdict_at(&self, offset: usize) -> u64 {
        self.verdict.word(offset).load(Ordering::Acquire)
    }

    /// The word and when it last changed, of one moment unless it changes all the time.
    pub(super) fn word_and_since(&self) -> (Word, u64) {
        let load = || Word(self.word().load(Ordering::Acquire));
        let mut word = load();
        for _ in 0..4 {
            let since_ns = self.verdict_at(offset_of!(VerdictPage, since_ns));
            let again = load();
            if again == word {
                return (word, since_ns);
            }
            word = again;
        }
        (word, self.verdict_at(offset_of!(VerdictPage, since_ns)))
    }

    /// Puts a policy in force. The caller lets one publish at a time.
    pub(super) fn publish(&self, policy: &Policy) {
        let generation = self.policy.word(offset_of!(PolicyPage, generation));
        let next = generation.load(Ordering::Acquire).wrapping_add(1);
        // The slot written now was in force before the last publication: who still reads it must find
        // the generation changed, so nothing of this one may be seen before that.
        fence(Ordering::Release);
        let slot = usize::from(next & 1 == 1);
        let offset = offset_of!(PolicyPage, slots) + slot * size_of::<Policy>();
        self.policy.write(offset, policy);
        generation.store(next, Ordering::Release);
    }

    /// The words of one worker's line.
    pub(super) fn line(&self, worker: usize) -> &'static [AtomicU64] {
        let offset = offset_of!(EnginePage, workers) + worker * size_of::<WorkerLine>();
        self.engine.words::<WorkerLine>(offset)
    }

    /// One worker's line.
    pub(super) fn report(&self, worker: usize) -> WorkerLine {
        self.engine
            .read(offset_of!(EnginePage, workers) + worker * size_of::<WorkerLine>())
    }

    /// The last samples posted.
    pub(super) fn posted(&self) -> Posted {
        self.engine.read(offset_of!(EnginePage, posted))
    }

    /// Posts samples; the time last, so that they are never fresher than they look.
    pub(super) fn post(&self, posted: &Posted) {
        let words = self.engine.words::<Posted>(offset_of!(EnginePage, posted));
        let word = |offset: usize| &words[offset / size_of::<u64>()];
        for (index, value) in posted.values.iter().enumerate() {
            word(offset_of!(Posted, values) + index * size_of::<u64>())
                .store(*value, Ordering::Relaxed);
        }
        word(offset_of!(Posted, available)).store(posted.available, Ordering::Relaxed);
        word(offset_of!(Posted, at_ns)).store(posted.at_ns, Ordering::Release);
    }

    /// The judge's last reading.
    pub(super) fn last_signals(&self) -> Signals {
        self.signals.read(offset_of!(SignalsPage, last))
    }

    /// Records a reading.
    pub(super) fn record(&self, signals: &Signals) {
        self.signals.write(offset_of!(SignalsPage, last), signals);
    }

    /// The probes' counts.
    pub(super) fn aggregates(&self) -> Aggregates {
        self.signals.read(offset_of!(SignalsPage, aggregates))
    }

    /// Notes the sockets followed, and those that weren't, where no probe counts them.
    pub(super) fn count_followed(&self, (tracked, untracked): (u64, u64)) {
        const AT: usize = offset_of!(SignalsPage, aggregates);
        for (offset, value) in [
            (offset_of!(Aggregates, tracked), tracked),
            (offset_of!(Aggregates, untracked), untracked),
        ] {
            self.signals
                .word(AT + offset)
                .store(value, Ordering::Relaxed);
        }
    }

    /// One watched socket.
    pub(super) fn watched(&self, slot: usize) -> WatchSlot {
        self.signals
            .read(offset_of!(SignalsPage, watch) + slot * size_of::<WatchSlot>())
    }

    /// The worst values of the last one to two seconds, by the signal's number.
    pub(super) fn worst(&self) -> [u64; SIGNALS] {
        self.signals.read(offset_of!(SignalsPage, worst))
    }

    /// What the judge remembers.
    pub(super) fn state(&self) -> State {
        State::of(
            Word(self.verdict_at(offset_of!(VerdictPage, natural))),
            CLOCKS.map(|offset| self.verdict_at(offset)),
        )
    }

    /// Remembers for the next judgement, also the kernel's.
    pub(super) fn remember(&self, state: &State) {
        let natural = offset_of!(VerdictPage, natural);
        self.verdict
            .word(natural)
            .store(state.word().0, Ordering::Release);
        for (offset, clock_ns) in CLOCKS.into_iter().zip(state.clocks_ns()) {
            self.verdict.word(offset).store(clock_ns, Ordering::Release);
        }
    }
}

/// Where [`State::clocks_ns`] are kept.
const CLOCKS: [usize; 3] = [
    offset_of!(VerdictPage, below_yellow_since_ns),
    offset_of!(VerdictPage, below_red_since_ns),
    offset_of!(VerdictPage, disk_calm_since_ns),
];

//! The hot path's handles: the verdict, and a worker's own line.

use std::{
    io,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use gophership_common::{Signal, Word, WorkerLine};

use super::{
    clock::monotonic_ns,
    kernel::{Enlist, Wake},
    pages::Pages,
    unavailable::Unavailable,
    waits::Waits,
};

pub use gophership_common::Budget;

/// Reads the verdict; `Copy`, so that every worker and connection can hold one.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    word: &'static AtomicU64,
}

impl Verdict {
    pub(super) const fn of(word: &'static AtomicU64) -> Self {
        Self { word }
    }

    /// The verdict now: one atomic load from a line that is written only when it changes.
    #[must_use]
    #[inline]
    pub fn load(self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }
}

/// Reads how much of the time the workers wait for a CPU, as the judge last saw it.
#[derive(Clone, Copy)]
pub struct CpuWait {
    pages: Pages,
}

impl CpuWait {
    pub(super) const fn of(pages: Pages) -> Self {
        Self { pages }
    }

    /// In permille; `None` if nobody can tell.
    #[must_use]
    pub fn permille(self) -> Option<u64> {
        self.pages.last_signals().get(Signal::CpuWait)
    }
}

impl std::fmt::Debug for CpuWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuWait").finish_non_exhaustive()
    }
}

/// One worker's report to the judge: plain stores to a cache line that only this worker writes.
#[derive(Clone, Copy)]
pub struct EngineLine {
    line: &'static [AtomicU64],
    /// With the fallback: sample after this many operations, by waking the watch thread.
    sampling: Option<(u64, &'static Wake)>,
    number: usize,
    /// With the kernel half: the way to tell it this worker's number.
    enlist: Option<Enlist>,
    /// Where user space finds how long the workers wait.
    waits: &'static Waits,
    /// Who is told if nobody can.
    unavailable: &'static Unavailable,
}

impl EngineLine {
    pub(super) const fn of(
        line: &'static [AtomicU64],
        sampling: Option<(u64, &'static Wake)>,
        number: usize,
        enlist: Option<Enlist>,
        waits: &'static Waits,
        unavailable: &'static Unavailable,
    ) -> Self {
        Self {
            line,
            sampling,
            number,
            enlist,
            waits,
            unavailable,
        }
    }

    /// Makes the calling thread known as this worker's, so that its waits for a CPU are measured.
    ///
    /// # Errors
    /// The kernel half's; without it, if `/proc` doesn't tell of the waits.
    pub fn enlist(self) -> io::Result<()> {
        let waits = self.waits.enlist(self.number);
        let enlisted = match self.enlist {
            Some(enlist) => enlist.worker(self.number),
            None => waits,
        };
        enlisted.inspect_err(|error| {
            let reason = format!("the workers can't be enlisted: {error}");
            self.unavailable.set(Signal::CpuWait, &reason);
        })
    }

    /// Reports how long this worker's synced vault writes take now; `None`: it writes nothing, which
    /// reads as unavailable.
    pub fn set_vault_write(self, takes: Option<Duration>) {
        const HOUR: Duration = Duration::from_hours(1);
        // The judge compares what is below 2^62; and the greatest of all workers, so silence is 0.
        let takes_us = takes.map_or(0, |takes| takes.min(HOUR).as_micros());
        let takes_us = u64::try_from(takes_us).unwrap_or(0);
        let known_at_ns = takes.map_or(0, |_| monotonic_ns());
        self.word(offset_of!(WorkerLine, vault_write_us))
            .store(takes_us, Ordering::Relaxed);
        self.word(offset_of!(WorkerLine, vault_write_at_ns))
            .store(known_at_ns, Ordering::Release);
    }

    fn word(self, offset: usize) -> &'static AtomicU64 {
        &self.line[offset / size_of::<u64>()]
    }

    /// Says that this worker's loop is running. From the first beat on, a beat older than
    /// `heartbeat_limit` is a cause of Red.
    pub fn beat(self) {
        self.word(offset_of!(WorkerLine, heartbeat_ns))
            .store(monotonic_ns(), Ordering::Release);
    }

    /// How long ago this worker last said so; `None`: it hasn't started, or has ended.
    #[must_use]
    pub fn beat_age(self) -> Option<Duration> {
        let beat_ns = self
            .word(offset_of!(WorkerLine, heartbeat_ns))
            .load(Ordering::Acquire);
        let age_ns = monotonic_ns().saturating_sub(beat_ns);
        (beat_ns != 0).then_some(Duration::from_nanos(age_ns))
    }

    /// Takes back the heartbeat and the vault's pace: a worker that has ended isn't late.
    pub fn retire(self) {
        self.set_vault_write(None);
        self.word(offset_of!(WorkerLine, heartbeat_ns))
            .store(0, Ordering::Release);
    }

    /// Reports this worker's share of a budget, bytes. The judge adds the shares up; a limit of 0
    /// reads as unavailable.
    pub fn set_used(self, budget: Budget, used: u64, limit: u64) {
        let index = budget as usize * size_of::<u64>();
        self.word(offset_of!(WorkerLine, used) + index)
            .store(used, Ordering::Relaxed);
        self.word(offset_of!(WorkerLine, limit) + index)
            .store(limit, Ordering::Relaxed);
    }

    /// Counts one operation. Free of locks; with the fallback, every `sample_every`th wakes the
    /// watch thread to sample, by one system call that never blocks.
    #[inline]
    pub fn operation(self) {
        let Some((every, wake)) = self.sampling else {
            return;
        };
        // Only this worker writes the count, so a load and a store will do.
        let count = self.word(offset_of!(WorkerLine, operations));
        let next = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(next, Ordering::Relaxed);
        if next.is_multiple_of(every) {
            wake.ring();
        }
    }
}

//! Where a lane gets its next segment, made ready ahead of need by a background thread.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::{OnFull, platform::DiskFile, segment::Segment, shared::Shared};

/// A segment nothing was written to yet.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    /// The segment.
    pub(super) segment: Arc<Segment>,
    /// Its file.
    pub(super) file: Arc<dyn DiskFile>,
}

/// What a lane finds at its port.
#[derive(Debug)]
pub(super) enum Next {
    /// Being made; the port's notifications tell when that changes.
    Wanted,
    /// Here.
    Ready(Ready),
    /// `max_bytes` leave no room for another one.
    Full {
        /// The lane had asked to have something dropped, and there was nothing to drop.
        asked: bool,
    },
    /// It can't be made; tried again by itself.
    Failed(String),
}

/// Why a lane takes no entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no segment to go on in.
    NoSegment(String),
    /// The disk refused, twice; the next append after this time tries again.
    Disk {
        /// That time.
        until: Instant,
        /// What the disk said.
        reason: String,
    },
    /// It can't write any more in this run.
    Broken(String),
}

/// The way between one lane and the thread that makes its segments.
#[derive(Debug)]
pub(super) struct Port {
    next: Mutex<Next>,
    /// The lane can't go on without the next segment, and would have something dropped for it.
    starving: AtomicBool,
    /// The last append was refused, for this.
    refusal: Mutex<Option<Refusal>>,
    /// There is one: most blocks are written while there is none.
    refuses: AtomicBool,
    /// Segments whose disk refuses, handed out first.
    #[cfg(test)]
    pub(super) planted: Mutex<Vec<Ready>>,
    /// Wakes the append that waits for room.
    pub(super) room: Notify,
    /// Wakes the lane's driver.
    pub(super) driver: Notify,
}

impl Default for Port {
    fn default() -> Self {
        Self {
            next: Mutex::new(Next::Wanted),
            starving: AtomicBool::new(false),
            refusal: Mutex::new(None),
            refuses: AtomicBool::new(false),
            #[cfg(test)]
            planted: Mutex::default(),
            room: Notify::new(),
            driver: Notify::new(),
        }
    }
}

impl Port {
    /// Takes the ready segment and orders the next one, or tells why there is none.
    pub(super) fn take(&self, shared: &Shared) -> Next {
        #[cfg(test)]
        if let Some(planted) = self
            .planted
            .lock()
            .ok()
            .and_then(|mut planted| planted.pop())
        {
            return Next::Ready(planted);
        }
        let mut next = self.lock();
        match &*next {
            Next::Wanted => Next::Wanted,
            Next::Full { asked } => Next::Full { asked: *asked },
            Next::Failed(reason) => Next::Failed(reason.clone()),
            Next::Ready(_) => {
                let ready = std::mem::replace(&mut *next, Next::Wanted);
                drop(next);
                shared.segments_wanted.raise();
                ready
            }
        }
    }

    /// Whether a segment is ready.
    #[must_use]
    pub(super) fn is_ready(&self) -> bool {
        matches!(*self.lock(), Next::Ready(_))
    }

    /// Whether the next segment is still being made.
    #[must_use]
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*self.lock(), Next::Wanted)
    }

    /// Asks to have the oldest segment dropped, if the configuration allows that and it wasn't `asked`
    /// in vain; whether there is something to wait for.
    pub(super) fn ask(&self, shared: &Shared, asked: bool) -> bool {
        let may = shared.config.on_full == OnFull::DropOldest && !asked;
        if may {
            self.starving.store(true, Ordering::Release);
            shared.segments_wanted.raise();
        }
        may
    }

    /// Whether the lane has asked to have something dropped.
    #[must_use]
    pub(super) fn is_starving(&self) -> bool {
        self.starving.load(Ordering::Acquire)
    }

    /// Takes back what the lane hasn't taken.
    pub(super) fn take_back(&self) -> Option<Ready> {
        match std::mem::replace(&mut *self.lock(), Next::Wanted) {
            Next::Ready(unused) => Some(unused),
            Next::Wanted | Next::Full { .. } | Next::Failed(_) => None,
        }
    }

    /// Tells the lane.
    pub(super) fn put(&self, next: Next) {
        if matches!(next, Next::Ready(_)) {
            self.starving.store(false, Ordering::Release);
            self.has_segment();
        }
        *self.lock() = next;
        self.room.notify_one();
        self.driver.notify_one();
    }

    /// Notes that appends are refused.
    pub(super) fn refuse(&self, refusal: Refusal) {
        *self.lock_refusal() = Some(refusal);
        self.refuses.store(true, Ordering::Release);
    }

    /// Notes that there is a segment to go on in.
    pub(super) fn has_segment(&self) {
        self.end_refusal(|refusal| matches!(refusal, Refusal::NoSegment(_)));
    }

    /// Notes that the disk has taken a block.
    pub(super) fn has_written(&self) {
        self.end_refusal(|refusal| !matches!(refusal, Refusal::Broken(_)));
    }

    fn end_refusal(&self, ends: impl FnOnce(&Refusal) -> bool) {
        if self.refuses.load(Ordering::Acquire) {
            let mut refusal = self.lock_refusal();
            if refusal.as_ref().is_some_and(ends) {
                *refusal = None;
                self.refuses.store(false, Ordering::Release);
            }
        }
    }

    /// Why an append would be refused at `now`, as far as is known. Nobody may be appending: once it is time
    /// to try again, a segment that could be made says that the disk works.
    #[must_use]
    pub(super) fn refusal(&self, now: Instant) -> Option<String> {
        match self.lock_refusal().as_ref()? {
            Refusal::Disk { until, .. } if now >= *until && self.is_ready() => None,
            Refusal::NoSegment(reason) | Refusal::Disk { reason, .. } | Refusal::Broken(reason) => {
                Some(reason.clone())
            }
        }
    }

    fn lock_refusal(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

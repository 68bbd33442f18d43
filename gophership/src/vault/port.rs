//! Where a lane gets its next segment, made ready ahead of need by a background thread.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
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

/// The way between one lane and the thread that makes its segments.
#[derive(Debug)]
pub(super) struct Port {
    next: Mutex<Next>,
    /// The lane can't go on without the next segment, and would have something dropped for it.
    starving: AtomicBool,
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
        }
        *self.lock() = next;
        self.room.notify_one();
        self.driver.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

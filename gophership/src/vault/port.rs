//! Where a lane gets its next segment, made ready ahead of need by a background thread.
//!
//! A segment is created under another name, filled with zeros, synced, renamed, and its directory
//! synced, before the lane sees it: from then on a durable write changes no metadata.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    directory::{UNFINISHED, lane_dir, segment_path, sync_dir},
    error::{Error, io_error},
    ledger::Ledger,
    platform::{Access, DiskFile, Platform},
    segment::Segment,
    shared::Shared,
};
use crate::uring::AlignedBytes;

/// Bytes of zeros in one write.
const FILL_BYTES: usize = 1 << 20;
/// A failed attempt to make a segment is repeated this often at most.
const RETRY_EVERY: Duration = Duration::from_secs(1);

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
    Full,
    /// It can't be made; tried again by itself.
    Failed(String),
}

/// The way between one lane and the thread that makes its segments.
#[derive(Debug)]
pub(super) struct Port {
    next: Mutex<Next>,
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
            Next::Full => Next::Full,
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

    fn put(&self, next: Next) {
        *self.lock() = next;
        self.room.notify_one();
        self.driver.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the lanes' segments.
#[derive(Debug)]
pub(super) struct SegmentMaker {
    zeros: AlignedBytes,
}

impl Default for SegmentMaker {
    fn default() -> Self {
        Self {
            zeros: AlignedBytes::zeroed(FILL_BYTES),
        }
    }
}

impl SegmentMaker {
    /// Makes segments until the vault stops; runs on its own thread.
    pub(super) fn run(self, shared: &Shared) {
        while !shared.is_stopping() {
            self.pass(shared);
            shared.segments_wanted.wait(RETRY_EVERY);
        }
        // What the lanes sealed last would count with its zeros against the next run's `max_bytes`.
        trim_sealed(shared);
        let unused: Vec<_> = shared
            .ports
            .iter()
            .filter_map(
                |port| match std::mem::replace(&mut *port.lock(), Next::Wanted) {
                    Next::Ready(unused) => Some(unused.segment),
                    Next::Wanted | Next::Full | Next::Failed(_) => None,
                },
            )
            .collect();
        discard(shared, &unused);
    }

    /// Makes what is wanted now, and cuts what was sealed.
    pub(super) fn pass(&self, shared: &Shared) {
        for (lane, port) in (0_u16..).zip(&shared.ports) {
            if !port.is_ready() && !shared.is_stopping() {
                port.put(make_next(shared, lane, &self.zeros));
            }
        }
        trim_sealed(shared);
    }
}

fn make_next(shared: &Shared, lane: u16, zeros: &[u8]) -> Next {
    let bytes = shared.config.segment_bytes;
    if shared.committed_bytes.load(Ordering::Relaxed) + bytes > shared.config.max_bytes {
        return Next::Full;
    }
    match make(shared, lane, zeros) {
        Ok(Some(ready)) => {
            shared.committed_bytes.fetch_add(bytes, Ordering::Relaxed);
            shared.catalog.insert(Arc::clone(&ready.segment));
            Next::Ready(ready)
        }
        Ok(None) => Next::Wanted,
        Err(error) => {
            tracing::error!(lane, error = %error, "can't make a vault segment");
            Next::Failed(error.to_string())
        }
    }
}

fn make(shared: &Shared, lane: u16, zeros: &[u8]) -> Result<Option<Ready>, Error> {
    let platform = shared.platform.as_ref();
    let number = shared.next_segment.fetch_add(1, Ordering::Relaxed);
    let path = segment_path(shared.dir(), lane, number);
    let staged = path.with_extension(format!("gsv.{UNFINISHED}"));
    let made = fill(shared, &staged, zeros).and_then(|filled| {
        let Some(file) = filled else { return Ok(None) };
        let tag = platform
            .random()
            .map_err(io_error("reading", "/dev/urandom"))?;
        platform
            .rename(&staged, &path)
            .map_err(io_error("renaming", &staged))?;
        sync_dir(platform, &lane_dir(shared.dir(), lane))?;
        Ok(Some((tag, file)))
    });
    let Ok(Some((tag, file))) = made else {
        // Only zeros are in it. The next attempt has another number, so what is left here would add up.
        remove(platform, &staged);
        remove(platform, &path);
        return made.map(|_| None);
    };
    let ledger = Ledger::preallocated(shared.destinations.len());
    let segment = Segment::new(number, lane, tag, path, shared.config.segment_bytes, ledger);
    Ok(Some(Ready {
        segment: Arc::new(segment),
        file,
    }))
}

/// Creates a file of zeros; `None` if the vault stops meanwhile.
fn fill(shared: &Shared, path: &Path, zeros: &[u8]) -> Result<Option<Arc<dyn DiskFile>>, Error> {
    let file = shared
        .platform
        .open(path, Access::Create)
        .map_err(io_error("creating", path))?;
    let is_filled = fill_with(shared, file.as_ref(), zeros).map_err(io_error("filling", path))?;
    Ok(is_filled.then_some(file))
}

fn fill_with(shared: &Shared, file: &dyn DiskFile, zeros: &[u8]) -> std::io::Result<bool> {
    let bytes = shared.config.segment_bytes;
    // One contiguous reservation, and an early ENOSPC.
    file.reserve(bytes)?;
    let mut at = 0;
    while at < bytes {
        if shared.is_stopping() {
            return Ok(false);
        }
        let len = usize::try_from(bytes - at)
            .unwrap_or(FILL_BYTES)
            .min(zeros.len());
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
    }
    file.sync_all()?;
    Ok(true)
}

fn trim_sealed(shared: &Shared) {
    for segment in shared
        .catalog
        .select(|segment| segment.is_closed() && segment.trim_wanted())
    {
        let Some(length) = segment.take_trim() else {
            continue;
        };
        segment.ledger().shrink();
        let cut = shared
            .platform
            .open(&segment.path, Access::Write)
            .and_then(|file| file.set_bytes(length).and_then(|()| file.sync_all()));
        match cut {
            Ok(()) => {
                shared
                    .committed_bytes
                    .fetch_sub(segment.note_cut(length), Ordering::Relaxed);
            }
            // Settled and removed meanwhile.
            Err(gone) if gone.kind() == ErrorKind::NotFound => {}
            // The zeros behind the seal only take room.
            Err(error) => {
                tracing::warn!(path = %segment.path.display(), error = %error, "can't shorten a sealed segment");
            }
        }
    }
}

/// Removes segments' files, and then forgets the segments.
pub(super) fn discard(shared: &Shared, segments: &[Arc<Segment>]) {
    shared
        .chains
        .note_removal(shared.platform.as_ref(), shared.dir(), segments);
    let gone: Vec<_> = segments
        .iter()
        .filter(|segment| remove(shared.platform.as_ref(), &segment.path))
        .collect();
    // Durably, before the next cursors leave them out: after a power loss a file that came back
    // would be delivered again as a whole.
    let dirs: BTreeSet<_> = gone.iter().filter_map(|gone| gone.path.parent()).collect();
    for dir in dirs {
        if let Err(error) = sync_dir(shared.platform.as_ref(), dir) {
            tracing::error!(error = %error, "the removal of vault segments may not be durable");
        }
    }
    for segment in gone {
        shared.retire(segment);
        shared
            .committed_bytes
            .fetch_sub(segment.note_removed(), Ordering::Relaxed);
    }
}

/// Removes a file; true if it is gone.
fn remove(platform: &dyn Platform, path: &Path) -> bool {
    match platform.remove(path) {
        Ok(()) => true,
        Err(missing) if missing.kind() == ErrorKind::NotFound => true,
        Err(error) => {
            tracing::error!(path = %path.display(), error = %error, "can't remove a vault segment");
            false
        }
    }
}

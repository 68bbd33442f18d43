//! The event timeline: what happened to the verdict, when, by which values, and what it cost.
//!
//! Events are handed over without waiting and written by a thread of its own. Everything is bounded:
//! the queue, the events kept in memory, the bytes on disk. What doesn't fit, or can't be written, is
//! counted, logged and, as soon as that is possible again, noted in the timeline itself; it never
//! keeps the daemon from starting or working. Where the file can't be used, the newest events are
//! still there to be asked for.

mod entry;
mod files;
mod writer;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use entry::Header;
pub use entry::{Amount, Entry, Event, Held, Moment, Place, SignalAt, Stay, Verdict, ZoneCause};
use files::Files;
use time::OffsetDateTime;
use tokio::sync::watch;
use writer::{Message, Writer};

/// Events that wait to be written; about 1 MiB.
const QUEUE_MAX: usize = 256;
/// Events kept in memory for those who ask; about 1 MiB.
const RECENT_MAX: usize = 256;
/// Least bound on disk: two lines of any length must fit each file.
pub const BYTES_MIN: u64 = 64 << 10;

/// Where the timeline lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file of JSON lines; the one before it has the suffix `.1`.
    pub path: PathBuf,
    /// Most bytes of both; at least [`BYTES_MIN`].
    pub bytes_max: u64,
}

/// Which events to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Those with a greater sequence number.
    pub after: u64,
    /// Those that happened then or later.
    pub since: Option<OffsetDateTime>,
    /// The newest of them, at most this many.
    pub limit: usize,
}

impl Query {
    /// Everything behind that sequence number.
    #[must_use]
    pub const fn after(sequence: u64) -> Self {
        Self {
            after: sequence,
            since: None,
            limit: usize::MAX,
        }
    }

    fn wants(&self, sequence: u64, time: OffsetDateTime) -> bool {
        sequence > self.after && self.since.is_none_or(|since| time >= since)
    }
}

/// A handle on the timeline; clones are the same timeline.
#[derive(Debug, Clone)]
pub struct Timeline {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
    after_crash: bool,
}

#[derive(Debug)]
struct Shared {
    files: Files,
    recent: Mutex<VecDeque<Arc<Entry>>>,
    /// Sequence number of the newest event.
    latest: watch::Sender<u64>,
    /// Events lost since the start.
    lost: AtomicU64,
    /// Those of them that the timeline doesn't tell of yet.
    untold: AtomicU64,
}

impl Timeline {
    /// Goes on where the file ends, and starts the thread that writes.
    ///
    /// # Errors
    /// If the thread can't be spawned; never because of the file.
    pub fn open(config: &Config) -> io::Result<Self> {
        let files = Files::new(&config.path, config.bytes_max.max(BYTES_MIN));
        let last = files.last();
        let sequence = last.as_ref().map_or(0, |last| last.sequence);
        let shared = Arc::new(Shared {
            files,
            recent: Mutex::default(),
            latest: watch::Sender::new(sequence),
            lost: AtomicU64::new(0),
            untold: AtomicU64::new(0),
        });
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let writer = Writer::new(Arc::clone(&shared), sequence);
        std::thread::Builder::new()
            .name("timeline".to_owned())
            .spawn(move || writer.run(&messages))?;
        Ok(Self {
            shared,
            queue,
            after_crash: last.is_some_and(|last| !last.is_stop()),
        })
    }

    /// Whether the daemon before this one wasn't stopped in order.
    #[must_use]
    pub const fn after_crash(&self) -> bool {
        self.after_crash
    }

    /// Takes note of an event, without waiting: if too many are under way, it is lost and counted.
    pub fn record(&self, at: Moment, event: Event) {
        let message = Message::Record(at, Box::new(event));
        match self.queue.try_send(message) {
            Ok(()) => {}
            // Nobody writes any more only if the writer has panicked.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.shared.lose(),
        }
    }

    /// Waits until everything recorded so far is on stable storage as far as that is possible, but
    /// not longer than `limit`. Gives whether it came to that.
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, is_done) = sync_channel(1);
        self.queue.try_send(Message::Flush(done)).is_ok() && is_done.recv_timeout(limit).is_ok()
    }

    /// Events that couldn't be kept, since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Relaxed)
    }

    /// Sequence number of the newest event, to be waited on; ends when the daemon does.
    #[must_use]
    pub fn latest(&self) -> watch::Receiver<u64> {
        self.shared.latest.subscribe()
    }

    /// Gives the events asked for to `give`, from old to new, until that wants no more. Reads files:
    /// not for a thread that mustn't wait.
    pub fn read(&self, query: Query, mut give: impl FnMut(Arc<Entry>) -> bool) {
        // From the oldest of these on, memory knows best: some may not be in the file.
        let recent: Vec<_> = lock(&self.shared.recent).iter().cloned().collect();
        let until = recent.first().map_or(u64::MAX, |entry| entry.sequence);
        let recent = recent.iter();
        let recent = recent.filter(|entry| query.wants(entry.sequence, entry.at.time));
        let mut skipped = recent.clone().count();
        let mut reading = (query.after.saturating_add(1) < until).then(|| self.shared.files.read());
        if let Some(reading) = reading.as_mut().filter(|_| query.limit < usize::MAX) {
            let mut order = Order(query.after);
            skipped += reading
                .lines::<Header>()
                .filter(|line| line.sequence < until && order.advances(line.sequence))
                .filter(|line| query.wants(line.sequence, line.time))
                .count();
        }
        let mut skipped = skipped.saturating_sub(query.limit);
        let mut order = Order(query.after);
        let on_disk = reading.iter_mut().flat_map(files::Reading::lines::<Entry>);
        on_disk
            .filter(|entry| entry.sequence < until && order.advances(entry.sequence))
            .filter(|entry| query.wants(entry.sequence, entry.at.time))
            .map(Arc::new)
            .chain(recent.cloned())
            .filter(|_| {
                let skip = skipped > 0;
                skipped = skipped.saturating_sub(1);
                !skip
            })
            .all(&mut give);
    }
}

/// Passes what comes in its order, and nothing twice.
struct Order(u64);

impl Order {
    const fn advances(&mut self, sequence: u64) -> bool {
        let advances = sequence > self.0;
        if advances {
            self.0 = sequence;
        }
        advances
    }
}

impl Shared {
    fn lose(&self) {
        self.lost.fetch_add(1, Relaxed);
        self.untold.fetch_add(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

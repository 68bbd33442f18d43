//! The thread that numbers events, writes them and keeps the newest in memory.

use std::{
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use time::OffsetDateTime;

use super::{Entry, Event, Moment, Place, RECENT_MAX, Shared, lock};

/// A loss of power takes at most what is younger than this.
const SYNC_WITHIN: Duration = Duration::from_secs(1);

pub(super) enum Message {
    Record(Moment, Box<Event>),
    /// To be answered when everything before it is on stable storage.
    Flush(SyncSender<()>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// Of the last event.
    sequence: u64,
    /// Since when the file holds what isn't synced.
    dirty_since: Option<Instant>,
    /// The file couldn't be written last time.
    failing: bool,
}

impl Writer {
    pub(super) const fn new(shared: Arc<Shared>, sequence: u64) -> Self {
        Self {
            shared,
            sequence,
            dirty_since: None,
            failing: false,
        }
    }

    /// Until nobody is left who could record anything.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let message = match self.dirty_since {
                None => messages.recv().map_err(RecvTimeoutError::from),
                Some(since) => messages.recv_timeout(SYNC_WITHIN.saturating_sub(since.elapsed())),
            };
            match message {
                Ok(Message::Record(at, event)) => {
                    self.keep(at, *event);
                    self.tell_lost(at);
                }
                Ok(Message::Flush(done)) => {
                    self.sync();
                    // Whoever asked may have lost patience.
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => self.sync(),
                Err(RecvTimeoutError::Disconnected) => return self.sync(),
            }
            if self
                .dirty_since
                .is_some_and(|since| since.elapsed() >= SYNC_WITHIN)
            {
                self.sync();
            }
        }
    }

    /// Tells of lost events behind the event that could be kept again.
    fn tell_lost(&mut self, at: Moment) {
        if self.failing {
            return;
        }
        let events = self.shared.untold.swap(0, Relaxed);
        if events > 0 {
            let place = Place::Timeline;
            self.keep(at, Event::Lost { events, place });
        }
    }

    fn keep(&mut self, at: Moment, event: Event) {
        self.sequence += 1;
        let entry = Entry {
            sequence: self.sequence,
            at,
            event,
        };
        match self.append(&entry) {
            Ok(()) => self.written(),
            Err(error) => self.unwritten(&error),
        }
        {
            let mut recent = lock(&self.shared.recent);
            if recent.len() == RECENT_MAX {
                recent.pop_front();
            }
            recent.push_back(Arc::new(entry));
        }
        self.shared.latest.send_replace(self.sequence);
    }

    fn append(&self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.shared.files.append(&line)
    }

    fn written(&mut self) {
        self.dirty_since.get_or_insert_with(Instant::now);
        if self.failing {
            tracing::info!("events: the file can be written again");
            self.failing = false;
        }
    }

    /// Says so once, and counts each time.
    fn unwritten(&mut self, error: &std::io::Error) {
        self.shared.lose();
        if !self.failing {
            let path = self.shared.files.path().display();
            tracing::error!(%path, %error, "events: the file can't be written; the daemon goes on");
            self.failing = true;
        }
    }

    fn sync(&mut self) {
        if self.dirty_since.take().is_some()
            && let Err(error) = self.shared.files.sync()
        {
            tracing::warn!(%error, "events: the file can't be synced");
        }
    }
}

impl Moment {
    /// The moment `monotonic_ns`, as the wall clock has it if it is `now_ns` now.
    #[must_use]
    pub fn of(monotonic_ns: u64, now_ns: u64) -> Self {
        let age = Duration::from_nanos(now_ns.saturating_sub(monotonic_ns));
        Self {
            time: OffsetDateTime::now_utc() - age,
            monotonic_ns,
        }
    }
}

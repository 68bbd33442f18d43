//! The `file` destination: one thread a file appends OTLP JSON lines and syncs them in groups.
//!
//! All batches that wait are written together and completed after one `fdatasync`; what arrives meanwhile is the next
//! group. A file that has reached its size ends the group and is rotated before the next. Memory: at most [`WAITING_MAX`]
//! batches wait.
//!
//! A line torn by a crash is cut off when the file is opened again; its batch was never accepted. After a power cut, a
//! group that wasn't accepted may have left other damaged lines where the file system wrote its pages out of order.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    Batch, Error, FileConfig, Outcome,
    append::{AppendFile, OpenError},
    rotate::Rotation,
};

/// Batches that may wait for the file's thread or be in its current group; further deliveries wait their turn.
pub const WAITING_MAX: usize = 256;

/// A file of OTLP JSON lines, as one runtime uses it.
#[derive(Debug, Clone)]
pub struct FileDestination {
    name: Arc<str>,
    path: Arc<Path>,
    waiting: mpsc::UnboundedSender<Message>,
    /// Bounds what is in `waiting`, which itself has no bound so that closing never has to wait for room.
    room: Arc<Semaphore>,
}

impl FileDestination {
    /// Appends one batch as one line; returns when it is durable.
    ///
    /// If the returned future is dropped, the batch may or may not be written.
    pub async fn deliver(&self, batch: Batch) -> Outcome {
        self.write(batch).await.unwrap_or_else(|| Outcome::Retry {
            after: None,
            reason: format!("{}: closed", self.path.display()),
        })
    }

    /// `None` if the file is closed before the batch is written.
    async fn write(&self, batch: Batch) -> Option<Outcome> {
        let room = Arc::clone(&self.room).acquire_owned().await.ok()?;
        let (reply, outcome) = oneshot::channel();
        let job = Job {
            batch,
            reply,
            _room: room,
        };
        self.waiting.send(Message::Write(job)).ok()?;
        outcome.await.ok()
    }

    /// The destination's configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A file and its thread, shared by the runtimes.
#[derive(Debug)]
pub(super) struct OpenFile {
    destination: FileDestination,
    rotation: Option<Rotation>,
    thread: Mutex<Thread>,
}

#[derive(Debug)]
enum Thread {
    Waiting(mpsc::UnboundedReceiver<Message>),
    Running(JoinHandle<()>),
    Gone,
}

impl OpenFile {
    /// A file that isn't open yet.
    pub(super) fn new(name: &str, config: &FileConfig) -> Self {
        let (waiting, messages) = mpsc::unbounded_channel();
        Self {
            destination: FileDestination {
                name: name.into(),
                path: config.path.as_path().into(),
                waiting,
                room: Arc::new(Semaphore::new(WAITING_MAX)),
            },
            rotation: config.rotation,
            thread: Mutex::new(Thread::Waiting(messages)),
        }
    }

    /// Opens the file and starts the thread, unless that has been done.
    pub(super) fn start(&self) -> Result<(), Error> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let messages = match std::mem::replace(&mut *thread, Thread::Gone) {
            Thread::Waiting(messages) => messages,
            other => {
                *thread = other;
                return Ok(());
            }
        };
        let (name, path) = (&self.destination.name, &self.destination.path);
        let writer = Writer {
            path: path.to_path_buf(),
            file: AppendFile::open(path, self.rotation)
                .map_err(|error| open_error(name, path, error))?,
            messages,
        };
        let spawned = thread::Builder::new()
            .name("export-file".to_owned())
            .spawn(|| writer.run());
        *thread = Thread::Running(spawned.map_err(|source| Error::Thread {
            name: name.to_string(),
            source,
        })?);
        Ok(())
    }

    pub(super) fn connect(&self) -> FileDestination {
        self.destination.clone()
    }

    /// Takes no more batches, writes those that wait, and ends the thread. Blocks meanwhile.
    pub(super) fn close(&self) {
        self.destination.room.close();
        // The thread may have ended already: closing twice is allowed.
        let _ = self.destination.waiting.send(Message::Close);
        let thread = std::mem::replace(
            &mut *self.thread.lock().unwrap_or_else(PoisonError::into_inner),
            Thread::Gone,
        );
        if let Thread::Running(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(path = %self.destination.path.display(), "the thread of this file panicked");
        }
    }
}

fn open_error(name: &str, path: &Path, error: OpenError) -> Error {
    let (name, path) = (name.to_owned(), path.to_owned());
    match error {
        OpenError::Io(source) => Error::File { name, path, source },
        OpenError::NotRegular => Error::NotRegular { name, path },
        OpenError::Locked => Error::Locked { name, path },
        OpenError::ForeignTail => Error::ForeignTail { name, path },
    }
}

#[derive(Debug)]
enum Message {
    Write(Job),
    Close,
}

/// A batch whose sender waits for the outcome.
#[derive(Debug)]
struct Job {
    batch: Batch,
    reply: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

/// The thread of one file.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: AppendFile,
    messages: mpsc::UnboundedReceiver<Message>,
}

impl Writer {
    fn run(mut self) {
        let mut group = Vec::with_capacity(WAITING_MAX);
        let mut open = true;
        while open {
            let mut next = self.messages.blocking_recv();
            loop {
                match next {
                    Some(Message::Write(job)) => group.push(job),
                    Some(Message::Close) | None => {
                        open = false;
                        break;
                    }
                }
                next = match self.messages.try_recv() {
                    Ok(message) => Some(message),
                    Err(_) => break,
                };
            }
            self.commit(&mut group);
        }
    }

    /// Writes a group, syncs it once for each file that it goes into, and tells every sender.
    fn commit(&mut self, group: &mut Vec<Job>) {
        group.retain(|job| !job.reply.is_closed());
        while !group.is_empty() {
            self.commit_some(group);
        }
    }

    /// Writes as much of a group as the file takes: all, or what fills it.
    fn commit_some(&mut self, group: &mut Vec<Job>) {
        let mut outcomes = Vec::with_capacity(group.len());
        let written = self.file.append(|lines| {
            for job in &*group {
                outcomes.push(match lines.line(&job.batch.bytes)? {
                    Ok(()) => Outcome::Accepted {
                        rejected_records: 0,
                    },
                    Err(reason) => Outcome::Rejected { reason },
                });
                if lines.is_full()? {
                    break;
                }
            }
            Ok(())
        });
        let failure = written.err().map(|error| Outcome::Retry {
            after: None,
            reason: format!("{}: {error}", self.path.display()),
        });
        // Without a failure, the jobs that have an outcome; else all, for the next would fail as well.
        let done = match failure {
            None => outcomes.len(),
            Some(_) => group.len(),
        };
        let mut outcomes = outcomes.into_iter();
        for job in group.drain(..done) {
            let outcome = match (outcomes.next(), &failure) {
                (Some(rejected @ Outcome::Rejected { .. }), _) => rejected,
                (Some(outcome), None) => outcome,
                (_, Some(failure)) => failure.clone(),
                (None, None) => unreachable!("as many are done as have an outcome"),
            };
            // The sender may have given up meanwhile.
            let _ = job.reply.send(outcome);
        }
    }
}

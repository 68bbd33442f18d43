//! What a lane asks of whoever writes for it: durable writes of whole pages, and two timers.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use tokio::{io::unix::AsyncFd, sync::Notify};

use super::{ALIGNMENT, Buffer, Error};

/// A file that can be written to.
pub trait Target: std::fmt::Debug + Send + Sync {
    /// Its descriptor, open as long as the value lives. What isn't a file of the kernel has a number of
    /// its own, which only its own writer understands.
    fn fd(&self) -> RawFd;
}

impl Target for std::fs::File {
    fn fd(&self) -> RawFd {
        self.as_raw_fd()
    }
}

/// One of a writer's timers; each can be armed once at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// First timer.
    A,
    /// Second timer.
    B,
}

/// A write to start.
#[derive(Debug)]
pub struct Write {
    /// Kept open until the write has finished.
    pub file: Arc<dyn Target>,
    /// What to write, from its first byte.
    pub buffer: Buffer,
    /// Bytes to write; a multiple of a page.
    pub len: usize,
    /// Where in the file; a multiple of a page.
    pub offset: u64,
    /// Finish only when the bytes are on stable storage.
    pub durable: bool,
    /// Given back with the completion.
    pub token: u64,
}

/// A finished write.
#[derive(Debug)]
pub struct Completion {
    /// The write's token.
    pub token: u64,
    /// The buffer, owned by the caller again.
    pub buffer: Buffer,
    /// `Err` also when fewer bytes were written than asked for.
    pub result: io::Result<()>,
}

/// Something a writer reports.
#[derive(Debug)]
pub enum Event {
    /// A write finished.
    Written(Completion),
    /// A timer ran out.
    Elapsed(Timer),
}

/// Writes for one worker, on whose thread it stays. It takes as many writes as its pools have buffers,
/// and finishes them in any order.
pub trait Writer {
    /// Watches for events from a tokio runtime with I/O enabled, in whose context this must run.
    ///
    /// # Errors
    /// The runtime can't watch it.
    fn notifier(&self) -> Result<Notifier, Error>;

    /// Writes that haven't finished.
    fn writes(&self) -> usize;

    /// Starts a write.
    ///
    /// # Errors
    /// The write is misaligned, or the writer is broken. The buffer is dropped then, unless the kernel
    /// may still have it.
    fn write(&mut self, write: Write) -> Result<(), Error>;

    /// Arms a timer that isn't armed.
    ///
    /// # Errors
    /// The writer is full or broken.
    fn arm(&mut self, timer: Timer, after: Duration) -> Result<(), Error>;

    /// The next event, or `None` when there is none yet.
    fn next_event(&mut self) -> Option<Event>;
}

/// Tells a tokio task that a writer has events.
#[derive(Debug)]
pub struct Notifier(Source);

#[derive(Debug)]
enum Source {
    /// Readable when the ring has completions.
    Ring(AsyncFd<OwnedFd>),
    Flag(Arc<Notify>),
}

impl Notifier {
    pub(super) fn ring(descriptor: AsyncFd<OwnedFd>) -> Self {
        Self(Source::Ring(descriptor))
    }

    /// Waits for a flag that is raised after each event.
    #[must_use]
    pub fn flag(raised: Arc<Notify>) -> Self {
        Self(Source::Flag(raised))
    }

    /// Waits until events may have come; drain [`Writer::next_event`] after each return.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn wait(&self) -> io::Result<()> {
        match &self.0 {
            // Cleared before the caller drains: an event in between makes it readable again.
            Source::Ring(ring) => ring.readable().await?.clear_ready(),
            Source::Flag(flag) => flag.notified().await,
        }
        Ok(())
    }
}

/// Whether a write is what O_DIRECT and its buffer allow.
pub(super) fn is_aligned(buffer: &Buffer, len: usize, offset: u64) -> bool {
    len > 0
        && len <= buffer.len()
        && len.is_multiple_of(ALIGNMENT)
        && offset.is_multiple_of(ALIGNMENT as u64)
}

//! The only unsafe I/O: writers (a ring, or a thread where a ring isn't allowed), page-aligned buffers,
//! and writes that own what they use.
//!
//! Invariants
//! - A [`Buffer`] has one owner. While the kernel may read it, that owner is the [`Writer`], so neither
//!   a cancelled request nor a dropped lane can reuse memory or close a file under a running write.
//! - Acquiring and releasing a buffer, and starting and finishing a write, allocate nothing.
//! - Memory handed to the kernel is freed only after the kernel has finished with it; where that
//!   can't be awaited, it is leaked.

mod aligned;
mod pool;
mod ring;
mod thread;
mod writer;

pub use aligned::AlignedBytes;
pub use pool::{Buffer, BufferPool};
pub use ring::Ring;
pub use thread::{Syncing, WriterThread};
pub use writer::{Completion, Event, Notifier, Target, Timer, Write, Writer};

/// Alignment in bytes that O_DIRECT asks of memory, offsets and lengths here: one page.
pub const ALIGNMENT: usize = 4096;

/// Why a ring can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel or the container's seccomp profile refuses io_uring.
    #[error("io_uring_setup with {entries} entries: {source}")]
    Setup {
        /// Submission entries asked for.
        entries: u32,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The buffers can't be registered, and not because of RLIMIT_MEMLOCK, without which it goes on.
    #[error("registering {bytes} bytes of io_uring buffers: {source}")]
    Register {
        /// Bytes in all buffers.
        bytes: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// More buffers than a ring can register.
    #[error("{count} buffers are more than a ring can register (65535)")]
    TooManyBuffers {
        /// Buffers asked for.
        count: usize,
    },
    /// The ring's descriptor can't be watched by the runtime.
    #[error("watching the ring's descriptor: {0}")]
    Watch(std::io::Error),
    /// The submission queue holds as many operations as it can.
    #[error("the submission queue is full")]
    QueueFull,
    /// A write was asked for that O_DIRECT or the buffer doesn't allow.
    #[error(
        "write of {length} bytes at offset {offset} from a buffer of {capacity}: not page-aligned or too long"
    )]
    Misaligned {
        /// Bytes to write.
        length: usize,
        /// Offset in the file.
        offset: u64,
        /// Bytes of the buffer.
        capacity: usize,
    },
    /// io_uring_enter failed for good; the ring takes no more operations.
    #[error("io_uring_enter: {0}")]
    Enter(std::io::Error),
    /// The thread that writes can't be started.
    #[error("starting a thread that writes: {0}")]
    Thread(std::io::Error),
}

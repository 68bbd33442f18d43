//! Writes where io_uring isn't allowed: a thread that takes what has queued up, and writes it in as few
//! system calls as it takes.
//!
//! Writes that lie behind one another in one file go to the disk in one `pwritev2`. They finish only
//! when they are durable: by `RWF_DSYNC` with each call, or by one `fdatasync` for each file and round.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    fs::fdatasync,
    io::{ReadWriteFlags, pwritev2},
};
use tokio::sync::Notify;

use super::{
    Buffer, BufferPool, Error,
    writer::{Completion, Event, Notifier, Target, Timer, Write, Writer, is_aligned},
};

/// Writes in one system call, well below the kernel's limit of 1,024 vectors.
const VECTORS_MAX: usize = 64;

/// How written bytes get to stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syncing {
    /// `RWF_DSYNC` with each write.
    Each,
    /// `fdatasync` after what is written in one round.
    Round,
}

/// What the thread is to write. The bytes belong to a buffer in [`WriterThread::in_flight`], which
/// stays there until the thread has given the job back.
#[derive(Debug)]
struct Job {
    slot: usize,
    file: Arc<dyn Target>,
    start: NonNull<u8>,
    len: usize,
    offset: u64,
    durable: bool,
}

// SAFETY: `start` points into a buffer pool's memory, which isn't bound to a thread, and the buffer's
// owner leaves it alone until the job has come back.
unsafe impl Send for Job {}

impl Job {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer has at least `len` initialised bytes, lives until the job has come back,
        // and nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: a target's descriptor is open as long as the target, which the job has.
        unsafe { BorrowedFd::borrow_raw(self.file.fd()) }
    }

    fn follows(&self, before: &Self) -> bool {
        self.file.fd() == before.file.fd()
            && self.offset == before.offset + before.len as u64
            && self.durable == before.durable
    }
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    done: VecDeque<(usize, io::Result<()>)>,
    /// When each timer is due.
    due: [Option<Instant>; 2],
    elapsed: [bool; 2],
    stopping: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// For the thread.
    wake: Condvar,
    /// For the worker.
    events: Arc<Notify>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct InFlight {
    buffer: Buffer,
    token: u64,
}

/// A worker's writes, done by a thread of their own.
#[derive(Debug)]
pub struct WriterThread {
    shared: Arc<Shared>,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    thread: Option<JoinHandle<()>>,
    /// Keeps the memory of writes under way.
    _pools: Vec<BufferPool>,
}

impl WriterThread {
    /// Starts the thread, for the buffers of `pools`.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(pools: Vec<BufferPool>, syncing: Syncing) -> Result<Self, Error> {
        let count: usize = pools.iter().map(BufferPool::count).sum();
        let shared = Arc::new(Shared::default());
        {
            let mut queue = shared.lock();
            queue.jobs.reserve(count);
            queue.done.reserve(count);
        }
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("vault-writes".to_owned())
            .spawn(move || write_until_stopped(&own, syncing))
            .map_err(Error::Thread)?;
        Ok(Self {
            shared,
            in_flight: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            thread: Some(thread),
            _pools: pools,
        })
    }
}

impl Writer for WriterThread {
    fn notifier(&self) -> Result<Notifier, Error> {
        Ok(Notifier::flag(Arc::clone(&self.shared.events)))
    }

    fn writes(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    fn write(&mut self, write: Write) -> Result<(), Error> {
        if !is_aligned(&write.buffer, write.len, write.offset) {
            return Err(Error::Misaligned {
                length: write.len,
                offset: write.offset,
                capacity: write.buffer.len(),
            });
        }
        let slot = self.free.pop().ok_or(Error::QueueFull)?;
        let job = Job {
            slot,
            file: write.file,
            start: write.buffer.address(),
            len: write.len,
            offset: write.offset,
            durable: write.durable,
        };
        self.in_flight[slot] = Some(InFlight {
            buffer: write.buffer,
            token: write.token,
        });
        self.shared.lock().jobs.push_back(job);
        self.shared.wake.notify_one();
        Ok(())
    }

    fn arm(&mut self, timer: Timer, after: Duration) -> Result<(), Error> {
        self.shared.lock().due[timer as usize] = Some(Instant::now() + after);
        self.shared.wake.notify_one();
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        let mut queue = self.shared.lock();
        while let Some((slot, result)) = queue.done.pop_front() {
            let Some(done) = self.in_flight.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            self.free.push(slot);
            return Some(Event::Written(Completion {
                token: done.token,
                buffer: done.buffer,
                result,
            }));
        }
        let timers = [Timer::A, Timer::B];
        timers
            .into_iter()
            .find(|&timer| std::mem::take(&mut queue.elapsed[timer as usize]))
            .map(Event::Elapsed)
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                writes = self.writes(),
                "the thread that writes the vault's blocks panicked"
            );
        }
    }
}

/// Writes what was queued before the end, too.
fn write_until_stopped(shared: &Shared, syncing: Syncing) {
    let mut round = VecDeque::with_capacity(shared.lock().jobs.capacity());
    let mut results = Vec::with_capacity(round.capacity());
    while wait(shared, &mut round) {
        write_round(&round, syncing, &mut results);
        let mut queue = shared.lock();
        for (job, result) in round.drain(..).zip(results.drain(..)) {
            queue.done.push_back((job.slot, result));
        }
        drop(queue);
        shared.events.notify_one();
    }
}

/// Waits for jobs, and takes all there are; false at the end.
fn wait(shared: &Shared, round: &mut VecDeque<Job>) -> bool {
    let mut queue = shared.lock();
    loop {
        let now = Instant::now();
        let mut next: Option<Duration> = None;
        for at in 0..queue.due.len() {
            let Some(due) = queue.due[at] else { continue };
            if due <= now {
                queue.due[at] = None;
                queue.elapsed[at] = true;
                shared.events.notify_one();
            } else {
                let left = due - now;
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        if !queue.jobs.is_empty() {
            std::mem::swap(&mut queue.jobs, round);
            return true;
        }
        if queue.stopping {
            return false;
        }
        queue = match next {
            Some(left) => {
                shared
                    .wake
                    .wait_timeout(queue, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => shared
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner),
        };
    }
}

/// Writes `round` in runs; one result for each job, in their order.
fn write_round(round: &VecDeque<Job>, syncing: Syncing, results: &mut Vec<io::Result<()>>) {
    let mut at = 0;
    while at < round.len() {
        let mut end = at + 1;
        while end < round.len() && end - at < VECTORS_MAX && round[end].follows(&round[end - 1]) {
            end += 1;
        }
        write_run(round, at..end, syncing, results);
        at = end;
    }
    if syncing == Syncing::Round {
        sync_round(round, results);
    }
}

fn write_run(
    round: &VecDeque<Job>,
    run: std::ops::Range<usize>,
    syncing: Syncing,
    results: &mut Vec<io::Result<()>>,
) {
    let first = &round[run.start];
    let flags = if first.durable && syncing == Syncing::Each {
        ReadWriteFlags::DSYNC
    } else {
        ReadWriteFlags::empty()
    };
    let mut vectors = [IoSlice::new(&[]); VECTORS_MAX];
    for (vector, job) in vectors.iter_mut().zip(run.clone()) {
        *vector = IoSlice::new(round[job].bytes());
    }
    let written = loop {
        match pwritev2(first.fd(), &vectors[..run.len()], first.offset, flags) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended,
        }
    };
    let mut left = written.as_ref().map_or(0, |&bytes| bytes);
    for job in run {
        let wanted = round[job].len;
        let result = match &written {
            Ok(_) if left >= wanted => Ok(()),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("{left} of {wanted} bytes written"),
            )),
            Err(errno) => Err((*errno).into()),
        };
        left = left.saturating_sub(wanted);
        results.push(result);
    }
}

/// One `fdatasync` for each file; what it fails for isn't durable, and is never tried again: the kernel
/// may have dropped the pages.
fn sync_round(round: &VecDeque<Job>, results: &mut [io::Result<()>]) {
    for at in 0..round.len() {
        let fd = round[at].file.fd();
        let is_first = round
            .iter()
            .position(|job| job.durable && job.file.fd() == fd)
            == Some(at);
        if !is_first {
            continue;
        }
        let Err(errno) = fdatasync(round[at].fd()) else {
            continue;
        };
        for (job, result) in round.iter().zip(results.iter_mut()) {
            if job.file.fd() == fd && job.durable && result.is_ok() {
                *result = Err(errno.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::uring::ALIGNMENT;

    /// Writes that are spread over runs of two files, some of them refused, come back with their own
    /// results and buffers.
    #[tokio::test]
    async fn each_write_ends_with_its_own_result() {
        for (syncing, flags) in [(Syncing::Each, libc::O_DIRECT), (Syncing::Round, 0)] {
            // Beside the test's binary: /tmp may be a tmpfs, which knows no O_DIRECT.
            let binary = std::env::current_exe().unwrap();
            let dir = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
            let open = |name: &str, write: bool| -> Arc<dyn Target> {
                let path = dir.path().join(name);
                std::fs::File::create(&path).unwrap();
                let mut options = std::fs::OpenOptions::new();
                options.read(true).write(write).custom_flags(flags);
                Arc::new(options.open(path).unwrap())
            };
            let (good, refusing) = (open("good", true), open("refusing", false));
            let pool = BufferPool::new(16, ALIGNMENT);
            let mut writer = WriterThread::start(vec![pool.clone()], syncing).unwrap();
            let notifier = writer.notifier().unwrap();
            for token in 0..16_u64 {
                let mut buffer = pool.acquire().unwrap();
                buffer.fill(u8::try_from(token).unwrap());
                let refused = token % 4 == 3;
                writer
                    .write(Write {
                        file: Arc::clone(if refused { &refusing } else { &good }),
                        buffer,
                        len: ALIGNMENT,
                        offset: token * ALIGNMENT as u64,
                        durable: true,
                        token,
                    })
                    .unwrap();
            }
            writer.arm(Timer::B, Duration::from_micros(200)).unwrap();
            let (mut ended, mut elapsed) = (0, false);
            while ended < 16 || !elapsed {
                tokio::time::timeout(Duration::from_secs(10), notifier.wait())
                    .await
                    .unwrap()
                    .unwrap();
                while let Some(event) = writer.next_event() {
                    match event {
                        Event::Written(done) => {
                            assert_eq!(done.result.is_err(), done.token % 4 == 3);
                            assert_eq!(u64::from(done.buffer[0]), done.token);
                            ended += 1;
                        }
                        Event::Elapsed(timer) => {
                            assert_eq!(timer, Timer::B);
                            elapsed = true;
                        }
                    }
                }
            }
            let written = std::fs::read(dir.path().join("good")).unwrap();
            for token in (0..15).filter(|token| token % 4 != 3) {
                assert_eq!(usize::from(written[token * ALIGNMENT]), token);
            }
            assert_eq!((writer.writes(), pool.available()), (0, 16));
        }
    }

    #[test]
    fn a_dropped_writer_finishes_what_was_begun() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let pool = BufferPool::new(4, ALIGNMENT);
        let mut writer = WriterThread::start(vec![pool.clone()], Syncing::Round).unwrap();
        for at in 0..4 {
            let mut buffer = pool.acquire().unwrap();
            buffer.fill(7);
            writer
                .write(Write {
                    file: Arc::clone(&file) as Arc<dyn Target>,
                    buffer,
                    len: ALIGNMENT,
                    offset: at * ALIGNMENT as u64,
                    durable: true,
                    token: at,
                })
                .unwrap();
        }
        drop(writer);
        assert_eq!(pool.available(), 4);
        assert_eq!(file.metadata().unwrap().len(), 4 * ALIGNMENT as u64);
    }
}

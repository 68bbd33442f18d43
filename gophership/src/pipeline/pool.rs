//! Batch buffers of one worker: a fixed number, filled by the worker, given back from whichever
//! thread lets go of the batch last.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The buffers of one worker.
#[derive(Debug)]
pub(super) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
    /// Read at each request, which must not lock for it.
    in_use: AtomicUsize,
    total: usize,
    buffer_bytes: usize,
}

impl Pool {
    /// `total` buffers of `buffer_bytes` each. Their pages become resident on first use.
    pub(super) fn new(total: usize, buffer_bytes: usize) -> Arc<Self> {
        let free = (0..total)
            .map(|_| Vec::with_capacity(buffer_bytes))
            .collect();
        Arc::new(Self {
            free: Mutex::new(free),
            in_use: AtomicUsize::new(0),
            total,
            buffer_bytes,
        })
    }

    pub(super) fn acquire(self: &Arc<Self>) -> Option<Buffer> {
        let bytes = self.lock().pop()?;
        self.in_use.fetch_add(1, Relaxed);
        Some(Buffer {
            bytes,
            pool: Arc::clone(self),
        })
    }

    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    pub(super) fn bytes_total(&self) -> usize {
        self.total * self.buffer_bytes
    }

    pub(super) fn bytes_in_use(&self) -> usize {
        self.in_use.load(Relaxed) * self.buffer_bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One buffer; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Buffer {
    pub(super) fn room(&self) -> usize {
        self.pool.buffer_bytes - self.bytes.len()
    }

    /// Appends within the capacity: the caller has checked [`Self::room`].
    pub(super) fn append(&mut self, part: &[u8]) {
        assert!(
            part.len() <= self.room(),
            "{} bytes into {}",
            part.len(),
            self.room()
        );
        self.bytes.extend_from_slice(part);
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.pool.in_use.fetch_sub(1, Relaxed);
        self.pool.lock().push(bytes);
    }
}

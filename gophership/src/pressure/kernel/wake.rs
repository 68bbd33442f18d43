//! Waking the watch thread, and waiting for it to be woken.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// An eventfd: any number of rings before a wait are one wake-up.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

/// What ended a wait, if it wasn't time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Woken {
    /// [`Wake::ring`], or something in the ring buffer.
    pub(crate) called: bool,
    /// The trigger's exceptional condition.
    pub(crate) triggered: bool,
}

impl Wake {
    /// # Errors
    /// `eventfd(2)`'s.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no preconditions; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes the waiter, now or at its next wait. Never blocks; a counter at its maximum is a
    /// wake-up already pending.
    pub(crate) fn ring(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight readable bytes, an owned descriptor.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Waits until rung, until `ring` is readable, until `trigger` has an exceptional condition, or
    /// for `timeout`.
    pub(crate) fn wait(
        &self,
        ring: Option<BorrowedFd<'_>>,
        trigger: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Woken {
        let polled = |fd: Option<BorrowedFd<'_>>, events| libc::pollfd {
            // poll(2) passes over negative descriptors.
            fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
            events,
            revents: 0,
        };
        let mut polled = [
            polled(Some(self.0.as_fd()), libc::POLLIN),
            polled(ring, libc::POLLIN),
            polled(trigger, libc::POLLPRI),
        ];
        // Rounded up: a wait that ends a little early would be followed by a second one.
        let timeout =
            libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX);
        let count = polled.len() as libc::nfds_t;
        // SAFETY: `polled` holds `count` entries of descriptors that are open throughout. Errors
        // (EINTR) count as a wake-up: the caller looks at everything anyway.
        unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) };
        let mut counter = [0_u8; 8];
        // SAFETY: eight writable bytes, an owned descriptor; nothing to read is no error for us.
        let read = unsafe { libc::read(self.0.as_raw_fd(), counter.as_mut_ptr().cast(), 8) };
        Woken {
            called: read == 8 || polled[1].revents & libc::POLLIN != 0,
            triggered: polled[2].revents & libc::POLLPRI != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn rings_before_the_wait_are_not_lost() {
        let wake = Wake::new().unwrap();
        wake.ring();
        wake.ring();
        let start = Instant::now();
        assert!(wake.wait(None, None, Duration::from_secs(10)).called);
        assert!(start.elapsed() < Duration::from_secs(5));
        let start = Instant::now();
        assert!(!wake.wait(None, None, Duration::from_millis(20)).called);
        assert!(
            start.elapsed() >= Duration::from_millis(15),
            "both rings were one"
        );
    }
}

//! Telling the kernel half who the engine is, by running a program of its on the thread in question:
//! process and thread ids differ between pid namespaces, and whoever runs is known for sure.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use libbpf_sys::{bpf_prog_test_run_opts, bpf_test_run_opts};

/// A handle to the program, for every worker; lives as long as the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enlist(&'static OwnedFd);

impl Enlist {
    /// No worker's number: only the process is meant.
    const NO_WORKER: u64 = u64::MAX;

    /// Keeps a descriptor of the program.
    pub(super) fn new(program: OwnedFd) -> Self {
        Self(Box::leak(Box::new(program)))
    }

    /// Notes this process as the engine.
    ///
    /// # Errors
    /// `bpf(BPF_PROG_TEST_RUN)`'s.
    pub(super) fn engine(self) -> io::Result<()> {
        self.run(Self::NO_WORKER)
    }

    /// Notes this thread as a worker.
    ///
    /// # Errors
    /// As for [`Self::engine`]; and if the kernel half has no room for more.
    pub(crate) fn worker(self, number: usize) -> io::Result<()> {
        self.run(number as u64)
    }

    fn run(self, context: u64) -> io::Result<()> {
        match test_run(self.0.as_fd(), context)? {
            0 => Ok(()),
            code => Err(io::Error::other(format!("enlist returned {code}"))),
        }
    }
}

/// Runs a raw tracepoint program on this thread with one word of context; returns its result.
pub(super) fn test_run(program: BorrowedFd<'_>, context: u64) -> io::Result<u32> {
    // SAFETY: all zeroes is a valid value of this plain struct.
    let mut options: bpf_test_run_opts = unsafe { mem::zeroed() };
    options.sz = size_of::<bpf_test_run_opts>() as u64;
    options.ctx_in = (&raw const context).cast();
    options.ctx_size_in = u32::try_from(size_of::<u64>()).unwrap_or(0);
    // SAFETY: an open descriptor; the options live throughout and point to a readable word.
    let result = unsafe { bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(options.retval)
}

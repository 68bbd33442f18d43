//! The iterators: loaded and linked at start, which takes privileges; read later, by whoever holds
//! the links.
//!
//! Opening and reading one takes no capability from 5.19 on; before that, an unprivileged
//! `BPF_ITER_CREATE` is refused where `kernel.unprivileged_bpf_disabled` is set.

use std::{
    fs::File,
    io::{self, BufReader, ErrorKind, Read},
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr, slice,
};

use aya::{
    Btf, Ebpf, Pod,
    programs::{Iter, ProgramError},
};
use gophership_common::{
    PROGRAM_LIST_PROCESSES, PROGRAM_LIST_SOCKETS, ProcessRecord, SocketRecord,
};

use super::Chain;

/// The kernel fills at most this much for one read (`PAGE_SIZE << 3` in `kernel/bpf/bpf_iter.c`).
const READ_BYTES: usize = 32 * 1024;
/// A read that walks a million objects and writes nothing ends in `EAGAIN`; this often it goes on.
const IDLE_READS_MAX: u32 = 64;

/// Links of the iterators, or why there is none. Nothing runs until one is read.
pub(in crate::pressure) struct Iterators {
    sockets: Result<OwnedFd, String>,
    processes: Result<OwnedFd, String>,
}

impl Iterators {
    /// None, for this reason.
    pub(in crate::pressure) fn none(reason: &str) -> Self {
        Self {
            sockets: Err(reason.to_owned()),
            processes: Err(reason.to_owned()),
        }
    }

    /// Loads and links both; neither is needed to judge, so a failure is only kept.
    pub(super) fn attach(ebpf: &mut Ebpf, btf: &Btf) -> Self {
        let mut link = |program, kind| {
            link(ebpf, program, kind, btf)
                .map_err(|error| format!("iter/{kind}: {}", Chain(&error)))
        };
        Self {
            sockets: link(PROGRAM_LIST_SOCKETS, "tcp"),
            processes: link(PROGRAM_LIST_PROCESSES, "task_file"),
        }
    }

    /// The ingest sockets and listeners, as they are while this is read.
    ///
    /// # Errors
    /// Why they can't be listed.
    pub(in crate::pressure) fn sockets(&self) -> Result<Records<SocketRecord>, String> {
        Records::of(&self.sockets)
    }

    /// The processes connected to an ingest port.
    ///
    /// # Errors
    /// Why they can't be listed.
    pub(in crate::pressure) fn processes(&self) -> Result<Records<ProcessRecord>, String> {
        Records::of(&self.processes)
    }

    /// What can't be listed, and why.
    pub(in crate::pressure) fn missing(&self) -> impl Iterator<Item = &str> {
        [&self.sockets, &self.processes]
            .into_iter()
            .filter_map(|link| link.as_ref().err().map(String::as_str))
    }
}

/// Not by aya's own link, which opens the iterator once and is gone.
fn link(
    ebpf: &mut Ebpf,
    program: &str,
    kind: &'static str,
    btf: &Btf,
) -> Result<OwnedFd, ProgramError> {
    let program: &mut Iter = ebpf
        .program_mut(program)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()?;
    program.load(kind, btf)?;
    let program = program.fd()?.as_fd().as_raw_fd();
    // SAFETY: the program's descriptor is open, an iterator has no target, no options are given.
    let link =
        unsafe { libbpf_sys::bpf_link_create(program, 0, libbpf_sys::BPF_TRACE_ITER, ptr::null()) };
    owned(link).map_err(ProgramError::IOError)
}

/// The descriptor that a call of libbpf returned, or its error.
fn owned(result: RawFd) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the kernel has just opened it for us, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// One walk of an iterator.
pub(in crate::pressure) struct Records<T> {
    reader: BufReader<File>,
    idle_reads: u32,
    record: PhantomData<T>,
}

impl<T: Pod> Records<T> {
    fn of(link: &Result<OwnedFd, String>) -> Result<Self, String> {
        let link = link.as_ref().map_err(String::clone)?;
        // SAFETY: the link's descriptor is open.
        let opened = unsafe { libbpf_sys::bpf_iter_create(link.as_raw_fd()) };
        let file = owned(opened).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => "needs CAP_BPF on this kernel".to_owned(),
            _ => format!("opening the iterator: {error}"),
        })?;
        Ok(Self {
            reader: BufReader::with_capacity(READ_BYTES, file.into()),
            idle_reads: 0,
            record: PhantomData,
        })
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// `read(2)`'s.
    pub(in crate::pressure) fn next(&mut self) -> io::Result<Option<T>> {
        let mut record = MaybeUninit::<T>::zeroed();
        // SAFETY: the bytes of `record`, initialised to zeros, borrowed until the read is over.
        let bytes =
            unsafe { slice::from_raw_parts_mut(record.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
        let mut filled = 0;
        while filled < bytes.len() {
            match self.reader.read(&mut bytes[filled..]) {
                // The kernel writes whole records only, so nothing is cut off here.
                Ok(0) => return Ok(None),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && self.idle_reads < IDLE_READS_MAX =>
                {
                    self.idle_reads += 1;
                }
                Err(error) => return Err(error),
            }
        }
        // SAFETY: initialised, and any bit pattern is a valid `Pod`.
        Ok(Some(unsafe { record.assume_init() }))
    }
}

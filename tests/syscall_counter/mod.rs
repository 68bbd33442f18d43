//! Counts a thread's system calls by the tracepoint that each of them passes.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Error, ErrorKind, Read},
    os::fd::{AsRawFd, FromRawFd},
    path::Path,
    thread,
};

use nix::unistd::Pid;

/// `struct perf_event_attr` of `include/uapi/linux/perf_event.h`, in its first version.
#[repr(C)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const PERF_TYPE_TRACEPOINT: u32 = 2;
const FLAG_DISABLED: u64 = 1;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;
const IOC_RESET: libc::c_ulong = 0x2403;
const IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;

/// Which system calls count.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which {
    All,
    /// The one with this number.
    Only(libc::c_long),
    /// All but those with these numbers.
    AllBut(&'static [libc::c_long]),
}

impl Which {
    /// The tracepoint's filter; `None`: everything passes.
    fn filter(self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Only(number) => Some(format!("id == {number}")),
            Self::AllBut(numbers) => {
                let terms: Vec<_> = numbers.iter().map(|n| format!("id != {n}")).collect();
                Some(terms.join(" && "))
            }
        }
    }
}

/// A counter of one thread's system calls.
#[derive(Debug)]
pub(crate) struct SyscallCounter(File);

impl SyscallCounter {
    /// Counts those of the calling thread.
    ///
    /// # Errors
    /// Without the privilege, or where the kernel has no such tracepoint.
    pub(crate) fn of_this_thread(which: Which) -> io::Result<Self> {
        Self::of_task(Pid::from_raw(0), which)
    }

    /// Counts those of one thread of any process.
    ///
    /// # Errors
    /// See [`Self::of_this_thread`].
    pub(crate) fn of_task(task: Pid, which: Which) -> io::Result<Self> {
        let attributes = PerfEventAttr {
            kind: PERF_TYPE_TRACEPOINT,
            size: u32::try_from(size_of::<PerfEventAttr>()).expect("64"),
            config: tracepoint_id()?,
            sample_period: 0,
            sample_type: 0,
            read_format: 0,
            flags: FLAG_DISABLED,
            wakeup_events: 0,
            bp_type: 0,
            config1: 0,
        };
        // SAFETY: the attributes live through the call and say how long they are.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                task.as_raw(),
                -1,
                -1,
                0,
            )
        };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        let fd = i32::try_from(fd).expect("a descriptor");
        // SAFETY: the kernel has just given it to us.
        let counter = Self(unsafe { File::from_raw_fd(fd) });
        if let Some(filter) = which.filter() {
            let filter = CString::new(filter).expect("without NUL");
            // SAFETY: the request reads a string that lives through the call.
            let done =
                unsafe { libc::ioctl(counter.0.as_raw_fd(), IOC_SET_FILTER, filter.as_ptr()) };
            if done < 0 {
                return Err(Error::last_os_error());
            }
        }
        Ok(counter)
    }

    /// How many there were while `action` ran; of the calling thread, one more for the end.
    pub(crate) fn during(&self, action: impl FnOnce()) -> u64 {
        self.start();
        action();
        self.stop()
    }

    /// Begins at 0.
    pub(crate) fn start(&self) {
        self.request(IOC_RESET);
        self.request(IOC_ENABLE);
    }

    /// The count since the start.
    pub(crate) fn stop(&self) -> u64 {
        self.request(IOC_DISABLE);
        let mut count = [0; 8];
        (&self.0).read_exact(&mut count).expect("a count");
        u64::from_ne_bytes(count)
    }

    fn request(&self, request: libc::c_ulong) {
        // SAFETY: these requests have no argument.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request, 0) };
        assert!(done >= 0, "{request:#x}: {}", Error::last_os_error());
    }
}

/// Threads of a process whose name begins so.
pub(crate) fn tasks_named(process: Pid, name: &str) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    tasks
        .flatten()
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name))
        })
        .filter_map(|task| task.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .collect()
}

/// Number of the tracepoint that each system call passes on its way in.
fn tracepoint_id() -> io::Result<u64> {
    const ID: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";
    let read = || -> io::Result<u64> {
        let text = fs::read_to_string(ID)?;
        text.trim()
            .parse()
            .map_err(|error| Error::new(ErrorKind::InvalidData, error))
    };
    if Path::new(ID).exists() {
        return read();
    }
    // Nobody else sees what a thread with its own mounts has mounted.
    let elsewhere = thread::spawn(move || {
        // SAFETY: no memory is involved.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 {
            return Err(Error::last_os_error());
        }
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
        mount(c"none", c"/sys/kernel/tracing", c"tracefs", 0)?;
        read()
    });
    elsewhere.join().expect("the thread didn't panic")
}

fn mount(
    source: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: &std::ffi::CStr,
    flags: libc::c_ulong,
) -> io::Result<()> {
    // SAFETY: the strings live through the call; there is no data.
    let done = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    if done < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

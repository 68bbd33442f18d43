//! The kernel source: loads and attaches the kernel half, and maps what it shares.
//!
//! The object is embedded when the build was given one (`GOPHERSHIP_EBPF_OBJ`). `tcp_probe` and the
//! tick must attach; without the dequeue or the close probe the receive queue reads "unavailable",
//! since a depth that can only rise would be a lie.

mod btf;
mod capabilities;
mod lockdown;
mod mmap;
mod probe;
mod wake;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, RingBuf},
    programs::{
        BtfTracePoint, PerfEvent, ProgramError,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use aya_log::EbpfLogger;
use gophership_common::{
    EnginePage, Event, GLOBAL_OFFSETS, MAP_ENGINE, MAP_EVENTS, MAP_POLICY, MAP_SIGNALS,
    MAP_VERDICT, PROGRAM_SOCKET_STATE, PROGRAM_TCP_DEQUEUE, PROGRAM_TCP_PROBE, PROGRAM_TICK,
    PolicyPage, SignalsPage, VerdictPage,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

pub use lockdown::Lockdown;
pub(super) use lockdown::explained;
pub(super) use mmap::Page;
pub use probe::{Feature, ProgramTrial, features, try_programs};
pub(super) use wake::Wake;

use super::pages::Pages;

/// Why the kernel half isn't judging.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon was built without the kernel half's object.
    #[error("not built in: the build was given no GOPHERSHIP_EBPF_OBJ")]
    NotBuiltIn,
    /// The kernel doesn't describe its types.
    #[error("/sys/kernel/btf/vmlinux: {0}")]
    Btf(#[source] io::Error),
    /// The kernel's types lack something we read.
    #[error("BTF has no {structure}.{path}")]
    Field {
        /// The struct.
        structure: &'static str,
        /// Dotted path of the field.
        path: &'static str,
    },
    /// The process may not load programs, or not attach them.
    #[error("not privileged: lacks {0}")]
    Privileges(String),
    /// The kernel refused the object: lockdown, a container's seccomp profile or the verifier.
    #[error("loading the object: {}", Chain(.0))]
    Load(#[from] aya::EbpfError),
    /// A program that must run doesn't.
    #[error("program {name}: {}", Chain(.source))]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// A map isn't in the object, or is of another kind.
    #[error("map {name}: {reason}")]
    Map {
        /// The map.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody may read the kernel's memory, which is what the programs are for.
    #[error("kernel lockdown (confidentiality) forbids reading the kernel and perf events: {0}")]
    Lockdown(#[source] Box<Self>),
    /// The CPUs can't be listed.
    #[error("{path}: {source}")]
    Cpus {
        /// The file.
        path: String,
        /// The failure.
        source: io::Error,
    },
    /// Everything is attached, but no tick has come.
    #[error("no tick within {0:?} of attaching")]
    Silent(Duration),
}

/// Looks up every field of the running kernel that the kernel half reads.
///
/// # Errors
/// [`Error::Btf`] or [`Error::Field`].
pub fn check_fields() -> Result<(), Error> {
    btf::offsets().map(drop)
}

/// What of CAP_BPF and CAP_PERFMON this thread lacks, separated by commas; `None` if nothing, or if
/// it can't be told.
#[must_use]
pub fn missing_capabilities() -> Option<String> {
    capabilities::missing()
}

/// The loaded kernel half. Dropping it detaches the programs.
pub(super) struct Kernel {
    ebpf: Ebpf,
    /// What couldn't be attached, and why; empty when all is well.
    pub(super) unattached: Vec<String>,
    /// Whether the receive queue can be measured.
    pub(super) measures_queues: bool,
}

/// The kernel half's transitions, oldest first.
pub(super) struct Events {
    ring: RingBuf<MapData>,
    /// Passes on the programs' own log lines; only when somebody wants them.
    flush_log: Option<Box<dyn FnMut() + Send>>,
}

impl Kernel {
    /// Loads the object with the running kernel's offsets, and maps what it shares. Nothing runs
    /// yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn load() -> Result<(Self, Pages, Events), Error> {
        let object = object()?;
        if let Some(missing) = capabilities::missing() {
            return Err(Error::Privileges(missing));
        }
        let offsets = btf::offsets()?;
        // Before 5.11 maps are charged to this limit; failing to raise it shows at the load.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let log_level = u8::from(wants_log()) * aya_log::Level::Debug as u8;
        let mut ebpf = EbpfLoader::new()
            .override_global(GLOBAL_OFFSETS, &offsets, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .load(object)?;
        let pages = Pages {
            verdict: mapped::<VerdictPage>(&mut ebpf, MAP_VERDICT)?,
            signals: mapped::<SignalsPage>(&mut ebpf, MAP_SIGNALS)?,
            policy: mapped::<PolicyPage>(&mut ebpf, MAP_POLICY)?,
            engine: mapped::<EnginePage>(&mut ebpf, MAP_ENGINE)?,
        };
        let events = Events::of(&mut ebpf)?;
        let kernel = Self {
            ebpf,
            unattached: Vec::new(),
            measures_queues: false,
        };
        Ok((kernel, pages, events))
    }

    /// Attaches the programs; the tick starts to judge as soon as a policy is published.
    ///
    /// # Errors
    /// [`Error::Program`] for `tcp_probe` and the tick; what else can't attach is listed in
    /// `unattached`.
    pub(super) fn attach(&mut self, tick: Duration) -> Result<(), Error> {
        let btf = Btf::from_sys_fs().map_err(|error| Error::Program {
            name: PROGRAM_TCP_PROBE,
            source: error.into(),
        })?;
        // The close probe first: a socket followed without it would never leave the aggregates.
        let mut optional = [PROGRAM_SOCKET_STATE, PROGRAM_TCP_DEQUEUE].map(|name| {
            self.attach_tracepoint(name, &btf)
                .map_err(|source| format!("{name}: {}", Chain(&source)))
        });
        self.measures_queues = optional.iter().all(Result::is_ok);
        self.unattached = optional
            .iter_mut()
            .filter_map(|outcome| outcome.as_mut().err().map(std::mem::take))
            .collect();
        self.attach_tracepoint(PROGRAM_TCP_PROBE, &btf)
            .map_err(|source| Error::Program {
                name: PROGRAM_TCP_PROBE,
                source,
            })?;
        self.attach_tick(tick)
    }

    fn attach_tracepoint(&mut self, name: &'static str, btf: &Btf) -> Result<(), ProgramError> {
        let program: &mut BtfTracePoint = self
            .ebpf
            .program_mut(name)
            .ok_or(ProgramError::NotLoaded)?
            .try_into()?;
        program.load(name, btf)?;
        program.attach()?;
        Ok(())
    }

    fn attach_tick(&mut self, tick: Duration) -> Result<(), Error> {
        let named = |source| Error::Program {
            name: PROGRAM_TICK,
            source,
        };
        let program: &mut PerfEvent = self
            .ebpf
            .program_mut(PROGRAM_TICK)
            .ok_or_else(|| named(ProgramError::NotLoaded))?
            .try_into()
            .map_err(named)?;
        program.load().map_err(named)?;
        let period_ns = u64::try_from(tick.as_nanos()).unwrap_or(u64::MAX);
        let cpus = online_cpus().map_err(|(path, source)| Error::Cpus {
            path: path.to_owned(),
            source,
        })?;
        for cpu in cpus {
            program
                .attach(
                    PerfEventConfig::Software(SoftwareEvent::CpuClock),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Period(period_ns),
                    false,
                )
                .map_err(named)?;
        }
        Ok(())
    }
}

impl Events {
    fn of(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let map = ebpf.take_map(MAP_EVENTS).ok_or_else(|| Error::Map {
            name: MAP_EVENTS,
            reason: "not in the object".to_owned(),
        })?;
        let ring = RingBuf::try_from(map).map_err(|error| Error::Map {
            name: MAP_EVENTS,
            reason: Chain(&error).to_string(),
        })?;
        let flush_log = if wants_log() {
            // Without its ring the programs run all the same, unheard.
            EbpfLogger::init(ebpf)
                .ok()
                .map(|mut logger| Box::new(move || logger.flush()) as Box<dyn FnMut() + Send>)
        } else {
            None
        };
        Ok(Self { ring, flush_log })
    }

    /// Takes the oldest event out of the ring.
    pub(super) fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            // A record of another size isn't ours; skip it rather than misread it.
            let Ok(bytes) = <[u8; size_of::<Event>()]>::try_from(&*item) else {
                continue;
            };
            // SAFETY: `Event` is `repr(C)`, exactly this long, and any bit pattern is valid.
            return Some(unsafe { std::mem::transmute::<[u8; size_of::<Event>()], Event>(bytes) });
        }
    }

    /// Passes on the programs' log lines, if they were asked for.
    pub(super) fn flush_log(&mut self) {
        if let Some(flush) = &mut self.flush_log {
            flush();
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// The programs log only for somebody who listens at TRACE here: a record costs a helper call.
fn wants_log() -> bool {
    tracing::enabled!(target: "gophership::pressure::kernel", tracing::Level::TRACE)
}

fn mapped<T: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Page<T>, Error> {
    let failed = |reason: String| Error::Map { name, reason };
    let map = ebpf
        .map(name)
        .ok_or_else(|| failed("not in the object".to_owned()))?;
    let Map::Array(data) = map else {
        return Err(failed("not an array".to_owned()));
    };
    // Checks key and value sizes against `T`.
    Array::<_, T>::try_from(map).map_err(|error| failed(Chain(&error).to_string()))?;
    Page::of_map(data.fd().as_fd()).map_err(|error| failed(format!("mmap: {error}")))
}

#[cfg(gophership_ebpf)]
fn object() -> Result<&'static [u8], Error> {
    Ok(aya::include_bytes_aligned!(concat!(
        env!("OUT_DIR"),
        "/gophership-ebpf.o"
    )))
}

#[cfg(not(gophership_ebpf))]
fn object() -> Result<&'static [u8], Error> {
    Err(Error::NotBuiltIn)
}

/// An error with all its sources, on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.0.to_string();
        let mut error = self.0.source();
        while let Some(source) = error {
            let next = source.to_string();
            // Many wrappers repeat their source in their own text.
            if !text.contains(&next) {
                text = format!("{text}: {next}");
            }
            error = source.source();
        }
        f.write_str(&text)
    }
}

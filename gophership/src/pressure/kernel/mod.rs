//! The kernel source: loads and attaches the kernel half, and maps what it shares.
//!
//! The object is embedded when the build was given one (`GOPHERSHIP_EBPF_OBJ`). `tcp_probe` and the
//! tick must attach; what else can't leaves its signals unavailable ([`programs`]).

mod btf;
mod capabilities;
mod cpus;
mod enlist;
mod iter;
mod lockdown;
mod log;
mod mmap;
mod probe;
mod programs;
mod refusal;
mod wake;
mod xdp;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Mutex,
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, RingBuf},
    programs::{
        BtfTracePoint, PerfEvent, ProgramError, RawTracePoint,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use aya_log::EbpfLogger;
use gophership_common::{
    EnginePage, Event, GLOBAL_LIST_OFFSETS, GLOBAL_OFFSETS, ListOffsets, MAP_ENGINE, MAP_EVENTS,
    MAP_POLICY, MAP_SIGNALS, MAP_VERDICT, PROGRAM_ENLIST, PROGRAM_TCP_PROBE, PROGRAM_TICK,
    PolicyPage, Signal, SignalsPage, VerdictPage,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use btf::Known;
use cpus::Ticking;
pub(super) use enlist::Enlist;
pub(super) use iter::Iterators;
pub use lockdown::Lockdown;
pub(super) use mmap::Page;
pub use probe::{Feature, ProgramTrial, features, try_programs};
pub(super) use wake::Wake;
pub(super) use xdp::Xdp;

use super::{lock, pages::Pages, unavailable::Unavailable, xdp::XdpConfig};

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
    /// The kernel refused it, and something about this kernel explains why.
    #[error("{explanation} ({refusal})")]
    Explained {
        /// What it is about this kernel.
        explanation: String,
        /// What failed.
        refusal: Box<Error>,
    },
}

impl Error {
    /// With what about the running kernel explains it.
    pub(super) fn explained(self) -> Self {
        // All that the verifier has said.
        tracing::debug!(error = ?self, "the kernel half does not run");
        match self {
            Self::Load(_) | Self::Program { .. } | Self::Map { .. } => {
                match refusal::explanation() {
                    Some(explanation) => Self::Explained {
                        explanation,
                        refusal: Box::new(self),
                    },
                    None => self,
                }
            }
            other => other,
        }
    }
}

/// Looks up every field of the running kernel that the kernel half reads; returns what can't be
/// measured for want of one, and which.
///
/// # Errors
/// [`Error::Btf`] or [`Error::Field`], with which nothing runs.
pub fn check_fields() -> Result<Vec<(Signal, String)>, Error> {
    Ok(by_signal(&btf::offsets()?.lacking).collect())
}

fn by_signal(lacking: &[(&[Signal], Error)]) -> impl Iterator<Item = (Signal, String)> {
    lacking
        .iter()
        .flat_map(|(signals, error)| signals.iter().map(|signal| (*signal, error.to_string())))
}

/// What of CAP_BPF and CAP_PERFMON this thread lacks, separated by commas; `None` if nothing, or if
/// it can't be told.
#[must_use]
pub fn missing_capabilities() -> Option<String> {
    capabilities::missing()
}

/// What metering an interface takes besides and this thread lacks; `None` if nothing, or if it can't
/// be told.
#[must_use]
pub fn missing_network_capability() -> Option<&'static str> {
    capabilities::missing_for_network()
}

/// The loaded kernel half. Dropping it detaches the programs.
pub(super) struct Kernel {
    ebpf: Ebpf,
    enlist: Option<Enlist>,
    /// What can't be measured here, and for want of which field.
    lacking: Vec<(Signal, String)>,
    /// What lists the sockets, or why it doesn't; it isn't needed to judge.
    pub(super) iterators: Iterators,
    /// Whether the running kernel's BTF has what the iterators read.
    can_list: bool,
    /// The metered interfaces, if there are any.
    pub(super) xdp: Option<Xdp>,
    /// Which CPUs have a tick.
    ticking: Mutex<Ticking>,
}

/// The kernel half's transitions, oldest first.
pub(super) struct Events {
    ring: RingBuf<MapData>,
    /// Passes on the programs' own log lines; only when somebody wants them.
    flush_log: Option<Box<dyn FnMut() + Send>>,
}

impl Kernel {
    /// Loads the object with the running kernel's offsets, and maps what it shares. Nothing runs
    /// yet. The maps for metering are sized by `xdp`.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn load(xdp: &XdpConfig) -> Result<(Self, Pages, Events), Error> {
        let object = object()?;
        if let Some(missing) = capabilities::missing() {
            return Err(Error::Privileges(missing));
        }
        Self::load_where(btf::offsets()?, object, xdp)
    }

    /// Loads the object for a kernel that has these fields.
    fn load_where(
        Known { offsets, lacking }: Known,
        object: &[u8],
        xdp: &XdpConfig,
    ) -> Result<(Self, Pages, Events), Error> {
        let list_offsets = btf::list_offsets();
        // Before 5.11 maps are charged to this limit; failing to raise it shows at the load.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let log_level = u8::from(log::is_wanted()) * aya_log::Level::Debug as u8;
        let mut loader = EbpfLoader::new();
        let list = list_offsets.as_ref().unwrap_or(&ListOffsets::UNKNOWN);
        loader
            .override_global(GLOBAL_OFFSETS, &offsets, true)
            .override_global(GLOBAL_LIST_OFFSETS, list, true)
            .override_global(aya_log::LEVEL, &log_level, false);
        xdp::size_maps(&mut loader, xdp);
        let mut ebpf = loader.load(object)?;
        let pages = Pages {
            verdict: mapped::<VerdictPage>(&mut ebpf, MAP_VERDICT)?,
            signals: mapped::<SignalsPage>(&mut ebpf, MAP_SIGNALS)?,
            policy: mapped::<PolicyPage>(&mut ebpf, MAP_POLICY)?,
            engine: mapped::<EnginePage>(&mut ebpf, MAP_ENGINE)?,
        };
        let events = Events::of(&mut ebpf)?;
        let kernel = Self {
            ebpf,
            enlist: None,
            lacking: by_signal(&lacking).collect(),
            can_list: list_offsets.is_ok(),
            iterators: Iterators::none(&match list_offsets {
                Ok(_) => "not attached".to_owned(),
                Err(error) => error.to_string(),
            }),
            xdp: None,
            ticking: Mutex::default(),
        };
        Ok((kernel, pages, events))
    }

    /// Attaches the programs; the tick starts to judge as soon as a policy is published. Returns the
    /// [`gophership_common::Signal::bit`]s of what is measured, and notes why the rest isn't.
    ///
    /// # Errors
    /// [`Error::Program`] for `tcp_probe` and the tick.
    pub(super) fn attach(
        &mut self,
        tick: Duration,
        unavailable: &Unavailable,
    ) -> Result<u64, Error> {
        let btf = Btf::from_sys_fs().map_err(|error| Error::Program {
            name: PROGRAM_TCP_PROBE,
            source: error.into(),
        })?;
        let mut refused = BTreeMap::new();
        if let Err(reason) = self.know_the_engine() {
            refused.insert(PROGRAM_ENLIST, reason);
        }
        for name in programs::TRACEPOINTS {
            if programs::is_idle(name, &refused) {
                continue;
            }
            match self.attach_tracepoint(name, &btf) {
                Ok(()) => {}
                Err(source) if name == PROGRAM_TCP_PROBE => {
                    return Err(Error::Program { name, source });
                }
                Err(source) => {
                    refused.insert(name, format!("{name}: {}", Chain(&source)));
                }
            }
        }
        self.detach_idle(&refused);
        self.attach_tick(tick)?;
        if self.can_list {
            self.iterators = Iterators::attach(&mut self.ebpf, &btf);
        }
        let (mut measured, missing) = programs::measured(&refused);
        for (signal, reason) in missing {
            unavailable.set(signal, reason);
        }
        // What is lacking says more than what the verifier makes of it.
        for (signal, reason) in &self.lacking {
            unavailable.set(*signal, reason);
            measured &= !signal.bit();
        }
        Ok(measured)
    }

    /// Has the kernel half learn this process, before anything is attributed to it.
    fn know_the_engine(&mut self) -> Result<(), String> {
        let named = |error: &dyn std::error::Error| format!("{PROGRAM_ENLIST}: {}", Chain(error));
        let program: &mut RawTracePoint = self
            .ebpf
            .program_mut(PROGRAM_ENLIST)
            .ok_or_else(|| format!("{PROGRAM_ENLIST}: not in the object"))?
            .try_into()
            .map_err(|error: ProgramError| named(&error))?;
        program.load().map_err(|error| named(&error))?;
        let fd = program.fd().map_err(|error| named(&error))?;
        let fd = fd
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| named(&error))?;
        let enlist = Enlist::new(fd);
        enlist.engine().map_err(|error| named(&error))?;
        self.enlist = Some(enlist);
        Ok(())
    }

    /// The way for workers to make themselves known; `None` where that isn't to be had.
    pub(super) fn enlist(&self) -> Option<Enlist> {
        self.enlist
    }

    /// Meters the interfaces of `config`; what can't be attached says so in its reading.
    pub(super) fn attach_xdp(&mut self, config: &XdpConfig, ports: &[u16]) {
        if !config.interfaces.is_empty() {
            self.xdp = Some(Xdp::attach(&mut self.ebpf, config, ports));
        }
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

    /// Detaches what measures nothing without the refused programs.
    fn detach_idle(&mut self, refused: &BTreeMap<&'static str, String>) {
        for name in programs::TRACEPOINTS {
            if !programs::is_idle(name, refused) {
                continue;
            }
            let detached = self
                .ebpf
                .program_mut(name)
                .ok_or(ProgramError::NotLoaded)
                .and_then(|program| <&mut BtfTracePoint>::try_from(program)?.unload());
            match detached {
                // One that was refused, or not attached at all.
                Ok(()) | Err(ProgramError::NotLoaded) => {}
                Err(error) => {
                    tracing::warn!(name, error = %Chain(&error), "a program stays that measures nothing");
                }
            }
        }
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
        let (mut ticking, mut refused) = (Ticking::default(), None);
        for cpu in cpus {
            let outcome = program.attach(
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Period(period_ns),
                false,
            );
            match outcome {
                Ok(_) => ticking.add(cpu),
                // A CPU may go offline meanwhile; one that ticks will do.
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(source) if !ticking.any() => return Err(named(source)),
            Some(error) => {
                tracing::warn!(error = %Chain(&error), "the tick can't be attached on every CPU");
            }
            None => {}
        }
        self.ticking = Mutex::new(ticking);
        self.mind_the_cpus();
        Ok(())
    }

    /// Warns of CPUs that have come online without a tick. Attaching one takes privileges that the
    /// running daemon has dropped.
    pub(super) fn mind_the_cpus(&self) {
        let cpus = lock(&self.ticking).newly_without();
        if !cpus.is_empty() {
            tracing::warn!(
                ?cpus,
                "the tick does not run on some CPUs: the others judge; a restart attaches it to all"
            );
        }
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
        let flush_log = if log::is_wanted() {
            // Without its ring the programs run all the same, unheard.
            EbpfLogger::init_with_logger(ebpf, log::ToTracing)
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

/// An error with all its sources, on one line, without the verifier's log.
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
        f.write_str(&refusal::without_verifier_log(&text))
    }
}

#[cfg(test)]
mod lacking_tests;
#[cfg(test)]
mod parity_tests;
#[cfg(test)]
mod unseen_tests;

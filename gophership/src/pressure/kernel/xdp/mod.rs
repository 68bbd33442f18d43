//! Attaches the meter and guard to interfaces, and reads what it counts.
//!
//! Every attachment is a link that only this process holds: the kernel detaches the program when
//! the process ends, however it ends. After the start everything goes through mapped memory, so
//! that it works without privileges.

mod locals;

use std::{
    mem::offset_of,
    num::NonZeroU32,
    os::fd::AsFd,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{LpmTrie, Map, lpm_trie::Key},
    programs::{ProgramError, Xdp as XdpProgram, XdpMode as Flag, links::FdLink},
};
use gophership_common::{
    MAP_BUCKETS, MAP_GUARD, MAP_LOCALS, MAP_PREFIXES, MAP_RX, PORTS_MAX, PROGRAM_XDP,
    PROGRAM_XDP_FRAGS,
    xdp::{
        BUCKETS_MAX, GuardPage, INTERFACES_MAX, LIST_ALLOW, LIST_DENY, LocalsPage, RxCpu, RxLine,
        TrieKey,
    },
};
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::{Chain, Error, capabilities, mapped, mmap};
use crate::pressure::{
    lock,
    xdp::{InterfaceCounts, InterfaceReading, XdpConfig, XdpMode},
};
use locals::Locals;

/// Room for as many CPUs where the system doesn't say how many there can be.
const CPUS_ASSUMED: u32 = 1024;

/// The metered interfaces. Dropping it detaches the programs.
pub(in crate::pressure) struct Xdp {
    interfaces: Vec<Interface>,
    /// `RX`, empty if it can't be had.
    rx: &'static [AtomicU64],
    locals: Option<Mutex<Locals>>,
    has_guard: bool,
}

struct Interface {
    name: String,
    index: u32,
    attached: Result<(FdLink, XdpMode), String>,
}

/// Makes the maps as large as they need be, which is next to nothing where XDP is off.
pub(super) fn size_maps(loader: &mut EbpfLoader<'_>, config: &XdpConfig) {
    if config.interfaces.is_empty() {
        return;
    }
    loader.map_max_entries(MAP_RX, cpus());
    if config.guard.syn_per_second.is_some() {
        loader.map_max_entries(MAP_BUCKETS, BUCKETS_MAX);
    }
}

/// One more than the greatest CPU number there can be.
fn cpus() -> u32 {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = possible.trim().rsplit([',', '-']).next();
    last.and_then(|last| last.parse().ok())
        .map_or(CPUS_ASSUMED, |last: u32| last + 1)
}

impl Xdp {
    /// Attaches the program to every interface of `config` that takes it.
    pub(super) fn attach(ebpf: &mut Ebpf, config: &XdpConfig, ports: &[u16]) -> Self {
        let indices: Vec<Result<u32, String>> = config
            .interfaces
            .iter()
            .map(|name| if_nametoindex(name.as_str()).map_err(|error| error.to_string()))
            .collect();
        let mut xdp = Self {
            interfaces: Vec::new(),
            rx: &[],
            locals: None,
            has_guard: config.guard.syn_per_second.is_some() || !config.guard.deny.is_empty(),
        };
        let program = xdp
            .prepare(ebpf, config, ports, &indices)
            .and_then(|()| load(ebpf));
        for (name, index) in config.interfaces.iter().zip(indices) {
            let (index, attached) = match (index, &program) {
                (Ok(index), Ok(program)) => {
                    let attached = attach_to(ebpf, program, name, index, config.mode);
                    (index, attached)
                }
                (Err(reason), _) => (0, Err(reason)),
                (_, Err(reason)) => (0, Err(reason.clone())),
            };
            match &attached {
                Ok((_, mode)) => tracing::info!(
                    interface = name,
                    mode = mode.as_str(),
                    syn_per_second = config.guard.syn_per_second.map_or(0, NonZeroU32::get),
                    allow = config.guard.allow.len(),
                    deny = config.guard.deny.len(),
                    "xdp: the interface is metered"
                ),
                Err(reason) => tracing::error!(
                    interface = name,
                    reason,
                    "xdp: THE INTERFACE IS NEITHER METERED NOR GUARDED"
                ),
            }
            xdp.interfaces.push(Interface {
                name: name.clone(),
                index,
                attached,
            });
        }
        xdp
    }

    /// Tells the program everything before it runs.
    fn prepare(
        &mut self,
        ebpf: &mut Ebpf,
        config: &XdpConfig,
        ports: &[u16],
        indices: &[Result<u32, String>],
    ) -> Result<(), String> {
        if let Some(missing) = capabilities::missing_for_network() {
            return Err(format!("not privileged: lacks {missing}"));
        }
        let text = |error: Error| error.to_string();
        let guard = mapped::<GuardPage>(ebpf, MAP_GUARD).map_err(text)?;
        guard.write(0, &guard_page(config, ports, indices));
        let locals = mapped::<LocalsPage>(ebpf, MAP_LOCALS).map_err(text)?;
        let locals = Locals::watch(locals).map_err(|error| format!("local addresses: {error}"))?;
        self.locals = Some(Mutex::new(locals));
        fill_lists(ebpf, config)?;
        self.rx = map_rx(ebpf)?;
        Ok(())
    }

    /// What each interface has counted, and whether it still counts.
    pub(in crate::pressure) fn readings(&self) -> Vec<InterfaceReading> {
        let suspended = self
            .locals
            .as_ref()
            .and_then(|locals| lock(locals).suspended());
        let readings = self.interfaces.iter().enumerate().map(|(slot, interface)| {
            let attached = match &interface.attached {
                // The kernel detaches from an interface that goes. One that is renamed keeps its
                // index, and a new one of the old name has another.
                Ok(_) if !is_there(interface.index) => {
                    Err("the interface is gone; restart to attach to a new one".to_owned())
                }
                Ok((_, mode)) => Ok(*mode),
                Err(reason) => Err(reason.clone()),
            };
            InterfaceReading {
                name: interface.name.clone(),
                attached,
                counts: self.counts(slot),
                guard_suspended: suspended.filter(|_| self.has_guard),
            }
        });
        readings.collect()
    }

    /// The sum over the CPUs.
    fn counts(&self, slot: usize) -> InterfaceCounts {
        const WORD: usize = size_of::<u64>();
        let line = slot * size_of::<RxLine>() / WORD;
        let sum = |field: usize| {
            let words = self.rx.chunks_exact(size_of::<RxCpu>() / WORD);
            words
                .map(|cpu| cpu[line + field / WORD].load(Ordering::Relaxed))
                .fold(0, u64::wrapping_add)
        };
        InterfaceCounts {
            packets: sum(offset_of!(RxLine, packets)),
            bytes: sum(offset_of!(RxLine, bytes)),
            opens: sum(offset_of!(RxLine, opens)),
            denied: sum(offset_of!(RxLine, denied)),
            limited: sum(offset_of!(RxLine, limited)),
        }
    }

    /// Takes over the host's addresses if they have changed. Cheap if they haven't: one system call.
    pub(in crate::pressure) fn follow_local_addresses(&self) {
        if let Some(locals) = &self.locals {
            lock(locals).follow();
        }
    }
}

/// Whether an interface has this index. `nix` 0.31 answers for one that is gone with an empty name
/// instead of an error.
fn is_there(index: u32) -> bool {
    if_indextoname(index).is_ok_and(|name| !name.is_empty())
}

fn guard_page(config: &XdpConfig, ports: &[u16], indices: &[Result<u32, String>]) -> GuardPage {
    const SECOND_NS: u64 = 1_000_000_000;
    let mut interfaces = [0; INTERFACES_MAX];
    for (place, index) in interfaces.iter_mut().zip(indices) {
        *place = index.as_ref().copied().unwrap_or(0);
    }
    let mut port_list = [0; PORTS_MAX];
    for (place, port) in port_list.iter_mut().zip(ports) {
        *place = *port;
    }
    let (syn_interval_ns, syn_tolerance_ns) = match config.guard.syn_per_second {
        None => (0, 0),
        Some(rate) => {
            let interval_ns = SECOND_NS / u64::from(rate.get());
            (interval_ns, interval_ns * (u64::from(rate.get()) - 1))
        }
    };
    GuardPage {
        syn_interval_ns,
        syn_tolerance_ns,
        interfaces,
        ports: port_list,
        port_count: u32::try_from(ports.len().min(PORTS_MAX)).unwrap_or(0),
        has_lists: u32::from(!config.guard.allow.is_empty() || !config.guard.deny.is_empty()),
    }
}

fn fill_lists(ebpf: &mut Ebpf, config: &XdpConfig) -> Result<(), String> {
    let map = ebpf
        .map_mut(MAP_PREFIXES)
        .ok_or("map PREFIXES: not in the object")?;
    let failed = |error| format!("map PREFIXES: {}", Chain(&error));
    let mut trie: LpmTrie<_, TrieKey, u32> = LpmTrie::try_from(map).map_err(failed)?;
    let allow = config.guard.allow.iter().map(|prefix| (prefix, LIST_ALLOW));
    let deny = config.guard.deny.iter().map(|prefix| (prefix, LIST_DENY));
    for (prefix, list) in allow.chain(deny) {
        let (key, bits) = prefix.trie_key();
        trie.insert(&Key::new(bits, key), list, 0).map_err(failed)?;
    }
    Ok(())
}

fn map_rx(ebpf: &Ebpf) -> Result<&'static [AtomicU64], String> {
    let Some(Map::Array(data)) = ebpf.map(MAP_RX) else {
        return Err("map RX: not an array in the object".to_owned());
    };
    let info = data
        .info()
        .map_err(|error| format!("map RX: {}", Chain(&error)))?;
    if info.value_size() as usize != size_of::<RxCpu>() {
        return Err(format!("map RX: elements of {} bytes", info.value_size()));
    }
    let bytes = info.max_entries() as usize * size_of::<RxCpu>();
    mmap::words_of_map(data.fd().as_fd(), bytes).map_err(|error| format!("map RX: mmap: {error}"))
}

/// Loads the program, the one for frames in several buffers if the kernel can.
fn load(ebpf: &mut Ebpf) -> Result<&'static str, String> {
    let mut refused = String::new();
    for name in [PROGRAM_XDP_FRAGS, PROGRAM_XDP] {
        match program(ebpf, name).and_then(XdpProgram::load) {
            Ok(()) => return Ok(name),
            Err(error) => {
                tracing::debug!(name, error = %Chain(&error), "xdp: not loaded");
                refused = format!("program {name}: {}", Chain(&error));
            }
        }
    }
    Err(refused)
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut XdpProgram, ProgramError> {
    ebpf.program_mut(name)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

fn attach_to(
    ebpf: &mut Ebpf,
    program: &str,
    name: &str,
    index: u32,
    mode: XdpMode,
) -> Result<(FdLink, XdpMode), String> {
    if !locals::has_ethernet_header(name) {
        return Err("not an Ethernet interface".to_owned());
    }
    let mut native =
        || link(ebpf, program, index, Flag::Driver).map(|link| (link, XdpMode::Native));
    match mode {
        XdpMode::Native => native(),
        XdpMode::Generic => {
            link(ebpf, program, index, Flag::Skb).map(|link| (link, XdpMode::Generic))
        }
        XdpMode::Auto => native().or_else(|refused| {
            let link = link(ebpf, program, index, Flag::Skb)
                .map_err(|error| format!("native: {refused}; generic: {error}"))?;
            tracing::warn!(
                interface = name,
                refused,
                "xdp: no native mode here, so generic, which costs more"
            );
            Ok((link, XdpMode::Generic))
        }),
    }
}

fn link(ebpf: &mut Ebpf, name: &str, index: u32, flag: Flag) -> Result<FdLink, String> {
    let text = |error: ProgramError| Chain(&error).to_string();
    let program = program(ebpf, name).map_err(text)?;
    let id = program.attach_to_if_index(index, flag).map_err(text)?;
    let link = program.take_link(id).map_err(text)?;
    // An attachment by netlink would outlive a killed process; refused, it is undone at once.
    FdLink::try_from(link).map_err(|error| format!("not a link of this process: {error}"))
}

//! What this kernel has of what the kernel half uses, tried piece by piece, for `gophership doctor`.

use std::{io, ptr};

use aya::{
    Btf,
    programs::{
        Program, ProgramError,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
};
use gophership_common::{
    PROGRAM_JUDGE_RECORDED, PROGRAM_LIST_PROCESSES, PROGRAM_LIST_SOCKETS, PROGRAM_NOTHING,
    PROGRAM_TCP_PROBE, PROGRAM_TICK,
};

use super::{Chain, Error, Kernel};
use crate::pressure::XdpConfig;

/// Longest text of a refusal: the verifier's log has thousands of lines.
const REASON_CHARS_MAX: usize = 300;
/// Period of the tick while it is tried.
const PERIOD_NS: u64 = 100_000_000;

/// A kind of program or map.
#[derive(Debug)]
pub struct Feature {
    /// As bpf(2) names it, in lower case.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether the kernel has it; an error if that can't be found out.
    pub supported: io::Result<bool>,
}

/// One program of the kernel half, really loaded and attached, and taken away again.
#[derive(Debug)]
pub struct ProgramTrial {
    /// Its name in the object.
    pub name: String,
    /// What it is attached to.
    pub point: String,
    /// Whether nothing works without it.
    pub required: bool,
    /// Why it can't be had.
    pub outcome: Result<(), String>,
}

/// Asks for the kinds of programs and maps that the kernel half uses; not for tracing, which libbpf
/// asks for by fentry, and hardened kernels refuse that alone. [`try_programs`] answers for it.
#[must_use]
pub fn features() -> Vec<Feature> {
    use libbpf_sys as bpf;
    let programs = [
        (
            "prog_type_perf_event",
            "the tick",
            bpf::BPF_PROG_TYPE_PERF_EVENT,
        ),
        (
            "prog_type_xdp",
            "the meter and guard of interfaces",
            bpf::BPF_PROG_TYPE_XDP,
        ),
    ];
    let maps = [
        (
            "map_type_array",
            "the shared pages",
            bpf::BPF_MAP_TYPE_ARRAY,
        ),
        ("map_type_ringbuf", "events", bpf::BPF_MAP_TYPE_RINGBUF),
        ("map_type_hash", "sockets", bpf::BPF_MAP_TYPE_HASH),
        (
            "map_type_lpm_trie",
            "prefixes of the guard",
            bpf::BPF_MAP_TYPE_LPM_TRIE,
        ),
    ];
    // SAFETY: silences libbpf's own messages on stderr; no preconditions.
    unsafe { bpf::libbpf_set_print(None) };
    let feature = |(name, purpose, answer)| Feature {
        name,
        purpose,
        supported: supported(answer),
    };
    let programs = programs.map(|(name, purpose, kind)| {
        // SAFETY: any number may be asked for; null stands for no options.
        let answer = unsafe { bpf::libbpf_probe_bpf_prog_type(kind, ptr::null()) };
        feature((name, purpose, answer))
    });
    let maps = maps.map(|(name, purpose, kind)| {
        // SAFETY: any number may be asked for; null stands for no options.
        let answer = unsafe { bpf::libbpf_probe_bpf_map_type(kind, ptr::null()) };
        feature((name, purpose, answer))
    });
    programs.into_iter().chain(maps).collect()
}

/// libbpf answers 1, 0 or a negative errno.
fn supported(answer: i32) -> io::Result<bool> {
    if answer < 0 {
        return Err(io::Error::from_raw_os_error(-answer));
    }
    Ok(answer > 0)
}

/// Loads the object, then loads and attaches each program for itself. No policy is published, so
/// nothing is judged meanwhile; all is detached before this returns.
///
/// # Errors
/// If the object as a whole can't be loaded.
pub fn try_programs() -> Result<Vec<ProgramTrial>, Error> {
    let (mut kernel, _pages, _events) = Kernel::load(&XdpConfig::default())?;
    let btf = Btf::from_sys_fs().map_err(|error| Error::Program {
        name: PROGRAM_TCP_PROBE,
        source: error.into(),
    })?;
    let mut trials: Vec<_> = kernel
        .ebpf
        .programs_mut()
        // The tests' and the measurements' own, which the daemon never loads.
        .filter(|(name, _)| ![PROGRAM_JUDGE_RECORDED, PROGRAM_NOTHING].contains(name))
        .map(|(name, program)| ProgramTrial {
            name: name.to_owned(),
            point: point(name, program),
            required: [PROGRAM_TCP_PROBE, PROGRAM_TICK].contains(&name),
            outcome: attach(name, program, &btf).map_err(|error| shortened(&error)),
        })
        .collect();
    trials.sort_by(|a, b| (!a.required, &a.name).cmp(&(!b.required, &b.name)));
    Ok(trials)
}

fn point(name: &str, program: &Program) -> String {
    match program {
        Program::BtfTracePoint(_) => format!("tp_btf/{name}"),
        Program::PerfEvent(_) => "perf_event/cpu-clock".to_owned(),
        Program::Xdp(_) => "xdp".to_owned(),
        Program::Iter(_) => format!("iter/{}", walked(name)),
        Program::RawTracePoint(_) => "raw tracepoint, run on demand".to_owned(),
        other => format!("{:?}", other.prog_type()),
    }
}

/// What an iterator walks; the kernel refuses an unknown one by name.
fn walked(name: &str) -> &str {
    match name {
        PROGRAM_LIST_SOCKETS => "tcp",
        PROGRAM_LIST_PROCESSES => "task_file",
        other => other,
    }
}

/// Probes are named after their tracepoints.
fn attach(name: &str, program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(probe) => {
            probe.load(name, btf)?;
            probe.attach().map(drop)
        }
        Program::PerfEvent(tick) => {
            tick.load()?;
            let clock = PerfEventConfig::Software(SoftwareEvent::CpuClock);
            let scope = PerfEventScope::AllProcessesOneCpu { cpu: 0 };
            tick.attach(clock, scope, SamplePolicy::Period(PERIOD_NS), false)
                .map(drop)
        }
        // Which interface is the configuration's choice: that it loads must do.
        Program::Xdp(xdp) => xdp.load(),
        Program::Iter(iterator) => {
            iterator.load(walked(name), btf)?;
            iterator.attach().map(drop)
        }
        // Run on demand, never attached.
        Program::RawTracePoint(enlist) => enlist.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn shortened(error: &ProgramError) -> String {
    let text = Chain(error).to_string();
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(REASON_CHARS_MAX).collect()
}

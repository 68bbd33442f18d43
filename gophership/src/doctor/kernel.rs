//! The kernel, and whether it takes the kernel half: each program is really loaded and attached.

use std::fs;

use super::{Check, Verdict, effective_capabilities};
use crate::pressure::{
    Feature, KernelError, KernelMode, Lockdown, ProgramTrial, Release, check_fields, features,
    missing_capabilities, try_programs,
};

/// The oldest kernel: atomic operations of BPF on 64-bit words.
const OLDEST: Release = Release {
    major: 5,
    minor: 12,
};

/// Without a valid configuration the default mode counts.
pub(super) fn check(mode: Option<KernelMode>) -> Vec<Check> {
    let mode = mode.unwrap_or(KernelMode::Auto);
    let lacking = Lacking(mode);
    let mut checks = vec![version(lacking), btf(lacking), lockdown(lacking)];
    checks.push(capabilities(lacking));
    checks.extend(settings());
    if mode == KernelMode::Off {
        checks.push(Check::not_applicable(
            "kernel_half",
            "pressure.kernel is off",
        ));
        return checks;
    }
    checks.extend(features().into_iter().map(|found| feature(lacking, found)));
    checks.extend(programs(lacking, try_programs()));
    checks
}

/// What it means to lack something of the kernel half, by `pressure.kernel`.
#[derive(Clone, Copy)]
struct Lacking(KernelMode);

impl Lacking {
    fn check(self, name: impl Into<String>, found: impl Into<String>, remedy: &str) -> Check {
        let verdict = match self.0 {
            KernelMode::Required => Verdict::Failed,
            // The fallback judges.
            KernelMode::Auto => Verdict::Warning,
            KernelMode::Off => Verdict::NotApplicable,
        };
        Check::new(name, verdict, found, Some(remedy.to_owned()))
    }
}

fn version(lacking: Lacking) -> Check {
    let name = "kernel.version";
    let text = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    match Release::running() {
        Some(running) if running >= OLDEST => Check::ok(name, text),
        Some(_) => lacking.check(
            name,
            text,
            &format!("the kernel half needs Linux {OLDEST} or newer"),
        ),
        None => Check::warning(
            name,
            format!("{text:?} is no version"),
            format!("make sure that it is {OLDEST} or newer"),
        ),
    }
}

fn btf(lacking: Lacking) -> Check {
    let name = "kernel.btf";
    match check_fields() {
        Ok(missing) if missing.is_empty() => {
            Check::ok(name, "/sys/kernel/btf/vmlinux has every field that is read")
        }
        Ok(missing) => {
            let missing: Vec<String> = missing
                .iter()
                .map(|(signal, reason)| format!("{} isn't measured: {reason}", signal.as_str()))
                .collect();
            Check::warning(
                name,
                missing.join("; "),
                "these structures of this kernel are not known to this version: update GopherShip",
            )
        }
        Err(error @ KernelError::Field { .. }) => lacking.check(
            name,
            error.to_string(),
            "this kernel's structures are not known to this version: update GopherShip",
        ),
        Err(error) => lacking.check(
            name,
            error.to_string(),
            "use a kernel with CONFIG_DEBUG_INFO_BTF, and let /sys be mounted and readable",
        ),
    }
}

fn lockdown(lacking: Lacking) -> Check {
    let name = "kernel.lockdown";
    match Lockdown::current() {
        None => Check::not_applicable(
            name,
            "/sys/kernel/security/lockdown can't be read: no lockdown, or securityfs isn't mounted",
        ),
        Some(Lockdown::Confidentiality) => lacking.check(
            name,
            Lockdown::Confidentiality.as_str(),
            "boot with lockdown=integrity (or none): confidentiality forbids reading the kernel's memory",
        ),
        Some(mode @ (Lockdown::None | Lockdown::Integrity)) => Check::ok(name, mode.as_str()),
    }
}

/// Those that matter here, with their bits in include/uapi/linux/capability.h.
const CAPABILITIES: [(u32, &str); 8] = [
    (39, "CAP_BPF"),
    (38, "CAP_PERFMON"),
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (24, "CAP_SYS_RESOURCE"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (10, "CAP_NET_BIND_SERVICE"),
];

fn capabilities(lacking: Lacking) -> Check {
    let name = "kernel.capabilities";
    let effective = effective_capabilities();
    let had: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 1)
        .map(|&(_, name)| name)
        .collect();
    let found = match had.is_empty() {
        true => "none of those that matter are effective".to_owned(),
        false => format!("effective: {}", had.join(", ")),
    };
    match missing_capabilities() {
        None => Check::ok(name, found),
        Some(missing) => lacking.check(name, found, &needs(&missing)),
    }
}

fn needs(missing: &str) -> String {
    format!(
        "needs {missing}: start as root, with AmbientCapabilities= (systemd) or --cap-add (containers); \
         they are dropped once the programs are attached"
    )
}

/// What decides over those without the capabilities.
fn settings() -> [Check; 2] {
    let privileged = missing_capabilities().is_none();
    let setting = |name: &str, path: &str, meaning: &str| {
        let found = match read(path) {
            Some(value) => format!("{value}: {meaning}"),
            None => format!("{path} can't be read"),
        };
        match privileged {
            true => Check::ok(name, found),
            false => Check::not_applicable(name, found),
        }
    };
    [
        setting(
            "kernel.unprivileged_bpf_disabled",
            "/proc/sys/kernel/unprivileged_bpf_disabled",
            "CAP_BPF is needed whatever it says, since tracing programs always need it",
        ),
        setting(
            "kernel.perf_event_paranoid",
            "/proc/sys/kernel/perf_event_paranoid",
            "the tick needs CAP_PERFMON from 0 on",
        ),
    ]
}

fn feature(lacking: Lacking, feature: Feature) -> Check {
    let name = format!("kernel.{}", feature.name);
    match feature.supported {
        Ok(true) => Check::ok(name, format!("available, for {}", feature.purpose)),
        // A refusal looks the same as a kind that isn't there.
        Ok(false) if missing_capabilities().is_some() => {
            Check::not_applicable(name, "can't be told without CAP_BPF and CAP_PERFMON")
        }
        Ok(false) => lacking.check(
            name,
            format!("not in this kernel, wanted for {}", feature.purpose),
            "use a kernel that was built with it",
        ),
        Err(error) => lacking.check(
            name,
            error.to_string(),
            "allow bpf(2): is it blocked by a container's seccomp profile?",
        ),
    }
}

fn programs(lacking: Lacking, tried: Result<Vec<ProgramTrial>, KernelError>) -> Vec<Check> {
    let trials = match tried {
        Ok(trials) => trials,
        Err(error) => {
            let remedy = match &error {
                KernelError::Privileges(missing) => needs(missing),
                KernelError::NotBuiltIn => {
                    "build with `cargo xtask build`, which builds both halves".to_owned()
                }
                KernelError::Btf(_) | KernelError::Field { .. } => "see kernel.btf".to_owned(),
                _ => "see kernel.lockdown and the kernel's log; is bpf(2) blocked by a container's seccomp \
                      profile?"
                    .to_owned(),
            };
            return vec![lacking.check("kernel_half", error.to_string(), &remedy)];
        }
    };
    let works = trials
        .iter()
        .all(|trial| !trial.required || trial.outcome.is_ok());
    let mut checks = vec![match works {
        true => Check::ok(
            "kernel_half",
            format!("loads; {} programs tried", trials.len()),
        ),
        false => lacking.check(
            "kernel_half",
            "a required program can't be attached",
            "see the programs below",
        ),
    }];
    checks.extend(trials.into_iter().map(|trial| program(lacking, trial)));
    checks
}

fn program(lacking: Lacking, trial: ProgramTrial) -> Check {
    let name = format!("kernel_half.{}", trial.name);
    let (weight, point) = (
        if trial.required {
            "required"
        } else {
            "optional"
        },
        trial.point,
    );
    match trial.outcome {
        Ok(()) => Check::ok(name, format!("{point} works ({weight})")),
        Err(reason) if trial.required => lacking.check(
            name,
            format!("{point} ({weight}): {reason}"),
            "without it user space judges, without receive queues",
        ),
        Err(reason) => Check::warning(
            name,
            format!("{point} ({weight}): {reason}"),
            consequence(&point),
        ),
    }
}

/// What it means to do without an optional program, by what it is attached to.
fn consequence(point: &str) -> &'static str {
    match point {
        "xdp" => {
            "interfaces aren't metered, or not for frames in several buffers (Linux 5.18); \
             docs/xdp.md"
        }
        _ if point.starts_with("iter/") => "`gs-ctl sockets` reads /proc instead, with less",
        _ => "its signal reads \"unavailable\"; a newer kernel may have what it needs",
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

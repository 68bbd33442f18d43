//! The machine's side: its first process, which makes a system of it, carries out the plan and
//! reports on the console.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    kmod::init_module,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill, killpg},
    },
    unistd::{Pid, chdir, chroot},
};

use super::plan::{Action, MODULES, PLAN, Report, Run, Step};
use crate::process;

/// The disk, which virtio_blk shows some time after it is loaded.
const DISK: &str = "/dev/vda";
/// Where the disk is mounted before it becomes the root.
const ROOT: &str = "/root";
/// How often the end of a process is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// How long the disk, and the end of a daemon, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The control group of this process and all that it starts.
const OWN_GROUP: &str = "/sys/fs/cgroup/vm";

/// Kernel file systems of the root: type, mount point.
const FILE_SYSTEMS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("securityfs", "/sys/kernel/security"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tracefs", "/sys/kernel/tracing"),
    ("tmpfs", "/run"),
];

/// Lives as long as the machine; returns only if the machine can't be ended.
///
/// # Errors
/// What failed; the kernel panics then, since its first process ends, and the machine with it.
pub(crate) fn init() -> Result<()> {
    let plan = fs::read(PLAN).with_context(|| format!("cannot read {PLAN}"))?;
    let plan: Vec<Step> = serde_json::from_slice(&plan).context("the plan makes no sense")?;
    enter_root()?;
    facts();
    for step in &plan {
        carry_out(step);
    }
    mishaps();
    say(&Report::Done);
    nix::unistd::sync();
    // The machine doesn't boot again: QEMU ends it here.
    reboot(RebootMode::RB_AUTOBOOT).context("cannot reboot")?;
    Ok(())
}

fn say(report: &Report) {
    println!("{}", report.line());
}

/// Loads the modules, mounts the disk, makes it the root and mounts the rest there.
fn enter_root() -> Result<()> {
    mount_kernel_file_system("devtmpfs", "/dev")?;
    let mut modules: Vec<PathBuf> = fs::read_dir(MODULES)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    modules.sort();
    for module in modules {
        let code = fs::read(&module)?;
        match init_module(&code, c"") {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => bail!("module {}: {error}", module.display()),
        }
    }
    if !within(PATIENCE, || Path::new(DISK).exists()) {
        bail!("no {DISK} within {PATIENCE:?}");
    }
    mount(
        Some(DISK),
        ROOT,
        Some("ext4"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("cannot mount {DISK}"))?;
    chdir(ROOT)?;
    chroot(".")?;
    for (kind, point) in FILE_SYSTEMS {
        mount_kernel_file_system(kind, point)?;
    }
    // What systemd does: controllers reach the groups below the root.
    let _ = fs::write(
        "/sys/fs/cgroup/cgroup.subtree_control",
        "+cpu +memory +io +pids",
    );
    // And a group for what runs here: in the root, every group would be a part of its own.
    fs::create_dir(OWN_GROUP).and_then(|()| fs::write(format!("{OWN_GROUP}/cgroup.procs"), "0"))?;
    process::succeed(in_root("ip").args(["link", "set", "lo", "up"]))
}

fn mount_kernel_file_system(kind: &str, point: &str) -> Result<()> {
    let nothing = None::<&str>;
    fs::create_dir_all(point).with_context(|| format!("cannot make {point}"))?;
    mount(Some(kind), point, Some(kind), MsFlags::empty(), nothing)
        .with_context(|| format!("cannot mount {kind} on {point}"))
}

/// Reports what this machine is.
fn facts() {
    let files = [
        ("release", "/proc/sys/kernel/osrelease"),
        ("version", "/proc/sys/kernel/version"),
        ("lockdown", "/sys/kernel/security/lockdown"),
        ("security modules", "/sys/kernel/security/lsm"),
        (
            "unprivileged bpf disabled",
            "/proc/sys/kernel/unprivileged_bpf_disabled",
        ),
        ("seconds since boot", "/proc/uptime"),
    ];
    for (name, path) in files {
        let value = fs::read_to_string(path).unwrap_or_else(|error| format!("{path}: {error}"));
        fact(name, value.trim());
    }
    let btf = Path::new("/sys/kernel/btf/vmlinux");
    fact("type information", if btf.exists() { "yes" } else { "no" });
}

fn fact(name: &str, value: &str) {
    say(&Report::Fact {
        name: name.to_owned(),
        value: value.to_owned(),
    });
}

/// Reports whether the kernel has warned or died meanwhile: bits 9 and 7 of
/// `Documentation/admin-guide/tainted-kernels.rst`.
fn mishaps() {
    let tainted = fs::read_to_string("/proc/sys/kernel/tainted").unwrap_or_default();
    let tainted: u32 = tainted.trim().parse().unwrap_or(0);
    if tainted & (1 << 9 | 1 << 7) != 0 {
        fact("tainted", &tainted.to_string());
    }
}

fn carry_out(step: &Step) {
    say(&Report::Begin {
        step: step.name.clone(),
    });
    let started = Instant::now();
    let result = match &step.action {
        Action::Run(run) => run_to_end(run),
        Action::Write { path, text } => {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        }
        Action::Daemon { daemon, status } => ask_daemon(&step.name, daemon, status),
    };
    say(&Report::End {
        step: step.name.clone(),
        failure: result.err().map(|error| format!("{error:#}")),
        milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
}

/// A program of the root, in the environment of all of them.
fn in_root(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        // Here a test that has nothing to say fails.
        .env("GOPHERSHIP_REQUIRE_KERNEL", "1");
    command
}

fn command(run: &Run) -> Command {
    let mut command = in_root(&run.program);
    command
        .args(&run.args)
        .stdin(Stdio::null())
        // Its children can be ended with it.
        .process_group(0);
    command
}

fn run_to_end(run: &Run) -> Result<()> {
    let mut child = command(run)
        .spawn()
        .with_context(|| format!("cannot run {}", run.program.display()))?;
    let limit = Duration::from_secs(run.seconds_max);
    let mut status = None;
    let ended = within(limit, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    let _ = killpg(pid(&child), Signal::SIGKILL);
    if !ended {
        child.wait()?;
        bail!("not done within {limit:?}");
    }
    match status {
        Some(status) if !status.success() => bail!("{status}"),
        _ => Ok(()),
    }
}

/// Starts the daemon, reports its status as soon as it answers, and ends it.
fn ask_daemon(step: &str, daemon: &Run, status: &Run) -> Result<()> {
    let log_path = Path::new("/run/daemon.log");
    let log = File::create(log_path)?;
    let mut child = command(daemon)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {}", daemon.program.display()))?;
    let mut answer = None;
    within(Duration::from_secs(daemon.seconds_max), || {
        answer = command(status)
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| serde_json::from_slice(&output.stdout).ok());
        answer.is_some() || child.try_wait().is_ok_and(|ended| ended.is_some())
    });
    let held = Held::by(&child);
    end(&mut child)?;
    let log = fs::read_to_string(log_path)?;
    print!("{log}");
    let Some(status) = answer else {
        bail!("the daemon gives no status");
    };
    say(&Report::Status {
        step: step.to_owned(),
        status,
        verified: held.verified,
        links: held.links,
        warnings: log
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"))
            .map(str::to_owned)
            .collect(),
    });
    Ok(())
}

/// What of BPF a process holds by its descriptors.
struct Held {
    /// Of each program, how many instructions the verifier has walked (0 before 5.16, which doesn't
    /// say).
    verified: Vec<u64>,
    /// Links of programs to where they are attached.
    links: usize,
}

impl Held {
    fn by(child: &Child) -> Self {
        let infos: Vec<String> = fs::read_dir(format!("/proc/{}/fdinfo", child.id()))
            .into_iter()
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .collect();
        let value = |info: &str, key: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(key));
            value.map(|value| value.trim().to_owned())
        };
        let mut verified: Vec<u64> = infos
            .iter()
            .filter(|info| value(info, "prog_jited:").is_some())
            .map(|info| value(info, "verified_insns:").map_or(0, |n| n.parse().unwrap_or(0)))
            .collect();
        verified.sort_unstable();
        let is_link = |info: &&String| value(info, "link_type:").is_some();
        Self {
            verified,
            links: infos.iter().filter(is_link).count(),
        }
    }
}

/// Asks it to end, and makes it if it doesn't.
fn end(child: &mut Child) -> Result<()> {
    match kill(pid(child), Signal::SIGTERM) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(error) => bail!("cannot signal the daemon: {error}"),
    }
    let mut status = None;
    if !within(PATIENCE, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    }) {
        child.kill()?;
        child.wait()?;
        bail!("the daemon has not stopped within {PATIENCE:?}");
    }
    match status {
        Some(status) if !status.success() => bail!("the daemon ended with {status}"),
        _ => Ok(()),
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() >= limit {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

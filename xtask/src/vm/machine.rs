//! The machine: QEMU, with the console as its only way to the outside.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::kernels::Threads;

/// Processors and memory of the machine.
const PROCESSORS: &str = "2";
const MEMORY: &str = "1536M";

/// Runs until the machine ends itself, and passes on each line of its console.
///
/// # Errors
/// It can't be started, or has not ended within `limit`. It is gone in any case.
pub(super) fn run(
    image: &Path,
    initramfs: &Path,
    disk: &Path,
    threads: Threads,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<()> {
    let mut machine = Machine::start(image, initramfs, disk, threads)?;
    let console = machine.0.stdout.take().context("no console")?;
    let (sender, lines) = mpsc::channel();
    // Ends with the machine, which ends with this function.
    thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut bytes = Vec::new();
        while console.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let started = Instant::now();
    loop {
        match lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) => return machine.ended(),
            Err(RecvTimeoutError::Timeout) => bail!("the machine was not done within {limit:?}"),
        }
    }
}

/// A running QEMU. Killed when dropped.
struct Machine(Child);

impl Machine {
    fn start(image: &Path, initramfs: &Path, disk: &Path, threads: Threads) -> Result<Self> {
        let drive = format!(
            "file={},format=raw,if=virtio,cache=unsafe",
            disk.display().to_string().replace(',', ",,")
        );
        // `setpriv` becomes QEMU, which the kernel then kills should this process be killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(["-accel", accelerator(threads), "-cpu", "max"])
            .args(["-smp", PROCESSORS, "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &command_line()])
            .args(["-drive", &drive])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run qemu-system-x86_64")?;
        Ok(Self(child))
    }

    fn ended(mut self) -> Result<()> {
        let status = self.0.wait()?;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
        }
        bail!("qemu-system-x86_64 ended with {status}: {}", said.trim())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hardware virtualisation where there is some; `/dev/kvm` alone says little, as a kernel may offer
/// it to special guests only. Elsewhere QEMU translates the machine's code.
fn accelerator(threads: Threads) -> &'static str {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let usable = File::options().read(true).write(true).open("/dev/kvm");
    if has_virtualisation(&processor) && usable.is_ok() {
        return "kvm";
    }
    match threads {
        Threads::Multi => "tcg,thread=multi",
        Threads::Single => "tcg,thread=single",
    }
}

fn has_virtualisation(processor: &str) -> bool {
    let mut flags = processor
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .flat_map(str::split_whitespace);
    flags.any(|flag| flag == "vmx" || flag == "svm")
}

/// The kernel's. `panic=-1` ends the machine at a panic; what follows `--` goes to the first
/// process.
fn command_line() -> String {
    [
        "console=ttyS0",
        "panic=-1",
        "loglevel=3",
        "rdinit=/init",
        // Guards that cost a translating QEMU much and these tests nothing.
        "mitigations=off",
        "--",
        "vm-init",
    ]
    .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_is_a_flag_of_the_processor() {
        assert!(has_virtualisation(
            "processor : 0\nflags\t\t: fpu vmx sse\n"
        ));
        assert!(has_virtualisation("flags\t\t: svm"));
        assert!(!has_virtualisation(
            "flags\t\t: fpu hypervisor svm_lock\nmodel name : svm\n"
        ));
    }
}

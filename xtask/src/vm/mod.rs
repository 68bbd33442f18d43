//! `cargo xtask vm-test`: the kernel half on other kernels.
//!
//! Debian's kernels boot in QEMU, without hardware virtualisation where there is none. The first
//! process of the machine is this very program; it mounts a disk on which the programs under test
//! lie where cargo built them, runs the integration tests about the kernel half as they are, starts
//! the daemon to see which half judges, and switches the kernel's lockdown on to see it again.

mod binaries;
mod cpio;
mod guest;
mod image;
mod kernels;
mod machine;
mod modules;
mod outcome;
mod plan;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::guest::init;
use self::{
    binaries::Binaries,
    kernels::{Fetched, KERNELS, Kernel},
    outcome::{Judge, Outcome},
    plan::{Action, Run, Step},
};
use crate::{
    run::{self, DevFiles},
    setup,
    workspace::Workspace,
};

/// Every kernel, as a name of one.
const ALL: &str = "all";
/// The tests about the kernel half that the choice is of.
const TESTS: &[&str] = &["pressure_kernel", "kernel_verdict", "xdp"];
/// What a thorough run adds.
const MORE_TESTS: &[&str] = &["sockets", "signals"];
/// The choice of them that fits into CI: each loads the kernel half anew, which takes a translated
/// machine some seconds. Each is a part of a test's name.
const CHOICE: &[&str] = &[
    "a_full_socket_turns_red",
    "a_full_socket_of_a_stopped_daemon",
    "a_close_that_no_probe_saw",
    "a_dead_tick_is_replaced",
    "a_stopped_daemon",
    "closing_a_full_socket",
    "every_shape_of_a_frame",
    "sockets_in_another_network_namespace",
    "the_operators_override",
];
/// Tests that a translated machine is too slow for: a load that is easy on hardware rightly is
/// pressure there.
const TOO_HEAVY: &[&str] = &["a_healthy_daemon_under_the_same_load_is_not_red_by_receive_queue"];
/// Of the daemon that the machine starts.
const HOME: &str = "/daemon";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
/// Programs that tests start, beside our own; iproute2's `ip` the first process needs, too.
const PROGRAMS: &[&str] = &[
    "ip", "sh", "bash", "cat", "dd", "head", "sleep", "nsenter", "unshare",
];
/// How long a step may take, and the whole machine: generous for a thorough run in a machine that a
/// host with other work translates.
const STEP_SECONDS_MAX: u64 = 1800;
const MACHINE_MAX: Duration = Duration::from_secs(5400);

/// What can be asked for.
pub(crate) fn kernel_names() -> Vec<&'static str> {
    let names = KERNELS.iter().map(|kernel| kernel.name);
    names.chain([ALL]).collect()
}

/// What to run of the tests.
pub(crate) struct Tests {
    /// Test binaries.
    binaries: Vec<String>,
    /// Their arguments.
    args: Vec<String>,
}

impl Tests {
    /// From the command line.
    pub(crate) fn asked(thorough: bool, binaries: Vec<String>, mut args: Vec<String>) -> Self {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let usual = binaries.is_empty();
        if usual && !thorough && args.is_empty() {
            args = own(CHOICE);
        }
        Self {
            binaries: match (usual, thorough) {
                (false, _) => binaries,
                (true, false) => own(TESTS),
                (true, true) => own(&[TESTS, MORE_TESTS].concat()),
            },
            args,
        }
    }
}

/// Tests on the kernels of these names.
///
/// # Errors
/// Something can't be fetched or built, or went wrong on a kernel.
pub(crate) fn test(workspace: &Workspace, names: &[String], tests: &Tests) -> Result<()> {
    setup::for_virtual_machines(workspace)?;
    let binaries = binaries::build(workspace, &tests.binaries)?;
    let asked = |kernel: &&Kernel| names.iter().any(|name| name == kernel.name || name == ALL);
    let mut report = String::new();
    let mut failed = false;
    for kernel in KERNELS.iter().filter(asked) {
        let started = Instant::now();
        let (release, failures) = on_kernel(workspace, kernel, &binaries, &tests.args)?;
        let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
        let seconds = started.elapsed().as_secs_f64();
        report += &format!("{release:28} {verdict:6} {seconds:8.1} s\n");
        for failure in &failures {
            report += &format!("    {failure}\n");
        }
        failed |= !failures.is_empty();
    }
    println!("\n{report}");
    if failed {
        bail!("not all is well on every kernel");
    }
    Ok(())
}

/// Runs one machine; the kernel's release, and what went wrong.
fn on_kernel(
    workspace: &Workspace,
    kernel: &Kernel,
    binaries: &Binaries,
    test_args: &[String],
) -> Result<(String, Vec<String>)> {
    println!("\n==> kernel {}", kernel.name);
    let directory = workspace.vm();
    let fetched = kernel.fetch(&directory)?;
    let plan = plan(kernel, binaries, test_args);
    let (initramfs, disk) = (directory.join("initramfs"), directory.join("disk"));
    image::initramfs(&initramfs, &fetched.modules, &plan)?;
    let console_path = directory.join(kernel.name).join("console.log");
    let boot_anew = || {
        make_disk(&disk, workspace, binaries)?;
        let file = File::create(&console_path)
            .with_context(|| format!("cannot create {}", console_path.display()))?;
        anyhow::Ok(boot(&fetched, kernel, &plan, &initramfs, &disk, file))
    };
    let (mut outcome, mut ended, mut console) = boot_anew()?;
    if outcome::translator_has_failed(&console) {
        println!("  QEMU ran a breakpoint that was no longer there; once more");
        (outcome, ended, console) = boot_anew()?;
    }
    let mut failures = outcome.failures();
    failures.extend(ended.err().map(|error| format!("{error:#}")));
    if failures.is_empty() {
        fs::remove_file(&disk)?;
        fs::remove_file(&initramfs)?;
    } else {
        println!(
            "\n{}\n(the console of kernel {})",
            outcome::prose(&console),
            kernel.name
        );
    }
    Ok((outcome.release().to_owned(), failures))
}

fn boot(
    fetched: &Fetched,
    kernel: &Kernel,
    plan: &[Step],
    initramfs: &Path,
    disk: &Path,
    mut file: File,
) -> (Outcome, Result<()>, String) {
    println!("  booting {}", fetched.release);
    let steps = plan.iter().map(|step| step.name.clone()).collect();
    let mut outcome = Outcome::new(steps, expected(kernel));
    let mut console = String::new();
    let (image, threads) = (&fetched.image, kernel.threads);
    let ended = machine::run(image, initramfs, disk, threads, MACHINE_MAX, |line| {
        console += line;
        console.push('\n');
        // For people who look on; what counts is read from `console`.
        let _ = writeln!(file, "{line}");
        if let Some(told) = outcome.line(line) {
            println!("{told}");
        }
    });
    (outcome, ended, console)
}

const DAEMON: &str = "daemon";
const DAEMON_INTEGRITY: &str = "daemon, lockdown integrity";
const DAEMON_CONFIDENTIALITY: &str = "daemon, lockdown confidentiality";

fn expected(kernel: &Kernel) -> std::collections::BTreeMap<String, Judge> {
    let judges = if kernel.supported {
        [
            (DAEMON, Judge::Kernel),
            // It keeps programs from writing to user space's memory; ours don't.
            (DAEMON_INTEGRITY, Judge::Kernel),
            // It keeps them from reading the kernel's.
            (
                DAEMON_CONFIDENTIALITY,
                Judge::Fallback {
                    because: "lockdown",
                },
            ),
        ]
    } else {
        [DAEMON, DAEMON_INTEGRITY, DAEMON_CONFIDENTIALITY]
            .map(|step| (step, Judge::Fallback { because: "5.12" }))
    };
    judges
        .into_iter()
        .map(|(step, judge)| (step.to_owned(), judge))
        .collect()
}

/// Lockdown comes last: there is no way back.
fn plan(kernel: &Kernel, binaries: &Binaries, test_args: &[String]) -> Vec<Step> {
    let step = |name: &str, action| Step {
        name: name.to_owned(),
        action,
    };
    let lock = |text: &str| Action::Write {
        path: LOCKDOWN.into(),
        text: text.to_owned(),
    };
    let daemon = || Action::Daemon {
        daemon: run(&binaries.gophership, &["run", "--config", CONFIG]),
        status: run(
            &binaries.gs_ctl,
            &["--endpoint", ENDPOINT, "--output", "json", "status"],
        ),
    };
    let certificates = run(
        &binaries.gs_ctl,
        &[
            "certs",
            "init",
            "--dir",
            "/daemon/certs",
            "--host",
            "localhost",
        ],
    );
    let mut steps = vec![
        step("certificates", Action::Run(certificates)),
        step(DAEMON, daemon()),
    ];
    // Without the kernel half they have nothing to say.
    if kernel.supported {
        for (name, program) in &binaries.tests {
            let mut args: Vec<&str> = TOO_HEAVY.iter().flat_map(|test| ["--skip", test]).collect();
            args.extend(["--test-threads", "2"]);
            args.extend(test_args.iter().map(String::as_str));
            steps.push(step(name, Action::Run(run(program, &args))));
        }
    }
    steps.extend([
        step("lockdown integrity", lock("integrity")),
        step(DAEMON_INTEGRITY, daemon()),
        step("lockdown confidentiality", lock("confidentiality")),
        step(DAEMON_CONFIDENTIALITY, daemon()),
    ]);
    steps
}

const CONFIG: &str = "/daemon/gophership.yaml";
const ENDPOINT: &str = "unix:/daemon/control.sock";

fn run(program: &Path, args: &[&str]) -> Run {
    Run {
        program: program.to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        seconds_max: STEP_SECONDS_MAX,
    }
}

fn make_disk(disk: &Path, workspace: &Workspace, binaries: &Binaries) -> Result<()> {
    let mut programs: Vec<PathBuf> = binaries
        .tests
        .iter()
        .map(|(_, path)| path.clone())
        .collect();
    programs.extend([binaries.gophership.clone(), binaries.gs_ctl.clone()]);
    programs.extend(PROGRAMS.iter().filter_map(|name| on_this_host(name)));
    let files = DevFiles::below(Path::new(HOME));
    let config = run::config::yaml(&files, 0, (0, 0));
    image::disk(
        disk,
        &workspace.vm().join("root"),
        &programs,
        &[workspace.target.join("tmp"), HOME.into()],
        &[(CONFIG.into(), config)],
    )
}

/// Where a program lies. Without it the tests that need it say so.
fn on_this_host(program: &str) -> Option<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let mut places = places
        .map(|place| Path::new(place).join(program))
        .into_iter();
    places.find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binaries() -> Binaries {
        Binaries {
            tests: vec![("kernel_verdict".to_owned(), "/t/kernel_verdict".into())],
            gophership: "/t/gophership".into(),
            gs_ctl: "/t/gs-ctl".into(),
        }
    }

    #[test]
    fn the_choice_gives_way_to_what_is_asked_for() {
        let asked = |thorough, binaries: &[&str], args: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let tests = Tests::asked(thorough, own(binaries), own(args));
            (tests.binaries, tests.args)
        };
        assert_eq!(asked(false, &[], &[]).1, CHOICE);
        assert!(asked(true, &[], &[]).1.is_empty());
        assert_eq!(asked(false, &[], &["idle"]).1, ["idle"]);
        assert_eq!(asked(false, &["xdp"], &["idle"]).0, ["xdp"]);
        assert_eq!(asked(false, &[], &[]).0, TESTS);
        assert_eq!(asked(true, &[], &[]).0, [TESTS, MORE_TESTS].concat());
        assert_eq!(asked(true, &["pivot"], &[]).0, ["pivot"]);
    }

    #[test]
    fn each_expectation_is_about_a_step_and_lockdown_comes_after_the_tests() {
        for kernel in KERNELS {
            let plan = plan(kernel, &binaries(), &[]);
            let at = |name: &str| plan.iter().position(|step| step.name == name);
            for step in expected(kernel).keys() {
                assert!(at(step).is_some(), "{step} of kernel {}", kernel.name);
            }
            assert_eq!(at("kernel_verdict").is_some(), kernel.supported);
            assert!(at("kernel_verdict") < at("lockdown integrity"));
            assert!(at("lockdown integrity") < at("lockdown confidentiality"));
        }
    }
}

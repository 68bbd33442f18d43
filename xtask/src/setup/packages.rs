//! Operating-system packages: which are missing, and who may install them.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// What the machine is prepared for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Build,
    /// Building and testing.
    Test,
    /// Building, and testing on other kernels.
    VirtualMachine,
    /// Building, and measuring the vault.
    DiskBench,
    /// Building, and fuzzing.
    Fuzz,
}

/// Something the operating system has to provide.
struct Requirement {
    /// Debian's and Ubuntu's name of it.
    package: &'static str,
    why: &'static str,
    purpose: Purpose,
    present: fn() -> bool,
}

/// The keys that Debian signs its archive with.
pub(crate) const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        package: "gcc",
        why: "links Rust programs; compiles libbpf and the cryptography",
        purpose: Purpose::Build,
        present: || process::on_path("cc"),
    },
    Requirement {
        package: "libc6-dev",
        why: "headers and start-up code of the C library",
        purpose: Purpose::Build,
        present: || header("stdio.h"),
    },
    Requirement {
        package: "make",
        why: "builds libbpf",
        purpose: Purpose::Build,
        present: || process::on_path("make"),
    },
    Requirement {
        package: "pkg-config",
        why: "libbpf's build finds libelf with it",
        purpose: Purpose::Build,
        present: || process::on_path("pkg-config"),
    },
    Requirement {
        package: "libelf-dev",
        why: "libbpf reads the kernel's type information with it",
        purpose: Purpose::Build,
        present: || header("libelf.h"),
    },
    Requirement {
        package: "zlib1g-dev",
        why: "libelf needs it",
        purpose: Purpose::Build,
        present: || header("zlib.h"),
    },
    Requirement {
        package: "iproute2",
        why: "the tests make network namespaces and interfaces",
        purpose: Purpose::Test,
        present: || process::on_path("ip"),
    },
    Requirement {
        package: "python3",
        why: "the tests send logs with OpenTelemetry's Python SDK",
        purpose: Purpose::Test,
        present: || process::on_path("python3"),
    },
    Requirement {
        package: "python3-venv",
        why: "the tests keep that SDK in an environment of its own",
        purpose: Purpose::Test,
        present: || {
            process::succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"]))
        },
    },
    Requirement {
        package: "nodejs",
        why: "the tests send logs with OpenTelemetry's SDK for Node.js",
        purpose: Purpose::Test,
        present: || process::on_path("node"),
    },
    Requirement {
        package: "npm",
        why: "the tests install that SDK below target/",
        purpose: Purpose::Test,
        present: || process::on_path("npm"),
    },
    Requirement {
        package: "fio",
        why: "measures what the disk can do without the vault",
        purpose: Purpose::DiskBench,
        present: || process::on_path("fio"),
    },
    Requirement {
        package: "g++",
        why: "compiles libFuzzer",
        purpose: Purpose::Fuzz,
        present: || process::on_path("c++"),
    },
    Requirement {
        package: "qemu-system-x86",
        why: "boots other kernels",
        purpose: Purpose::VirtualMachine,
        present: || process::on_path("qemu-system-x86_64"),
    },
    Requirement {
        package: "debian-archive-keyring",
        why: "verifies Debian's kernels",
        purpose: Purpose::VirtualMachine,
        present: || Path::new(DEBIAN_KEYRING).exists(),
    },
    Requirement {
        package: "e2fsprogs",
        why: "makes the virtual machine's file system",
        purpose: Purpose::VirtualMachine,
        present: || process::on_path("mkfs.ext4") || Path::new("/usr/sbin/mkfs.ext4").exists(),
    },
    Requirement {
        package: "iproute2",
        why: "brings up the virtual machine's loopback interface",
        purpose: Purpose::VirtualMachine,
        present: || process::on_path("ip") || Path::new("/sbin/ip").exists(),
    },
    Requirement {
        package: "xz-utils",
        why: "unpacks kernel modules",
        purpose: Purpose::VirtualMachine,
        present: || process::on_path("xz"),
    },
];

fn header(name: &str) -> bool {
    Path::new("/usr/include").join(name).exists()
}

/// How packages can be installed here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Installer {
    /// apt-get, as root.
    AptGet,
    /// apt-get, through a sudo that asks for no password.
    SudoAptGet,
    /// apt-get exists, but only the user may call it.
    AptGetByHand,
    /// Not Debian, nor Ubuntu.
    Unknown,
}

impl Installer {
    fn of_this_machine() -> Self {
        let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        let sudo = || process::succeeds(Command::new("sudo").args(["-n", "true"]));
        Self::choose(process::on_path("apt-get"), root, sudo)
    }

    fn choose(apt_get: bool, root: bool, sudo: impl FnOnce() -> bool) -> Self {
        match (apt_get, root) {
            (false, _) => Self::Unknown,
            (true, true) => Self::AptGet,
            (true, false) if sudo() => Self::SudoAptGet,
            (true, false) => Self::AptGetByHand,
        }
    }
}

/// What is to be done about missing packages.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// Run these commands; only the last one has to succeed.
    Install(Vec<Vec<String>>),
    /// Tell the user this.
    Ask(String),
}

fn plan(missing: &[&str], installer: Installer) -> Plan {
    if missing.is_empty() {
        return Plan::Nothing;
    }
    let names = missing.join(" ");
    let sudo: &[&str] = match installer {
        Installer::AptGet => &[],
        Installer::SudoAptGet => &["sudo", "-n"],
        Installer::AptGetByHand => {
            return Plan::Ask(format!(
                "run this, then try again:\n\n    \
                 sudo apt-get update && sudo apt-get install --yes {names}\n"
            ));
        }
        Installer::Unknown => {
            return Plan::Ask(format!(
                "this is not Debian or Ubuntu; install what your system has for their packages \
                 {names}, then try again"
            ));
        }
    };
    let command = |words: &[&str]| -> Vec<String> {
        let apt_get = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
        [sudo, &apt_get, words]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let install = [&["install", "--yes", "--no-install-recommends"], missing].concat();
    Plan::Install(vec![command(&["update", "--quiet"]), command(&install)])
}

/// Installs the missing packages, or says how to.
pub(super) fn ensure_present(purpose: Purpose) -> Result<()> {
    let missing: Vec<&Requirement> = REQUIREMENTS
        .iter()
        .filter(|need| need.purpose == Purpose::Build || need.purpose == purpose)
        .filter(|need| !(need.present)())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Missing from the operating system:");
    for need in &missing {
        println!("  {:14} {}", need.package, need.why);
    }
    let names: Vec<&str> = missing.iter().map(|need| need.package).collect();
    match plan(&names, Installer::of_this_machine()) {
        Plan::Nothing => Ok(()),
        Plan::Ask(what) => bail!("{what}"),
        Plan::Install(commands) => install(&commands),
    }
}

fn install(commands: &[Vec<String>]) -> Result<()> {
    let Some((last, before)) = commands.split_last() else {
        return Ok(());
    };
    for words in before {
        // A stale or broken third source must not stop an installation that may well succeed.
        if let Err(error) = run(words) {
            eprintln!("warning: {error:#}");
        }
    }
    run(last).context("the packages could not be installed")
}

fn run(words: &[String]) -> Result<()> {
    println!("+ {}", words.join(" "));
    let (program, arguments) = words.split_first().context("an empty command")?;
    process::succeed(Command::new(program).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed_by(plan: &Plan) -> String {
        let Plan::Install(commands) = plan else {
            panic!("{plan:?} installs nothing")
        };
        commands.last().unwrap().join(" ")
    }

    #[test]
    fn nothing_missing_needs_nothing() {
        assert_eq!(plan(&[], Installer::Unknown), Plan::Nothing);
    }

    #[test]
    fn root_installs_with_apt_get() {
        let plan = plan(&["gcc", "make"], Installer::AptGet);
        let command = installed_by(&plan);
        assert!(command.starts_with("env DEBIAN_FRONTEND=noninteractive apt-get install"));
        assert!(command.ends_with(" gcc make"), "{command}");
    }

    #[test]
    fn a_user_with_passwordless_sudo_installs_through_it() {
        let command = installed_by(&plan(&["gcc"], Installer::SudoAptGet));
        assert!(command.starts_with("sudo -n env "), "{command}");
    }

    #[test]
    fn another_user_is_told_the_command() {
        let Plan::Ask(what) = plan(&["gcc", "make"], Installer::AptGetByHand) else {
            panic!("a user without rights installed something")
        };
        assert!(
            what.contains("sudo apt-get install --yes gcc make\n"),
            "{what}"
        );
    }

    #[test]
    fn another_system_is_told_the_names() {
        let Plan::Ask(what) = plan(&["libelf-dev"], Installer::Unknown) else {
            panic!("an unknown system installed something")
        };
        assert!(what.contains("libelf-dev"), "{what}");
    }

    #[test]
    fn sudo_is_only_tried_where_it_would_help() {
        let never = || panic!("sudo was tried");
        assert!(Installer::choose(true, true, never) == Installer::AptGet);
        assert!(Installer::choose(false, false, never) == Installer::Unknown);
        assert!(Installer::choose(true, false, || true) == Installer::SudoAptGet);
        assert!(Installer::choose(true, false, || false) == Installer::AptGetByHand);
    }
}

//! Landlock: the daemon reaches the files of its configuration and what a resolver needs, no others.
//!
//! It restricts opening and changing files (Documentation/userspace-api/landlock.rst), not
//! connecting, and not what is open already. It matters most where the daemon stays root: without
//! capabilities it still owns most files. All of [`READ`] stays readable to it then, `/etc/shadow`
//! included; a user of its own is what keeps the daemon from that.

use std::{fmt, path::Path};

use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, path_beneath_rules,
};

use super::{Error, LandlockMode, paths::Needs};

/// All rights this kernel interface has are taken away, then some are given back. Fixed, so that the
/// same rules hold on every kernel that knows them; older ones enforce what they can.
const HANDLED: ABI = ABI::V5;

/// Read besides the configuration's own files. Directories rather than files where the files are
/// replaced by renaming, as `/etc/resolv.conf` is: a rule holds for the file that it was made for.
const READ: &[&str] = &[
    // Name resolution, authorities, time zone; /etc's secrets are kept by their permissions.
    "/etc",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share",
    "/usr/local/share/ca-certificates",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    // Memory, pressure, cgroups, devices.
    "/proc",
    "/sys",
    "/dev/urandom",
    "/dev/random",
];

/// Written besides the configuration's own directories: pressure triggers are written to be set.
const READ_AND_WRITE: &[&str] = &["/dev/null", "/proc/pressure"];

/// What Landlock does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enforcement {
    /// It confines this thread and those it starts.
    Enforced {
        /// The kernel's version of the interface.
        abi: i32,
        /// Whether this kernel lacks some of what was asked for.
        partly: bool,
    },
    /// It doesn't, and why.
    None(String),
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforced { abi, partly: false } => write!(f, "enforced (ABI {abi})"),
            Self::Enforced { abi, partly: true } => write!(f, "partly enforced (ABI {abi})"),
            Self::None(why) => write!(f, "not enforced: {why}"),
        }
    }
}

/// What Landlock does for a thread that tries it, and ends. Not for the caller.
#[must_use]
pub fn probe() -> Enforcement {
    let tried = std::thread::spawn(|| restrict(&Needs::default())).join();
    match tried {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => Enforcement::None(error.to_string()),
        Err(_) => Enforcement::None("the attempt panicked".to_owned()),
    }
}

pub(super) fn enforce(mode: LandlockMode, needs: &Needs) -> Result<Enforcement, Error> {
    let found = match mode {
        LandlockMode::Off => Enforcement::None("off in the configuration".to_owned()),
        LandlockMode::Auto | LandlockMode::Required => match restrict(needs) {
            Ok(status) => status,
            Err(error) => Enforcement::None(error.to_string()),
        },
    };
    match (&found, mode) {
        (Enforcement::None(why), LandlockMode::Required) => {
            Err(Error::LandlockRequired(why.clone()))
        }
        _ => Ok(found),
    }
}

fn restrict(needs: &Needs) -> Result<Enforcement, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    // No execute, no devices: nothing of that is ours to do.
    let change = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(HANDLED))?
        .create()?
        .add_rules(path_beneath_rules(READ, read))?
        .add_rules(path_beneath_rules(needs.read_directories(), read))?
        .add_rules(path_beneath_rules(
            READ_AND_WRITE.iter().map(Path::new),
            read | AccessFs::WriteFile,
        ))?
        .add_rules(path_beneath_rules(needs.written_directories(), change))?
        .restrict_self()?;
    let abi = version(&restricted.landlock);
    Ok(match (abi, restricted.ruleset) {
        (Err(why), _) => Enforcement::None(why.to_owned()),
        (Ok(_), RulesetStatus::NotEnforced) => {
            Enforcement::None("the kernel took no rule".to_owned())
        }
        (Ok(abi), RulesetStatus::PartiallyEnforced) => Enforcement::Enforced { abi, partly: true },
        (Ok(abi), RulesetStatus::FullyEnforced) => Enforcement::Enforced { abi, partly: false },
    })
}

fn version(status: &LandlockStatus) -> Result<i32, &'static str> {
    match status {
        LandlockStatus::NotImplemented => Err("this kernel has no Landlock"),
        LandlockStatus::NotEnabled => {
            Err("Landlock is not among this kernel's security modules (lsm=)")
        }
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => Ok(kernel_abi.unwrap_or(*effective_abi as i32)),
    }
}

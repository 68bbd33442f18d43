//! `cargo xtask setup`: brings a machine to where both halves build, saying what and why.
//!
//! Operating-system packages come from apt-get and need root; everything else stays below
//! `target/` or is a component of the pinned toolchain.

mod fuzzer;
mod kernel_half;
mod packages;

use anyhow::{Result, bail};

use self::packages::Purpose;
pub(crate) use self::{kernel_half::KernelHalf, packages::DEBIAN_KEYRING};
use crate::workspace::Workspace;

/// Installs everything that building and testing need.
pub(crate) fn all(workspace: &Workspace) -> Result<()> {
    let kernel_half = for_testing(workspace)?;
    if let KernelHalf::NotBuildable { reason } = kernel_half {
        bail!("the kernel half can't be built here: {reason}");
    }
    for_fuzzing(workspace)?;
    println!("Everything that building and testing need is here.");
    Ok(())
}

/// Installs what building needs.
pub(crate) fn for_building(workspace: &Workspace) -> Result<KernelHalf> {
    packages::ensure_present(Purpose::Build)?;
    let kernel_half = kernel_half::prepare(workspace);
    if let KernelHalf::NotBuildable { reason } = &kernel_half {
        eprintln!("warning: the kernel half can't be built here: {reason}");
        eprintln!("warning: going on without it; the daemon will judge pressure in user space");
    }
    Ok(kernel_half)
}

/// Installs what building and testing need.
pub(crate) fn for_testing(workspace: &Workspace) -> Result<KernelHalf> {
    packages::ensure_present(Purpose::Test)?;
    Ok(kernel_half::prepare(workspace))
}

/// Installs what measures disks for comparison.
pub(crate) fn for_measuring_disks() -> Result<()> {
    packages::ensure_present(Purpose::DiskBench)
}

/// Installs what fuzzing needs.
pub(crate) fn for_fuzzing(workspace: &Workspace) -> Result<()> {
    packages::ensure_present(Purpose::Fuzz)?;
    fuzzer::ensure(workspace)
}

/// Installs what building, and booting other kernels, need.
pub(crate) fn for_virtual_machines(workspace: &Workspace) -> Result<()> {
    packages::ensure_present(Purpose::VirtualMachine)?;
    match kernel_half::prepare(workspace) {
        KernelHalf::Buildable => Ok(()),
        KernelHalf::NotBuildable { reason } => {
            bail!("there is nothing to test: the kernel half can't be built here: {reason}")
        }
    }
}

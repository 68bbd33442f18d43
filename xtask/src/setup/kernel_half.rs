//! The toolchain of the kernel half: the sources of `core`, and bpf-linker.
//!
//! bpf-linker is linked against the LLVM that the pinned rustc brings along, so that no LLVM has
//! to be installed and the bitcode of one can always be read by the other.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, workspace::Workspace};

const LINKER_VERSION: &str = "0.13.0";
/// LLVM's major version in the pinned rustc, as bpf-linker's feature names it.
const LINKER_FEATURE: &str = "llvm-22";

/// Whether the kernel half can be built on this machine.
pub(crate) enum KernelHalf {
    Buildable,
    NotBuildable {
        /// For people.
        reason: String,
    },
}

/// Prepares for building the kernel half as far as this machine allows.
pub(super) fn prepare(workspace: &Workspace) -> KernelHalf {
    let result = rustc_sysroot(workspace).and_then(|sysroot| {
        ensure_core_sources(workspace, &sysroot)?;
        ensure_linker(workspace, &sysroot)
    });
    match result {
        Ok(()) => KernelHalf::Buildable,
        Err(error) => KernelHalf::NotBuildable {
            reason: format!("{error:#}"),
        },
    }
}

fn rustc_sysroot(workspace: &Workspace) -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--print", "sysroot"])
        .current_dir(&workspace.root);
    process::output_of(&mut rustc).map(PathBuf::from)
}

/// The kernel half's target has no prebuilt `core`.
fn ensure_core_sources(workspace: &Workspace, sysroot: &Path) -> Result<()> {
    let sources = sysroot.join("lib/rustlib/src/rust/library/core");
    if sources.is_dir() {
        return Ok(());
    }
    println!("Missing from the Rust toolchain:");
    println!("  rust-src       the kernel half's target has no prebuilt core library");
    println!("+ rustup component add rust-src");
    let mut rustup = Command::new("rustup");
    rustup
        .args(["component", "add", "rust-src"])
        .current_dir(&workspace.root);
    process::succeed(&mut rustup)?;
    ensure!(
        sources.is_dir(),
        "rustup has not brought {}",
        sources.display()
    );
    Ok(())
}

fn ensure_linker(workspace: &Workspace, sysroot: &Path) -> Result<()> {
    if installed_linker_works(workspace) {
        return Ok(());
    }
    let tools = workspace.tools();
    let llvm = link_to_rustc_llvm(sysroot, &tools.join("llvm"))?;
    println!("Missing below {}:", workspace.target.display());
    println!("  bpf-linker     links the kernel half; built from crates.io, takes a minute or two");
    let mut cargo = process::cargo(&workspace.root);
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--quiet",
            "--no-default-features",
            "--features",
            LINKER_FEATURE,
            "--root",
        ])
        .arg(&tools)
        .env("LLVM_PREFIX", llvm);
    process::without_build_flags(&mut cargo);
    process::succeed(&mut cargo).context("bpf-linker could not be installed")?;
    ensure!(
        installed_linker_works(workspace),
        "the new bpf-linker does not run"
    );
    Ok(())
}

/// A linker that is there may still fail: its LLVM goes when the toolchain is removed.
fn installed_linker_works(workspace: &Workspace) -> bool {
    let mut linker = Command::new(workspace.bpf_linker());
    let version = linker.arg("--version").output();
    version.is_ok_and(|output| {
        output.status.success() && is_wanted_version(&String::from_utf8_lossy(&output.stdout))
    })
}

fn is_wanted_version(printed: &str) -> bool {
    printed.split_whitespace().nth(1) == Some(LINKER_VERSION)
}

/// Makes `prefix` look like an installed LLVM to bpf-linker's build script: a `lib/libLLVM.so`,
/// here a link to rustc's. The second link has the name that the finished linker will look for.
fn link_to_rustc_llvm(sysroot: &Path, prefix: &Path) -> Result<PathBuf> {
    let library = rustc_llvm(&sysroot.join("lib"))?;
    let name = library
        .file_name()
        .context("rustc's LLVM has no file name")?;
    let lib = prefix.join("lib");
    if lib.exists() {
        fs::remove_dir_all(&lib).with_context(|| format!("cannot remove {}", lib.display()))?;
    }
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    for link in [lib.join("libLLVM.so"), lib.join(name)] {
        symlink(&library, &link).with_context(|| format!("cannot create {}", link.display()))?;
    }
    Ok(prefix.to_owned())
}

/// rustc's LLVM, such as `libLLVM.so.22.1-rust-1.95.0-stable`.
fn rustc_llvm(lib: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(lib).with_context(|| format!("cannot read {}", lib.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("libLLVM.so.")
        {
            return Ok(entry.path());
        }
    }
    bail!(
        "rustc has no shared LLVM in {} (a toolchain of rustup has)",
        lib.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_version_of_the_linker_will_do() {
        assert!(is_wanted_version("bpf-linker 0.13.0\n"));
        assert!(!is_wanted_version("bpf-linker 0.12.9\n"));
        assert!(!is_wanted_version(""));
    }

    #[test]
    fn the_llvm_of_rustc_is_found_and_linked_twice() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("sysroot/lib");
        fs::create_dir_all(&lib).unwrap();
        let library = lib.join("libLLVM.so.22.1-rust-1.95.0-stable");
        fs::write(&library, "an LLVM").unwrap();
        let prefix = dir.path().join("llvm");
        for _attempt in 0..2 {
            link_to_rustc_llvm(&dir.path().join("sysroot"), &prefix).unwrap();
        }
        for link in ["lib/libLLVM.so", "lib/libLLVM.so.22.1-rust-1.95.0-stable"] {
            assert_eq!(fs::read_link(prefix.join(link)).unwrap(), library);
        }
    }

    #[test]
    fn a_toolchain_without_a_shared_llvm_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("librustc_driver.so"), "").unwrap();
        let error = rustc_llvm(dir.path()).unwrap_err();
        assert!(error.to_string().contains("no shared LLVM"), "{error}");
    }
}

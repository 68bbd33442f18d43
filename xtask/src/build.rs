//! `cargo xtask build`: the kernel half, then the daemon with it inside.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{process, setup::KernelHalf, workspace::Workspace};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "gophership-ebpf";
/// Defined in the workspace's Cargo.toml.
const PROFILE: &str = "ebpf";

/// Builds what this machine can build.
pub(crate) fn both_halves(
    workspace: &Workspace,
    kernel_half: &KernelHalf,
    release: bool,
) -> Result<()> {
    let object = kernel_object(workspace, kernel_half)?;
    let mut cargo = daemon_cargo(workspace, object.as_deref());
    cargo.arg("build");
    if release {
        cargo.arg("--release");
    }
    process::succeed(&mut cargo)
}

/// Builds the kernel half, unless this machine can't.
pub(crate) fn kernel_object(
    workspace: &Workspace,
    kernel_half: &KernelHalf,
) -> Result<Option<PathBuf>> {
    match kernel_half {
        KernelHalf::Buildable => {
            process::succeed(ebpf_cargo(workspace, "build").args(["--profile", PROFILE]))
                .context("the kernel half does not build")?;
            publish_object(workspace).map(Some)
        }
        KernelHalf::NotBuildable { .. } => Ok(None),
    }
}

/// Lints the kernel half as it is built.
pub(crate) fn lint_kernel_half(workspace: &Workspace) -> Result<()> {
    let mut cargo = ebpf_cargo(workspace, "clippy");
    process::succeed(cargo.args(["--profile", PROFILE, "--quiet", "--", "-D", "warnings"]))
}

/// Cargo for user space; `object` goes into the daemon.
pub(crate) fn daemon_cargo(workspace: &Workspace, object: Option<&Path>) -> std::process::Command {
    let mut cargo = process::cargo(&workspace.root);
    match object {
        Some(object) => cargo.env("GOPHERSHIP_EBPF_OBJ", object),
        None => cargo.env_remove("GOPHERSHIP_EBPF_OBJ"),
    };
    cargo
}

/// Cargo for the kernel half: the pinned stable compiler with its unstable features unlocked, and
/// none of the flags that the user may have set for the host.
fn ebpf_cargo(workspace: &Workspace, command: &str) -> std::process::Command {
    let mut cargo = process::cargo(&workspace.root);
    cargo
        .args([
            command,
            "--package",
            PACKAGE,
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
        ])
        .arg("--target-dir")
        .arg(workspace.ebpf_target())
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
            workspace.bpf_linker(),
        )
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags().join("\x1f"))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    cargo
}

/// aya-ebpf asks for the architecture of the kernel that will run it. BTF is not asked for
/// (`--btf`): the empty `asm!` that keeps the judge without branches is a line of the source but no
/// instruction, so that two lines begin at one, and the verifier refuses that. The programs take
/// their offsets from the running kernel's BTF, not from their own.
fn rustflags() -> [String; 1] {
    [format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH)]
}

/// Copies the object to its fixed path, leaving an equal file untouched, so that cargo rebuilds
/// the daemon only when the kernel half has changed.
fn publish_object(workspace: &Workspace) -> Result<PathBuf> {
    let built = workspace
        .ebpf_target()
        .join(TARGET)
        .join(PROFILE)
        .join(PACKAGE);
    let fresh = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let object = workspace.ebpf_object();
    if fs::read(&object).is_ok_and(|old| old == fresh) {
        return Ok(object);
    }
    fs::write(&object, fresh).with_context(|| format!("cannot write {}", object.display()))?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn built_workspace(object: &[u8]) -> (tempfile::TempDir, Workspace) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let workspace = Workspace {
            root: dir.path().to_owned(),
            target,
        };
        let built = workspace.ebpf_target().join(TARGET).join(PROFILE);
        fs::create_dir_all(&built).unwrap();
        fs::write(built.join(PACKAGE), object).unwrap();
        (dir, workspace)
    }

    #[test]
    fn an_unchanged_object_is_left_untouched() {
        let (_dir, workspace) = built_workspace(b"one");
        let object = publish_object(&workspace).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH;
        fs::File::options()
            .write(true)
            .open(&object)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        publish_object(&workspace).unwrap();
        assert_eq!(fs::metadata(&object).unwrap().modified().unwrap(), long_ago);
    }

    #[test]
    fn a_changed_object_is_replaced() {
        let (_dir, workspace) = built_workspace(b"one");
        publish_object(&workspace).unwrap();
        let built = workspace
            .ebpf_target()
            .join(TARGET)
            .join(PROFILE)
            .join(PACKAGE);
        fs::write(built, b"two").unwrap();
        let object = publish_object(&workspace).unwrap();
        assert_eq!(fs::read(object).unwrap(), b"two");
    }

    #[test]
    fn a_machine_without_the_toolchain_builds_no_object() {
        let (_dir, workspace) = built_workspace(b"one");
        let kernel_half = KernelHalf::NotBuildable {
            reason: "no linker".to_owned(),
        };
        assert_eq!(kernel_object(&workspace, &kernel_half).unwrap(), None);
    }
}

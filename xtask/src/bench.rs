//! `cargo xtask bench`: builds everything with optimisations and hands over to `xtask-bench`, which
//! is slow to compile.

use std::{io, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    build, process,
    setup::{self, KernelHalf},
    workspace::Workspace,
};

/// Takes a measurement; `args` are `xtask-bench`'s.
pub(crate) fn run(workspace: &Workspace, args: &[String]) -> Result<()> {
    let kind = args.first().map_or("", String::as_str);
    let kernel_half = setup::for_building(workspace)?;
    if kind == "vault" {
        setup::for_measuring_disks()?;
    }
    let object = build::kernel_object(workspace, &kernel_half)?;
    let mut cargo = build::daemon_cargo(workspace, object.as_deref());
    cargo.args(["build", "--release"]);
    // At once, so that they share their dependencies.
    cargo.args(["--package", "gophership", "--package", "xtask-bench"]);
    // Standard output is for the measurements.
    process::succeed(cargo.stdout(io::stderr()))?;

    let programs = workspace.target.join("release");
    let mut bench = Command::new(programs.join("xtask-bench"));
    bench.args(args);
    if matches!(kind, "kernel" | "vault" | "ingest" | "pipeline") {
        bench.arg("--scratch").arg(workspace.target.join("bench"));
    }
    if matches!(kind, "kernel" | "ingest" | "pipeline") {
        bench.arg("--programs").arg(&programs);
    }
    if kind == "kernel" {
        let KernelHalf::Buildable = kernel_half else {
            bail!("there is no kernel half to measure: it can't be built here");
        };
        bench.arg("--object").arg(workspace.ebpf_object());
    }
    process::succeed(&mut bench)
}

/// Lints and tests `xtask-bench`, which is no default member.
pub(crate) fn test(workspace: &Workspace, object: Option<&Path>) -> Result<()> {
    let package = ["--quiet", "--package", "xtask-bench"];
    let mut clippy = build::daemon_cargo(workspace, object);
    clippy.arg("clippy").args(package);
    process::succeed(clippy.args(["--all-targets", "--", "-D", "warnings"]))?;
    process::succeed(
        build::daemon_cargo(workspace, object)
            .arg("test")
            .args(package),
    )
}

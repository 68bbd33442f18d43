//! cargo-fuzz, which builds the fuzz targets with the coverage that libFuzzer is led by.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{process, workspace::Workspace};

const VERSION: &str = "0.13.2";

/// Builds cargo-fuzz, unless it is there.
pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    if is_installed(workspace) {
        return Ok(());
    }
    println!("Missing below {}:", workspace.target.display());
    println!("  cargo-fuzz     builds the fuzz targets; from crates.io, takes a minute");
    let mut cargo = process::cargo(&workspace.root);
    cargo
        .args(["install", "cargo-fuzz", "--version", VERSION])
        .args(["--locked", "--force", "--quiet", "--root"])
        .arg(workspace.tools());
    process::without_build_flags(&mut cargo);
    process::succeed(&mut cargo).context("cargo-fuzz could not be installed")?;
    ensure!(is_installed(workspace), "the new cargo-fuzz does not run");
    Ok(())
}

fn is_installed(workspace: &Workspace) -> bool {
    let mut fuzz = Command::new(workspace.tools().join("bin/cargo-fuzz"));
    let version = fuzz.args(["fuzz", "--version"]).output();
    version.is_ok_and(|output| {
        let printed = String::from_utf8_lossy(&output.stdout);
        output.status.success() && printed.split_whitespace().nth(1) == Some(VERSION)
    })
}

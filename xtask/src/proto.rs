//! `cargo xtask proto`: hands over to `xtask-codegen`, which is slow to compile.

use anyhow::Result;

use crate::{process, workspace::Workspace};

/// Generates the control plane's code, or fails if the committed code differs.
pub(crate) fn generate(workspace: &Workspace, check: bool) -> Result<()> {
    let mut codegen = process::cargo(&workspace.root);
    codegen.args(["run", "--quiet", "--package", "xtask-codegen", "--"]);
    codegen.args([
        "--proto-dir",
        "proto",
        "--output",
        "gophership/src/control/pb.rs",
    ]);
    if check {
        codegen.arg("--check");
    }
    process::succeed(&mut codegen)
}

/// Lints and tests the generator, then fails if the committed code differs. Apart from the other
/// packages: built together, its dependencies' features would change theirs, and with that every
/// `cargo xtask test` after a `cargo xtask run` would build the world again.
pub(crate) fn test(workspace: &Workspace) -> Result<()> {
    let codegen = ["--quiet", "--package", "xtask-codegen"];
    let mut clippy = process::cargo(&workspace.root);
    clippy
        .arg("clippy")
        .args(codegen)
        .args(["--all-targets", "--", "-D", "warnings"]);
    process::succeed(&mut clippy)?;
    process::succeed(process::cargo(&workspace.root).arg("test").args(codegen))?;
    generate(workspace, true)
}

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

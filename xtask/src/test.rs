//! `cargo xtask test`: everything that CI checks, stage by stage, ending at the first failure.

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    bench, build, fuzz, process, proto,
    setup::{self, KernelHalf},
    tidy,
    workspace::Workspace,
};

/// Set in CI: a machine that can't test the kernel half fails, rather than skip it.
const REQUIRE_KERNEL: &str = "GOPHERSHIP_REQUIRE_KERNEL";

/// Runs all stages; `test_args` go to `cargo test`.
pub(crate) fn all(workspace: &Workspace, test_args: &[String]) -> Result<()> {
    let mut report = Report::default();
    let result = stages(workspace, test_args, &mut report);
    println!("\n{}", report.text());
    result
}

fn stages(workspace: &Workspace, test_args: &[String], report: &mut Report) -> Result<()> {
    let kernel_half = report.stage("setup", || setup::for_testing(workspace))?;
    insist_on_kernel_half(&kernel_half)?;
    report.stage("format", || {
        process::succeed(process::cargo(&workspace.root).args(["fmt", "--all", "--check"]))
    })?;
    report.stage("tidy", || tidy::check(&workspace.root))?;
    report.stage("generated code", || proto::test(workspace))?;
    let object = report.stage("kernel half", || {
        build::kernel_object(workspace, &kernel_half)
    })?;
    if matches!(kernel_half, KernelHalf::Buildable) {
        report.stage("kernel half lints", || build::lint_kernel_half(workspace))?;
    }
    report.stage("lints", || {
        let mut cargo = build::daemon_cargo(workspace, object.as_deref());
        cargo.args(["clippy", "--all-targets", "--quiet"]);
        process::succeed(cargo.args(["--", "-D", "warnings"]))
    })?;
    report.stage("fuzz targets", || {
        fuzz::lint(workspace)?;
        fuzz::run(workspace, &[], 0)
    })?;
    report.stage("measurements", || bench::test(workspace, object.as_deref()))?;
    report.stage("tests", || {
        let mut cargo = build::daemon_cargo(workspace, object.as_deref());
        process::succeed(cargo.arg("test").args(test_args))
    })
}

fn insist_on_kernel_half(kernel_half: &KernelHalf) -> Result<()> {
    let KernelHalf::NotBuildable { reason } = kernel_half else {
        return Ok(());
    };
    if env::var_os(REQUIRE_KERNEL).is_some_and(|value| value == "1") {
        bail!("{REQUIRE_KERNEL}=1, but the kernel half can't be built here: {reason}");
    }
    eprintln!("warning: the kernel half is not tested, because it can't be built here: {reason}");
    Ok(())
}

/// What ran, how it ended and how long it took.
#[derive(Default)]
struct Report {
    stages: Vec<Stage>,
}

struct Stage {
    name: &'static str,
    passed: bool,
    took: Duration,
}

impl Report {
    fn stage<T>(&mut self, name: &'static str, perform: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {name}");
        let started = Instant::now();
        let result = perform();
        self.stages.push(Stage {
            name,
            passed: result.is_ok(),
            took: started.elapsed(),
        });
        result
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for Stage { name, passed, took } in &self.stages {
            let verdict = if *passed { "ok" } else { "FAILED" };
            let seconds = took.as_secs_f64();
            text += &format!("{name:20} {verdict:6} {seconds:8.1} s\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_ends_with_the_stage_that_failed() {
        let mut report = Report::default();
        report.stage("one", || Ok(())).unwrap();
        report
            .stage("two", || -> Result<()> { bail!("broken") })
            .unwrap_err();
        let text = report.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("one") && lines[0].contains(" ok "),
            "{text}"
        );
        assert!(
            lines[1].starts_with("two") && lines[1].contains(" FAILED "),
            "{text}"
        );
    }
}

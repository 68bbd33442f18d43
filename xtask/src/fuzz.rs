//! `cargo xtask fuzz`: the vault's readers against the committed corpus, and against what libFuzzer
//! makes of it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{process, setup, workspace::Workspace};

/// The fuzz targets, each with its corpus in `tests/fuzz/corpus/`.
const TARGETS: &[&str] = &[
    "block", "cursors", "entries", "manifest", "segment", "tables",
];
/// One input takes a few milliseconds at most: what takes this long hangs.
const INPUT_SECONDS_MAX: u32 = 10;
/// Above what a target's own windows and one large entry take.
const MEMORY_MIB_MAX: u32 = 1024;

/// Names of the targets, as an argument may be one.
pub(crate) fn target_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(TARGETS)
}

/// Replays the corpus of each of `targets`, or of all, and goes on with new inputs for `seconds` each.
pub(crate) fn run(workspace: &Workspace, targets: &[String], seconds: u32) -> Result<()> {
    setup::for_fuzzing(workspace)?;
    build(workspace)?;
    let all: Vec<String> = TARGETS.iter().copied().map(str::to_owned).collect();
    let targets = if targets.is_empty() { &all } else { targets };
    targets
        .iter()
        .try_for_each(|target| fuzz(workspace, target, seconds))
}

/// Lints the targets and what they share, which is no default member.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    let mut clippy = process::cargo(&workspace.root);
    clippy.args(["clippy", "--quiet", "--package", "gophership-fuzz"]);
    // Without the tests of the vault, which are the daemon's.
    clippy.args(["--lib", "--bins", "--examples"]);
    process::succeed(clippy.args(["--", "-D", "warnings"]))
}

/// Without a sanitizer: it asks for a nightly compiler and costs twice the time, and the readers are
/// safe Rust.
fn build(workspace: &Workspace) -> Result<()> {
    let tools = workspace.tools().join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools].into_iter().chain(env::split_paths(&path)))?;
    let mut build = process::cargo(&workspace.root);
    build
        .args(["fuzz", "build", "--fuzz-dir", "tests/fuzz"])
        .args(["--sanitizer", "none", "--codegen-units", "16"])
        .arg("--target-dir")
        .arg(workspace.fuzz_target())
        .env("PATH", path)
        // Optimising everything at once takes longer than it gains.
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    process::succeed(&mut build).context("the fuzz targets do not build")
}

fn fuzz(workspace: &Workspace, target: &str, seconds: u32) -> Result<()> {
    let corpus = workspace.root.join("tests/fuzz/corpus").join(target);
    let found = made_directory(workspace, "found", target)?;
    let artifacts = made_directory(workspace, "artifacts", target)?;
    let program = program(workspace, target);
    let mut fuzzer = Command::new(&program);
    fuzzer
        .current_dir(&workspace.root)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg("-print_final_stats=1")
        // Windows of 1 MiB are used again rather than mapped anew for each input.
        .env("MALLOC_MMAP_THRESHOLD_", "33554432")
        .env("MALLOC_TRIM_THRESHOLD_", "268435456");
    if seconds == 0 {
        fuzzer.arg("-runs=0");
    } else {
        // The first directory is where new inputs go.
        fuzzer.arg(format!("-max_total_time={seconds}")).arg(&found);
    }
    let output = fuzzer.arg(&corpus).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let inputs = statistic(&log, "number_of_executed_units").unwrap_or("no");
        println!("{target:10} {inputs} inputs");
        return Ok(());
    }
    eprintln!("{log}");
    let Some(input) = log
        .lines()
        .find_map(|line| line.split_once("Test unit written to "))
    else {
        bail!("the fuzz target `{target}` failed ({})", output.status);
    };
    let (input, program) = (input.1, program.display());
    bail!(
        "the fuzz target `{target}` failed. Once more, with that input alone:\n\n    {program} {input}\n\n\
         When that is mended, keep the input: cp {input} {}/",
        corpus.display()
    )
}

fn made_directory(workspace: &Workspace, what: &str, target: &str) -> Result<PathBuf> {
    let directory = workspace.fuzz_target().join(what).join(target);
    fs::create_dir_all(&directory).with_context(|| cannot_create(&directory))?;
    Ok(directory)
}

fn cannot_create(directory: &Path) -> String {
    format!("cannot create {}", directory.display())
}

/// Where cargo-fuzz puts it: below the target that it always names.
fn program(workspace: &Workspace, target: &str) -> PathBuf {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    workspace
        .fuzz_target()
        .join(triple)
        .join("release")
        .join(target)
}

/// A line such as `stat::number_of_executed_units: 42`.
fn statistic<'a>(log: &'a str, name: &str) -> Option<&'a str> {
    log.lines().find_map(|line| {
        let (found, value) = line.strip_prefix("stat::")?.split_once(':')?;
        (found == name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_package_is_run_and_has_a_corpus() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let programs = manifest.lines().filter_map(|line| {
            line.strip_prefix("path = \"targets/")?
                .strip_suffix(".rs\"")
        });
        assert!(programs.eq(TARGETS.iter().copied()), "{TARGETS:?}");
        for target in TARGETS {
            let corpus = fs::read_dir(fuzz.join("corpus").join(target)).unwrap();
            assert!(corpus.count() > 0, "{target}");
        }
    }

    #[test]
    fn what_a_fuzzer_counts_is_found_in_its_log() {
        let log = "INFO: Seed: 1\nstat::number_of_executed_units: 42\nstat::peak_rss_mb:  28\n";
        assert_eq!(statistic(log, "number_of_executed_units"), Some("42"));
        assert_eq!(statistic(log, "average_exec_per_sec"), None);
    }
}

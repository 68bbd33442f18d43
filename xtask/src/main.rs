//! Tasks of the workspace: `cargo xtask TASK`. Each task is a module.

#![expect(
    clippy::print_stdout,
    reason = "a command-line program talks to its user"
)]

mod bench;
mod build;
mod fuzz;
mod process;
mod proto;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{vm::Tests, workspace::Workspace};

/// Sets up, builds, runs and tests GopherShip.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and test, saying what and why
    Setup,
    /// Build both halves; the kernel half ends up inside the daemon
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
    },
    /// Set up, build, and run the daemon in the foreground with a development configuration
    Run {
        /// Arguments of the daemon
        #[arg(last = true)]
        daemon_args: Vec<String>,
    },
    /// Set up, then check format, style and lints, and run all tests
    Test {
        /// Arguments of `cargo test`
        #[arg(last = true)]
        test_args: Vec<String>,
    },
    /// Boot other kernels in QEMU, load the kernel half there and test it
    VmTest {
        /// Debian kernels, or `all`
        #[arg(long = "kernel", default_value = "6.1", value_parser = vm::kernel_names())]
        kernels: Vec<String>,
        /// All tests about the kernel half, instead of a choice of them that takes two minutes
        #[arg(long)]
        thorough: bool,
        /// Test binaries to run instead
        #[arg(long = "test", conflicts_with = "thorough")]
        tests: Vec<String>,
        /// Arguments of the test binaries, such as names of tests
        #[arg(last = true)]
        test_args: Vec<String>,
    },
    /// What the test machine runs as its first process
    #[command(hide = true)]
    VmInit,
    /// Measure with optimised builds; JSON on standard output, words on standard error
    #[command(disable_help_flag = true)]
    Bench {
        /// What to measure and how: `cargo xtask bench --help`, `cargo xtask bench kernel --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Give the vault's readers the inputs in tests/fuzz/corpus, and new ones made from them
    Fuzz {
        /// Fuzz targets; all if none is named
        #[arg(value_parser = fuzz::target_names())]
        targets: Vec<String>,
        /// How long new inputs are made for each target; 0 replays the corpus alone
        #[arg(long, default_value_t = 0)]
        seconds: u32,
    },
    /// Check the rules of the code that compilers and linters don't know
    Tidy,
    /// Generate the control plane's gRPC code from proto/
    Proto {
        /// Write nothing; fail if the committed code differs
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match perform(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    if matches!(task, Task::VmInit) {
        return vm::init();
    }
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup => setup::all(&workspace),
        Task::Build { release } => {
            let kernel_half = setup::for_building(&workspace)?;
            build::both_halves(&workspace, &kernel_half, release)
        }
        Task::Run { daemon_args } => run::daemon(&workspace, &daemon_args),
        Task::Test { test_args } => test::all(&workspace, &test_args),
        Task::VmTest {
            kernels,
            thorough,
            tests,
            test_args,
        } => vm::test(
            &workspace,
            &kernels,
            &Tests::asked(thorough, tests, test_args),
        ),
        Task::VmInit => unreachable!("done before there was a workspace"),
        Task::Bench { args } => bench::run(&workspace, &args),
        Task::Fuzz { targets, seconds } => fuzz::run(&workspace, &targets, seconds),
        Task::Tidy => tidy::check(&workspace.root),
        Task::Proto { check } => proto::generate(&workspace, check),
    }
}

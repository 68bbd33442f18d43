//! Tasks of the workspace: `cargo xtask TASK`. Each task is a module.

#![expect(
    clippy::print_stdout,
    reason = "a command-line program talks to its user"
)]

mod bench;
mod build;
mod process;
mod proto;
mod run;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

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
    /// Measure with optimised builds; JSON on standard output, words on standard error
    #[command(disable_help_flag = true)]
    Bench {
        /// What to measure and how: `cargo xtask bench --help`, `cargo xtask bench kernel --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
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
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup => setup::all(&workspace),
        Task::Build { release } => {
            let kernel_half = setup::for_building(&workspace)?;
            build::both_halves(&workspace, &kernel_half, release)
        }
        Task::Run { daemon_args } => run::daemon(&workspace, &daemon_args),
        Task::Test { test_args } => test::all(&workspace, &test_args),
        Task::Bench { args } => bench::run(&workspace, &args),
        Task::Tidy => tidy::check(&workspace.root),
        Task::Proto { check } => proto::generate(&workspace, check),
    }
}

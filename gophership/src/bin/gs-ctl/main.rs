//! The operator's command: a client of the daemon's control socket.

mod certs;
mod cli;
mod client;
mod commands;
mod events;
mod failure;
mod generate;
mod human;
mod json;
mod output;
mod replay;
mod sockets;
mod top;
mod vault;
mod view;

use std::{io::Write, process::ExitCode};

use clap::Parser;
use cli::Cli;
use failure::{Exit, Failure};
use gophership::render::{table, yaml};

fn main() -> ExitCode {
    // Bad usage ends inside `parse`, with 2.
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            // Nobody is left to tell if standard error is gone.
            drop(writeln!(std::io::stderr(), "gs-ctl: {failure}"));
            failure.exit().into()
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(commands::run(cli))
}

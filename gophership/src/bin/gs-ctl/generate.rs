//! Completions and manual pages, made from what can be typed.

use std::{
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory as _;
use clap_complete::aot;

use crate::{
    cli::{Cli, Shell},
    failure::Failure,
};

/// Prints the completions for `shell`.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let shell = match shell {
        Shell::Bash => aot::Shell::Bash,
        Shell::Zsh => aot::Shell::Zsh,
        Shell::Fish => aot::Shell::Fish,
    };
    let mut script = Vec::new();
    aot::generate(shell, &mut Cli::command(), "gs-ctl", &mut script);
    // clap_complete 4.6 takes the hyphen for one between commands in half of what it writes for Bash.
    let script = String::from_utf8_lossy(&script).replace("gs__subcmd__ctl", "gs__ctl");
    print(script.as_bytes())
}

/// Prints the page of `gs-ctl`, or writes its and those of its commands to `dir`.
pub(crate) fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command())
            .render(&mut page)
            .map_err(|error| cannot_write(&error))?;
        return print(&page);
    };
    clap_mangen::generate_to(command(), dir)
        .map_err(|error| Failure::Failed(format!("cannot write to {}: {error}", dir.display())))
}

/// Without `help`, which has no page.
fn command() -> clap::Command {
    Cli::command().disable_help_subcommand(true)
}

fn print(text: &[u8]) -> Result<(), Failure> {
    match io::stdout().write_all(text) {
        // The reader, such as `head`, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| cannot_write(&error)),
    }
}

fn cannot_write(error: &io::Error) -> Failure {
    Failure::Failed(format!("cannot write: {error}"))
}

//! Writing results, in the format that was asked for.

use std::io::{self, ErrorKind, IsTerminal, Write};

use serde_json::Value;

use crate::{cli::Output, failure::Failure, yaml};

/// Standard output.
#[derive(Debug)]
pub(crate) struct Sink {
    format: Output,
    terminal: bool,
    colour: bool,
    documents: usize,
}

impl Sink {
    /// Colour only on a terminal, and not where the environment has `NO_COLOR`.
    pub(crate) fn new(format: Output) -> Self {
        let terminal = io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            format,
            terminal,
            colour: terminal && !refused,
            documents: 0,
        }
    }

    /// Whether tables may have colour.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// Writes a result: `table` for people, else `value`.
    pub(crate) fn result(
        &mut self,
        value: &Value,
        table: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let text = match self.format {
            Output::Table => table(),
            Output::Json => pretty(value),
            Output::Yaml => yaml::emit(value),
        };
        write(&text)
    }

    /// Writes one of several results. On a terminal, a line takes the place of the one before.
    pub(crate) fn progress(
        &mut self,
        value: &Value,
        line: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let first = self.documents == 0;
        self.documents += 1;
        let text = match self.format {
            Output::Table if self.terminal => format!("\r\x1b[2K{}", line()),
            Output::Table => line() + "\n",
            Output::Json => format!("{value}\n"),
            Output::Yaml if first => yaml::emit(value),
            Output::Yaml => format!("---\n{}", yaml::emit(value)),
        };
        write(&text)
    }

    /// Ends the line that progress was shown on.
    pub(crate) fn progress_ended(&self) -> Result<(), Failure> {
        if self.format == Output::Table && self.terminal && self.documents > 0 {
            write("\n")?;
        }
        Ok(())
    }
}

fn pretty(value: &Value) -> String {
    // The alternate form is indented.
    format!("{value:#}\n")
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // The reader, such as `head`, has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::Failed(format!("cannot write: {error}"))),
        Ok(()) => Ok(()),
    }
}

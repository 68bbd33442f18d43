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

    /// Takes the whole screen for frames, if there is one and people look at it; dropping what is
    /// returned gives it back.
    pub(crate) fn take_screen(&self) -> Result<Option<Screen>, Failure> {
        (self.terminal && self.format == Output::Table)
            .then(Screen::take)
            .transpose()
    }

    /// Writes one of several pages: on a terminal in the place of the one before, as far as it fits.
    pub(crate) fn frame(
        &mut self,
        value: &Value,
        page: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.format != Output::Table {
            return self.progress(value, String::new);
        }
        match (self.terminal, self.documents) {
            (true, _) => write(&fitted(&page(), screen_rows()))?,
            (false, 0) => write(&page())?,
            (false, _) => write(&format!("\n{}", page()))?,
        }
        self.documents += 1;
        Ok(())
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

    /// Writes one of several results that stay: for people a line each.
    pub(crate) fn entry(
        &mut self,
        value: &Value,
        line: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Output::Table => write(&(line() + "\n")),
            Output::Json | Output::Yaml => self.progress(value, String::new),
        }
    }

    /// Ends the line that progress was shown on.
    pub(crate) fn progress_ended(&self) -> Result<(), Failure> {
        if self.format == Output::Table && self.terminal && self.documents > 0 {
            write("\n")?;
        }
        Ok(())
    }
}

/// The alternate screen, without cursor and without wrapping of long lines.
#[derive(Debug)]
pub(crate) struct Screen(());

/// Alternate screen, cursor and wrapping, as xterm and its kin know them: `?1049`, `?25`, `?7`.
const SCREEN_TAKE: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const SCREEN_GIVE_BACK: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

impl Screen {
    fn take() -> Result<Self, Failure> {
        // Where a panic aborts, nothing is dropped.
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            drop(write(SCREEN_GIVE_BACK));
            told(panic);
        }));
        write(SCREEN_TAKE)?;
        Ok(Self(()))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        drop(write(SCREEN_GIVE_BACK));
    }
}

/// What overwrites the screen with the page's first lines, so that nothing scrolls.
fn fitted(page: &str, rows: usize) -> String {
    let lines: Vec<_> = page.lines().take(rows).collect();
    // Home; each line clears what is left of the old one, the end what is left below.
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\n"))
}

fn screen_rows() -> usize {
    const ROWS_UNKNOWN: usize = 24;
    terminal_size::terminal_size().map_or(ROWS_UNKNOWN, |(_, rows)| usize::from(rows.0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_to_the_screen_and_covers_the_one_before() {
        assert_eq!(
            fitted("a\nb\nc\n", 2),
            "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J",
            "no line break at the end: it would scroll"
        );
    }
}

//! Commands that are run to their end, or killed at a deadline.

use std::{
    fmt,
    io::{ErrorKind, Read},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A command that ended by itself.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// All of standard output.
    pub(crate) stdout: String,
    /// All of standard error.
    pub(crate) stderr: String,
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit code {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

impl Finished {
    /// Itself, if it exited with 0.
    #[track_caller]
    pub(crate) fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "the command failed: {self}");
        self
    }
}

/// The variables by which the caller's environment would configure the programs under test.
///
/// `GOPHERSHIP_REQUIRE_KERNEL` is the tests' own switch, but would read as a configuration key.
pub(crate) fn without_own_variables(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let ours = name
            .to_str()
            .is_some_and(|n| n.starts_with("GOPHERSHIP_") || n.starts_with("GS_CTL_"));
        if ours {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs `command` to its end; kills it and panics if that takes longer than `within`.
#[track_caller]
pub(crate) fn run(command: &mut Command, within: Duration) -> Finished {
    match try_run(command, within) {
        Ok(finished) => finished,
        Err(problem) => panic!("{problem}"),
    }
}

/// Starts a program that may just have been copied: a child that another test forked meanwhile has the
/// copy open for writing until it executes something itself.
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match command.spawn() {
            Err(busy)
                if busy.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline =>
            {
                thread::yield_now();
            }
            started => return started,
        }
    }
}

/// Like [`run`], for places that must not panic.
pub(crate) fn try_run(command: &mut Command, within: Duration) -> Result<Finished, String> {
    without_own_variables(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command).map_err(|e| format!("{command:?} doesn't start: {e}"))?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let status = wait(&mut child, within);
    if status.is_none() {
        drop(child.kill());
        drop(child.wait());
    }
    let finished = Finished {
        code: status.and_then(|s| s.code()),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    };
    match status {
        Some(_) => Ok(finished),
        None => Err(format!(
            "{command:?} didn't end within {within:?}: {finished}"
        )),
    }
}

/// Waits for the child's end, at most for `within`.
pub(crate) fn wait(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

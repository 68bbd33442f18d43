//! The daemon as a child process, and the operator's command against it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::version::TLS13;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    PATIENCE,
    certs::{Certs, ClientIdentity, GS_CTL},
    eventually,
    process::{self, Finished},
    producer::Producer,
    settings::Settings,
    telemetry,
};

/// Path of the daemon.
pub(crate) const GOPHERSHIP: &str = env!("CARGO_BIN_EXE_gophership");

/// Lines of the daemon's log that a failed test shows.
const TAIL_LINES: usize = 60;

/// What outlives a daemon: its certificates, vault and configuration.
#[derive(Debug)]
pub(crate) struct Home {
    /// On a real disk, because O_DIRECT doesn't exist on tmpfs.
    dir: TempDir,
    /// With a short path, because a Unix socket's path is limited to 108 bytes.
    sockets: TempDir,
    certs: Certs,
}

impl Home {
    /// A new one, with certificates.
    pub(crate) fn new() -> Self {
        Self::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// A new one below `parent`, which must be on a real disk.
    pub(crate) fn new_in(parent: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("daemon-")
            .tempdir_in(parent)
            .expect("a directory on a real disk");
        let sockets = tempfile::Builder::new()
            .prefix("gs-")
            .tempdir()
            .expect("a directory for the socket");
        let certs = Certs::init(&dir.path().join("certs"));
        fs::create_dir(dir.path().join("vault")).expect("a directory for the vault");
        Self {
            dir,
            sockets,
            certs,
        }
    }

    /// The certificates.
    pub(crate) fn certs(&self) -> &Certs {
        &self.certs
    }

    /// A path inside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the vault lies.
    pub(crate) fn vault(&self) -> PathBuf {
        self.path("vault")
    }

    /// Where the audit log is.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    /// Where the event timeline is.
    pub(crate) fn events(&self) -> PathBuf {
        self.path("events.jsonl")
    }

    /// Where the operator's socket is.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.sockets.path().join("control.sock")
    }

    /// Where the Unix socket for producers is.
    pub(crate) fn ingest_socket(&self) -> PathBuf {
        self.sockets.path().join("ingest.sock")
    }

    /// Writes a configuration file and gives its path.
    pub(crate) fn write_config(&self, name: &str, yaml: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, yaml).expect("the configuration is written");
        path
    }

    /// Runs the operator's command against this home's daemon.
    #[track_caller]
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Finished {
        process::run(&mut self.ctl_command(arguments), PATIENCE)
    }

    fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(GS_CTL);
        command
            .arg("--endpoint")
            .arg(format!("unix:{}", self.control_socket().display()))
            .args(["--output", "json"])
            .args(arguments);
        command
    }

    /// Runs the daemon's binary to its end, such as for `config check`.
    #[track_caller]
    pub(crate) fn gophership(&self, arguments: &[&str]) -> Finished {
        process::run(Command::new(GOPHERSHIP).args(arguments), PATIENCE)
    }
}

/// A running daemon. Killed when dropped; if the test is failing, its log and status are shown.
#[derive(Debug)]
pub(crate) struct Daemon<'h> {
    home: &'h Home,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    grpc: SocketAddr,
    http: SocketAddr,
    telemetry: SocketAddr,
}

impl<'h> Daemon<'h> {
    /// Starts it and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(home: &'h Home, settings: &Settings) -> Self {
        Self::start_with_env(home, settings, &[])
    }

    /// Starts it with environment variables.
    #[track_caller]
    pub(crate) fn start_with_env(
        home: &'h Home,
        settings: &Settings,
        env: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(GOPHERSHIP);
        process::without_own_variables(&mut command).envs(env.iter().copied());
        Self::start_by(home, settings, command)
    }

    /// Starts it by `command`, which is given the daemon's arguments.
    #[track_caller]
    pub(crate) fn start_by(home: &'h Home, settings: &Settings, mut command: Command) -> Self {
        let config = home.write_config("gophership.yaml", &settings.yaml(home));
        command.args(["run", "--config"]).arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let log = Arc::default();
        collect(child.stderr.take().expect("a pipe"), Arc::clone(&log));
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        // Made before the wait, so that a daemon that never gets ready shows its log, too.
        let mut daemon = Self {
            home,
            child,
            log,
            grpc: unknown,
            http: unknown,
            telemetry: unknown,
        };
        daemon.await_ready();
        daemon
    }

    #[track_caller]
    fn await_ready(&mut self) {
        let mut exited = None;
        let mut ready = None;
        eventually("the daemon's line \"ready\"", PATIENCE, || {
            exited = self.child.try_wait().expect("the child can be waited for");
            ready = self.find_ready();
            ready.is_some() || exited.is_some()
        });
        let Some([grpc, http, telemetry]) = ready else {
            panic!("the daemon ended before it was ready: {exited:?}");
        };
        (self.grpc, self.http, self.telemetry) = (grpc, http, telemetry);
    }

    fn find_ready(&self) -> Option<[SocketAddr; 3]> {
        let log = self.log.lock().expect("the collector didn't panic");
        log.iter().find_map(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            let fields = event.get("fields").unwrap_or(&event);
            if fields.get("message")? != "ready" {
                return None;
            }
            let address = |name| fields.get(name)?.as_str()?.parse().ok();
            Some([address("grpc")?, address("http")?, address("telemetry")?])
        })
    }

    /// What outlives it.
    pub(crate) fn home(&self) -> &'h Home {
        self.home
    }

    /// Where producers connect.
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where producers connect by OTLP/HTTP.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where metrics and health are.
    pub(crate) fn telemetry(&self) -> SocketAddr {
        self.telemetry
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// A producer with a certificate, over TLS 1.3.
    #[track_caller]
    pub(crate) fn producer(&self) -> Producer {
        let tls = self.home.certs.client(ClientIdentity::Shown, &[&TLS13]);
        Producer::connect(self.grpc, tls).expect("the producer connects")
    }

    /// Runs the operator's command, which must succeed.
    #[track_caller]
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Finished {
        self.home.ctl(arguments).expect_success()
    }

    /// `gs-ctl status`.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let finished = self.ctl(&["status"]);
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|e| panic!("status is not JSON ({e}): {finished}"))
    }

    /// A number of the status by JSON pointer, such as `/vault/entries_pending`.
    #[track_caller]
    pub(crate) fn figure(&self, pointer: &str) -> u64 {
        let status = self.status();
        number(status.pointer(pointer))
            .unwrap_or_else(|| panic!("the status has no number at {pointer}: {status:#}"))
    }

    /// A text of the status by JSON pointer, such as `/zone`.
    #[track_caller]
    pub(crate) fn text(&self, pointer: &str) -> String {
        let status = self.status();
        let text = status.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_else(|| panic!("the status has no text at {pointer}: {status:#}"))
            .to_owned()
    }

    /// Waits until the status shows `zone`.
    #[track_caller]
    pub(crate) fn await_zone(&self, zone: &str) {
        eventually(&format!("zone {zone}"), PATIENCE, || {
            self.text("/zone") == zone
        });
    }

    /// Waits until nothing is pending in the vault.
    #[track_caller]
    pub(crate) fn await_empty_vault(&self) {
        eventually("an empty vault", PATIENCE, || {
            // What the recovery hasn't counted yet isn't pending.
            self.status()["vault"]["recovery"]["done"] == true
                && self.figure("/vault/entries_pending") == 0
        });
        assert_eq!(self.figure("/vault/records_pending"), 0);
    }

    /// Sum of a metric's samples that have all of `labels`.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (code, text) = telemetry::get(self.telemetry, "/metrics").expect("/metrics answers");
        assert_eq!(code, 200, "/metrics: {text}");
        telemetry::sum(&text, name, labels)
    }

    /// Lines of its log that contain `text`.
    pub(crate) fn log_lines(&self, text: &str) -> Vec<String> {
        let log = self.log.lock().expect("the collector didn't panic");
        log.iter().filter(|l| l.contains(text)).cloned().collect()
    }

    /// A value of `/proc/PID/status` in bytes, such as `VmRSS`.
    #[track_caller]
    pub(crate) fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the daemon runs");
        let value = status.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix(':')?;
            value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        value.expect("a number of kB") * 1024
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the daemon can be signalled");
    }

    /// Whether every thread of it is stopped by SIGSTOP.
    pub(crate) fn is_stopped(&self) -> bool {
        // Never panics: it is also asked while a failing test is being explained.
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid())) else {
            return false;
        };
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The state follows the name, which is in parentheses and may hold anything.
            stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
        })
    }

    /// SIGSTOP, until all threads are stopped.
    #[track_caller]
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        eventually("all threads stopped", PATIENCE, || self.is_stopped());
    }

    /// SIGKILL. The process is gone when this returns; its home is as it left it.
    pub(crate) fn kill9(mut self) {
        self.child.kill().expect("the daemon can be killed");
        self.child.wait().expect("the daemon can be waited for");
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn await_exit(&mut self, within: Duration) -> ExitStatus {
        process::wait(&mut self.child, within)
            .unwrap_or_else(|| panic!("the daemon didn't end within {within:?}"))
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub(crate) fn terminate(mut self, within: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.await_exit(within)
    }

    fn explain(&mut self) {
        let state = self.child.try_wait();
        eprintln!(
            "=== daemon {}: {state:?}; grpc {}, telemetry {}, home {}",
            self.child.id(),
            self.grpc,
            self.telemetry,
            self.home.dir.path().display()
        );
        if matches!(state, Ok(None)) && !self.is_stopped() {
            let mut command = self.home.ctl_command(&["status"]);
            match process::try_run(&mut command, Duration::from_secs(5)) {
                Ok(status) => eprintln!("=== gs-ctl status: {status}"),
                Err(problem) => eprintln!("=== gs-ctl status: {problem}"),
            }
        }
        if let Ok(log) = self.log.lock() {
            let tail = log.len().saturating_sub(TAIL_LINES);
            eprintln!("=== last lines of the daemon's log, of {}:", log.len());
            for line in &log[tail..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.explain();
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// A count of the status: JSON of protobuf writes 64-bit integers as strings.
pub(crate) fn number(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn collect(stderr: ChildStderr, log: Arc<Mutex<Vec<String>>>) {
    thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).into_owned();
            log.lock().expect("no reader panicked").push(line);
        }
    });
}

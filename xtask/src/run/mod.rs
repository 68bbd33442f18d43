//! `cargo xtask run`: from a bare machine to a daemon that accepts logs, in the foreground.

pub(crate) mod config;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{build, process, setup, workspace::Workspace};

const GRPC_ADDRESS: &str = "127.0.0.1:4317";
const HTTP_ADDRESS: &str = "127.0.0.1:4318";
const TELEMETRY_ADDRESS: &str = "127.0.0.1:9091";

/// Where the state of the development daemon is.
pub(crate) struct DevFiles {
    config: PathBuf,
    certs: PathBuf,
    vault: PathBuf,
    socket: PathBuf,
    audit_log: PathBuf,
    events: PathBuf,
    logs: PathBuf,
    send_script: PathBuf,
}

impl DevFiles {
    pub(crate) fn below(dev: &Path) -> Self {
        Self {
            config: dev.join("gophership.yaml"),
            certs: dev.join("certs"),
            vault: dev.join("vault"),
            socket: dev.join("control.sock"),
            audit_log: dev.join("audit.jsonl"),
            events: dev.join("events.jsonl"),
            logs: dev.join("logs.jsonl"),
            send_script: dev.join("send.py"),
        }
    }

    /// What `gs-ctl certs init` writes.
    fn certificates(&self) -> [PathBuf; 6] {
        [
            "ca.pem",
            "ca.key",
            "server.pem",
            "server.key",
            "client.pem",
            "client.key",
        ]
        .map(|name| self.certs.join(name))
    }
}

/// Sets up, builds, prepares `target/dev/` and becomes the daemon; returns only on failure.
pub(crate) fn daemon(workspace: &Workspace, daemon_args: &[String]) -> Result<()> {
    let kernel_half = setup::for_building(workspace)?;
    build::both_halves(workspace, &kernel_half, false)?;

    let dev = workspace.dev();
    fs::create_dir_all(&dev).with_context(|| format!("cannot create {}", dev.display()))?;
    let owner = give_to_the_owner_of(&workspace.root, &dev)?;
    let files = DevFiles::below(&dev);
    ensure_certificates(workspace, &files)?;
    write_if_absent(&files.config, || {
        Ok(config::yaml(&files, own_uid()?, owner))
    })?;
    write_if_absent(&files.send_script, || Ok(SEND_SCRIPT.to_owned()))?;
    print!("{}", guide(workspace, &files));

    let mut daemon = Command::new(workspace.dev_program("gophership"));
    daemon
        .args(["run", "--config"])
        .arg(&files.config)
        .args(daemon_args);
    // This process becomes the daemon, so that Ctrl-C and signals reach it directly.
    Err(daemon.exec()).context("cannot run the daemon")
}

fn ensure_certificates(workspace: &Workspace, files: &DevFiles) -> Result<()> {
    let missing: Vec<_> = files
        .certificates()
        .into_iter()
        .filter(|file| !file.exists())
        .collect();
    match missing.len() {
        0 => Ok(()),
        6 => process::succeed(
            Command::new(workspace.dev_program("gs-ctl"))
                .args(["certs", "init", "--dir"])
                .arg(&files.certs)
                .args(["--host", "localhost", "--host", "127.0.0.1"]),
        ),
        _ => bail!(
            "{} is incomplete ({} is missing): remove it to have it made anew",
            files.certs.display(),
            missing[0].display()
        ),
    }
}

fn write_if_absent(path: &Path, content: impl FnOnce() -> Result<String>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::write(path, content()?).with_context(|| format!("cannot write {}", path.display()))
}

/// The daemon writes as the owner of the checkout, also if root starts it: without capabilities root
/// may not even get through other people's directories. Returns the owner of `dev`.
fn give_to_the_owner_of(root: &Path, dev: &Path) -> Result<(u32, u32)> {
    let owner = |path: &Path| {
        let metadata =
            fs::metadata(path).with_context(|| format!("cannot read {}", path.display()));
        metadata.map(|metadata| (metadata.uid(), metadata.gid()))
    };
    let (uid, gid) = owner(root)?;
    if own_uid()? == 0 {
        chown(dev, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to its owner", dev.display()))?;
    }
    owner(dev)
}

fn own_uid() -> Result<u32> {
    Ok(fs::metadata("/proc/self")
        .context("cannot read /proc/self")?
        .uid())
}

/// Sends one log record; the exporter takes its settings from the environment.
const SEND_SCRIPT: &str = include_str!("send.py");

/// How to send a log to the daemon, and how to watch it.
fn guide(workspace: &Workspace, files: &DevFiles) -> String {
    let gs_ctl = format!(
        "{} --endpoint unix:{}",
        workspace.dev_program("gs-ctl").display(),
        files.socket.display()
    );
    let venv = workspace.dev().join("venv");
    let certs = files.certs.display();
    format!(
        "\
GopherShip runs in the foreground; Ctrl-C drains and stops it.
Its configuration is {config}.

Send a log from another terminal, with any OpenTelemetry SDK that has these variables:

    export OTEL_EXPORTER_OTLP_ENDPOINT=https://localhost:4317
    export OTEL_EXPORTER_OTLP_PROTOCOL=grpc
    export OTEL_EXPORTER_OTLP_INSECURE=false
    export OTEL_EXPORTER_OTLP_CERTIFICATE={certs}/ca.pem
    export OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE={certs}/client.pem
    export OTEL_EXPORTER_OTLP_CLIENT_KEY={certs}/client.key

for example the one for Python:

    python3 -m venv {venv}
    {venv}/bin/pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-grpc
    {venv}/bin/python {send_script} 'hello, GopherShip'

Watch:

    tail -f {logs}
    {gs_ctl} status
    {gs_ctl} override --zone red --for 1m
    curl http://{TELEMETRY_ADDRESS}/metrics

",
        config = files.config.display(),
        venv = venv.display(),
        send_script = files.send_script.display(),
        logs = files.logs.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_names_every_variable_an_sdk_needs() {
        let workspace = Workspace {
            root: "/src".into(),
            target: "/src/target".into(),
        };
        let guide = guide(&workspace, &DevFiles::below(&workspace.dev()));
        for line in [
            "OTEL_EXPORTER_OTLP_ENDPOINT=https://localhost:4317\n",
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc\n",
            "OTEL_EXPORTER_OTLP_INSECURE=false\n",
            "OTEL_EXPORTER_OTLP_CERTIFICATE=/src/target/dev/certs/ca.pem\n",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/src/target/dev/certs/client.pem\n",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY=/src/target/dev/certs/client.key\n",
            "/src/target/debug/gs-ctl --endpoint unix:/src/target/dev/control.sock status\n",
        ] {
            assert!(guide.contains(line), "{line}");
        }
    }

    #[test]
    fn what_the_user_changed_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gophership.yaml");
        write_if_absent(&path, || Ok("first".to_owned())).unwrap();
        write_if_absent(&path, || Ok("second".to_owned())).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "first");
    }

    #[test]
    fn incomplete_certificates_are_named_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace {
            root: dir.path().into(),
            target: dir.path().into(),
        };
        let files = DevFiles::below(dir.path());
        fs::create_dir(&files.certs).unwrap();
        for file in files.certificates() {
            fs::write(file, "").unwrap();
        }
        ensure_certificates(&workspace, &files).unwrap();
        fs::remove_file(files.certs.join("client.key")).unwrap();
        let error = ensure_certificates(&workspace, &files).unwrap_err();
        assert!(error.to_string().contains("client.key"), "{error}");
    }
}

//! The daemon under measurement: a child process with a configuration of its own.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;

/// Longest wait for anything the daemon does.
const WITHIN: Duration = Duration::from_secs(20);

/// What the machine around a measurement does is no cause: only sockets, budgets and heartbeats are.
pub(crate) const UNDISTURBED: &str = "
  listen_backlog: { yellow: off, red: off }
  memory_stall: { yellow: off, red: off }
  memory_available: { yellow: 2%, red: 1% }
  cpu_wait: { yellow: off, red: off }
  disk_latency: { yellow: off }
  ingress: { horizon: off }";

/// Programs, certificates and a directory that is ours.
pub(crate) struct Site {
    programs: PathBuf,
    scratch: PathBuf,
}

impl Site {
    /// # Errors
    /// If the directory or the certificates can't be made.
    pub(crate) fn new(programs: PathBuf, scratch: PathBuf) -> Result<Self> {
        let site = Self { programs, scratch };
        if !site.certs().join("client.key").exists() {
            fs::create_dir_all(&site.scratch)?;
            let status = Command::new(site.programs.join("gs-ctl"))
                .args(["certs", "init", "--dir"])
                .arg(site.certs())
                .args(["--host", "localhost", "--host", "127.0.0.1"])
                .stdout(Stdio::null())
                .status()
                .context("cannot run gs-ctl")?;
            ensure!(status.success(), "gs-ctl certs init failed ({status})");
        }
        Ok(site)
    }

    fn certs(&self) -> PathBuf {
        self.scratch.join("certs")
    }

    /// A producer's TLS.
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>> {
        client_tls(&self.certs())
    }

    fn config(&self, settings: &Settings<'_>) -> String {
        let path = |name: &str| self.scratch.join(name).display().to_string();
        format!(
            "\
ingest:
  grpc: {{ listen: \"127.0.0.1:0\" }}
  http: {{ listen: \"127.0.0.1:0\" }}
  tls:
    cert: '{cert}'
    key: '{key}'
    client_ca: '{ca}'
    client_auth: required
pressure:
  kernel: {kernel}{pressure}
vault:
  dir: '{vault}'
  max_bytes: 1GiB
export:
  ack_within: {ack_within}
  destinations:
    - name: sink
      otlp: {{ endpoint: \"http://{sink}\", tls: {{ insecure: true }} }}
control:
  unix: {{ path: '{control}', allow_uids: [{uid}] }}
telemetry:
  listen: \"127.0.0.1:0\"
  log: {{ level: info, format: json }}
  audit_log: '{audit}'
",
            cert = path("certs/server.pem"),
            key = path("certs/server.key"),
            ca = path("certs/ca.pem"),
            kernel = settings.kernel,
            pressure = settings.pressure,
            vault = path("vault"),
            ack_within = settings.ack_within,
            sink = settings.sink,
            control = path("control.sock"),
            uid = nix::unistd::getuid(),
            audit = path("audit.jsonl"),
        )
    }
}

/// What measurements vary.
pub(crate) struct Settings<'a> {
    /// `pressure.kernel`.
    pub(crate) kernel: &'a str,
    /// More lines below `pressure:`, each beginning with a newline.
    pub(crate) pressure: &'a str,
    /// `export.ack_within`.
    pub(crate) ack_within: &'a str,
    /// The only destination.
    pub(crate) sink: SocketAddr,
    /// Environment variables.
    pub(crate) env: &'a [(&'a str, &'a str)],
}

/// A daemon that runs until it is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    grpc: SocketAddr,
}

impl Daemon {
    /// Starts with an empty vault, and waits until it is ready.
    pub(crate) fn start(site: &Site, settings: &Settings<'_>) -> Result<Self> {
        let vault = site.scratch.join("vault");
        match fs::remove_dir_all(&vault) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&vault)?;
        let config = site.scratch.join("gophership.yaml");
        fs::write(&config, site.config(settings))?;
        let log = site.scratch.join("daemon.log");
        let mut command = Command::new(site.programs.join("gophership"));
        for (name, _) in std::env::vars_os() {
            // The caller's environment must not configure what is measured.
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("GOPHERSHIP_"))
            {
                command.env_remove(name);
            }
        }
        let child = command
            .envs(settings.env.iter().copied())
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot run the daemon")?;
        let mut daemon = Self {
            child,
            log,
            grpc: settings.sink,
        };
        daemon.grpc = daemon.ready()?;
        Ok(daemon)
    }

    fn ready(&mut self) -> Result<SocketAddr> {
        let started = Instant::now();
        loop {
            if let Some(address) = self.log_events("ready").find_map(|event| {
                let address = event.get("grpc")?.as_str()?;
                address.parse().ok()
            }) {
                return Ok(address);
            }
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the daemon ended before it was ready ({status}):\n{log}");
            }
            ensure!(started.elapsed() < WITHIN, "not ready within {WITHIN:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The fields of each line of its log that has this message.
    pub(crate) fn log_events(&self, message: &str) -> impl Iterator<Item = Value> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let events: Vec<Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|mut event| match event.get_mut("fields") {
                Some(fields) => fields.take(),
                None => event,
            })
            .filter(|fields| fields.get("message").and_then(Value::as_str) == Some(message))
            .collect();
        events.into_iter()
    }

    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGSTOP, until every thread is stopped.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let started = Instant::now();
        while !self.is_frozen() {
            ensure!(started.elapsed() < WITHIN, "the daemon doesn't stop");
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to the daemon"))
    }

    fn is_frozen(&self) -> bool {
        tasks(self.pid()).all(|task| {
            let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
            // The state follows the name, which is in parentheses and may hold anything.
            stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing it holds is wanted, so it needn't drain; a stopped one dies, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Time on a CPU of all threads that the process has now.
pub(crate) fn cpu_ns(pid: u32) -> u64 {
    tasks(pid)
        .filter_map(|task| {
            let stat = fs::read_to_string(task.join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

/// How all CPUs have spent their time since boot.
pub(crate) struct CpuTime {
    pub(crate) all_ns: u64,
    pub(crate) busy_ns: u64,
    pub(crate) idle_ns: u64,
    /// Taken by the host of a virtual machine.
    pub(crate) stolen_ns: u64,
}

impl CpuTime {
    pub(crate) fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&stat).context("/proc/stat has no line `cpu`")
    }

    /// `cpu USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL …`, in hundredths of a second.
    fn parse(stat: &str) -> Option<Self> {
        const TICK_NS: u64 = 10_000_000;
        let times: Vec<u64> = stat
            .strip_prefix("cpu ")?
            .lines()
            .next()?
            .split_whitespace()
            .take(8)
            .filter_map(|time| time.parse().ok())
            .collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal] = times[..] else {
            return None;
        };
        let busy = user + nice + system + irq + softirq;
        Some(Self {
            all_ns: (busy + idle + iowait + steal) * TICK_NS,
            busy_ns: busy * TICK_NS,
            idle_ns: (idle + iowait) * TICK_NS,
            stolen_ns: steal * TICK_NS,
        })
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            all_ns: self.all_ns - earlier.all_ns,
            busy_ns: self.busy_ns - earlier.busy_ns,
            // The kernel's idle time has been seen to go back.
            idle_ns: self.idle_ns.saturating_sub(earlier.idle_ns),
            stolen_ns: self.stolen_ns.saturating_sub(earlier.stolen_ns),
        }
    }
}

fn tasks(pid: u32) -> impl Iterator<Item = PathBuf> {
    let directory = fs::read_dir(format!("/proc/{pid}/task"));
    directory
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| task.path())
}

/// TLS 1.3 for HTTP/2 with the client certificate of a directory that `gs-ctl certs init` made.
pub(crate) fn client_tls(certs: &Path) -> Result<Arc<ClientConfig>> {
    let chain = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
        let path = certs.join(name);
        let read = CertificateDer::pem_file_iter(&path)?.collect::<Result<_, _>>();
        read.with_context(|| format!("cannot read {}", path.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in chain("ca.pem")? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            chain("client.pem")?,
            PrivateKeyDer::from_pem_file(certs.join("client.key"))?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_of_all_cpus_and_guests_count_once() {
        let stat = "cpu  1 2 3 40 5 6 7 8 100 100\ncpu0 9 9 9 9 9 9 9 9 0 0\n";
        let time = CpuTime::parse(stat).unwrap();
        assert_eq!(time.busy_ns, 190_000_000);
        assert_eq!(time.idle_ns, 450_000_000);
        assert_eq!(time.stolen_ns, 80_000_000);
        assert_eq!(time.all_ns, 720_000_000);
        assert!(CpuTime::parse("intr 1\n").is_none());
    }
}

//! The daemon under measurement: a child process with a configuration of its own.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
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

    /// Another, for a daemon beside one of this.
    pub(crate) fn beside(&self) -> Result<Self> {
        Self::new(self.programs.clone(), self.scratch.join("beside"))
    }

    fn certs(&self) -> PathBuf {
        self.scratch.join("certs")
    }

    /// A producer's TLS.
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>> {
        client_tls(&self.certs())
    }

    fn control(&self) -> PathBuf {
        self.scratch.join("control.sock")
    }

    fn config(&self, settings: &Settings<'_>) -> String {
        let path = |name: &str| self.scratch.join(name).display().to_string();
        let tls = match settings.plaintext {
            true => "plaintext: true".to_owned(),
            false => format!(
                "tls: {{ cert: '{}', key: '{}', client_ca: '{}', client_auth: required }}",
                path("certs/server.pem"),
                path("certs/server.key"),
                path("certs/ca.pem"),
            ),
        };
        format!(
            "\
ingest:
  grpc: {{ listen: \"127.0.0.1:0\" }}
  http: {{ listen: \"127.0.0.1:0\" }}
  {tls}{ingest}
memory: {{ total: {memory} }}
pressure:
  kernel: {kernel}{pressure}
vault:
  dir: '{dir}'
  max_bytes: {max_bytes}
  compression: {compression}
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
            ingest = settings.ingest,
            memory = settings.memory,
            kernel = settings.kernel,
            pressure = settings.pressure,
            dir = path("vault"),
            max_bytes = settings.vault_bytes,
            compression = settings.compression,
            ack_within = settings.ack_within,
            sink = settings.sink,
            control = self.control().display(),
            uid = nix::unistd::getuid(),
            audit = path("audit.jsonl"),
        )
    }
}

/// What measurements vary.
#[derive(Clone)]
pub(crate) struct Settings<'a> {
    /// The program that is started with `run --config FILE`.
    pub(crate) program: &'a str,
    /// Without TLS.
    pub(crate) plaintext: bool,
    /// More lines below `ingest:`, each beginning with a newline.
    pub(crate) ingest: &'a str,
    /// `memory.total`.
    pub(crate) memory: &'a str,
    /// `vault.max_bytes`.
    pub(crate) vault_bytes: &'a str,
    /// `vault.compression`.
    pub(crate) compression: &'a str,
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

impl<'a> Settings<'a> {
    /// A daemon that user space judges for, undisturbed by what the machine around it does, which waits for its
    /// destination as long as it takes.
    pub(crate) const fn new(sink: SocketAddr) -> Self {
        Self {
            program: "gophership",
            plaintext: false,
            ingest: "",
            memory: "auto",
            vault_bytes: "1GiB",
            compression: "auto",
            kernel: "off",
            pressure: UNDISTURBED,
            ack_within: "10s",
            sink,
            env: &[],
        }
    }
}

/// A daemon that runs until it is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    output: PathBuf,
    gs_ctl: PathBuf,
    control: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    telemetry: SocketAddr,
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
        let output = site.scratch.join("daemon.out");
        let mut command = Command::new(site.programs.join(settings.program));
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
            .stdout(File::create(&output)?)
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot run the daemon")?;
        let nowhere = settings.sink;
        let mut daemon = Self {
            child,
            log,
            output,
            gs_ctl: site.programs.join("gs-ctl"),
            control: site.control(),
            grpc: nowhere,
            http: nowhere,
            telemetry: nowhere,
        };
        daemon.ready()?;
        Ok(daemon)
    }

    fn ready(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let event = self.log_events("ready").next();
            if let Some(event) = event {
                let address = |name: &str| -> Result<SocketAddr> {
                    let address = event.get(name).and_then(Value::as_str);
                    Ok(address.context("an address is missing")?.parse()?)
                };
                self.grpc = address("grpc")?;
                self.http = address("http")?;
                self.telemetry = address("telemetry")?;
                return Ok(());
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

    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// Holds a zone until the end.
    pub(crate) fn hold(&self, zone: &str) -> Result<()> {
        self.ctl(&["override", "--zone", zone, "--for", "forever"])
    }

    /// Runs the operator's command.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.gs_ctl)
            .arg(format!("--endpoint=unix:{}", self.control.display()))
            .args(arguments)
            .output()
            .context("cannot run gs-ctl")?;
        ensure!(
            output.status.success(),
            "gs-ctl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// The page `/metrics`.
    pub(crate) fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.telemetry)?;
        stream.set_read_timeout(Some(WITHIN))?;
        let host = self.telemetry;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// Sum of a metric's samples.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let page = self.metrics()?;
        let samples = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_whole = rest.starts_with('{') || rest.starts_with(' ');
            is_whole.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        Ok(samples.sum())
    }
    /// A line of `/proc/PID/status` that has kibibytes, in bytes: `VmRSS`, or `VmHWM` for its peak.
    pub(crate) fn memory(&self, line: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib = status.lines().find_map(|text| {
            let rest = text.strip_prefix(line)?.strip_prefix(':')?;
            rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        Ok(kib.with_context(|| format!("no {line}"))? * 1024)
    }

    /// The number that the program keeps at the beginning of its standard output.
    pub(crate) fn number(&self) -> Result<u64> {
        let output = fs::read(&self.output)?;
        let bytes = output.first_chunk().context("there is no number")?;
        Ok(u64::from_le_bytes(*bytes))
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
    tasks(pid).filter_map(|task| schedstat_ns(&task)).sum()
}

fn schedstat_ns(task: &Path) -> Option<u64> {
    let stat = fs::read_to_string(task.join("schedstat")).ok()?;
    stat.split(' ').next()?.parse().ok()
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

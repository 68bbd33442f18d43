//! The configuration file of a daemon under test.

use super::daemon::Home;

/// What the tests vary; the rest is small and quick.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `ingest.grpc.listen`.
    pub(crate) listen: &'static str,
    /// `ingest.plaintext`.
    pub(crate) plaintext: bool,
    /// Whether there is an `ingest.unix.path`, [`Home::ingest_socket`].
    pub(crate) unix: bool,
    /// `pressure.kernel`.
    pub(crate) kernel: &'static str,
    /// Of `pressure`: what the machine around the test does, off unless the test is about it.
    pub(crate) thresholds: Vec<&'static str>,
    /// `ingest.workers`.
    pub(crate) workers: u32,
    /// `ingest.max_request_bytes`.
    pub(crate) max_request_bytes: &'static str,
    /// `memory.total`.
    pub(crate) memory_total: &'static str,
    /// `memory.export`.
    pub(crate) memory_export: &'static str,
    /// `vault.max_bytes`.
    pub(crate) vault_max_bytes: &'static str,
    /// `vault.segment_bytes`.
    pub(crate) segment_bytes: &'static str,
    /// `vault.on_full`.
    pub(crate) on_full: &'static str,
    /// `replay.auto`.
    pub(crate) replay_auto: bool,
    /// `export.ack_within`.
    pub(crate) ack_within: &'static str,
    /// `export.batch.max_bytes`.
    pub(crate) batch_max_bytes: &'static str,
    /// `export.batch.linger`.
    pub(crate) batch_linger: &'static str,
    /// `service.user`.
    pub(crate) service_user: String,
    /// `export.destinations`, each a YAML flow mapping.
    pub(crate) destinations: Vec<String>,
    /// `enrich`: nothing unless the test is about it, so that destinations get what was sent.
    pub(crate) enrich: &'static str,
    /// More YAML, of sections that the rest doesn't have.
    pub(crate) extra: String,
}

impl Settings {
    /// To one destination, such as [`super::sink::Sink::destination`] gives.
    pub(crate) fn to(destination: String) -> Self {
        Self {
            listen: "127.0.0.1:0",
            plaintext: false,
            unix: false,
            kernel: "auto",
            thresholds: vec![
                "memory_stall: { yellow: off, red: off }",
                "memory_available: { yellow: 2%, red: 1% }",
                "cpu_wait: { yellow: off, red: off }",
                "disk_latency: { yellow: off }",
                "listen_backlog: { yellow: off, red: off }",
                "ingress: { horizon: off }",
            ],
            workers: 2,
            max_request_bytes: "2MiB",
            memory_total: "192MiB",
            memory_export: "30%",
            vault_max_bytes: "256MiB",
            segment_bytes: "8MiB",
            on_full: "refuse",
            replay_auto: true,
            ack_within: "20ms",
            batch_max_bytes: "1MiB",
            batch_linger: "5ms",
            // Not auto: the machine may have a user gophership, who couldn't write here.
            service_user: format!("{}:{}", nix::unistd::getuid(), nix::unistd::getgid()),
            destinations: vec![destination],
            enrich: "{ detect: [] }",
            extra: String::new(),
        }
    }

    fn unix_path(&self, home: &Home) -> String {
        match self.unix {
            true => format!("\"{}\"", home.ingest_socket().display()),
            false => "null".to_owned(),
        }
    }

    /// The sections that the rest doesn't have.
    fn more(&self) -> String {
        format!("enrich: {}\n{}", self.enrich, self.extra)
    }

    /// The YAML, for a daemon that lives in `home`.
    pub(crate) fn yaml(&self, home: &Home) -> String {
        let certs = home.certs();
        let destinations: String = self
            .destinations
            .iter()
            .map(|destination| format!("\n    - {destination}"))
            .collect();
        format!(
            r#"ingest:
  grpc: {{ listen: "{listen}" }}
  http: {{ listen: "127.0.0.1:0" }}
  unix: {{ path: {unix} }}
  plaintext: {plaintext}
  tls:
    cert: "{cert}"
    key: "{key}"
    client_ca: "{client_ca}"
    client_auth: required
  max_request_bytes: {max_request_bytes}
  workers: {workers}
memory: {{ total: {memory_total}, ingest: 50%, export: {memory_export}, vault: 20% }}
pressure:
  kernel: {kernel}
  hold: 300ms
  {thresholds}
vault:
  dir: "{vault}"
  max_bytes: {vault_max_bytes}
  segment_bytes: {segment_bytes}
  on_full: {on_full}
replay: {{ auto: {replay_auto}, after: 100ms, max_bytes_per_second: 256MiB }}
export:
  ack_within: {ack_within}
  batch: {{ max_bytes: {batch_max_bytes}, linger: {batch_linger} }}
  destinations:{destinations}
control:
  unix: {{ path: "{control}", mode: "0600", allow_uids: [{uid}] }}
telemetry:
  listen: "127.0.0.1:0"
  log: {{ level: info, format: json }}
  audit_log: "{audit}"
  events: "{events}"
service: {{ user: "{service_user}" }}
{extra}"#,
            listen = self.listen,
            unix = self.unix_path(home),
            plaintext = self.plaintext,
            cert = certs.path("server.pem").display(),
            key = certs.path("server.key").display(),
            client_ca = certs.path("ca.pem").display(),
            max_request_bytes = self.max_request_bytes,
            workers = self.workers,
            memory_total = self.memory_total,
            memory_export = self.memory_export,
            kernel = self.kernel,
            thresholds = self.thresholds.join("\n  "),
            vault = home.vault().display(),
            vault_max_bytes = self.vault_max_bytes,
            segment_bytes = self.segment_bytes,
            on_full = self.on_full,
            replay_auto = self.replay_auto,
            ack_within = self.ack_within,
            batch_max_bytes = self.batch_max_bytes,
            batch_linger = self.batch_linger,
            control = home.control_socket().display(),
            uid = nix::unistd::getuid(),
            audit = home.audit_log().display(),
            events = home.events().display(),
            service_user = self.service_user,
            extra = self.more(),
        )
    }
}

//! The development daemon's configuration: loopback only, all state below `target/dev/`.

use std::path::Path;

use super::{DevFiles, GRPC_ADDRESS, HTTP_ADDRESS, TELEMETRY_ADDRESS};

/// The configuration file's text. Paths are absolute: the daemon may be started from anywhere.
///
/// `owner` (uid and gid) is whom a daemon that root starts becomes.
pub(crate) fn yaml(files: &DevFiles, own_uid: u32, owner: (u32, u32)) -> String {
    let certs = &files.certs;
    format!(
        "\
# Made by `cargo xtask run`, which keeps what you change here. Keys that are not set have their
# defaults, which README.md lists.
ingest:
  grpc: {{ listen: \"{GRPC_ADDRESS}\" }}
  http: {{ listen: \"{HTTP_ADDRESS}\" }}
  tls:
    cert: {cert}
    key: {key}
    client_ca: {ca}
    client_auth: required
vault:
  dir: {vault}
  max_bytes: 1GiB
export:
  destinations:
    - name: local
      file:
        path: {logs}
control:
  unix:
    path: {socket}
    mode: \"0600\"
    allow_uids: [{own_uid}]
telemetry:
  listen: \"{TELEMETRY_ADDRESS}\"
  log: {{ level: info, format: pretty }}
  audit_log: {audit_log}
  events: {events}
service:
  user: \"{uid}:{gid}\"
",
        uid = owner.0,
        gid = owner.1,
        cert = quoted(&certs.join("server.pem")),
        key = quoted(&certs.join("server.key")),
        ca = quoted(&certs.join("ca.pem")),
        vault = quoted(&files.vault),
        logs = quoted(&files.logs),
        socket = quoted(&files.socket),
        audit_log = quoted(&files.audit_log),
        events = quoted(&files.events),
    )
}

/// A YAML scalar that means exactly this path.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_yaml() {
        assert_eq!(quoted(Path::new("/a b/it's #1: x")), "'/a b/it''s #1: x'");
    }

    #[test]
    fn state_is_below_the_given_directory_and_the_caller_may_control() {
        let text = yaml(&DevFiles::below(Path::new("/dev-state")), 1000, (1000, 100));
        for line in [
            "  dir: '/dev-state/vault'\n",
            "        path: '/dev-state/logs.jsonl'\n",
            "    path: '/dev-state/control.sock'\n",
            "    allow_uids: [1000]\n",
            "  audit_log: '/dev-state/audit.jsonl'\n",
            "  events: '/dev-state/events.jsonl'\n",
            "  user: \"1000:100\"\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}

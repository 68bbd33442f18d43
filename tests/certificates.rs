//! Certificates that change under a running daemon.

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use common::{
    PATIENCE,
    authority::{Authority, NOW, Pair, Role, certificate, handshake},
    certs::GS_CTL,
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    process::{self, Finished},
    producer::Producer,
    settings::Settings,
    sink::Sink,
};
use nix::sys::signal::Signal;
use rustls::{ClientConfig, HandshakeKind};

const SHAPE: Shape = Shape {
    records: 3,
    body_bytes: 100,
};

/// Certificates of two authorities' making in a home: one for the server, one for its clients.
struct Site {
    home: Home,
    servers: Authority,
    clients: Authority,
    server: Pair,
    client: Pair,
}

impl Site {
    fn new() -> Self {
        let (servers, clients) = (Authority::new(), Authority::new());
        let site = Self {
            home: Home::new(),
            server: servers.issue(Role::Server, &NOW),
            client: clients.issue(Role::Client, &NOW),
            servers,
            clients,
        };
        site.write("ca.pem", &site.clients.pem);
        site.write("server.pem", &site.server.cert);
        site.write("server.key", &site.server.key);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.certs().path(name)
    }

    /// Writes over a file in place.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn start(&self, sink: &Sink) -> Daemon<'_> {
        Daemon::start(&self.home, &Settings::to(sink.destination("main", "10s")))
    }

    fn tls(&self) -> Arc<ClientConfig> {
        self.servers.client(Some(&self.client))
    }

    /// Whether the daemon shows this certificate.
    #[track_caller]
    fn is_served(&self, daemon: &Daemon<'_>, server: &Pair) -> bool {
        let seen = handshake(daemon.grpc(), &self.tls()).expect("served");
        seen.certificate == certificate(&server.cert)
    }

    #[track_caller]
    fn await_served(&self, daemon: &Daemon<'_>, server: &Pair, way: &str) {
        eventually(&format!("the new certificate, {way}"), PATIENCE, || {
            self.is_served(daemon, server)
        });
    }
}

fn reloads(daemon: &Daemon<'_>, outcome: &str) -> f64 {
    daemon.metric("gophership_tls_reloads_total", &[("outcome", outcome)])
}

#[track_caller]
fn await_reloads(daemon: &Daemon<'_>, outcome: &str, times: f64) {
    eventually(&format!("{times} reloads: {outcome}"), PATIENCE, || {
        reloads(daemon, outcome) >= times
    });
}

/// The status as operators read it.
#[track_caller]
fn table(home: &Home) -> Finished {
    let endpoint = format!("unix:{}", home.control_socket().display());
    let mut command = Command::new(GS_CTL);
    command.args(["--endpoint", &endpoint, "status"]);
    process::run(process::without_own_variables(&mut command), PATIENCE).expect_success()
}

/// Puts a link in place of whatever is there, at once.
fn turn(link: &Path, to: &Path) {
    let next = link.with_file_name("turning");
    symlink(to, &next).expect("a link");
    fs::rename(&next, link).expect("turned");
}

#[test]
fn new_certificates_are_taken_up_by_themselves_however_they_are_put_in_place() {
    let (site, sink) = (Site::new(), Sink::up());
    let new = || site.servers.issue(Role::Server, &NOW);
    // As Kubernetes mounts a secret: each file is a link through a link to a directory.
    let version = |number: u32, pair: &Pair| {
        let directory = site.path(&format!("..{number}"));
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("server.pem"), &pair.cert).expect("written");
        fs::write(directory.join("server.key"), &pair.key).expect("written");
        turn(&site.path("..data"), &directory);
    };
    version(1, &site.server);
    for name in ["server.pem", "server.key"] {
        turn(&site.path(name), &Path::new("..data").join(name));
    }
    let daemon = site.start(&sink);
    assert!(site.is_served(&daemon, &site.server));
    let pair = new();
    version(2, &pair);
    site.await_served(&daemon, &pair, "by turning the directory's link");

    // As certbot does it: files with a new name each time, and links that lead to them.
    let pair = new();
    for (name, text) in [("server.pem", &pair.cert), ("server.key", &pair.key)] {
        let archived = site.path(&format!("archived-{name}"));
        fs::write(&archived, text).expect("written");
        turn(&site.path(name), &archived);
    }
    site.await_served(&daemon, &pair, "by turning the files' links");

    // As others do it: a file renamed over the old one.
    let pair = new();
    for (name, text) in [("server.pem", &pair.cert), ("server.key", &pair.key)] {
        let next = site.path(&format!("next-{name}"));
        fs::write(&next, text).expect("written");
        fs::rename(&next, site.path(name)).expect("renamed");
    }
    site.await_served(&daemon, &pair, "by renaming");

    let pair = new();
    site.write("server.pem", &pair.cert);
    site.write("server.key", &pair.key);
    site.await_served(&daemon, &pair, "by writing in place");
}

#[test]
fn sighup_reads_the_certificates_again_and_ends_nothing() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let producer = Producer::connect(daemon.grpc(), site.tls()).expect("served");
    daemon.signal(Signal::SIGHUP);
    await_reloads(&daemon, "success", 1.0);
    assert_eq!(daemon.figure("/ingest/tls/reloads"), 1);
    let said = daemon.log_lines("SIGHUP");
    assert!(
        said.iter().any(|line| line.contains("configuration isn't")),
        "{said:?}"
    );
    eventually("the log has until when, legibly", PATIENCE, || {
        let lines = daemon.log_lines("certificates reloaded");
        let ends = ["cert until 20", "client_ca until "];
        lines
            .iter()
            .any(|line| ends.iter().all(|end| line.contains(end)))
    });
    producer.export_all(&Messages::new(71, SHAPE).take(3));
    assert!(site.is_served(&daemon, &site.server));
}

#[test]
fn a_set_that_does_not_go_together_is_refused_and_said_and_the_old_one_stays() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let pair = site.servers.issue(Role::Server, &NOW);
    // Half of it: the certificate is there, its key isn't yet.
    site.write("server.pem", &pair.cert);
    await_reloads(&daemon, "failure", 1.0);
    assert!(site.is_served(&daemon, &site.server));
    let failure = daemon.text("/ingest/tls/failure");
    let key = site.path("server.key").display().to_string();
    assert!(failure.contains("ingest.tls.cert"), "{failure}");
    assert!(
        failure.contains(&format!("{key} is not its key")),
        "{failure}"
    );
    let told = daemon.log_lines("the old ones stay in force");
    assert_eq!(told.len(), 1, "{told:?}");
    let table = table(&site.home);
    assert!(
        table.stdout.contains("certificates not reloaded"),
        "{table}"
    );

    site.write("server.key", &pair.key);
    site.await_served(&daemon, &pair, "once it is whole");
    assert!(daemon.status()["ingest"]["tls"]["failure"].is_null());

    let failed = reloads(&daemon, "failure");
    site.write(
        "ca.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    await_reloads(&daemon, "failure", failed + 1.0);
    let failure = daemon.text("/ingest/tls/failure");
    assert!(failure.contains("ingest.tls.client_ca"), "{failure}");
    assert!(
        site.is_served(&daemon, &pair),
        "the clients are still trusted"
    );
}

#[test]
fn who_was_let_in_by_a_removed_authority_is_not_let_in_again_not_even_by_resuming() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let producer = Producer::connect(daemon.grpc(), site.tls()).expect("served");
    // It remembers its sessions; two, since one that is resumed is used up.
    let tls = site.tls();
    let kind = || handshake(daemon.grpc(), &tls).map(|seen| seen.kind);
    assert_eq!(kind(), Ok(HandshakeKind::Full));
    assert_eq!(kind(), Ok(HandshakeKind::Resumed));

    let others = Authority::new();
    site.write("ca.pem", &others.pem);
    await_reloads(&daemon, "success", 1.0);
    let refused = kind().expect_err("let in");
    eprintln!("{refused}");
    eventually("the refusal is counted", PATIENCE, || {
        let name = "gophership_ingester_failed_handshakes_total";
        daemon.metric(name, &[("reason", "unknown_authority")]) >= 1.0
    });
    let other = others.issue(Role::Client, &NOW);
    handshake(daemon.grpc(), &site.servers.client(Some(&other))).expect("of the new authority");
    // Who is in stays in.
    producer.export_all(&Messages::new(72, SHAPE).take(3));
}

#[test]
fn when_the_certificates_end_is_shown_and_what_has_ended_is_warned_of() {
    let (site, sink) = (Site::new(), Sink::up());
    let daemon = site.start(&sink);
    let ends = |file: &str| {
        let name = "gophership_tls_certificate_not_after_timestamp_seconds";
        daemon.metric(name, &[("file", file)])
    };
    let not_after = |pem: &str| {
        let der = certificate(pem);
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
        let seconds = parsed.validity().not_after.timestamp();
        f64::from(i32::try_from(seconds).expect("before 2038"))
    };
    assert_eq!(ends("cert"), not_after(&site.server.cert));
    assert_eq!(ends("client_ca"), not_after(&site.clients.pem));
    assert!(daemon.log_lines("has expired").is_empty());

    // The first to end counts.
    let past = site.servers.issue(Role::Server, &(-48..-1));
    let dying = Authority::valid(&(-1..2));
    site.write("server.pem", &past.cert);
    site.write("server.key", &past.key);
    site.write("ca.pem", &format!("{}{}", site.clients.pem, dying.pem));
    eventually("the new ends", PATIENCE, || {
        ends("cert") == not_after(&past.cert) && ends("client_ca") == not_after(&dying.pem)
    });
    assert!(!daemon.log_lines("has expired").is_empty());
    let not_after = daemon.text("/ingest/tls/not_after/cert");
    assert!(not_after.ends_with('Z'), "{not_after}");
    let table = table(&site.home);
    assert!(table.stdout.contains("cert HAS EXPIRED"), "{table}");
}

//! A daemon on real interfaces.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use rustls::version::TLS13;
use serde_json::Value;

use super::{
    common::{
        PATIENCE,
        certs::ClientIdentity,
        daemon::{Daemon, Home},
        eventually,
        messages::{Messages, Shape},
        producer::Producer,
        settings::Settings,
        sink::Sink,
    },
    frames::Frame,
    kernel_tests_run,
    network::{
        CALLED_BY_ALLOWED, CALLED_BY_DENIED, Host, LATER, Network, PLAIN_V4, PLAIN_V6, SERVER_END,
        send,
    },
};

/// Long enough for an answer over a cable of memory, and for a machine with other things to do.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a dropped connection is waited for: the kernel asks again after one second.
const SILENCE: Duration = Duration::from_millis(800);

const SHAPE: Shape = Shape {
    records: 3,
    body_bytes: 200,
};

fn settings(sink: &Sink, xdp: &str) -> Settings {
    Settings {
        listen: "[::]:0",
        kernel: "required",
        extra: format!("xdp: {xdp}\n"),
        ..Settings::to(sink.destination("main", "10s"))
    }
}

/// Runs `job` with a daemon on the server.
fn with_daemon(xdp: &str, job: impl FnOnce(&Network, &Daemon<'_>) + Send) {
    if !kernel_tests_run() {
        return;
    }
    let network = Network::new();
    let network = &network;
    network.server.run(move || {
        let home = Home::new();
        let sink = Sink::up();
        let daemon = Daemon::start(&home, &settings(&sink, xdp));
        job(network, &daemon);
    });
}

fn interface(daemon: &Daemon<'_>, index: usize) -> Value {
    let status = daemon.status();
    let interface = status.pointer(&format!("/xdp/{index}"));
    interface
        .unwrap_or_else(|| panic!("no such interface: {status:#}"))
        .clone()
}

fn figure(daemon: &Daemon<'_>, name: &str) -> u64 {
    let interface = interface(daemon, 0);
    interface[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {name}: {interface:#}"))
}

fn port(daemon: &Daemon<'_>) -> u16 {
    daemon.grpc().port()
}

#[track_caller]
fn connected(host: &Host, to: &str, port: u16) -> TcpStream {
    host.connect(to, port, ANSWER)
        .unwrap_or_else(|| panic!("{to} doesn't answer"))
}

#[test]
fn native_mode_meters_ipv4_ipv6_and_vlan() {
    with_daemon(
        &format!("{{ interface: {SERVER_END} }}"),
        |network, daemon| {
            assert_eq!(interface(daemon, 0)["mode"], "native");
            assert_eq!(interface(daemon, 0)["reason"], Value::Null);
            let attached = network.server.program_on(SERVER_END);
            assert_eq!(attached.map(|(mode, _)| mode), Some(1), "{attached:?}");
            for (index, to) in [PLAIN_V4, PLAIN_V6].into_iter().enumerate() {
                let before = figure(daemon, "bytes");
                let connection = connected(&network.client, to, port(daemon));
                assert_eq!(figure(daemon, "syn"), index as u64 + 1, "{to}");
                // At least the SYN and the ACK, of 54 bytes and more each.
                assert!(figure(daemon, "bytes") >= before + 2 * 54, "{to}");
                drop(connection);
            }
            let mut tagged = Frame::syn("192.0.2.1", PLAIN_V4, port(daemon));
            tagged.tags = vec![0x88a8, 0x8100];
            let tagged_v6 = Frame {
                tags: vec![0x8100],
                ..Frame::syn("2001:db8:1::2", PLAIN_V6, port(daemon))
            };
            let truncated = tagged.bytes()[..tagged.transport() + 19].to_vec();
            let frames = [tagged.bytes(), truncated, tagged_v6.bytes()];
            network.client.run(|| send(&frames));
            eventually("tagged frames are counted", PATIENCE, || {
                figure(daemon, "syn") == 4
            });
            // Another port, and loopback, which goes by no cable.
            let elsewhere = daemon.telemetry().port();
            drop(TcpStream::connect(("127.0.0.1", port(daemon))).expect("loopback"));
            drop(TcpStream::connect(("127.0.0.1", elsewhere)).expect("loopback"));
            assert_eq!(figure(daemon, "syn"), 4);
            let labels = [("interface", SERVER_END)];
            assert!(daemon.metric("gophership_xdp_packets_total", &labels) >= 6.0);
            assert!(daemon.metric("gophership_xdp_bytes_total", &labels) >= 6.0 * 54.0);
            assert!(daemon.metric("gophership_xdp_syn_total", &labels) >= 4.0);
            assert!(daemon.metric("gophership_xdp_attached", &labels) >= 1.0);
            assert!(daemon.metric("gophership_xdp_syn_dropped_total", &labels) < 1.0);
        },
    );
}

#[test]
fn red_limits_new_connections_and_leaves_established_ones_alone() {
    const RATE: u64 = 2;
    let guard = format!("allow: [192.0.2.64/26], syn_per_second: {RATE}");
    let xdp = format!("{{ interface: [{SERVER_END}], mode: native, guard: {{ {guard} }} }}");
    with_daemon(&xdp, |network, daemon| {
        let mut messages = Messages::new(60, SHAPE);
        let producer = producer(network, daemon);
        producer.export_all(&[messages.message()]);
        let many = |to| (0..30).map(move |_| to);
        // In Green nothing is limited.
        for to in many(PLAIN_V4) {
            drop(connected(&network.client, to, port(daemon)));
        }
        assert_eq!(figure(daemon, "syn_limited"), 0);

        daemon.ctl(&["override", "--zone", "red", "--for", "1h"]);
        daemon.await_zone("red");
        let start = Instant::now();
        let before = figure(daemon, "syn");
        for to in [PLAIN_V4; 8] {
            drop(network.client.connect(to, port(daemon), SILENCE));
            producer.export_all(&[messages.message()]);
        }
        let limited = figure(daemon, "syn_limited");
        let passed = figure(daemon, "syn") - before - limited;
        let given = super::tokens(RATE, start.elapsed());
        assert!(limited > 0, "{passed} passed");
        assert!(passed <= given, "{passed} passed, {given} would be right");

        // Allowed ones, and those that come by loopback, as often as they like.
        for to in many(CALLED_BY_ALLOWED) {
            drop(connected(&network.client, to, port(daemon)));
        }
        for to in ["127.0.0.1", PLAIN_V4].into_iter().cycle().take(30) {
            drop(connected(&network.server, to, port(daemon)));
        }
        let labels = [("interface", SERVER_END), ("reason", "limited")];
        assert!(daemon.metric("gophership_xdp_syn_dropped_total", &labels) >= limited as f64);

        daemon.ctl(&["override", "--clear"]);
        daemon.await_zone("green");
        for to in many(PLAIN_V4) {
            drop(connected(&network.client, to, port(daemon)));
        }
        producer.export_all(&[messages.message()]);
    });
}

fn producer(network: &Network, daemon: &Daemon<'_>) -> Producer {
    let mut address = daemon.grpc();
    address.set_ip(PLAIN_V4.parse().expect("an address"));
    let tls = daemon
        .home()
        .certs()
        .client(ClientIdentity::Shown, &[&TLS13]);
    network
        .client
        .run(|| Producer::connect(address, tls))
        .expect("the producer connects")
}

#[test]
fn denied_prefixes_get_no_connection_in_green() {
    let guard = "deny: [192.0.2.128/26, \"2001:db8:1::/64\"]";
    let xdp = format!("{{ interface: {SERVER_END}, guard: {{ {guard} }} }}");
    with_daemon(&xdp, |network, daemon| {
        for to in [CALLED_BY_DENIED, PLAIN_V6] {
            let connection = network.client.connect(to, port(daemon), SILENCE);
            assert!(connection.is_none(), "{to} answered");
        }
        let denied = figure(daemon, "syn_denied");
        assert!(denied >= 2, "{denied} denied");
        assert_eq!(figure(daemon, "syn"), denied);
        drop(connected(&network.client, PLAIN_V4, port(daemon)));
        // The server's own addresses are in the denied prefix, too.
        drop(connected(&network.server, PLAIN_V6, port(daemon)));
    });
}

#[test]
fn nothing_stays_behind_whichever_way_the_daemon_ends() {
    if !kernel_tests_run() {
        return;
    }
    let network = Network::new();
    let network = &network;
    network.server.run(move || {
        let sink = Sink::up();
        let settings = settings(&sink, &format!("{{ interface: [{SERVER_END}, lo] }}"));
        for killed in [true, false] {
            let home = Home::new();
            let daemon = Daemon::start(&home, &settings);
            for interface in [SERVER_END, "lo"] {
                assert!(
                    network.server.program_on(interface).is_some(),
                    "{interface}"
                );
            }
            if killed {
                daemon.kill9();
            } else {
                assert!(daemon.terminate(PATIENCE).success());
            }
            for interface in [SERVER_END, "lo"] {
                // The kernel lets go of a dead process's links in its own time.
                eventually("no program on the interface", PATIENCE, || {
                    network.server.program_on(interface).is_none()
                });
            }
        }
    });
}

#[test]
fn loopback_is_metered_in_generic_mode_and_never_limited() {
    let guard = "deny: [127.0.0.0/8, 0.0.0.0/0], syn_per_second: 1";
    let xdp = format!("{{ interface: lo, guard: {{ {guard} }} }}");
    with_daemon(&xdp, |network, daemon| {
        assert_eq!(interface(daemon, 0)["mode"], "generic");
        let attached = network.server.program_on("lo");
        assert_eq!(attached.map(|(mode, _)| mode), Some(2), "{attached:?}");
        assert_eq!(daemon.log_lines("no native mode here").len(), 1);
        daemon.ctl(&["override", "--zone", "red", "--for", "1h"]);
        daemon.await_zone("red");
        for to in ["127.0.0.1", "::1", PLAIN_V4, PLAIN_V6]
            .into_iter()
            .cycle()
            .take(40)
        {
            drop(connected(&network.server, to, port(daemon)));
        }
        assert!(figure(daemon, "syn") >= 40);
        assert_eq!(
            figure(daemon, "syn_limited") + figure(daemon, "syn_denied"),
            0
        );
    });
}

#[test]
fn what_cant_be_attached_is_reported_and_the_daemon_runs() {
    with_daemon(&format!("{{ interface: {SERVER_END} }}"), |network, _| {
        let sink = Sink::up();
        for (kernel, interface_name, expected) in [
            // Taken by the first daemon, and not by native mode's nature.
            ("required", SERVER_END, "native:"),
            ("off", SERVER_END, "the kernel half doesn't run"),
        ] {
            let home = Home::new();
            let xdp = format!("{{ interface: {interface_name} }}");
            let settings = Settings {
                kernel,
                ..settings(&sink, &xdp)
            };
            let daemon = Daemon::start(&home, &settings);
            let interface = interface(&daemon, 0);
            assert_eq!(interface["mode"], Value::Null, "{interface:#}");
            let reason = interface["reason"].as_str().unwrap_or_default();
            assert!(reason.starts_with(expected), "{reason}");
            assert!(!daemon.log_lines("NEITHER METERED NOR GUARDED").is_empty());
            let labels = [("interface", interface_name)];
            assert!(daemon.metric("gophership_xdp_attached", &labels) < 1.0);
            drop(TcpStream::connect(("127.0.0.1", port(&daemon))).expect("it accepts"));
        }
        assert!(network.server.program_on(SERVER_END).is_some());
    });
}

#[test]
fn an_interface_that_isnt_there_is_refused_at_start() {
    let home = Home::new();
    let sink = Sink::up();
    for kernel in ["auto", "off"] {
        let settings = Settings {
            kernel,
            ..settings(&sink, "{ interface: [lo, absent0] }")
        };
        let config = home.write_config("absent.yaml", &settings.yaml(&home));
        let config = config.to_str().expect("a path of text");
        let finished = home.gophership(&["run", "--config", config]);
        assert_eq!(finished.code, Some(2), "{finished}");
        assert!(
            finished
                .stderr
                .contains("xdp.interface: there is no interface \"absent0\" here"),
            "{finished}"
        );
    }
}

#[test]
fn addresses_and_interfaces_that_come_and_go_are_followed() {
    with_daemon(
        &format!("{{ interface: {SERVER_END} }}"),
        |network, daemon| {
            network
                .server
                .ip(&format!("address add {LATER}/32 dev {SERVER_END}"));
            eventually("connections to a new address are counted", PATIENCE, || {
                drop(connected(&network.client, LATER, port(daemon)));
                figure(daemon, "syn") > 0
            });
            let counted = figure(daemon, "packets");
            network.server.ip(&format!("link delete {SERVER_END}"));
            let gone = interface(daemon, 0);
            assert_eq!(gone["mode"], Value::Null, "{gone:#}");
            assert!(figure(daemon, "packets") >= counted, "counts stay");
        },
    );
}

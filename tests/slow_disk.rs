//! A disk that is slow turns Yellow with its flag, never Red: as its driver sees it, and as the
//! vault's lanes see it where the wait comes before the driver.
//!
//! The disks are loop devices, slowed by the limits of control groups. Needs root; see `signals.rs`.

mod common;
#[path = "common/pressure.rs"]
mod judged;

use std::{
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use common::{
    PATIENCE,
    certs::ClientIdentity,
    cgroup::Cgroup,
    daemon::{Daemon, Home},
    eventually,
    judging::Judging,
    load::{Intensity, Load},
    loop_disk::{LoopDisk, apart},
    messages::Shape,
    settings::Settings,
    sink::Sink,
};
use gophership::pressure::{Cause, Config, IngestScope, KernelMode, Signal, Zone};
use rustls::version::TLS13;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// One write of [`BLOCK`] bytes takes half a second.
const BYTES_PER_SECOND: u64 = 2 * BLOCK;
const BLOCK: u64 = 64 * 1024;

/// A child that ends with its guard.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_slow_device_turns_yellow_with_its_flag_and_back() {
    apart(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = dir.path().join("vault");
        std::fs::create_dir(&at).unwrap();
        let (Some(disk), Some(cgroup)) = (LoopDisk::mount(&at, 32 * MIB), Cgroup::new("blkio"))
        else {
            return;
        };
        let config = Config {
            disk_latency: Some(Duration::from_millis(80)),
            ..judged::config(KernelMode::Required)
        };
        let scope = IngestScope {
            ports: vec![],
            h2_window_bytes: 0,
            vault_dir: Some(at.clone()),
        };
        let Some(judging) = Judging::start(&config, &scope) else {
            return;
        };
        // The loop device passes the writer's group on: its own requests take as long as the disk's
        // below, which waits for the group's turn.
        cgroup.limit_writes(&disk.backed_by, Some(BYTES_PER_SECOND));
        let writer = writer(&cgroup, &at.join("data"));
        judging.wait_for_at_least(Zone::Yellow, Cause::DiskLatency);
        assert!(judging.word().slow_disk(), "{}", judging.explained());
        let turned = judging.first_transition();
        eprintln!("Yellow at {:?} µs", turned.values.get(Signal::DiskLatency));
        assert!(
            turned.values.get(Signal::DiskLatency) >= Some(80_000),
            "{turned:?}"
        );
        assert!(
            turned.values.get(Signal::DiskDepth) >= Some(1),
            "{turned:?}"
        );
        // A block would take a minute now: nothing is completed, and what is under way ages.
        cgroup.limit_writes(&disk.backed_by, Some(BLOCK / 64));
        judging.wait("request of two seconds", || {
            judging.signal(Signal::DiskLatency) >= Some(2.0)
        });
        assert!(judging.signal(Signal::DiskDepth) >= Some(1.0));
        // It writes on, but nothing slows it.
        cgroup.limit_writes(&disk.backed_by, None);
        judging.wait_for_green();
        assert!(!judging.word().slow_disk(), "{}", judging.explained());
        drop(writer);
        judging.wait("an idle disk", || {
            judging.signal(Signal::DiskDepth) == Some(0.0)
        });
        for step in judging.transitions() {
            assert!(step.to.zone() < Zone::Red, "{step:?}");
        }
    });
}

/// Writes blocks to stable storage, one after the other, in the group.
fn writer(cgroup: &Cgroup, to: &Path) -> Killed {
    const SCRIPT: &str = "while dd if=/dev/zero of=\"$0\" bs=64k count=128 conv=notrunc \
                          oflag=direct,dsync status=none; do :; done";
    let mut command = cgroup.inside("sh");
    command.args(["-c", SCRIPT]).arg(to);
    Killed(command.stderr(Stdio::inherit()).spawn().unwrap())
}

/// A signal of the daemon's status, in seconds; `None` while it is unavailable.
fn seconds(daemon: &Daemon<'_>, signal: &str) -> Option<f64> {
    let status = daemon.status();
    let reading = &status["signals"][signal];
    (reading["available"] == true).then(|| reading["value"].as_f64().unwrap_or(0.0))
}

/// Whether the daemon's last word on its zone was this.
fn last_said(daemon: &Daemon<'_>, to: &str, slow_disk: bool) -> bool {
    let said = daemon.log_lines("slow_disk");
    let last = said
        .last()
        .and_then(|line| serde_json::from_str::<Value>(line).ok());
    last.is_some_and(|event| {
        let fields = event.get("fields").unwrap_or(&event);
        fields["to"] == to && fields["slow_disk"] == slow_disk
    })
}

#[test]
fn a_vault_that_waits_for_its_disk_turns_yellow_with_its_flag_and_back() {
    apart(|| {
        let home = Home::new();
        let (Some(disk), Some(cgroup)) = (
            LoopDisk::mount(&home.vault(), 96 * MIB),
            Cgroup::new("blkio"),
        ) else {
            return;
        };
        // Down: every request goes to the vault.
        let sink = Sink::down();
        let settings = Settings {
            thresholds: vec![
                "memory_stall: { yellow: off, red: off }",
                "memory_available: { yellow: 2%, red: 1% }",
                "cpu_wait: { yellow: off, red: off }",
                "disk_latency: { yellow: 100ms }",
                "listen_backlog: { yellow: off, red: off }",
                "ingress: { horizon: off }",
            ],
            vault_max_bytes: "64MiB",
            workers: 1,
            ..Settings::to(sink.destination("main", "10s"))
        };
        let daemon = Daemon::start(&home, &settings);
        if daemon.text("/source") != "kernel" {
            eprintln!("nothing tested: the kernel half doesn't run");
            return;
        }
        let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
        let load = Load::start(
            daemon.grpc(),
            &tls,
            Intensity {
                connections: 1,
                in_flight: 2,
                pace: Some(20),
                // So little that no queue fills.
                shape: Shape {
                    records: 2,
                    body_bytes: 500,
                },
                seed: 70,
            },
        );
        eventually("requests are stored", PATIENCE, || load.acked() > 20);
        daemon.await_zone("green");
        cgroup.take(daemon.pid());
        // On the loop device itself: what is written waits before there is a request, where the
        // device knows nothing of it. A page takes a quarter of a second.
        cgroup.limit_writes(&disk.number, Some(16 * 1024));
        daemon.await_zone("yellow");
        assert_eq!(daemon.text("/cause"), "disk_latency");
        eventually("the flag", PATIENCE, || last_said(&daemon, "yellow", true));
        let (vault, device) = (
            seconds(&daemon, "vault_write"),
            seconds(&daemon, "disk_latency"),
        );
        eprintln!("vault_write {vault:?}, disk_latency {device:?}");
        assert!(vault > Some(0.08), "{vault:?}");
        assert!(device < Some(0.08), "{device:?}");

        cgroup.limit_writes(&disk.number, None);
        daemon.await_zone("green");
        eventually("no flag", PATIENCE, || last_said(&daemon, "green", false));
        let acked = load.acked();
        eventually("it goes on", PATIENCE, || load.acked() > acked);
        let tally = load.stop();
        assert!(tally.refused.is_empty(), "{:?}", tally.refused);
        eventually("nothing is written", PATIENCE, || {
            seconds(&daemon, "vault_write").is_none()
        });
        let red = daemon.metric("gophership_zone_transitions_total", &[("to", "red")]);
        assert!(red.abs() < f64::EPSILON, "it was Red {red} times");
    });
}

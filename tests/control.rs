//! The control service over a real socket, with the real `gs-ctl`, and the certificates it makes.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use gophership::control::{
    self, Config, ControlError, DrainSpec, Engine, Error, OverrideSpec, PlanSpec, QuarantineSpec,
    ReplayCommand, ReplaySpec, SocketsSpec, pb,
};
use gophership::local_socket;
use gophership::pressure::{SocketOrder, Zone};
use gophership::telemetry::timeline::{self, Event, Moment, Stay, Timeline};
use gophership::vault::Selection;
use serde_json::Value;
use tokio::sync::oneshot;

/// A daemon that does what it is told and counts on.
#[derive(Debug, Default)]
struct FakeEngine {
    state: Mutex<State>,
    timeline: OnceLock<Timeline>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<pb::Override>,
    specs: Vec<OverrideSpec>,
    replays: Vec<ReplaySpec>,
    plans: Vec<PlanSpec>,
    drains: Vec<DrainSpec>,
    listings: Vec<SocketsSpec>,
    /// Progress reports still to give before the last.
    steps: u64,
    /// The replay never ends.
    endless: bool,
    draining: bool,
}

impl FakeEngine {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for FakeEngine {
    fn status(&self) -> Result<pb::StatusReply, ControlError> {
        Ok(status(self.state().held.clone()))
    }

    fn sockets(&self, spec: SocketsSpec) -> Result<pb::SocketsReply, ControlError> {
        self.state().listings.push(spec);
        if spec.order == SocketOrder::Idle || spec.limit == 5 {
            let message = "/proc/net/tcp: permission denied".to_owned();
            return Err(ControlError::Failed(message));
        }
        Ok(pb::SocketsReply::default())
    }

    fn vault_list(&self) -> Vec<pb::VaultListReply> {
        vec![pb::VaultListReply::default()]
    }

    fn vault_quarantine(&self, spec: QuarantineSpec) -> Result<pb::VaultSegment, ControlError> {
        match spec.number {
            0 => Err(ControlError::Invalid("no such segment".to_owned())),
            number => Ok(pb::VaultSegment {
                number,
                ..pb::VaultSegment::default()
            }),
        }
    }

    fn timeline(&self) -> Timeline {
        let open = || {
            let config = timeline::Config {
                path: "/dev/null".into(),
                bytes_max: timeline::BYTES_MIN,
            };
            Timeline::open(&config).unwrap()
        };
        self.timeline.get_or_init(open).clone()
    }

    fn present_stay(&self) -> (u64, Stay) {
        let stay = Stay {
            zone: Zone::Red,
            cause: "receive_queue".to_owned(),
            seconds: 1.5,
            diverted: timeline::Amount::default(),
            delivered: timeline::Amount::default(),
        };
        (1, stay)
    }

    fn set_override(&self, spec: OverrideSpec) -> Result<pb::Override, ControlError> {
        if spec.reason == "refuse" {
            return Err(ControlError::NotNow("not while draining".to_owned()));
        }
        let until = spec.duration.map(|duration| prost_types::Timestamp {
            seconds: 4_000_000_000 + i64::try_from(duration.as_secs()).unwrap_or(0),
            nanos: 0,
        });
        let held = pb::Override {
            zone: spec.zone.into(),
            until,
            by: spec.by.clone(),
            reason: spec.reason.clone(),
        };
        let mut state = self.state();
        state.specs.push(spec);
        state.held = Some(held.clone());
        Ok(held)
    }

    fn clear_override(&self, _by: &str) -> Result<Option<pb::Override>, ControlError> {
        Ok(self.state().held.take())
    }

    fn plan_replay(
        &self,
        spec: PlanSpec,
        tell: &mut dyn FnMut(pb::ReplayPlan) -> bool,
    ) -> Result<(), ControlError> {
        let destination = spec.destination.clone().unwrap_or_default();
        self.state().plans.push(spec);
        if destination == "nobody" {
            let message = "there is no destination \"nobody\"".to_owned();
            return Err(ControlError::Invalid(message));
        }
        for (entries, complete) in [(3, false), (1234, true)] {
            let counted = pb::DestinationPlan {
                destination: "main".to_owned(),
                entries,
                records: entries * 10,
                bytes: 1536,
            };
            tell(pb::ReplayPlan {
                complete,
                destinations: vec![counted],
            });
        }
        Ok(())
    }

    fn replay(&self, spec: ReplaySpec) -> Result<pb::ReplayProgress, ControlError> {
        let mut state = self.state();
        state.replays.push(spec);
        state.steps = 2;
        Ok(pb::ReplayProgress {
            state: pb::ReplayState::Running.into(),
            ..Default::default()
        })
    }

    fn replay_status(&self) -> pb::ReplayProgress {
        let mut state = self.state();
        let running = state.steps > 0 || state.endless;
        state.steps = state.steps.saturating_sub(1);
        let now = if running {
            pb::ReplayState::Running
        } else {
            pb::ReplayState::Idle
        };
        pb::ReplayProgress {
            state: now.into(),
            records_pending: state.steps,
            limited_by: "destination".to_owned(),
            remaining: Some(prost_types::Duration {
                seconds: 90,
                nanos: 0,
            }),
            ordered: running,
            destinations: vec![pb::DestinationReplay {
                destination: "main".to_owned(),
                // It is through before the others are.
                state: pb::ReplayState::Waiting.into(),
                records_pending: 7,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn drain(&self, spec: DrainSpec) -> Result<pb::DrainProgress, ControlError> {
        let mut state = self.state();
        state.drains.push(spec);
        state.draining = matches!(spec, DrainSpec::Start { .. });
        state.steps = 2;
        Ok(pb::DrainProgress::default())
    }

    fn drain_progress(&self) -> pb::DrainProgress {
        let mut state = self.state();
        let running = state.steps > 0;
        state.steps = state.steps.saturating_sub(1);
        let phase = match (state.draining, running) {
            (false, _) => pb::DrainPhase::Accepting,
            (true, true) => pb::DrainPhase::Emptying,
            (true, false) => pb::DrainPhase::Drained,
        };
        pb::DrainProgress {
            phase: phase.into(),
            ..Default::default()
        }
    }
}

fn status(held: Option<pb::Override>) -> pb::StatusReply {
    pb::StatusReply {
        version: "1.2.3".to_owned(),
        zone: pb::Zone::Red.into(),
        cause: "receive_queue".to_owned(),
        slow_disk: true,
        zone_since: Some(prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 500_000_000,
        }),
        source: pb::Source::Stochastic.into(),
        source_reason: "not built in".to_owned(),
        r#override: held,
        signals: vec![signal("receive_queue", Some(0.875)), signal("budget", None)],
        memory: Some(pb::Memory {
            total_bytes: 1 << 30,
            used_bytes: 3 << 20,
            components: vec![pb::MemoryComponent {
                name: "ingest".to_owned(),
                limit_bytes: 512 << 20,
                used_bytes: 3 << 20,
            }],
        }),
        ingest: Some(ingest()),
        export: vec![pb::Destination {
            name: "main".to_owned(),
            state: pb::DestinationState::Down.into(),
            sent_records: 10,
            failed_requests: 4,
            rejected_records: 0,
            last_error: "connection refused".to_owned(),
        }],
        vault: Some(pb::Vault {
            bytes: 64 << 20,
            max_bytes: 10 << 30,
            segments: 2,
            unused_segments: 1,
            entries_pending: 1,
            records_pending: 50,
            rung: "io_uring".to_owned(),
            sync: "never".to_owned(),
            compression: "lz4".to_owned(),
            retained_segments: 1,
            dropped_segments: 2,
            dropped_records: 33,
            fault: String::new(),
            recovery: Some(recovery()),
            ..Default::default()
        }),
        replay: Some(pb::ReplayProgress {
            state: pb::ReplayState::Waiting.into(),
            ..Default::default()
        }),
        ledger: vec![ledger("main", 0), ledger("other", -3)],
        xdp: vec![pb::Interface {
            name: "eth0".to_owned(),
            reason: "not privileged: lacks CAP_NET_ADMIN".to_owned(),
            packets: 4321,
            limited: 7,
            ..Default::default()
        }],
    }
}

fn ingest() -> pb::Ingest {
    pb::Ingest {
        requests: 1000,
        records: 1_234_567,
        bytes: 1536,
        refused: 2,
        connections: 3,
        remote_connections: 1,
        max_connections: 4096,
        connections_waiting: 0,
        workers: vec![
            pb::Worker {
                connections: 3,
                stuck: false,
            },
            pb::Worker {
                connections: 0,
                stuck: true,
            },
        ],
        tls: Some(pb::Tls {
            expiries: vec![pb::Expiry {
                file: "cert".to_owned(),
                not_after: Some(prost_types::Timestamp {
                    seconds: 1_700_000_000,
                    nanos: 0,
                }),
            }],
            reloads: 4,
            failed_reloads: 1,
            failure: "no key".to_owned(),
        }),
    }
}

fn signal(name: &str, value: Option<f64>) -> pb::Signal {
    pb::Signal {
        name: name.to_owned(),
        value: value.unwrap_or(0.0),
        unit: "ratio".to_owned(),
        available: value.is_some(),
        reason: value.map_or("no such device".to_owned(), |_| String::new()),
        yellow: value.map(|_| 0.5),
        red: None,
        worst: None,
    }
}

fn recovery() -> pb::Recovery {
    pb::Recovery {
        done: false,
        segments: 7,
        segments_total: 9,
        bytes: 14 << 20,
        bytes_total: 17 << 20,
    }
}

fn ledger(destination: &str, residue: i64) -> pb::Ledger {
    pb::Ledger {
        destination: destination.to_owned(),
        accepted: 60,
        delivered: 10,
        owed: 50,
        vaulted: 53,
        replayed: 4,
        residue,
        ..Default::default()
    }
}

/// A control service in a thread of its own, as in the daemon.
struct Daemon {
    config: Config,
    engine: Arc<FakeEngine>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<Result<(), Error>>>,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        Self::start_for(vec![uid()], vec![])
    }

    fn start_for(allow_uids: Vec<u32>, allow_gids: Vec<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            allow_uids,
            allow_gids,
            ..config(dir.path())
        };
        let bound = control::bind(&config).unwrap();
        let engine = Arc::new(FakeEngine::default());
        let (stop, stopped) = oneshot::channel();
        let served: Arc<dyn Engine> = engine.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(bound.serve(served, async {
                drop(stopped.await);
            }))
        });
        Self {
            config,
            engine,
            stop: Some(stop),
            thread: Some(thread),
            dir,
        }
    }

    /// Runs `gs-ctl` against this daemon.
    fn ctl(&self, arguments: &[&str]) -> Output {
        gs_ctl(&self.config.path, arguments)
    }

    /// As [`Self::ctl`], for commands that must succeed; returns their output.
    fn ctl_ok(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.config.audit_log).unwrap();
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        let served = self.thread.take().map(thread::JoinHandle::join);
        if !thread::panicking() {
            served.unwrap().unwrap().unwrap();
            assert!(!self.config.path.exists(), "the socket is removed");
            assert!(self.dir.path().exists());
        }
    }
}

fn config(dir: &Path) -> Config {
    Config {
        path: dir.join("run/control.sock"),
        mode: 0o600,
        allow_uids: vec![],
        allow_gids: vec![],
        audit_log: dir.join("log/audit.jsonl"),
    }
}

fn gs_ctl(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gs-ctl"))
        .env("GS_CTL_ENDPOINT", format!("unix:{}", socket.display()))
        .env_remove("GS_CTL_OUTPUT")
        .args(arguments)
        .output()
        .unwrap()
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn status_as_json_has_the_keys_of_the_contract() {
    let daemon = Daemon::start();
    let status: Value =
        serde_json::from_str(&daemon.ctl_ok(&["status", "--output", "json"])).unwrap();
    assert_eq!(status["version"], "1.2.3");
    assert_eq!(status["zone"], "red");
    assert_eq!(status["cause"], "receive_queue");
    assert_eq!(status["slow_disk"], true);
    assert_eq!(status["zone_since"], "2023-11-14T22:13:20.5Z");
    assert_eq!(status["source"], "stochastic");
    assert_eq!(status["source_reason"], "not built in");
    assert_eq!(status["override"], Value::Null);
    assert_eq!(status["signals"]["receive_queue"]["value"], 0.875);
    assert_eq!(status["signals"]["budget"]["available"], false);
    assert_eq!(status["signals"]["budget"]["value"], Value::Null);
    assert_eq!(status["signals"]["budget"]["reason"], "no such device");
    assert_eq!(status["signals"]["receive_queue"]["yellow"], 0.5);
    assert_eq!(status["signals"]["receive_queue"]["red"], Value::Null);
    assert_eq!(status["memory"]["components"]["ingest"]["used"], 3 << 20);
    assert_eq!(status["ingest"]["records"], 1_234_567);
    assert_eq!(
        status["ingest"]["workers"][1],
        serde_json::json!({ "connections": 0, "stuck": true })
    );
    let tls = &status["ingest"]["tls"];
    assert_eq!(tls["not_after"]["cert"], "2023-11-14T22:13:20Z");
    assert_eq!(
        (&tls["reloads"], &tls["failed_reloads"]),
        (&4.into(), &1.into())
    );
    assert_eq!(tls["failure"], "no key");
    assert_eq!(status["export"][0]["name"], "main");
    assert_eq!(status["export"][0]["state"], "down");
    assert_eq!(status["export"][0]["failed"], 4);
    assert_eq!(status["vault"]["records_pending"], 50);
    assert_eq!(status["vault"]["segments"], 2);
    assert_eq!(status["vault"]["unused_segments"], 1);
    assert_eq!(status["vault"]["rung"], "io_uring");
    assert_eq!(status["vault"]["sync"], "never");
    assert_eq!(status["vault"]["compression"], "lz4");
    assert_eq!(status["vault"]["dropped_records"], 33);
    assert!(status["vault"]["fault"].is_null());
    assert_eq!(status["vault"]["recovery"]["done"], false);
    assert_eq!(status["vault"]["recovery"]["segments_total"], 9);
    assert_eq!(status["replay"]["state"], "waiting");
    assert_eq!(status["xdp"][0]["interface"], "eth0");
    assert_eq!(status["xdp"][0]["mode"], Value::Null);
    assert_eq!(
        status["xdp"][0]["reason"],
        "not privileged: lacks CAP_NET_ADMIN"
    );
    assert_eq!(status["xdp"][0]["syn_limited"], 7);
    assert_eq!(status["ledger"]["residue"], 3);
    assert_eq!(status["ledger"]["destinations"]["main"]["owed"], 50);
    assert_eq!(status["ledger"]["destinations"]["main"]["vaulted"], 53);
    assert_eq!(status["ledger"]["destinations"]["main"]["replayed"], 4);
    assert_eq!(status["ledger"]["destinations"]["other"]["residue"], -3);
}

#[test]
fn status_as_yaml_and_as_table_say_the_same() {
    let daemon = Daemon::start();
    let yaml = daemon.ctl_ok(&["--output", "yaml", "status"]);
    for line in [
        "zone: red\n",
        "override: null\n",
        "  - failed: 4\n    last_error: \"connection refused\"\n    name: main\n",
        "zone_since: \"2023-11-14T22:13:20.5Z\"\n",
        "  residue: 3\n",
    ] {
        assert!(yaml.contains(line), "{line}: {yaml}");
    }
    let table = daemon.ctl_ok(&["status"]);
    for part in [
        "RED for ",
        "cause: receive_queue; the vault's disk is slow",
        "64.0 MiB of 10.0 GiB in 2 segments, 1 of them unused; 50 records pending (1 entry)",
        "sync is never",
        "dropped 2 segments with 33 records still owed",
        "14.0 MiB of 17.0 MiB in 7 of 9 segments of earlier runs read",
        "stochastic (not the kernel: not built in)",
        "1 234 567 records, 1.5 KiB; 2 refused",
        "3.0 MiB of 1.0 GiB",
        "87.5 %",
        "unavailable: no such device",
        "50.0 %",
        "connection refused",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains('\x1b'), "no colour into a pipe");
}

#[test]
fn sockets_are_asked_for_in_order_and_number() {
    let daemon = Daemon::start();
    daemon.ctl_ok(&["sockets"]);
    daemon.ctl_ok(&["sockets", "--sort", "high-water", "--limit", "7"]);
    let spec = |limit, order| SocketsSpec { limit, order };
    let expected = [
        spec(100, SocketOrder::Depth),
        spec(7, SocketOrder::HighWater),
    ];
    assert_eq!(daemon.engine.state().listings, expected);
    let failed = daemon.ctl(&["sockets", "--sort", "idle"]);
    assert_eq!(code(&failed), 1);
    assert!(stderr(&failed).contains("/proc/net/tcp: permission denied"));
    assert_eq!(daemon.audit(), [] as [Value; 0], "only read");
}

#[test]
fn top_goes_on_without_what_cannot_be_had() {
    let daemon = Daemon::start();
    let shown = daemon.ctl_ok(&["top", "--count", "2", "--interval", "100ms"]);
    for part in [
        "sockets: /proc/net/tcp: permission denied",
        "unavailable: no such device",
        "cause: receive_queue; the vault's disk is slow",
    ] {
        assert_eq!(shown.matches(part).count(), 2, "{part}: {shown}");
    }
    assert_eq!(code(&gs_ctl(Path::new("/nowhere"), &["top"])), 3);
}

#[test]
fn an_override_is_set_shown_and_cleared() {
    let daemon = Daemon::start();
    let said = daemon.ctl_ok(&[
        "override", "--zone", "yellow", "--for", "10m", "--reason", "test",
    ]);
    assert!(said.starts_with("override: yellow for another "), "{said}");
    let spec = OverrideSpec {
        zone: pb::Zone::Yellow,
        duration: Some(Duration::from_secs(600)),
        reason: "test".to_owned(),
        by: format!("uid {}", uid()),
    };
    assert_eq!(daemon.engine.state().specs, [spec]);
    let status: Value =
        serde_json::from_str(&daemon.ctl_ok(&["status", "--output", "json"])).unwrap();
    assert_eq!(status["override"]["zone"], "yellow");
    assert_eq!(status["override"]["reason"], "test");
    assert_eq!(status["override"]["by"], format!("uid {}", uid()));
    assert!(
        daemon
            .ctl_ok(&["override", "--clear"])
            .contains("override ended: yellow")
    );
    assert!(
        daemon
            .ctl_ok(&["override", "--clear"])
            .contains("there was no override")
    );
}

#[test]
fn an_override_can_hold_forever_and_holds_an_hour_by_default() {
    let daemon = Daemon::start();
    daemon.ctl_ok(&["override", "--zone", "red", "--for", "forever"]);
    daemon.ctl_ok(&["override", "--zone", "green"]);
    let durations: Vec<_> = daemon
        .engine
        .state()
        .specs
        .iter()
        .map(|s| s.duration)
        .collect();
    assert_eq!(durations, [None, Some(Duration::from_secs(3600))]);
}

#[test]
fn replay_is_steered_and_followed_to_its_end() {
    let daemon = Daemon::start();
    let lines = daemon.ctl_ok(&["replay", "--rate", "8MiB/s", "--follow", "--output", "json"]);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["replay"]["state"], "idle", "{lines}");
    assert!(lines.lines().count() >= 2, "{lines}");
    daemon.ctl_ok(&["replay", "--pause"]);
    daemon.ctl_ok(&["replay", "--resume"]);
    let start = ReplayCommand::Start {
        max_bytes_per_second: Some(8 << 20),
        selection: Selection::default(),
    };
    let expected = [start, ReplayCommand::Pause, ReplayCommand::Resume];
    let expected = expected.map(|command| ReplaySpec {
        destination: None,
        command,
    });
    assert_eq!(daemon.engine.state().replays, expected);
    let table = daemon.ctl_ok(&["replay", "--follow"]);
    assert!(
        table.contains("0 B/s (destination); about 1 min 30 s left\n"),
        "{table}"
    );
}

#[test]
fn replay_of_a_part_to_one_destination_is_followed_until_that_is_sent() {
    let daemon = Daemon::start();
    daemon.engine.state().endless = true;
    let lines = daemon.ctl_ok(&[
        "replay",
        "--destination",
        "main",
        "--from",
        "2026-01-02T03:04:05Z",
        "--to",
        "2026-01-02T03:04:06.5Z",
        "--lane",
        "3",
        "--newest-first",
        "--follow",
    ]);
    // It waits, but for nothing that was asked for.
    assert!(lines.starts_with("waiting; "), "{lines}");
    assert!(lines.contains("; 7 records pending; "), "{lines}");
    let selection = Selection {
        from_unix_ns: Some(1_767_323_045_000_000_000),
        to_unix_ns: Some(1_767_323_046_500_000_000),
        lane: Some(3),
        newest_first: true,
    };
    let start = ReplaySpec {
        destination: Some("main".to_owned()),
        command: ReplayCommand::Start {
            max_bytes_per_second: None,
            selection,
        },
    };
    assert_eq!(daemon.engine.state().replays, [start]);

    let counted = daemon.ctl_ok(&["replay", "--dry-run", "--lane", "3"]);
    assert_eq!(counted, "to main: 1 234 entries, 12 340 records, 1.5 KiB\n");
    let json = daemon.ctl_ok(&["replay", "--dry-run", "--output", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["plan"]["destinations"]["main"]["records"], 12_340);
    let plans = daemon.engine.state().plans.clone();
    let of_lane = |lane| PlanSpec {
        destination: None,
        selection: Selection {
            lane,
            ..Selection::default()
        },
    };
    assert_eq!(plans, [of_lane(Some(3)), of_lane(None)]);
    assert_eq!(daemon.engine.state().replays.len(), 1, "nothing was sent");

    for (arguments, code) in [
        (&["replay", "--dry-run", "--destination", "nobody"][..], 2),
        (&["replay", "--from", "1h", "--to", "2h"], 2),
        (&["replay", "--destination", "nobody", "--follow"], 2),
    ] {
        let refused = daemon.ctl(arguments);
        assert_eq!(self::code(&refused), code, "{arguments:?}");
    }
}

#[test]
fn drain_shows_its_progress_and_can_be_taken_back() {
    let daemon = Daemon::start();
    let lines = daemon.ctl_ok(&["drain", "--timeout", "5s", "--exit"]);
    assert!(lines.starts_with("emptying; "), "{lines}");
    assert!(
        lines.lines().last().unwrap().starts_with("drained; "),
        "{lines}"
    );
    let lines = daemon.ctl_ok(&["drain", "--cancel", "--output", "yaml"]);
    assert!(lines.contains("phase: accepting"), "{lines}");
    let start = DrainSpec::Start {
        timeout: Duration::from_secs(5),
        exit: true,
    };
    assert_eq!(daemon.engine.state().drains, [start, DrainSpec::Cancel]);
}

#[test]
fn a_follower_does_not_keep_the_daemon_from_stopping() {
    let mut daemon = Daemon::start();
    daemon.engine.state().endless = true;
    let mut follower = Command::new(env!("CARGO_BIN_EXE_gs-ctl"))
        .arg("--endpoint")
        .arg(format!("unix:{}", daemon.config.path.display()))
        .args(["replay", "--follow", "--output", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(follower.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(first.contains("running"), "{first}");
    drop(daemon.stop.take());
    // Bounded by the service's own grace.
    daemon.thread.take().unwrap().join().unwrap().unwrap();
    follower.wait().unwrap();
    daemon.thread = Some(thread::spawn(|| Ok(())));
}

#[test]
fn every_change_has_an_audit_line_and_reading_has_none() {
    let daemon = Daemon::start();
    daemon.ctl_ok(&["status"]);
    daemon.ctl_ok(&["override", "--zone", "red", "--reason", "disk swap"]);
    let refused = daemon.ctl(&["override", "--zone", "red", "--reason", "refuse"]);
    assert_eq!(code(&refused), 1);
    assert!(stderr(&refused).contains("not while draining"));
    daemon.ctl_ok(&["override", "--clear"]);
    daemon.ctl_ok(&["replay", "--pause"]);
    daemon.ctl_ok(&["drain", "--cancel"]);
    let lines = daemon.audit();
    let what: Vec<_> = lines.iter().map(|l| l["what"].as_str().unwrap()).collect();
    let expected = [
        "set_override",
        "set_override",
        "clear_override",
        "replay",
        "drain",
    ];
    assert_eq!(what, expected);
    let first = &lines[0];
    assert_eq!(first["who"]["uid"], uid());
    assert_eq!(first["who"]["gid"], nix::unistd::getegid().as_raw());
    assert!(first["who"]["pid"].as_i64().unwrap() > 0);
    assert_eq!(first["arguments"]["zone"], "red");
    assert_eq!(first["arguments"]["for_seconds"], 3600);
    assert_eq!(first["arguments"]["reason"], "disk swap");
    assert_eq!(first["result"], "ok");
    let time = first["time"].as_str().unwrap();
    let format = &time::format_description::well_known::Rfc3339;
    assert!(time::OffsetDateTime::parse(time, format).is_ok(), "{time}");
    assert_eq!(lines[1]["result"], "failed");
    assert_eq!(lines[1]["error"], "not while draining");
    assert_eq!(mode(&daemon.config.audit_log) & 0o007, 0);
}

#[test]
fn a_caller_that_is_not_allowed_gets_4_and_an_audit_line() {
    let daemon = Daemon::start_for(vec![uid() + 1], vec![]);
    for arguments in [&["status"][..], &["override", "--zone", "red"]] {
        let output = daemon.ctl(arguments);
        assert_eq!(code(&output), 4, "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("uid {} ", uid())));
    }
    assert!(daemon.engine.state().specs.is_empty());
    let lines = daemon.audit();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["what"], "set_override");
    assert_eq!(lines[1]["arguments"]["zone"], "red");
    assert_eq!(lines[1]["result"], "not_permitted");
}

#[test]
fn a_group_can_be_allowed() {
    let daemon = Daemon::start_for(vec![], vec![nix::unistd::getegid().as_raw()]);
    daemon.ctl_ok(&["status"]);
}

#[test]
fn without_a_daemon_the_exit_code_is_3_and_says_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("control.sock");
    let output = gs_ctl(&missing, &["status"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("gophership run"),
        "{}",
        stderr(&output)
    );
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let output = gs_ctl(&stale, &["status"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("nobody listens"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn bad_usage_is_2_and_every_help_has_examples() {
    let nowhere = PathBuf::from("/nonexistent");
    assert_eq!(code(&gs_ctl(&nowhere, &["override"])), 2);
    assert_eq!(
        code(&gs_ctl(&nowhere, &["--endpoint", "tcp:x", "status"])),
        2
    );
    for command in [
        &[][..],
        &["status"],
        &["override"],
        &["replay"],
        &["drain"],
        &["certs", "init"],
        &["certs", "show"],
    ] {
        let help = gs_ctl(&nowhere, &[command, &["--help"]].concat());
        assert_eq!(code(&help), 0);
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(text.contains("Examples:\n  gs-ctl "), "{text}");
    }
}

#[test]
fn the_socket_has_exactly_the_configured_mode() {
    let daemon = Daemon::start();
    assert_eq!(mode(&daemon.config.path), 0o600);
    let dir = tempfile::tempdir().unwrap();
    let wide = Config {
        mode: 0o666,
        ..config(dir.path())
    };
    let _bound = control::bind(&wide).unwrap();
    assert_eq!(mode(&wide.path), 0o666, "whatever the umask");
}

#[test]
fn a_live_socket_is_refused_and_a_stale_one_replaced() {
    let daemon = Daemon::start();
    let error = control::bind(&daemon.config).unwrap_err();
    assert!(
        matches!(error, Error::Socket(local_socket::Error::InUse { .. })),
        "{error}"
    );
    daemon.ctl_ok(&["status"]);

    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fs::create_dir_all(config.path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&config.path).unwrap());
    let before = fs::metadata(&config.path).unwrap().ino();
    let bound = control::bind(&config).unwrap();
    assert!(
        std::os::unix::net::UnixStream::connect(&config.path).is_ok(),
        "inode {before}"
    );
    drop(bound);
    assert!(!config.path.exists());
}

#[test]
fn a_file_in_the_way_of_the_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fs::create_dir_all(config.path.parent().unwrap()).unwrap();
    fs::write(&config.path, "precious").unwrap();
    let error = control::bind(&config).unwrap_err();
    assert!(
        matches!(error, Error::Socket(local_socket::Error::NotASocket { .. })),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&config.path).unwrap(), "precious");
}

#[test]
fn events_are_listed_in_each_format_and_a_follower_sees_the_daemon_stop() {
    let mut daemon = Daemon::start();
    let timeline = daemon.engine.timeline();
    for monotonic_ns in 1..=3 {
        let ours = monotonic_ns == 1;
        timeline.record(Moment::of(monotonic_ns, 3), Event::OomKill { ours });
    }
    assert!(timeline.flush(Duration::from_secs(10)));
    let table = daemon.ctl_ok(&["events"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("OOM KILL           a process was killed: memory has run out"));
    let json: Value =
        serde_json::from_str(&daemon.ctl_ok(&["--output", "json", "events"])).unwrap();
    assert_eq!(json["events"][2]["sequence"], 3, "{json:#}");
    assert_eq!(json["events"][0]["ours"], true, "{json:#}");
    let yaml = daemon.ctl_ok(&["--output", "yaml", "events", "--limit", "1"]);
    assert!(
        yaml.contains("sequence: 3") && !yaml.contains("sequence: 2"),
        "{yaml}"
    );

    let mut follower = Command::new(env!("CARGO_BIN_EXE_gs-ctl"))
        .arg("--endpoint")
        .arg(format!("unix:{}", daemon.config.path.display()))
        .args(["--output", "json", "events", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    for sequence in 1..=3 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["sequence"], sequence);
    }
    drop(daemon.stop.take());
    let followed = follower.wait_with_output().unwrap();
    assert_eq!(code(&followed), 3, "{}", stderr(&followed));
    assert!(
        stderr(&followed).contains("stopped"),
        "{}",
        stderr(&followed)
    );
}

#[test]
fn an_audit_log_that_cannot_be_written_keeps_the_service_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        audit_log: dir.path().to_owned(),
        ..config(dir.path())
    };
    let error = control::bind(&config).unwrap_err();
    assert!(matches!(error, Error::Audit { .. }), "{error}");
}

/// Certificates that `gs-ctl certs init` makes.
mod certificates {
    use std::io::Read;

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        server::WebPkiClientVerifier,
    };

    use super::*;

    const FILES: [&str; 6] = [
        "ca.pem",
        "ca.key",
        "server.pem",
        "server.key",
        "client.pem",
        "client.key",
    ];

    fn init(dir: &Path) -> Output {
        let dir = dir.to_str().unwrap();
        let hosts = ["--host", "logs.example.com", "--host", "127.0.0.1"];
        let arguments = [&["certs", "init", "--dir", dir][..], &hosts].concat();
        gs_ctl(Path::new("/nonexistent"), &arguments)
    }

    #[test]
    fn they_make_a_tls_1_3_connection_with_both_sides_verified() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("certs");
        let output = init(&dir);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        for name in FILES.iter().filter(|name| name.ends_with(".key")) {
            assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
        }
        for host in ["logs.example.com", "127.0.0.1"] {
            let (client, server) = handshake(&dir, host, true).unwrap();
            assert_eq!(
                client.protocol_version(),
                Some(rustls::ProtocolVersion::TLSv1_3)
            );
            assert_eq!(server.peer_certificates().map(<[_]>::len), Some(1));
        }
        let wrong_name = handshake(&dir, "other.example.com", true).unwrap_err();
        assert!(
            wrong_name.to_string().contains("not valid for name"),
            "{wrong_name}"
        );
        let no_client = handshake(&dir, "127.0.0.1", false).unwrap_err();
        assert!(
            matches!(no_client, rustls::Error::NoCertificatesPresented),
            "{no_client}"
        );
    }

    #[test]
    fn the_server_certificate_does_not_pass_for_a_client() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(code(&init(temp.path())), 0);
        for extension in ["pem", "key"] {
            let from = temp.path().join(format!("server.{extension}"));
            fs::copy(from, temp.path().join(format!("client.{extension}"))).unwrap();
        }
        let error = handshake(temp.path(), "127.0.0.1", true).unwrap_err();
        assert!(
            matches!(error, rustls::Error::InvalidCertificate(_)),
            "{error}"
        );
    }

    #[test]
    fn nothing_is_ever_overwritten_or_written_beside_what_exists() {
        for name in FILES {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), "precious").unwrap();
            let output = init(dir.path());
            assert_eq!(code(&output), 1);
            assert!(stderr(&output).contains(name), "{}", stderr(&output));
            let entries: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
            assert_eq!(entries.len(), 1, "{name}");
            assert_eq!(
                fs::read_to_string(dir.path().join(name)).unwrap(),
                "precious"
            );
        }
    }

    #[test]
    fn a_host_that_is_none_is_a_usage_error_before_anything_is_written() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("certs");
        let arguments = [
            "certs",
            "init",
            "--dir",
            dir.to_str().unwrap(),
            "--host",
            "not a host",
        ];
        let output = gs_ctl(Path::new("/nonexistent"), &arguments);
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(!dir.exists());
    }

    #[test]
    fn show_tells_subject_hosts_and_validity() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(code(&init(temp.path())), 0);
        let show = |name: &str| {
            let file = temp.path().join(name);
            let arguments = ["certs", "show", file.to_str().unwrap(), "--output", "json"];
            gs_ctl(Path::new("/nonexistent"), &arguments)
        };
        let server: Value = serde_json::from_slice(&show("server.pem").stdout).unwrap();
        assert_eq!(server[0]["subject"], "CN=GopherShip server");
        assert_eq!(server[0]["issuer"], "CN=GopherShip CA");
        assert_eq!(
            server[0]["hosts"],
            serde_json::json!(["logs.example.com", "127.0.0.1"])
        );
        assert_eq!(
            (&server[0]["is_ca"], &server[0]["valid_now"]),
            (&false.into(), &true.into())
        );
        let ca: Value = serde_json::from_slice(&show("ca.pem").stdout).unwrap();
        assert_eq!(ca[0]["is_ca"], true);
        let days = |shown: &Value| {
            let format = &time::format_description::well_known::Rfc3339;
            let end = shown["not_after"].as_str().unwrap();
            let end = time::OffsetDateTime::parse(end, format).unwrap();
            (end - time::OffsetDateTime::now_utc()).whole_days()
        };
        assert!((3648..=3650).contains(&days(&ca[0])) && (728..=730).contains(&days(&server[0])));
        let key = show("ca.key");
        assert_eq!(code(&key), 1);
        assert!(
            stderr(&key).contains("no certificate in it"),
            "{}",
            stderr(&key)
        );
    }

    /// A TLS handshake in memory, with the files in `dir`; each side's first error.
    fn handshake(
        dir: &Path,
        host: &str,
        with_certificate: bool,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = |name: &str| {
            let path = dir.join(name);
            CertificateDer::pem_file_iter(path)
                .unwrap()
                .map(Result::unwrap)
                .collect::<Vec<_>>()
        };
        let key = |name: &str| PrivateKeyDer::from_pem_file(dir.join(name)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(chain("ca.pem").remove(0)).unwrap();
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .unwrap();
        let versions = &[&rustls::version::TLS13];
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain("server.pem"), key("server.key"))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots);
        let client = if with_certificate {
            client.with_client_auth_cert(chain("client.pem"), key("client.key"))?
        } else {
            client.with_no_client_auth()
        };
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        // A TLS 1.3 handshake needs three flights.
        for _ in 0..4 {
            carry(|wire| client.write_tls(wire), |wire| server.read_tls(wire));
            server.process_new_packets()?;
            carry(|wire| server.write_tls(wire), |wire| client.read_tls(wire));
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok((client, server))
    }

    fn carry(
        mut write: impl FnMut(&mut Vec<u8>) -> std::io::Result<usize>,
        mut read: impl FnMut(&mut dyn Read) -> std::io::Result<usize>,
    ) {
        let mut wire = Vec::new();
        while write(&mut wire).unwrap() > 0 {}
        let mut rest = wire.as_slice();
        while !rest.is_empty() && read(&mut rest).unwrap() > 0 {}
    }
}

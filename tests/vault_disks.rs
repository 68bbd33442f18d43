//! The vault on disks that are full, fail, crawl or hang, and on one that counts its flushes.
//!
//! The disks are loop devices of each test's own. Needs root; see `signals.rs`.

mod common;
#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use common::{
    PATIENCE,
    certs::ClientIdentity,
    cgroup::Cgroup,
    daemon::{Daemon, Home, number},
    eventually,
    load::{Intensity, Load},
    loop_disk::{LoopDisk, apart},
    messages::{Messages, Shape},
    oracle,
    producer::{self, Call, Failure, Pending},
    settings::Settings,
    sink::{Answer, Sink},
    telemetry,
};
use gophership::vault::{AppendError, Compression, Config, EntryId, Lane, Sync, Vault};
use nix::sys::signal::Signal;
use rustls::version::TLS13;
use tonic::Code;
use vault_support::{Random, meta, on_worker, open, read_all, segment_files, small, wait_until};

const MIB: u64 = 1 << 20;

/// A directory on the real disk, with one inside to mount a disk at.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path().join("mounted");
    std::fs::create_dir(&at).unwrap();
    (dir, at)
}

/// The content of an append, from its number alone.
fn content(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    // Every so often larger than a block.
    let len = if number.is_multiple_of(50) {
        150_000
    } else {
        4_000
    };
    (0..len / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect()
}

/// Tasks that append numbered entries to one lane.
#[derive(Clone)]
struct Appenders {
    lane: Lane,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    next: Cell<u64>,
    acked: RefCell<Vec<(u64, EntryId)>>,
    refused: Cell<u64>,
    full: Cell<u64>,
    stop: Cell<bool>,
}

impl Appenders {
    fn new(lane: Lane) -> Self {
        let state = Rc::default();
        Self { lane, state }
    }

    /// Appends, eight at a time, until `until` holds. A refused entry is tried again.
    async fn run_until(&self, until: impl Fn(&State) -> bool) {
        self.state.stop.set(false);
        let tasks: Vec<_> = (0..8)
            .map(|_| tokio::task::spawn_local(self.clone().append_on()))
            .collect();
        while !until(&self.state) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.state.stop.set(true);
        for task in tasks {
            task.await.unwrap();
        }
    }

    async fn append_on(self) {
        let state = &self.state;
        while !state.stop.get() {
            let number = state.next.replace(state.next.get() + 1);
            loop {
                match self.lane.append(meta(1, number), &[content(number)]).await {
                    Ok(id) => {
                        state.acked.borrow_mut().push((number, id));
                        break;
                    }
                    Err(AppendError::Failed { .. }) => state.refused.set(state.refused.get() + 1),
                    Err(AppendError::Full { .. }) => state.full.set(state.full.get() + 1),
                    Err(other) => panic!("{other}"),
                }
                if state.stop.get() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Appends until `more` are acknowledged.
    async fn acknowledge(&self, more: usize) {
        let wanted = self.acked() + more;
        self.run_until(|state| state.acked.borrow().len() >= wanted)
            .await;
    }

    /// Appends until one is refused.
    async fn be_refused(&self) {
        let before = self.state.refused.get();
        self.run_until(|state| state.refused.get() > before).await;
    }

    /// Segments that something was acknowledged in.
    fn begun(&self) -> HashSet<u64> {
        let acked = self.state.acked.borrow();
        acked.iter().map(|(_, id)| id.segment).collect()
    }

    /// The segment that is being written, and the one made ready behind it.
    fn segments(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let current = format!("{:016x}.gsv", self.begun().into_iter().max().unwrap());
        let find = || {
            let files = segment_files(dir);
            let at = files.iter().position(|file| file.ends_with(&current))?;
            Some((files[at].clone(), files.get(at + 1)?.clone()))
        };
        wait_until("another segment", || find().is_some());
        find().unwrap()
    }

    fn check(&self, vault: &Vault) {
        check(vault, &self.state.acked.borrow(), self.state.next.get());
    }

    fn acked(&self) -> usize {
        self.state.acked.borrow().len()
    }
}

/// Where the zeros at a segment's end begin.
fn written(segment: &Path) -> u64 {
    let bytes = std::fs::read(segment).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    end.next_multiple_of(4096) as u64
}

/// Every acknowledged entry is where its id says, with its bytes; nothing else is there but what was
/// appended, and numbers that were placed in order are found in order.
fn check(vault: &Vault, acked: &[(u64, EntryId)], appended: u64) {
    let mut found = HashMap::new();
    for entry in read_all(vault, 1 << 20) {
        assert!(
            entry.arrival_unix_ns < appended,
            "{:?} is invented",
            entry.id
        );
        assert!(
            entry.bytes == content(entry.arrival_unix_ns),
            "{:?} differs",
            entry.id
        );
        assert_eq!(
            found.insert(entry.id, entry.arrival_unix_ns),
            None,
            "{:?} twice",
            entry.id
        );
    }
    for (number, id) in acked {
        assert_eq!(found.get(id), Some(number), "acknowledged as {id:?}");
    }
}

#[test]
fn every_acknowledged_append_was_flushed_to_the_device_and_without_sync_none_is() {
    const APPENDS: usize = 60;
    apart(|| {
        let (_dir, at) = place();
        let Some(disk) = LoopDisk::mount(&at, 64 * MIB) else {
            return;
        };
        assert!(disk.has_write_cache(), "nobody would flush {disk:?}");
        // Appends, one after the other, that were acknowledged without a flush since they began.
        let unflushed = |name: &str, sync: Sync| {
            let config = Config {
                sync,
                // Nothing else may flush the disk meanwhile.
                cursor_interval: Duration::from_secs(3600),
                ..small(&at.join(name))
            };
            let vault = open(&config);
            let unflushed = on_worker(async {
                let lane = vault.lane(0).unwrap();
                lane.append(meta(1, 0), &[content(1)]).await.unwrap();
                // The next segment is made meanwhile.
                wait_until("another segment", || segment_files(&config.dir).len() == 2);
                let mut unflushed = 0;
                for number in 1..=APPENDS as u64 {
                    let before = disk.flushes();
                    lane.append(meta(1, number), &[content(1)]).await.unwrap();
                    unflushed += usize::from(disk.flushes() == before);
                }
                lane.shutdown().await.unwrap();
                unflushed
            });
            vault.close().unwrap();
            unflushed
        };
        assert_eq!(unflushed("always", Sync::Always), 0, "of {APPENDS}");
        // The control: the measure sees a vault that doesn't sync.
        let never = unflushed("never", Sync::Never);
        assert!(never > APPENDS / 2, "{never} of {APPENDS}");
    });
}

#[test]
fn a_disk_with_room_for_one_segment_fills_and_goes_on_when_it_is_settled() {
    apart(|| {
        let (_dir, at) = place();
        let Some(disk) = LoopDisk::mount(&at, 12 * MIB) else {
            return;
        };
        let config = Config {
            segment_bytes: 8 * MIB,
            max_bytes: 1 << 40,
            compression: Compression::None,
            ..small(&at.join("vault"))
        };
        let vault = open(&config);
        let appenders = on_worker(async {
            let appenders = Appenders::new(vault.lane(0).unwrap());
            for round in 0..3 {
                appenders.be_refused().await;
                appenders.check(&vault);
                assert!(disk.free_bytes() < 8 * MIB, "round {round}: not full");
                for (_, id) in appenders.state.acked.take() {
                    vault.settle(id, 1);
                }
                appenders.acknowledge(1).await;
            }
            appenders.lane.shutdown().await.unwrap();
            appenders.state
        });
        vault.close().unwrap();
        let acked = appenders.acked.borrow().clone();
        check(&open(&config), &acked, appenders.next.get());
    });
}

#[test]
fn after_write_errors_of_the_device_nothing_is_lost_and_the_lane_comes_back_by_itself() {
    apart(|| {
        let (_dir, at) = place();
        let Some(disk) = LoopDisk::mount_on_memory(&at, 64 * MIB, 40 * MIB) else {
            return;
        };
        let config = Config {
            segment_bytes: 4 * MIB,
            compression: Compression::None,
            ..small(&at.join("vault"))
        };
        let vault = open(&config);
        let (acked, appended) = on_worker(async {
            let appenders = Appenders::new(vault.lane(0).unwrap());
            appenders.acknowledge(60).await;
            assert_eq!(appenders.state.refused.get(), 0);
            let (current, _) = appenders.segments(&config.dir);
            // From its end on: the loop device would report a request that fails in its middle as done.
            disk.punch(&current, written(&current));
            disk.starve();
            appenders.be_refused().await;
            // At once: it clears by itself a second later.
            assert!(vault.refusal().is_some());
            let errors = vault.stats().write_errors_total;
            assert!(errors >= 1, "{errors} errors");
            assert_eq!(
                appenders.begun().len(),
                2,
                "it went on in the other segment"
            );
            appenders.check(&vault);
            disk.feed();
            // Without anybody who tries.
            wait_until("it takes entries again", || vault.refusal().is_none());
            appenders.acknowledge(200).await;
            appenders.check(&vault);

            // Nothing works any more, at once.
            let (current, next) = appenders.segments(&config.dir);
            disk.punch(&current, written(&current));
            disk.punch(&next, 0);
            disk.starve();
            let acked = appenders.acked();
            appenders.be_refused().await;
            assert!(vault.refusal().is_some());
            assert_eq!(appenders.acked(), acked, "acknowledged, but where?");
            appenders.check(&vault);
            disk.feed();
            wait_until("it takes entries again", || vault.refusal().is_none());
            appenders.acknowledge(200).await;
            appenders.lane.shutdown().await.unwrap();
            (appenders.state.acked.take(), appenders.state.next.get())
        });
        check(&vault, &acked, appended);
        vault.close().unwrap();
        let vault = open(&config);
        check(&vault, &acked, appended);
    });
}

/// What status and metrics say of the bytes in block buffers.
fn vault_buffers(daemon: &Daemon<'_>) -> u64 {
    let status = daemon.status();
    number(status.pointer("/memory/components/vault/used")).expect("a number")
}

fn start_load(home: &Home, daemon: &Daemon<'_>, intensity: Intensity) -> Load {
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    Load::start(daemon.grpc(), &tls, intensity)
}

/// The refusal of a request that may come again.
#[track_caller]
fn assert_retryable(failure: Failure) {
    let status = failure.status();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let delay = producer::retry_delay(&status).expect("RetryInfo tells when to come again");
    assert!(!delay.is_zero());
}

fn readiness(daemon: &Daemon<'_>) -> (u16, String) {
    telemetry::get(daemon.telemetry(), "/readyz").expect("it answers")
}

/// Whether `/readyz` and the status say that the disk is full.
fn is_told_full(daemon: &Daemon<'_>) -> bool {
    let (code, text) = readiness(daemon);
    let told = [text, daemon.status()["vault"]["refusing"].to_string()];
    code == 503
        && told
            .iter()
            .all(|text| text.contains("No space left on device"))
}

/// The log says it once a lane, and again only after a segment could be made meanwhile; not with every
/// attempt.
#[track_caller]
fn assert_told_once(daemon: &Daemon<'_>, lanes: u32) {
    let told = daemon.log_lines("can't make a vault segment");
    let ended = daemon.log_lines("vault segments can be made again");
    let most = usize::try_from(lanes).unwrap() + ended.len();
    assert!((1..=most).contains(&told.len()), "{told:#?}");
}

#[test]
fn a_full_disk_refuses_with_retry_info_and_replay_makes_room_by_itself() {
    apart(|| {
        let home = Home::new();
        let Some(disk) = LoopDisk::mount(&home.vault(), 64 * MIB) else {
            return;
        };
        let mut sink = Sink::down();
        let settings = Settings {
            // More than the disk has.
            vault_max_bytes: "1GiB",
            ..Settings::to(sink.destination("main", "10s"))
        };
        let daemon = Daemon::start(&home, &settings);
        let load = start_load(
            &home,
            &daemon,
            Intensity {
                connections: 4,
                in_flight: 2,
                pace: None,
                shape: Shape {
                    records: 8,
                    body_bytes: 60_000,
                },
                seed: 81,
            },
        );
        let mut probes = Messages::new(
            82,
            Shape {
                records: 1,
                body_bytes: 300_000,
            },
        );
        let (producer, mut acked) = (daemon.producer(), Vec::new());
        eventually("a refusal", 2 * PATIENCE, || {
            let probe = probes.message();
            match producer.export(probe.clone()) {
                Ok(_) => {
                    acked.push(probe);
                    false
                }
                Err(failure) => {
                    assert_retryable(failure);
                    true
                }
            }
        });
        eventually("everybody is told", PATIENCE, || is_told_full(&daemon));
        let free_when_full = disk.free_bytes();
        assert!(free_when_full < 8 * MIB, "{free_when_full} bytes free");
        let tally = load.stop();
        assert!(tally.broken.is_empty(), "{:?}", tally.broken);
        assert!(!tally.refused.is_empty());
        for refused in &tally.refused {
            assert!(refused.contains("currently unavailable"), "{refused}");
        }
        acked.extend(tally.acked);
        assert_told_once(&daemon, settings.workers);

        sink.come_up();
        oracle::await_arrival(&acked, &sink, 2 * PATIENCE);
        daemon.await_empty_vault();
        eventually("it is ready, though nobody sends", PATIENCE, || {
            readiness(&daemon).0 == 200
        });
        // Files of spent segments are used again, so that the disk needn't have more room than before.
        daemon.ctl(&["override", "--zone", "red"]);
        daemon.await_zone("red");
        eventually("the vault takes requests again", PATIENCE, || {
            producer.export(probes.message()).is_ok()
        });
        assert!(daemon.figure("/vault/entries_pending") > 0);
    });
}

/// Resident memory of a process, bytes, at most so far.
fn peak_memory(daemon: &Daemon<'_>) -> u64 {
    let path = format!("/proc/{}/status", daemon.pid());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok()).expect("VmHWM") * 1024
}

#[test]
fn a_slow_disk_slows_acknowledgements_in_bounded_memory_and_loses_none() {
    apart(|| {
        let home = Home::new();
        let (Some(disk), Some(cgroup)) = (
            LoopDisk::mount(&home.vault(), 96 * MIB),
            Cgroup::new("blkio"),
        ) else {
            return;
        };
        let mut sink = Sink::down();
        let settings = Settings {
            memory_total: "64MiB",
            vault_max_bytes: "64MiB",
            workers: 1,
            ..Settings::to(sink.destination("main", "10s"))
        };
        let daemon = Daemon::start(&home, &settings);
        let load = start_load(
            &home,
            &daemon,
            Intensity {
                connections: 8,
                in_flight: 32,
                pace: None,
                shape: Shape {
                    records: 2,
                    body_bytes: 4_000,
                },
                seed: 83,
            },
        );
        eventually("requests are stored", PATIENCE, || load.acked() > 300);
        let before = peak_memory(&daemon);
        cgroup.take(daemon.pid());
        cgroup.limit_writes(&disk.number, Some(512 * 1024));
        eventually("the vault's buffers are in use", PATIENCE, || {
            vault_buffers(&daemon) > 0
        });
        let slowed = load.acked();
        eventually("it goes on, slowly", PATIENCE, || {
            load.acked() > slowed + 300
        });
        let grown = peak_memory(&daemon).saturating_sub(before);
        assert!(
            grown < 64 * MIB,
            "grew by {grown} bytes, memory.total is 64 MiB"
        );

        cgroup.limit_writes(&disk.number, None);
        let fast = load.acked();
        eventually("it goes on as before", PATIENCE, || {
            load.acked() > fast + 600
        });
        cgroup.limit_writes(&disk.number, Some(512 * 1024));
        let slowed = load.acked();
        eventually("and slowly again", PATIENCE, || load.acked() > slowed + 50);
        daemon.kill9();
        cgroup.limit_writes(&disk.number, None);
        let tally = load.stop();
        assert!(tally.refused.is_empty(), "{:?}", tally.refused.first());

        let daemon = Daemon::start(&home, &settings);
        sink.come_up();
        oracle::await_arrival(&tally.acked, &sink, 2 * PATIENCE);
        daemon.await_empty_vault();
    });
}

/// Whether a thread of the daemon whose name begins like this waits and can't be interrupted.
fn is_stuck(daemon: &Daemon<'_>, name: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    tasks.flatten().any(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().unwrap_or_default();
        stat.contains(&format!("({name}")) && state.starts_with('D')
    })
}

/// The control plane answers, and the daemon is alive and ready.
#[track_caller]
fn assert_operable(daemon: &Daemon<'_>) {
    daemon.status();
    daemon.ctl(&["events", "--limit", "5"]);
    for path in ["/metrics", "/healthz", "/readyz"] {
        let (code, text) = telemetry::get(daemon.telemetry(), path).expect("it answers");
        assert_eq!(code, 200, "{path}: {text}");
    }
}

#[test]
fn while_the_disk_hangs_green_goes_on_nothing_else_is_acknowledged_and_it_recovers() {
    apart(|| {
        let (_dir, at) = place();
        let Some(disk) = LoopDisk::mount(&at, 128 * MIB) else {
            return;
        };
        // Everything lies on that disk: vault, audit log, timeline.
        let home = Home::new_in(&at);
        let sink = Sink::up();
        let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "60s")));
        let producer = daemon.producer();
        let shape = Shape {
            records: 5,
            body_bytes: 300,
        };
        let mut messages = Messages::new(84, shape);
        let mut acked = messages.take(20);
        producer.export_all(&acked);

        let frozen = disk.freeze();
        let straight = messages.take(50);
        producer.export_all(&straight);
        oracle::await_arrival(&straight, &sink, PATIENCE);
        acked.extend(straight);

        // The destination takes longer than `ack_within`, the vault longer than the destination.
        sink.answer(Answer::Hold);
        let slow = messages.take(20);
        let pending = start_all(&producer, &slow);
        eventually("they are on their way to the vault, too", PATIENCE, || {
            vault_buffers(&daemon) > 0
        });
        assert!(pending.iter().all(|pending| pending.poll().is_none()));
        sink.answer(Answer::Accept);
        for pending in pending {
            pending.wait().expect("the destination has it");
        }
        acked.extend(slow);
        assert_operable(&daemon);

        // What only the vault can take waits.
        sink.answer(Answer::Refuse(Code::Unavailable));
        let vaulted = messages.take(20);
        let pending = start_all(&producer, &vaulted);
        eventually("the destination is down", PATIENCE, || {
            daemon.text("/export/0/state") == "down"
        });
        thread::scope(|scope| {
            // It can't be kept, so it isn't in force; but it holds nobody up.
            let order = scope.spawn(|| home.ctl(&["override", "--zone", "yellow"]));
            eventually("the override waits for the disk", PATIENCE, || {
                is_stuck(&daemon, "tokio") || is_stuck(&daemon, "gophership")
            });
            assert_operable(&daemon);
            assert_ne!(daemon.text("/zone"), "yellow");
            assert!(pending.iter().all(|pending| pending.poll().is_none()));
            drop(frozen);
            order.join().unwrap().expect_success();
        });
        for pending in pending {
            pending.wait().expect("the vault has it");
        }
        acked.extend(vaulted);
        daemon.await_zone("yellow");

        // Whatever was placed in the vault meanwhile and delivered all the same isn't sent again.
        sink.answer(Answer::Accept);
        let again = oracle::await_arrival(&acked, &sink, PATIENCE);
        daemon.await_empty_vault();
        assert_eq!(again, 0, "delivered twice");
        assert_eq!(daemon.figure("/ledger/residue"), 0);
    });
}

#[test]
fn a_stop_is_bounded_while_the_disk_hangs_and_nothing_acknowledged_is_lost() {
    apart(|| {
        let home = Home::new();
        let Some(disk) = LoopDisk::mount(&home.vault(), 128 * MIB) else {
            return;
        };
        let mut sink = Sink::down();
        let settings = Settings::to(sink.destination("main", "10s"));
        let mut daemon = Daemon::start(&home, &settings);
        let producer = daemon.producer();
        let shape = Shape {
            records: 5,
            body_bytes: 300,
        };
        let mut messages = Messages::new(85, shape);
        let mut acked = messages.take(20);
        producer.export_all(&acked);

        let frozen = disk.freeze();
        let vaulted = messages.take(20);
        let pending = start_all(&producer, &vaulted);
        eventually("they are on their way to the vault", PATIENCE, || {
            vault_buffers(&daemon) > 0
        });
        let asked = Instant::now();
        daemon.signal(Signal::SIGTERM);
        let said = || daemon.log_lines("stopped, but not in order");
        eventually("it says what it leaves undone", PATIENCE, || {
            !said().is_empty()
        });
        assert!(asked.elapsed() < STOP_WITHIN, "{:?}", asked.elapsed());
        for part in ["thread worker-", "vault: not closed in time"] {
            assert!(said()[0].contains(part), "{:?}", said());
        }
        // A process whose threads wait for the disk can't be gone before they are; all else is.
        eventually(
            "nothing but what waits for the disk is left",
            PATIENCE,
            || telemetry::get(daemon.telemetry(), "/healthz").is_err(),
        );
        drop(frozen);
        assert_eq!(daemon.await_exit(PATIENCE).code(), Some(1));
        let answered = vaulted.into_iter().zip(pending);
        acked.extend(answered.filter_map(|(message, sent)| sent.wait().is_ok().then_some(message)));
        drop(daemon);

        let daemon = Daemon::start(&home, &settings);
        sink.come_up();
        oracle::await_arrival(&acked, &sink, PATIENCE);
        daemon.await_empty_vault();
        assert_eq!(daemon.figure("/ledger/residue"), 0);
    });
}

/// A container has this long to stop.
const STOP_WITHIN: Duration = Duration::from_secs(30);

fn start_all(producer: &producer::Producer, messages: &[bytes::Bytes]) -> Vec<Pending> {
    let calls = messages.iter().cloned().map(Call::logs);
    calls.map(|call| producer.start(call)).collect()
}

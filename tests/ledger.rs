//! The ledger explains every acknowledged record, also across crashes and departures.

mod common;

use std::{
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home, number},
    eventually,
    load::{Intensity, Load},
    messages::{Messages, Shape},
    oracle,
    producer::Call,
    settings::Settings,
    sink::{Answer, Sink},
};
use nix::{fcntl::OFlag, sys::stat::Mode};
use rustls::version::TLS13;
use serde_json::Value;
use tonic::Code;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// Where accepted records are, one after the other.
const ACCOUNTS: [&str; 7] = [
    "delivered",
    "owed",
    "in_flight",
    "quarantined",
    "dead_lettered",
    "rejected",
    "dropped",
];

/// The books of one destination, of which every accepted record must be somewhere.
#[track_caller]
fn books(daemon: &Daemon<'_>, destination: &str) -> Value {
    let books = daemon.status()["ledger"]["destinations"][destination].clone();
    let records = |account: &str| number(books.get(account)).expect("a number of records");
    let sum: u64 = ACCOUNTS.into_iter().map(records).sum();
    assert_eq!(records("accepted"), sum, "{books:#}");
    assert_eq!(books["residue"], 0, "{books:#}");
    books
}

#[track_caller]
fn assert_explained(daemon: &Daemon<'_>) {
    let ledger = daemon.status()["ledger"].clone();
    assert_eq!(ledger["residue"], 0, "{ledger:#}");
    for destination in ledger["destinations"].as_object().unwrap().keys() {
        books(daemon, destination);
    }
    assert_eq!(daemon.metric("gophership_ledger_residue_records", &[]), 0.0);
}

/// The metrics say the same as the books, which don't change meanwhile.
#[track_caller]
fn assert_measured(daemon: &Daemon<'_>, destination: &str) {
    let books = books(daemon, destination);
    for account in ["accepted", "vaulted", "replayed"]
        .into_iter()
        .chain(ACCOUNTS)
        .filter(|&account| account != "in_flight")
    {
        let labels = [("destination", destination), ("account", account)];
        let measured = daemon.metric("gophership_ledger_records", &labels);
        assert_eq!(Some(measured), books[account].as_f64(), "{account}");
    }
}

/// SIGTERM, a clean end, and another run.
#[track_caller]
fn restart<'h>(daemon: Daemon<'_>, home: &'h Home, settings: &Settings) -> Daemon<'h> {
    assert!(daemon.terminate(PATIENCE).success());
    let daemon = Daemon::start(home, settings);
    await_recovery(&daemon);
    daemon
}

fn await_recovery(daemon: &Daemon<'_>) {
    eventually("the vault is recounted", PATIENCE, || {
        daemon.status()["vault"]["recovery"]["done"] == true
    });
}

#[test]
fn a_clean_restart_keeps_the_books() {
    let home = Home::new();
    let sink = Sink::up();
    let path = home.path("logs.jsonl");
    let mut settings = Settings {
        ack_within: "30s",
        ..Settings::to(sink.destination("main", "60s"))
    };
    let local = format!(
        "{{ name: local, file: {{ path: \"{}\" }} }}",
        path.display()
    );
    settings.destinations.push(local);
    let daemon = Daemon::start(&home, &settings);
    let mut messages = Messages::new(63, SHAPE);
    daemon.producer().export_all(&messages.take(50));
    assert_eq!(books(&daemon, "main")["vaulted"], 0);

    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    daemon.producer().export_all(&messages.take(30));
    sink.answer(Answer::RejectWith(b"record 63-60-"));
    daemon.ctl(&["override", "--clear"]);
    daemon.await_empty_vault();
    sink.answer(Answer::Refuse(Code::Unavailable));
    daemon.producer().export_all(&messages.take(20));
    let before = (books(&daemon, "main"), books(&daemon, "local"));
    for (account, main, local) in [
        ("accepted", 1000, 1000),
        ("vaulted", 500, 300),
        ("delivered", 790, 1000),
        ("replayed", 290, 300),
        ("dead_lettered", 10, 0),
        ("owed", 200, 0),
    ] {
        assert_eq!(before.0[account], main, "{account} {:#}", before.0);
        assert_eq!(before.1[account], local, "{account} {:#}", before.1);
    }

    let daemon = restart(daemon, &home, &settings);
    assert_eq!((books(&daemon, "main"), books(&daemon, "local")), before);
    assert_measured(&daemon, "main");
    sink.answer(Answer::Accept);
    daemon.await_empty_vault();
    daemon.producer().export_all(&messages.take(10));
    let daemon = restart(daemon, &home, &settings);
    let main = books(&daemon, "main");
    assert_eq!(
        (&main["accepted"], &main["delivered"]),
        (&1100.into(), &1090.into())
    );
    assert_eq!(
        (&main["vaulted"], &main["replayed"]),
        (&500.into(), &490.into())
    );
}

#[test]
fn what_a_destination_rejects_of_what_it_takes_is_not_delivered() {
    let home = Home::new();
    let [main, other] = [Sink::up(), Sink::up()];
    let mut settings = Settings {
        workers: 1,
        ..Settings::to(main.destination("main", "60s"))
    };
    settings
        .destinations
        .push(other.destination("other", "60s"));
    let mut messages = Messages::new(67, SHAPE);
    let daemon = Daemon::start(&home, &settings);
    let producer = daemon.producer();
    // Straight, each request a batch: three of ten.
    main.answer(Answer::AcceptLess(3));
    for message in messages.take(5) {
        producer.export(message).expect("it is acknowledged");
    }
    daemon.await_empty_vault();
    let straight = (books(&daemon, "main"), books(&daemon, "other"));
    for (books, delivered, rejected) in [(&straight.0, 35, 15), (&straight.1, 50, 0)] {
        let accounts = (&books["delivered"], &books["rejected"]);
        assert_eq!(accounts, (&delivered.into(), &rejected.into()), "{books:#}");
    }
    // As the vault acknowledges while the exports go on; some of them are several requests in one batch.
    main.answer(Answer::Hold);
    let seen = main.seen();
    let sent = messages.take(20).into_iter();
    let sent: Vec<_> = sent
        .map(|message| producer.start(Call::logs(message)))
        .collect();
    for pending in sent {
        pending.wait().expect("the vault acknowledges");
    }
    main.answer(Answer::AcceptLess(10));
    daemon.await_empty_vault();
    let batches = (main.seen() - seen) as u64;
    let main_books = books(&daemon, "main");
    assert!((1..=20).contains(&batches), "{batches}");
    assert_eq!(main_books["rejected"], 15 + 10 * batches, "{main_books:#}");
    assert_eq!(
        main_books["delivered"],
        235 - 10 * batches,
        "{main_books:#}"
    );
    assert_eq!(main_books["replayed"], 0);
    assert_eq!(
        main_books["vaulted"],
        200 + number(straight.0.get("vaulted")).unwrap()
    );
    let other_books = books(&daemon, "other");
    assert_eq!(other_books["delivered"], 250, "{other_books:#}");
    // By way of the vault, one of the destinations still busy with it.
    other.answer(Answer::Hold);
    main.answer(Answer::AcceptLess(3));
    producer
        .export(messages.message())
        .expect("the vault has it");
    eventually("one has it", PATIENCE, || {
        let now = books(&daemon, "main");
        now["accepted"] == 260 && now["owed"] == 0
    });
    assert_eq!(books(&daemon, "main")["rejected"], 18 + 10 * batches);
    other.answer(Answer::Accept);
    daemon.await_empty_vault();

    let before = (books(&daemon, "main"), books(&daemon, "other"));
    let daemon = restart(daemon, &home, &settings);
    assert_eq!((books(&daemon, "main"), books(&daemon, "other")), before);
    assert_measured(&daemon, "main");
}

/// Which writing of the cursors is the newest on the disk.
fn generation(home: &Home) -> u64 {
    let generation = |slot: &str| {
        let bytes = std::fs::read(home.vault().join(slot)).unwrap_or_default();
        let field = bytes.get(16..24)?.try_into().ok()?;
        Some(u64::from_le_bytes(field))
    };
    let newest = ["cursors-a", "cursors-b"]
        .into_iter()
        .filter_map(generation);
    newest.max().unwrap_or(0)
}

#[test]
fn after_crashes_under_load_the_books_balance_and_count_nothing_twice() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "10s"));
    let (mut sent, mut kept) = (0, 0);
    for round in 0..4 {
        let daemon = Daemon::start(&home, &settings);
        await_recovery(&daemon);
        let accepted = || number(books(&daemon, "main").get("accepted")).unwrap();
        let again = accepted();
        assert!(
            (kept..=sent).contains(&again),
            "round {round}: {again}, not {kept} to {sent}"
        );
        // Straight, then into the vault, then both and out of it.
        let load = Load::start(
            daemon.grpc(),
            &home.certs().client(ClientIdentity::Shown, &[&TLS13]),
            Intensity {
                connections: 2,
                in_flight: 4,
                pace: Some(200),
                shape: SHAPE,
                seed: 640 + round,
            },
        );
        let until = |more: usize| {
            let wanted = load.acked() + more;
            eventually("acknowledgements", PATIENCE, || {
                assert_explained(&daemon);
                load.acked() >= wanted
            });
        };
        until(100);
        // A backlog, of which the cursors know.
        sink.answer(Answer::Refuse(Code::Unavailable));
        until(400);
        kept = accepted();
        // The second from now was begun later.
        let cursors = generation(&home) + 2;
        eventually("newer cursors", PATIENCE, || generation(&home) >= cursors);
        // Much of it is delivered before they are written again.
        let replayed = || daemon.figure("/ledger/destinations/main/replayed");
        let before = replayed();
        sink.answer(Answer::Accept);
        eventually("replay", PATIENCE, || replayed() > before + 1000);
        daemon.kill9();
        let tally = load.stop();
        sent += 10 * (tally.acked.len() + tally.unanswered.len()) as u64;
    }
}

#[test]
fn status_and_metrics_tell_how_far_recovery_is() {
    let home = Home::new();
    let mut sink = Sink::down();
    let settings = Settings {
        workers: 1,
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    daemon
        .producer()
        .export_all(&Messages::new(66, SHAPE).take(50));
    assert!(daemon.terminate(PATIENCE).success());
    let stored = segments(&home);
    let bytes: u64 = stored
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum();
    // Whoever opens it waits for somebody who writes: a segment that a disk is slow to give.
    let slow = home.vault().join("lane-00/00000000ffffffff.gsv");
    nix::unistd::mkfifo(&slow, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    // Lets one that waits go on; O_DIRECT is tried first, so each look at it takes two.
    let give = || {
        let mut writer = std::fs::File::options();
        writer.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        drop(writer.open(&slow));
    };

    let daemon = Daemon::start(&home, &settings);
    let recovery = || daemon.status()["vault"]["recovery"].clone();
    let expected = |done: bool, segments: usize, read: u64| {
        serde_json::json!({
            "done": done,
            "segments": segments,
            "segments_total": stored.len() + 1,
            "bytes": read,
            "bytes_total": bytes,
        })
    };
    let measured = |state| daemon.metric("gophership_vault_recovery_bytes", &[("state", state)]);
    assert_eq!(recovery(), expected(false, 0, 0));
    #[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
    let total = bytes as f64;
    assert_eq!((measured("read"), measured("left")), (0.0, total));
    assert_eq!(daemon.metric("gophership_vault_recovering", &[]), 1.0);
    let give_until = |what: &str, expected: Value| {
        eventually(what, PATIENCE, || {
            let is_reached = recovery() == expected;
            if !is_reached {
                give();
            }
            is_reached
        });
    };
    // The headers of all are read first, then all of each.
    give_until("all but one are read", expected(false, stored.len(), bytes));
    assert_explained(&daemon);
    give_until("the last one", expected(true, stored.len() + 1, bytes));
    assert_eq!((measured("read"), measured("left")), (total, 0.0));
    assert_eq!(daemon.metric("gophership_vault_recovering", &[]), 0.0);
    sink.come_up();
    daemon.await_empty_vault();
}

/// The files of all segments of the first lane.
fn segments(home: &Home) -> Vec<PathBuf> {
    let files = std::fs::read_dir(home.vault().join("lane-00")).unwrap();
    files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gsv"))
        .collect()
}

#[test]
fn damage_counts_as_quarantined_in_every_run() {
    let home = Home::new();
    let mut sink = Sink::down();
    let settings = Settings {
        workers: 1,
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let producer = daemon.producer();
    // One after the other: each in a block of its own.
    for message in Messages::new(65, SHAPE).take(20) {
        producer.export(message).expect("it is acknowledged");
    }
    assert!(daemon.terminate(PATIENCE).success());
    let [segment] = &segments(&home)[..] else {
        panic!("one sealed segment");
    };
    let file = std::fs::File::options().write(true).open(segment).unwrap();
    // In the payload of the first block, behind the segment's header page.
    file.write_all_at(&[0x55; 8], 4096 + 128 + 64).unwrap();

    let daemon = Daemon::start(&home, &settings);
    await_recovery(&daemon);
    let main = books(&daemon, "main");
    let lost = number(main.get("quarantined")).unwrap();
    assert!((10..200).contains(&lost), "{main:#}");
    assert_eq!(main["accepted"], 200);
    assert_eq!(daemon.figure("/vault/quarantined_records"), lost);
    sink.come_up();
    daemon.await_empty_vault();
    let main = books(&daemon, "main");
    assert_eq!(main["delivered"], 200 - lost);

    let daemon = restart(daemon, &home, &settings);
    assert_eq!(books(&daemon, "main"), main);
    assert_measured(&daemon, "main");
}

#[test]
fn a_crash_leaves_no_residue() {
    let home = Home::new();
    let mut sink = Sink::down();
    let settings = Settings::to(sink.destination("main", "10s"));
    let daemon = Daemon::start(&home, &settings);
    let messages = Messages::new(60, SHAPE).take(200);
    daemon.producer().export_all(&messages);
    assert_explained(&daemon);
    daemon.kill9();

    let daemon = Daemon::start(&home, &settings);
    eventually("the vault is recounted", PATIENCE, || {
        daemon.figure("/vault/records_pending") == 2000
    });
    assert_explained(&daemon);
    assert_eq!(daemon.figure("/ledger/destinations/main/accepted"), 2000);
    assert_eq!(daemon.figure("/ledger/destinations/main/owed"), 2000);

    sink.come_up();
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_explained(&daemon);
    assert_eq!(daemon.figure("/ledger/destinations/main/delivered"), 2000);
}

#[test]
fn producers_that_go_away_leave_no_residue() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let mut messages = Messages::new(61, SHAPE);
    for _ in 0..20 {
        let producer = daemon.producer();
        let requests = messages.take(50);
        let mut sent: Vec<_> = requests
            .into_iter()
            .map(|message| producer.start(Call::logs(message)))
            .collect();
        // One is answered, so that the others are on their way: then the connection breaks.
        sent.remove(0).wait().expect("the vault acknowledges");
    }
    eventually("no connection is left", PATIENCE, || {
        daemon.figure("/ingest/connections") == 0
    });
    assert_explained(&daemon);
    daemon.ctl(&["override", "--clear"]);
    daemon.await_empty_vault();
    assert_explained(&daemon);
}

#[test]
fn what_a_full_vault_drops_is_counted_and_the_rest_is_delivered() {
    let home = Home::new();
    let mut sink = Sink::down();
    let settings = Settings {
        workers: 1,
        vault_max_bytes: "8MiB",
        segment_bytes: "2MiB",
        max_request_bytes: "1MiB",
        on_full: "drop_oldest",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let large = Shape {
        records: 10,
        body_bytes: 20_000,
    };
    let mut messages = Messages::new(62, large);
    let dropped = || daemon.figure("/ledger/destinations/main/dropped");
    let mut sent = 0;
    while dropped() == 0 {
        assert!(sent < 20_000, "nothing is dropped");
        daemon.producer().export_all(&messages.take(50));
        sent += 500;
        assert_explained(&daemon);
    }
    assert_eq!(daemon.figure("/ledger/destinations/main/accepted"), sent);
    let labels = [("reason", "vault_full"), ("destination", "main")];
    assert!(daemon.metric("gophership_dropped_records_total", &labels) > 0.0);
    assert_eq!(daemon.figure("/vault/dropped_records"), dropped());

    sink.come_up();
    daemon.await_empty_vault();
    assert_explained(&daemon);
    let main = books(&daemon, "main");
    let delivered = number(main.get("delivered")).unwrap();
    assert_eq!(delivered + dropped(), sent);

    let daemon = restart(daemon, &home, &settings);
    assert_eq!(books(&daemon, "main"), main);
    // Only since the start.
    assert_eq!(daemon.figure("/vault/dropped_records"), 0);
}

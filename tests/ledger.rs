//! The ledger explains every acknowledged record, also across crashes and departures.

mod common;

use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually,
    messages::{Messages, Shape},
    oracle,
    producer::Call,
    settings::Settings,
    sink::Sink,
};

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

#[track_caller]
fn assert_explained(daemon: &Daemon<'_>) {
    let ledger = daemon.status()["ledger"].clone();
    assert_eq!(ledger["residue"], 0, "{ledger:#}");
    assert_eq!(daemon.metric("gophership_ledger_residue_records", &[]), 0.0);
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
    let delivered = daemon.figure("/ledger/destinations/main/delivered");
    assert_eq!(delivered + dropped(), sent);
}

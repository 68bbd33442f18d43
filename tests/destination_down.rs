//! Producers are acknowledged whatever the destination does, and it gets everything in the end.

mod common;

use std::time::Duration;

use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually, jsonl,
    messages::{Messages, Shape},
    oracle,
    producer::Call,
    settings::Settings,
    sink::{Answer, Sink},
};
use serde_json::Value;
use tonic::Code;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// Acknowledged entries are on the disk; the status may learn of them a moment later.
#[track_caller]
fn await_pending(daemon: &Daemon<'_>, entries: u64) {
    eventually(&format!("{entries} entries pending"), PATIENCE, || {
        daemon.figure("/vault/entries_pending") == entries
    });
}

#[test]
fn requests_to_a_destination_that_is_down_arrive_when_it_comes_up() {
    let home = Home::new();
    let mut sink = Sink::down_with_tls(home.certs());
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let messages = Messages::new(10, SHAPE).take(100);

    daemon.producer().export_all(&messages);
    await_pending(&daemon, 100);
    assert_eq!(daemon.figure("/vault/records_pending"), 1000);

    sink.come_up();
    let again = oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(again, 0, "nothing was delivered before");
}

#[test]
fn requests_to_a_destination_that_refuses_arrive_when_it_accepts() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Refuse(Code::Unavailable));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let messages = Messages::new(11, SHAPE).take(100);

    daemon.producer().export_all(&messages);
    eventually("the destination is asked", PATIENCE, || sink.seen() > 0);
    assert_eq!(sink.stored_count(), 0);
    await_pending(&daemon, 100);

    sink.answer(Answer::Accept);
    let again = oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(again, 0, "nothing was delivered before");
}

#[test]
fn a_destination_that_asks_for_no_delay_is_not_called_in_a_loop() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::RefuseFor(Code::Unavailable, Duration::ZERO));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let messages = Messages::new(20, SHAPE).take(300);
    daemon.producer().export_all(&messages);
    // The backoff begins at 100 ms and doubles: a handful of calls, not one a request.
    assert!((1..=40).contains(&sink.seen()), "{}", sink.seen());
    sink.answer(Answer::Accept);
    oracle::await_arrival(&messages, &sink, PATIENCE);
}

#[test]
fn one_batch_is_the_trial_of_a_destination_that_failed() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Refuse(Code::Unavailable));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "120s")));
    let mut messages = Messages::new(21, SHAPE);
    let mut sent = messages.take(20);
    let producers = [daemon.producer(), daemon.producer(), daemon.producer()];
    producers[0].export_all(&sent);
    let metric = |name| daemon.metric(name, &[("destination", "main")]);
    eventually("the destination has failed", PATIENCE, || {
        metric("gophership_export_up") == 0.0
    });
    sink.answer(Answer::Hold);
    let mut send = |count| {
        for producer in &producers {
            let more = messages.take(count);
            producer.export_all(&more);
            sent.extend(more);
        }
    };
    eventually("the destination is tried", PATIENCE, || {
        send(1);
        sink.holding() > 0
    });
    // The backoff is long over, and the other workers and the replay have much that is owed.
    send(100);
    assert_eq!(sink.holding(), 1);
    assert!(metric("gophership_export_retries_total") >= 1.0);
    sink.answer(Answer::Accept);
    oracle::await_arrival(&sent, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(metric("gophership_export_up"), 1.0);
}

#[test]
fn a_destination_that_refuses_everything_for_good_is_shown_and_does_not_flood_the_log() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Refuse(Code::InvalidArgument));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon
        .producer()
        .export_all(&Messages::new(22, SHAPE).take(200));
    let metric = |name| daemon.metric(name, &[("destination", "main")]);
    eventually("all requests are refused", PATIENCE, || {
        metric("gophership_export_rejected_records_total") == 2000.0
    });
    assert!(metric("gophership_export_refusals_total") > 1.0);
    assert_eq!(metric("gophership_export_up"), 0.0);
    let shown = &daemon.status()["export"][0];
    assert_eq!(shown["state"], "down");
    let said = shown["last_error"].as_str().expect("an error");
    assert!(said.contains("INVALID_ARGUMENT"), "{said}");
    // So many in ten seconds.
    for line in ["destination rejected a batch", "replay: dead letter"] {
        let lines = daemon.log_lines(line).len();
        assert!((1..=40).contains(&lines), "{line}: {lines}");
    }

    sink.answer(Answer::Accept);
    let good = Messages::new(23, SHAPE).take(1);
    daemon.producer().export_all(&good);
    oracle::await_arrival(&good, &sink, PATIENCE);
    eventually("it is up again", PATIENCE, || {
        metric("gophership_export_up") == 1.0
    });
    assert_eq!(daemon.status()["export"][0]["last_error"], "");
}

#[test]
fn a_slow_destination_does_not_hold_up_acknowledgements_and_gets_nothing_twice() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    // The hold is shorter than the timeout: this destination is slow, not broken.
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "120s")));
    let producer = daemon.producer();
    let messages = Messages::new(12, SHAPE).take(40);

    let first = producer.start(Call::logs(messages[0].clone()));
    eventually("the destination holds a request", PATIENCE, || {
        sink.holding() > 0
    });
    first.wait().expect("the vault acknowledges");
    producer.export_all(&messages[1..]);
    // All are acknowledged, and the destination hasn't answered any.
    assert_eq!(sink.stored_count(), 0);
    assert!(sink.holding() > 0);
    await_pending(&daemon, 40);

    sink.answer(Answer::Accept);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    // Settled entries are never replayed; what arrived until here is all that ever will.
    let arrivals = oracle::arrivals(&messages, &sink.stored());
    assert_eq!(arrivals, vec![1; 40], "something was delivered twice");
}

#[test]
fn a_near_destination_is_waited_for_and_the_vault_stays_empty() {
    let home = Home::new();
    let sink = Sink::up();
    // Longer than any destination here takes, so that only the destination can acknowledge.
    let settings = Settings {
        ack_within: "30s",
        ..Settings::to(sink.destination("main", "60s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let messages = Messages::new(13, SHAPE).take(50);
    daemon.producer().export_all(&messages);
    // No wait: an acknowledgement means that it is there.
    let arrivals = oracle::arrivals(&messages, &sink.stored());
    assert_eq!(arrivals, vec![1; 50]);
    assert_eq!(daemon.figure("/vault/entries_pending"), 0);
}

#[test]
fn a_near_destination_hears_at_once_whatever_is_in_flight_to_a_far_one() {
    let home = Home::new();
    let [near, far] = [Sink::up(), Sink::up()];
    far.answer(Answer::AcceptAfter(Duration::from_millis(300)));
    let mut settings = Settings {
        workers: 1,
        // Whoever waited for it would never be in time.
        batch_linger: "200ms",
        ..Settings::to(near.destination("near", "60s"))
    };
    settings.destinations.push(far.destination("far", "60s"));
    let daemon = Daemon::start(&home, &settings);
    let producer = daemon.producer();
    let mut messages = Messages::new(19, SHAPE);
    // Until it is known how far away the one is.
    let first = messages.message();
    producer.export(first).expect("it is acknowledged");
    daemon.await_empty_vault();

    let messages = messages.take(100);
    producer.export_all(&messages);
    let vaulted = |name: &str| {
        let account = format!("/ledger/destinations/{name}/vaulted");
        daemon.figure(&account) / SHAPE.records
    };
    assert_eq!(vaulted("far"), 101);
    assert!(vaulted("near") < 50, "{} of 100", vaulted("near"));
    // What was more than its share comes from the vault.
    oracle::await_arrival(&messages, &far, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
}

#[test]
fn one_of_two_destinations_may_be_down() {
    let home = Home::new();
    let mut sink = Sink::down();
    let path = home.path("logs.jsonl");
    let mut settings = Settings::to(sink.destination("server", "10s"));
    settings.destinations.push(format!(
        "{{ name: local, file: {{ path: \"{}\" }} }}",
        path.display()
    ));
    let daemon = Daemon::start(&home, &settings);
    let messages = Messages::new(14, SHAPE).take(100);

    daemon.producer().export_all(&messages);
    eventually("everything is in the file", PATIENCE, || {
        jsonl::records(&path).len() == 1000
    });
    await_pending(&daemon, 100);
    eventually("the replay waits for the server", PATIENCE, || {
        daemon.text("/replay/state") == "waiting"
    });
    assert_eq!(daemon.figure("/ledger/destinations/local/owed"), 0);
    assert_eq!(daemon.figure("/ledger/destinations/server/owed"), 1000);
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
    let up = |name| daemon.metric("gophership_export_up", &[("destination", name)]);
    assert_eq!((up("local"), up("server")), (1.0, 0.0));

    sink.come_up();
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(
        jsonl::records(&path).len(),
        1000,
        "the file got nothing twice"
    );
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
}

/// A daemon's settings for a server that may take its time and a file.
fn server_and_file(sink: &Sink, path: &std::path::Path) -> Settings {
    let mut settings = Settings::to(sink.destination("server", "120s"));
    settings.destinations.push(format!(
        "{{ name: local, file: {{ path: \"{}\" }} }}",
        path.display()
    ));
    settings
}

#[test]
fn what_one_destination_has_is_owed_to_the_slow_one_alone() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    let path = home.path("logs.jsonl");
    let settings = server_and_file(&sink, &path);
    let daemon = Daemon::start(&home, &settings);
    let messages = Messages::new(19, SHAPE).take(20);
    daemon.producer().export_all(&messages);
    eventually("only the server is owed", PATIENCE, || {
        daemon.figure("/ledger/destinations/local/owed") == 0
            && daemon.figure("/ledger/destinations/server/owed") == 200
    });
    assert!(sink.holding() > 0, "the server has still to answer");
    assert_eq!(jsonl::records(&path).len(), 200);
    assert_eq!(daemon.status()["ledger"]["residue"], 0);

    // Nor is it sent there again.
    sink.answer(Answer::Accept);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(jsonl::records(&path).len(), 200);
    assert_eq!(oracle::arrivals(&messages, &sink.stored()), vec![1; 20]);
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
}

#[test]
fn what_one_destination_had_before_the_vault_is_not_sent_there_again_after_a_crash() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    let path = home.path("logs.jsonl");
    let settings = Settings {
        // The file needs less than that.
        ack_within: "1s",
        ..server_and_file(&sink, &path)
    };
    let daemon = Daemon::start(&home, &settings);
    let messages = Messages::new(22, SHAPE).take(10);
    daemon.producer().export_all(&messages);
    // Before the cursors tell of anything.
    daemon.kill9();
    assert_eq!(jsonl::records(&path).len(), 100);

    sink.answer(Answer::Accept);
    let daemon = Daemon::start(&home, &settings);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(jsonl::records(&path).len(), 100, "nothing twice");
}

#[test]
fn a_destination_that_holds_all_it_gets_does_not_hold_up_the_other() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    let path = home.path("logs.jsonl");
    let settings = server_and_file(&sink, &path);
    // Room for 19 batches.
    let settings = Settings {
        memory_total: "64MiB",
        workers: 1,
        ..settings
    };
    let daemon = Daemon::start(&home, &settings);
    // What arrives at the file didn't take the way through the vault.
    daemon.ctl(&["replay", "--pause"]);
    let producer = daemon.producer();
    let messages = Messages::new(20, SHAPE).take(50);
    for message in &messages {
        let pending = producer.start(Call::logs(message.clone()));
        pending.wait().expect("it is acknowledged");
    }
    eventually("everything is in the file", PATIENCE, || {
        jsonl::records(&path).len() == 500
    });
    assert!(
        sink.holding() > 0 && sink.holding() < 10,
        "{}",
        sink.holding()
    );
    eventually("only the server is owed", PATIENCE, || {
        daemon.figure("/ledger/destinations/local/owed") == 0
            && daemon.figure("/ledger/destinations/server/owed") == 500
    });
    sink.answer(Answer::Accept);
    daemon.ctl(&["replay", "--resume"]);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(jsonl::records(&path).len(), 500, "nothing twice");
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
}

#[test]
fn a_file_is_rotated_under_load_and_nothing_is_missing() {
    let home = Home::new();
    let path = home.path("logs.jsonl");
    // Confined as it is by default: it must be allowed to rename.
    let daemon = Daemon::start(
        &home,
        &Settings::to(format!(
            "{{ name: local, file: {{ path: \"{}\", rotate_bytes: 64KiB, keep: 1000 }} }}",
            path.display()
        )),
    );
    let messages = Messages::new(21, SHAPE).take(100);
    daemon.producer().export_all(&messages);
    daemon.await_empty_vault();
    let rotated = |number: usize| home.path(&format!("logs.jsonl.{number}"));
    let files = (1..).map(rotated).take_while(|path| path.exists());
    let mut files: Vec<_> = files.collect();
    assert!(files.len() >= 3, "{}", files.len());
    for file in &files {
        assert!(file.metadata().unwrap().len() >= 64 << 10);
    }
    files.push(path);
    let records: usize = files.iter().map(|path| jsonl::records(path).len()).sum();
    assert_eq!(records, 1000);
}

#[test]
fn a_request_that_is_rejected_becomes_a_dead_letter_and_its_neighbours_arrive() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::RejectWith(b"record 15-7-"));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let producer = daemon.producer();
    let mut messages = Messages::new(15, SHAPE).take(30);
    let sent: Vec<_> = messages
        .iter()
        .map(|message| producer.start(Call::logs(message.clone())))
        .collect();
    for pending in sent {
        pending.wait().expect("it is acknowledged");
    }
    messages.remove(7);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(daemon.figure("/vault/dead_letters"), 1);
    assert_eq!(daemon.figure("/ledger/destinations/main/dead_lettered"), 10);
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
    let rejected = daemon.metric("gophership_export_rejected_records_total", &[]);
    assert_eq!(rejected, 10.0);
    let letters = std::fs::read_dir(home.vault().join("dead-letters"));
    assert_eq!(letters.expect("the directory is there").count(), 2);
}

#[test]
fn without_room_for_dead_letters_their_entries_stay_owed_and_the_others_arrive() {
    // Two or three letters: one takes two blocks or three.
    const MAX_BYTES: u64 = 28_000;
    let home = Home::new();
    let sink = Sink::up();
    // Of 30 messages, number 2 and 20 to 29.
    sink.answer(Answer::RejectWith(b"record 17-2"));
    let settings = Settings::to(sink.destination("main", "10s"));
    let max_bytes = MAX_BYTES.to_string();
    let bound = [("GOPHERSHIP_VAULT__DEAD_LETTERS_MAX_BYTES", &*max_bytes)];
    let daemon = Daemon::start_with_env(&home, &settings, &bound);
    let all = Messages::new(17, SHAPE).take(30);
    daemon.producer().export_all(&all);
    let good = [&all[..2], &all[3..20]].concat();
    oracle::await_arrival(&good, &sink, PATIENCE);
    let letters = || daemon.figure("/vault/dead_letters");
    let owed = || daemon.figure("/ledger/destinations/main/owed");
    eventually("there is no room for more letters", PATIENCE, || {
        letters() >= 1 && owed() == 10 * (11 - letters())
    });
    assert!(owed() > 0 && daemon.figure("/vault/dead_letter_bytes") <= MAX_BYTES);
    let refused = daemon.text("/vault/dead_letters_refused");
    assert!(
        refused.contains("vault.dead_letters_max_bytes = 28000"),
        "{refused}"
    );
    assert_eq!(daemon.log_lines("a dead letter can't be written").len(), 1);
    assert_eq!(daemon.status()["ledger"]["residue"], 0);

    // The others go on, and those aren't sent again all the time.
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let more = Messages::new(18, SHAPE).take(20);
    daemon.producer().export_all(&more);
    let seen = sink.seen();
    daemon.ctl(&["override", "--clear"]);
    oracle::await_arrival(&more, &sink, PATIENCE);
    let sent = sink.seen() - seen;
    assert!(
        sent <= more.len(),
        "{sent} requests for {} entries",
        more.len()
    );

    // Somebody deals with the letters, and the destination with the requests.
    sink.answer(Answer::Accept);
    for letter in std::fs::read_dir(home.vault().join("dead-letters")).unwrap() {
        std::fs::remove_file(letter.unwrap().path()).unwrap();
    }
    daemon.await_empty_vault();
    assert_eq!(
        daemon.status()["vault"]["dead_letters_refused"],
        Value::Null
    );
    assert_eq!((letters(), owed()), (0, 0));
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
}

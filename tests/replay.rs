//! The replay as operators steer it: whom it sends what, how fast, and how much that would be.

mod common;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use common::{
    PATIENCE,
    daemon::{Daemon, Home, number},
    eventually, holds_within,
    messages::{Messages, Shape},
    oracle,
    settings::Settings,
    sink::{Answer, Sink},
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest, common::v1::any_value::Value as Any,
    logs::v1::LogRecord,
};
use prost::Message;
use serde_json::Value;
use tonic::Code;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};
/// As the settings have it.
const FULL_RATE: u64 = 256 << 20;

/// Of the replay to one destination.
fn course(daemon: &Daemon<'_>, destination: &str) -> Value {
    daemon.status()["replay"]["destinations"][destination].clone()
}

fn owed(daemon: &Daemon<'_>, destination: &str) -> u64 {
    daemon.figure(&format!("/ledger/destinations/{destination}/owed"))
}

/// Entries, records and bytes that a replay with these options would send.
#[track_caller]
fn plan(daemon: &Daemon<'_>, destination: &str, options: &[&str]) -> [u64; 3] {
    let arguments = [&["replay", "--dry-run"], options].concat();
    let plan: Value = serde_json::from_str(&daemon.ctl(&arguments).stdout).expect("JSON");
    let counted = &plan["plan"]["destinations"][destination];
    ["entries", "records", "bytes"]
        .map(|key| number(counted.get(key)).unwrap_or_else(|| panic!("{key}: {plan:#}")))
}

/// A daemon that replays only when told to.
fn manual(sink: &Sink) -> Settings {
    Settings {
        replay_auto: false,
        ..Settings::to(sink.destination("main", "10s"))
    }
}

/// Puts messages into the vault, whatever the destinations do.
#[track_caller]
fn store(daemon: &Daemon<'_>, messages: &[bytes::Bytes]) {
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    daemon.producer().export_all(messages);
    daemon.ctl(&["override", "--zone", "green"]);
    daemon.await_zone("green");
}

#[test]
fn a_destination_that_throttles_is_sent_less_and_by_and_by_all_again() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::RefuseFor(
        Code::ResourceExhausted,
        Duration::from_millis(50),
    ));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let mut messages = Messages::new(70, SHAPE);
    daemon.producer().export_all(&messages.take(20));
    let limit = || {
        let course = course(&daemon, "main");
        let by = course["limited_by"].as_str().unwrap().to_owned();
        (number(course.get("max_rate")).unwrap(), by)
    };
    eventually("a 64th of the rate", PATIENCE, || {
        limit() == (FULL_RATE / 1000 * 15, "destination".to_owned())
            || limit().0 == FULL_RATE / 1000 * 15 + FULL_RATE % 1000 * 15 / 1000
    });
    assert_eq!(limit().1, "destination");
    assert_eq!(sink.stored_count(), 0);

    // It grows while deliveries succeed, and only then.
    sink.answer(Answer::Accept);
    let mut least = limit().0;
    eventually("the full rate", PATIENCE, || {
        store(&daemon, &messages.take(5));
        daemon.await_empty_vault();
        let (rate, by) = limit();
        if by == "destination" {
            assert!(rate >= least, "{rate} after {least}");
            least = rate;
        }
        rate == FULL_RATE || by == "zone"
    });
}

#[test]
fn a_worse_zone_halves_the_rate_and_red_stops_it() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    // Many batches, and a destination that is slow, not broken.
    let settings = Settings {
        batch_max_bytes: "128KiB",
        ..Settings::to(sink.destination("main", "120s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let large = Shape {
        records: 10,
        body_bytes: 5_000,
    };
    let messages = Messages::new(71, large).take(40);
    // It was Green, then Red.
    store(&daemon, &messages);
    eventually("half of the rate, by the zone", PATIENCE, || {
        let course = course(&daemon, "main");
        number(course.get("max_rate")) == Some(FULL_RATE / 2) && course["limited_by"] == "zone"
    });
    // As many as may be on their way at once.
    eventually("batches are under way", PATIENCE, || sink.holding() == 4);
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    sink.answer(Answer::Accept);
    eventually("the batches have arrived", PATIENCE, || {
        sink.stored_count() == 4
    });
    assert!(
        !holds_within(Duration::from_millis(500), || sink.seen() > 4),
        "Red, and another was sent"
    );
    assert_eq!(course(&daemon, "main")["state"], "waiting");
    daemon.ctl(&["override", "--zone", "green"]);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn a_record_has_the_same_id_each_time_it_comes_out_of_the_vault() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = manual(&sink);
    let identity = [("GOPHERSHIP_REPLAY__IDENTITY", "true")];
    let daemon = Daemon::start_with_env(&home, &settings, &identity);
    let sent = Messages::new(76, SHAPE).take(20);
    store(&daemon, &sent);
    // The destination takes them, and nobody learns of it: they are sent again, also by the next daemon.
    sink.answer(Answer::StoreAndReset);
    daemon.ctl(&["replay"]);
    eventually("they have come twice", PATIENCE, || {
        sink.stored_count() >= 2
    });
    daemon.kill9();
    sink.answer(Answer::Accept);
    let daemon = Daemon::start_with_env(&home, &settings, &identity);
    daemon.ctl(&["replay"]);
    daemon.await_empty_vault();

    let mut names: HashMap<String, HashSet<String>> = HashMap::new();
    let mut copies = 0;
    for message in sink.stored() {
        let request = ExportLogsServiceRequest::decode(message).unwrap();
        let scopes = request
            .resource_logs
            .into_iter()
            .flat_map(|logs| logs.scope_logs);
        for record in scopes.flat_map(|scope| scope.log_records) {
            let named = text(&record, "gophership.record.id");
            names
                .entry(named)
                .or_default()
                .insert(text(&record, "record.id"));
            copies += 1;
        }
    }
    assert_eq!(names.len(), 200, "an id for each record");
    // All of them, half of them after the failure, and all of them by the next daemon.
    assert!(copies >= 500, "{copies} copies");
    assert!(
        names.values().all(|records| records.len() == 1),
        "{names:?}"
    );
    let records: HashSet<_> = names.into_values().flatten().collect();
    assert_eq!(records.len(), 200, "and a record for each id");
}

fn text(record: &LogRecord, key: &str) -> String {
    let attribute = record.attributes.iter().find(|has| has.key == key);
    match attribute.and_then(|has| has.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        _ => panic!("no {key}: {record:?}"),
    }
}

#[test]
fn a_time_range_is_counted_and_sent_and_the_rest_stays() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &manual(&sink));
    let mut messages = Messages::new(72, SHAPE);
    let early = messages.take(20);
    store(&daemon, &early);
    let between = time::OffsetDateTime::now_utc();
    let between = between
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    let late = messages.take(30);
    store(&daemon, &late);
    let bytes = |messages: &[bytes::Bytes]| messages.iter().map(|m| m.len() as u64).sum::<u64>();
    assert_eq!(
        plan(&daemon, "main", &["--to", &between]),
        [20, 200, bytes(&early)]
    );
    assert_eq!(
        plan(&daemon, "main", &["--from", &between]),
        [30, 300, bytes(&late)]
    );
    assert_eq!(plan(&daemon, "main", &[])[0], 50);
    assert_eq!(plan(&daemon, "main", &["--to", "1h"])[0], 0);
    let by_lane = |lane| plan(&daemon, "main", &["--lane", lane]);
    assert_eq!(by_lane("0")[0] + by_lane("1")[0], 50);
    assert_eq!(by_lane("7"), [0; 3]);
    assert_eq!(sink.seen(), 0, "a dry run sends nothing");

    // Ends though not all is sent that is owed.
    daemon.ctl(&["replay", "--from", &between, "--follow"]);
    oracle::await_arrival(&late, &sink, PATIENCE);
    assert_eq!(owed(&daemon, "main"), 200);
    assert_eq!(oracle::arrivals(&early, &sink.stored()), vec![0; 20]);
    let left = course(&daemon, "main");
    assert_eq!(
        (&left["state"], &left["ordered"]),
        (&"waiting".into(), &false.into())
    );

    daemon.ctl(&["replay", "--follow"]);
    daemon.await_empty_vault();
    assert_eq!(oracle::arrivals(&early, &sink.stored()), vec![1; 20]);
    assert_eq!(oracle::arrivals(&late, &sink.stored()), vec![1; 30]);
}

#[test]
fn one_destination_may_be_served_and_another_paused() {
    let home = Home::new();
    let (one, other) = (Sink::up(), Sink::up());
    let mut settings = Settings::to(one.destination("one", "10s"));
    settings
        .destinations
        .push(other.destination("other", "10s"));
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["replay", "--pause"]);
    let messages = Messages::new(73, SHAPE).take(40);
    store(&daemon, &messages);
    assert_eq!((owed(&daemon, "one"), owed(&daemon, "other")), (400, 400));
    assert_eq!(plan(&daemon, "one", &["--destination", "one"])[0], 40);

    let lines = daemon.ctl(&["replay", "--destination", "other", "--follow"]);
    assert_eq!(owed(&daemon, "other"), 0, "{lines}");
    assert_eq!(oracle::arrivals(&messages, &other.stored()), vec![1; 40]);
    assert_eq!((one.seen(), owed(&daemon, "one")), (0, 400));
    assert_eq!(course(&daemon, "one")["state"], "paused");
    assert_eq!(daemon.status()["ledger"]["residue"], 0);

    daemon.ctl(&["replay", "--resume", "--destination", "one"]);
    oracle::await_arrival(&messages, &one, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(oracle::arrivals(&messages, &other.stored()), vec![1; 40]);
    let refused = home.ctl(&["replay", "--destination", "nobody"]);
    assert_eq!(refused.code, Some(2), "{refused}");
}

#[test]
fn a_destination_that_holds_requests_does_not_hold_up_another() {
    let home = Home::new();
    let (quick, stuck) = (Sink::up(), Sink::up());
    stuck.answer(Answer::Hold);
    let mut settings = Settings::to(quick.destination("quick", "120s"));
    settings
        .destinations
        .push(stuck.destination("stuck", "120s"));
    let daemon = Daemon::start(&home, &settings);
    let messages = Messages::new(74, SHAPE).take(40);
    store(&daemon, &messages);
    oracle::await_arrival(&messages, &quick, PATIENCE);
    eventually("it is in the books", PATIENCE, || {
        owed(&daemon, "quick") == 0
    });
    assert_eq!((stuck.stored_count(), owed(&daemon, "stuck")), (0, 400));
    assert!(stuck.holding() > 0, "it has a request all the time");

    stuck.answer(Answer::Accept);
    oracle::await_arrival(&messages, &stuck, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn newest_segments_come_first_on_request() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        workers: 1,
        max_request_bytes: "512KiB",
        segment_bytes: "1MiB",
        ..manual(&sink)
    };
    let daemon = Daemon::start(&home, &settings);
    let large = Shape {
        records: 10,
        body_bytes: 20_000,
    };
    let messages = Messages::new(75, large).take(40);
    store(&daemon, &messages);
    assert!(daemon.figure("/vault/segments") > 3);
    daemon.ctl(&["replay", "--newest-first", "--follow"]);
    let stored = sink.stored();
    let first = oracle::arrivals(&messages, &stored[..1]);
    assert_eq!(first[..20], [0; 20], "the oldest came first");
    assert_eq!(oracle::arrivals(&messages, &stored), vec![1; 40]);
    daemon.await_empty_vault();
}

#[test]
fn an_order_with_a_range_outlives_refusals() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &manual(&sink));
    let messages = Messages::new(77, SHAPE).take(20);
    store(&daemon, &messages);
    sink.answer(Answer::RefuseFor(
        Code::Unavailable,
        Duration::from_millis(10),
    ));
    daemon.ctl(&["replay", "--from", "1h"]);
    // All that was on its way has been refused, more than once.
    eventually("it is refused", PATIENCE, || sink.seen() >= 3);
    sink.answer(Answer::Accept);
    eventually("nothing is owed", PATIENCE, || owed(&daemon, "main") == 0);
    oracle::await_arrival(&messages, &sink, PATIENCE);
}

#[test]
fn what_was_refused_is_not_paid_for_when_it_is_taken() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &manual(&sink));
    let large = Shape {
        records: 10,
        body_bytes: 10_000,
    };
    let messages = Messages::new(78, large).take(10);
    store(&daemon, &messages);
    sink.answer(Answer::RefuseFor(
        Code::ResourceExhausted,
        Duration::from_millis(1),
    ));
    // Paid for, what is refused here would take minutes, at the least rate of a destination that throttles.
    daemon.ctl(&["replay", "--rate", "1MiB"]);
    eventually("it is refused", PATIENCE, || sink.seen() >= 5);
    sink.answer(Answer::Accept);
    eventually("nothing is owed", PATIENCE, || owed(&daemon, "main") == 0);
}

#[test]
fn a_segment_that_cannot_be_opened_does_not_hold_up_the_others() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        workers: 1,
        max_request_bytes: "512KiB",
        segment_bytes: "1MiB",
        ..manual(&sink)
    };
    let daemon = Daemon::start(&home, &settings);
    let large = Shape {
        records: 10,
        body_bytes: 20_000,
    };
    let messages = Messages::new(79, large).take(40);
    store(&daemon, &messages);
    let files = std::fs::read_dir(home.vault().join("lane-00")).unwrap();
    let first = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "gsv"))
        .min()
        .unwrap();
    let away = first.with_extension("away");
    std::fs::rename(&first, &away).unwrap();
    // A link to itself.
    std::os::unix::fs::symlink(first.file_name().unwrap(), &first).unwrap();
    daemon.ctl(&["replay"]);
    eventually("others have come", PATIENCE, || sink.stored_count() > 0);
    assert!(owed(&daemon, "main") > 0, "the first was read");
    // It is told once, however often it is met.
    let told = daemon.log_lines("can't be read").len();
    assert_eq!(told, 1);
    std::fs::remove_file(&first).unwrap();
    std::fs::rename(&away, &first).unwrap();
    eventually("all have come", PATIENCE, || owed(&daemon, "main") == 0);
    oracle::await_arrival(&messages, &sink, PATIENCE);
}

#[test]
fn an_entry_that_always_fails_holds_up_neither_the_others_nor_live_traffic() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::FailAt(b"record 77-0-"));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let mut messages = Messages::new(77, SHAPE);
    let stored = messages.take(300);
    store(&daemon, &stored);
    oracle::await_arrival(&stored[1..], &sink, PATIENCE);
    eventually("it is left out", PATIENCE, || {
        !daemon.log_lines("an entry fails by itself").is_empty()
    });
    assert_eq!(oracle::arrivals(&stored[1..], &sink.stored()), vec![1; 299]);

    // It is tried again and again, and none of that is the destination's failure.
    let failures = || daemon.metric("gophership_export_failures_total", &[]);
    let before = failures();
    let tried_again = || failures() > before;
    let producer = daemon.producer();
    let mut live = Vec::new();
    eventually("it is tried again", PATIENCE, || {
        let message = messages.message();
        producer.export_all(std::slice::from_ref(&message));
        live.push(message);
        assert_eq!(daemon.status()["export"][0]["state"], "up");
        tried_again()
    });
    oracle::await_arrival(&live, &sink, PATIENCE);
    eventually("only the one is owed", PATIENCE, || {
        owed(&daemon, "main") == 10
    });
    assert_eq!(daemon.status()["ledger"]["residue"], 0);

    sink.answer(Answer::Accept);
    daemon.await_empty_vault();
    assert_eq!(oracle::arrivals(&stored, &sink.stored()), vec![1; 300]);
}

#[test]
fn the_entry_that_is_rejected_is_found_with_few_calls() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::RejectWith(b"record 78-150-"));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let small = Shape {
        records: 1,
        body_bytes: 50,
    };
    store(&daemon, &Messages::new(78, small).take(300));
    daemon.await_empty_vault();
    assert_eq!(daemon.figure("/vault/dead_letters"), 1);
    // The batch, and two for each time it is halved.
    assert!(sink.seen() < 40, "{} calls for one of 300", sink.seen());
}

#[test]
fn a_pause_holds_while_what_was_rejected_is_gone_through() {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Refuse(Code::InvalidArgument));
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let small = Shape {
        records: 1,
        body_bytes: 50,
    };
    store(&daemon, &Messages::new(79, small).take(400));
    eventually("it goes through them", PATIENCE, || sink.seen() >= 20);
    daemon.ctl(&["replay", "--pause"]);
    eventually("it pauses", PATIENCE, || {
        course(&daemon, "main")["state"] == "paused"
    });
    let seen = sink.seen();
    assert!(
        !holds_within(Duration::from_millis(500), || sink.seen() > seen),
        "paused, and another was sent"
    );
    assert!(owed(&daemon, "main") > 0, "it went through all of them");
    assert_eq!(daemon.status()["ledger"]["residue"], 0);
}

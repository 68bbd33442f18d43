//! The replay as operators steer it: whom it sends what, how fast, and how much that would be.

mod common;

use std::time::Duration;

use common::{
    PATIENCE,
    daemon::{Daemon, Home, number},
    eventually, holds_within,
    messages::{Messages, Shape},
    oracle,
    settings::Settings,
    sink::{Answer, Sink},
};
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
    let mut sink = Sink::down();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon
        .producer()
        .export_all(&Messages::new(71, SHAPE).take(20));
    daemon.ctl(&["override", "--zone", "yellow"]);
    daemon.await_zone("yellow");
    daemon.ctl(&["replay", "--rate", "8MiB"]);
    let limit = || {
        let course = course(&daemon, "main");
        (number(course.get("max_rate")), course["limited_by"].clone())
    };
    // Half for having become worse, and of that no more than a quarter.
    let most = (8 << 20) / 8;
    eventually("an eighth", PATIENCE, || {
        limit().0.is_some_and(|rate| rate <= most) && limit().1 != "ordered"
    });
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    sink.come_up();
    eventually("it waits", PATIENCE, || {
        course(&daemon, "main")["state"] == "waiting"
    });
    assert!(
        !holds_within(Duration::from_millis(500), || sink.seen() > 0),
        "Red, and something was sent"
    );
    daemon.ctl(&["override", "--zone", "green"]);
    daemon.await_empty_vault();
    assert!(sink.stored_count() > 0);
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

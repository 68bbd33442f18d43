//! The event timeline of the real daemon: causes, values, durations and what was diverted meanwhile.

mod common;

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use common::{
    PATIENCE, await_some,
    certs::{ClientIdentity, GS_CTL},
    daemon::{Daemon, Home},
    eventually,
    load::{Intensity, Load},
    messages::{Messages, Shape},
    process,
    settings::Settings,
    sink::Sink,
    verdict::Verdict,
};
use gophership_common::{Cause, Zone};
use nix::sys::signal::Signal;
use rustls::version::TLS13;
use serde_json::Value;

const SHAPE: Shape = Shape {
    records: 10,
    body_bytes: 300,
};

/// Fills the sockets of a stopped daemon, and lets a running one breathe.
const LOAD: Intensity = Intensity {
    connections: 2,
    in_flight: 128,
    pace: Some(100),
    shape: Shape {
        records: 8,
        body_bytes: 8_000,
    },
    seed: 70,
};

#[track_caller]
fn events(daemon: &Daemon<'_>, arguments: &[&str]) -> Vec<Value> {
    let listed = daemon.ctl(&[&["events"], arguments].concat());
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    listed["events"].as_array().expect("a list").clone()
}

/// Waits for an event with these texts.
#[track_caller]
fn await_event(daemon: &Daemon<'_>, texts: &[(&str, &str)]) -> Value {
    let mut seen = Vec::new();
    let found = common::holds_within(PATIENCE, || {
        seen = events(daemon, &[]);
        find(&seen, texts).is_some()
    });
    assert!(found, "no event with {texts:?} in {seen:#?}");
    find(&seen, texts).expect("found just now").clone()
}

fn find<'e>(events: &'e [Value], texts: &[(&str, &str)]) -> Option<&'e Value> {
    let mut events = events.iter().rev();
    events.find(|event| texts.iter().all(|&(key, text)| event[key] == text))
}

/// Whether it is about the daemon: others on the machine may run out of memory at any time.
fn is_own(event: &Value) -> bool {
    event["kind"] != "oom_kill"
}

fn zone_change<'a>(from: &'a str, to: &'a str) -> [(&'a str, &'a str); 3] {
    [("kind", "verdict"), ("from", from), ("to", to)]
}

fn sequences(events: &[Value]) -> Vec<u64> {
    let numbers = events.iter().map(|event| event["sequence"].as_u64());
    numbers.map(|number| number.expect("a number")).collect()
}

#[track_caller]
fn assert_gapless(events: &[Value]) {
    let sequences = sequences(events);
    let gapless = sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    assert!(gapless, "{sequences:?}");
}

#[test]
fn an_overrides_stay_tells_who_why_how_long_and_what_it_diverted() {
    let home = Home::new();
    let sink = Sink::down();
    let settings = Settings {
        replay_auto: false,
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red", "--reason", "a drill"]);
    daemon.await_zone("red");
    let messages = Messages::new(71, SHAPE).take(20);
    daemon.producer().export_all(&messages);
    let bytes: usize = messages.iter().map(bytes::Bytes::len).sum();
    let pending = daemon.figure("/vault/records_pending");
    let red = await_event(&daemon, &zone_change("green", "red"));
    assert_eq!(red["cause"], "override", "{red:#}");
    assert_eq!(red["override"]["reason"], "a drill", "{red:#}");
    let by = format!("uid {}", nix::unistd::getuid());
    assert_eq!(red["override"]["by"], by.as_str(), "{red:#}");
    let so_far = &red["ongoing"];
    assert_eq!(so_far["diverted"]["bytes"], bytes as u64, "{red:#}");
    assert_eq!(so_far["zone"], "red", "{red:#}");

    daemon.ctl(&["override", "--clear"]);
    daemon.await_zone("green");
    let green = await_event(&daemon, &zone_change("red", "green"));
    let stay = &green["previous"];
    assert_eq!(
        (&stay["zone"], &stay["cause"]),
        (&"red".into(), &"override".into())
    );
    assert_eq!(stay["diverted"]["requests"], 20, "{stay:#}");
    assert_eq!(stay["diverted"]["records"], 200, "{stay:#}");
    assert_eq!(stay["diverted"]["records"], pending, "what the vault holds");
    assert_eq!(stay["diverted"]["bytes"], bytes as u64, "{stay:#}");
    assert_eq!(stay["delivered"]["records"], 0, "{stay:#}");
    let monotonic = |event: &Value| event["monotonic_ns"].as_u64().expect("a number");
    let lasted = Duration::from_nanos(monotonic(&green) - monotonic(&red));
    assert_eq!(stay["seconds"].as_f64(), Some(lasted.as_secs_f64()));
    let all = events(&daemon, &[]);
    let own = all.iter().filter(|event| is_own(event));
    let own: Vec<_> = own.collect();
    let kinds: Vec<_> = own.iter().map(|event| event["kind"].as_str()).collect();
    let expected = [
        "start",
        "override_set",
        "verdict",
        "override_cleared",
        "verdict",
    ];
    assert_eq!(kinds, expected.map(Some));
    assert_gapless(&all);
    assert_eq!(own[3]["by"], by.as_str());
    let earlier = |event: &Value| event["ongoing"].is_null();
    let over = own[..4].iter().all(|event| earlier(event));
    assert!(over, "one stay goes on: {all:#?}");
    assert_eq!(daemon.metric("gophership_events_lost_total", &[]), 0.0);

    daemon.ctl(&["override", "--zone", "yellow", "--for", "1s"]);
    await_event(&daemon, &[("kind", "override_expired")]);
    let green = await_event(&daemon, &zone_change("yellow", "green"));
    assert_eq!(green["previous"]["diverted"]["requests"], 0, "{green:#}");
}

#[test]
fn the_kernels_red_is_explained_by_values_and_thresholds() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    if daemon.text("/source") != "kernel" {
        let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|v| v == "1");
        assert!(
            !required,
            "GOPHERSHIP_REQUIRE_KERNEL=1, but the fallback judges"
        );
        eprintln!("not tested: the kernel half doesn't judge here");
        return;
    }
    let verdict = Verdict::of(daemon.pid());
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    let load = Load::start(daemon.grpc(), &tls, LOAD);
    eventually("the load runs", PATIENCE, || load.acked() > 50);
    daemon.stop();
    verdict.expect(Zone::Red, Cause::ReceiveQueue, "stopped under load");
    daemon.signal(Signal::SIGCONT);
    let after = load.acked();
    eventually("the load goes on", PATIENCE, || load.acked() > after + 50);
    let tally = load.stop();
    assert!(tally.broken.is_empty(), "broken: {:?}", tally.broken);
    daemon.await_zone("green");

    let all = events(&daemon, &[]);
    assert_gapless(&all);
    let is_red = |event: &&Value| event["kind"] == "verdict" && event["to"] == "red";
    let red = all.iter().find(is_red);
    let red = red.unwrap_or_else(|| panic!("no Red: {all:#?}"));
    let cause = red["cause"].as_str().expect("a cause");
    let (signal, level) = match cause {
        "receive_queue" => ("receive_queue_stalled", "red"),
        "heartbeat" => ("heartbeat_age", "red"),
        other => panic!("red by {other}: {red:#}"),
    };
    let reading = &red["signals"][signal];
    assert!(
        reading["value"].as_f64() >= reading[level].as_f64() && !reading[level].is_null(),
        "{red:#}"
    );
    assert_eq!(reading["reaches"], "red", "{red:#}");
    let by_queue = [
        ("kind", "verdict"),
        ("cause", "receive_queue"),
        ("to", "red"),
    ];
    let by_queue = find(&all, &by_queue).unwrap_or_else(|| panic!("{all:#?}"));
    let queue = &by_queue["signals"]["receive_queue"];
    assert!(
        queue["value"].as_f64() >= queue["yellow"].as_f64(),
        "{by_queue:#}"
    );
    assert_eq!(queue["yellow"], 0.5);
    assert_eq!(queue["red"], 0.8);

    assert_adds_up(&daemon, &all);
}

/// The chain of verdicts has no hole, and what its links were told of adds up to what the vault got.
#[track_caller]
fn assert_adds_up(daemon: &Daemon<'_>, all: &[Value]) {
    let verdicts: Vec<_> = all.iter().filter(|e| e["kind"] == "verdict").collect();
    for pair in verdicts.windows(2) {
        assert_eq!(pair[0]["to"], pair[1]["from"], "{pair:#?}");
        assert_eq!(pair[0]["cause"], pair[1]["from_cause"], "{pair:#?}");
    }
    let sum = |pointer: &str| -> u64 {
        let stays = all.iter().flat_map(|e| [&e["previous"], &e["ongoing"]]);
        stays
            .filter_map(|stay| stay.pointer(pointer)?.as_u64())
            .sum()
    };
    let vaulted = [("outcome", "vaulted")];
    for (figure, metric) in [
        ("/diverted/requests", "gophership_ingester_requests_total"),
        ("/diverted/records", "gophership_ingester_records_total"),
        ("/diverted/bytes", "gophership_ingester_bytes_total"),
    ] {
        assert_eq!(
            sum(figure) as f64,
            daemon.metric(metric, &vaulted),
            "{figure}"
        );
    }
    let reds = all.iter().filter(|e| e["previous"]["zone"] == "red");
    let in_red = reds.filter_map(|e| e.pointer("/previous/diverted/requests")?.as_u64());
    assert!(
        in_red.sum::<u64>() > 0,
        "what waited in the sockets: {all:#?}"
    );
}

#[test]
fn the_timeline_goes_on_after_a_crash_and_after_a_stop() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "10s"));
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red"]);
    let red = await_event(&daemon, &zone_change("green", "red"));
    daemon.kill9();
    let mut file = OpenOptions::new().append(true).open(home.events());
    let torn = br#"{"sequence":99,"ti"#;
    file.as_mut()
        .expect("the file is there")
        .write_all(torn)
        .expect("written");

    let daemon = Daemon::start(&home, &settings);
    await_event(&daemon, &[("kind", "override_restored")]);
    let all = events(&daemon, &[]);
    assert_gapless(&all);
    let starts: Vec<_> = all.iter().filter(|e| e["kind"] == "start").collect();
    assert_eq!(starts.len(), 2, "{all:#?}");
    assert_eq!(starts[0]["after_crash"], false);
    assert_eq!(starts[1]["after_crash"], true);
    assert!(sequences(&all).contains(&red["sequence"].as_u64().expect("a number")));
    assert!(find(&all, &[("kind", "stop")]).is_none());

    // Until now everything; from the second start on; and nothing.
    let second = starts[1]["time"].as_str().expect("a time");
    let since = events(&daemon, &["--since", second]);
    assert_eq!(since[0]["sequence"], starts[1]["sequence"], "{since:#?}");
    assert!(events(&daemon, &["--since", "1h"]).len() >= all.len());
    let future = ["--since", "2999-01-01T00:00:00Z"];
    assert!(events(&daemon, &future).is_empty());
    let newest = sequences(&events(&daemon, &["--limit", "1"]));
    assert!(newest.len() == 1 && newest >= sequences(&all[all.len() - 1..]));

    daemon.terminate(PATIENCE);
    let daemon = Daemon::start(&home, &settings);
    let all = events(&daemon, &[]);
    assert_gapless(&all);
    let stop = find(&all, &[("kind", "stop")]).expect("a stop in order");
    assert_eq!(stop["previous"]["zone"], "red", "{stop:#}");
    let start = find(&all, &[("kind", "start")]).expect("a start");
    assert_eq!(start["after_crash"], false, "{start:#}");
}

#[test]
fn a_follower_sees_what_happens_while_it_happens() {
    let home = Home::new();
    let sink = Sink::up();
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    let mut command = Command::new(GS_CTL);
    process::without_own_variables(&mut command)
        .arg("--endpoint")
        .arg(format!("unix:{}", home.control_socket().display()))
        .args(["--output", "json", "events", "--follow"])
        .stdout(Stdio::piped());
    let mut follower = command.spawn().expect("gs-ctl starts");
    let (sender, lines) = mpsc::channel();
    let stdout = follower.stdout.take().expect("a pipe");
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).expect("one JSON object a line");
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    let next = || loop {
        let event = lines.recv_timeout(PATIENCE).expect("another event");
        if is_own(&event) {
            return event;
        }
    };
    assert_eq!(next()["kind"], "start");
    daemon.ctl(&["override", "--zone", "yellow"]);
    assert_eq!(next()["kind"], "override_set");
    let yellow = next();
    assert_eq!(yellow["to"], "yellow");
    daemon.ctl(&["override", "--clear"]);
    assert_eq!(next()["kind"], "override_cleared");
    assert_eq!(next()["previous"]["zone"], "yellow");
    daemon.terminate(PATIENCE);
    let ended = process::wait(&mut follower, PATIENCE).expect("it ends with the daemon");
    assert_eq!(ended.code(), Some(3));
}

#[test]
fn a_timeline_that_cannot_be_written_does_not_stop_the_ingestion() {
    let home = Home::new();
    let sink = Sink::up();
    // Nobody, not even root, can write a directory.
    fs::create_dir(home.events()).expect("a directory");
    let daemon = Daemon::start(&home, &Settings::to(sink.destination("main", "10s")));
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let messages = Messages::new(72, SHAPE).take(20);
    daemon.producer().export_all(&messages);
    let red = await_event(&daemon, &zone_change("green", "red"));
    assert_eq!(red["cause"], "override");
    assert!(daemon.metric("gophership_events_lost_total", &[]) >= 3.0);
    assert_eq!(daemon.log_lines("the file can't be written").len(), 1);

    // And where it can be again, it is, and says what is missing.
    fs::remove_dir(home.events()).expect("the way is free");
    daemon.ctl(&["override", "--clear"]);
    daemon.await_zone("green");
    await_some("lines in the file", PATIENCE, || {
        let text = fs::read_to_string(home.events()).ok()?;
        (text.contains("\"verdict\"") && text.contains("\"lost\"")).then_some(())
    });
}

//! What was acknowledged survives `kill -9`, bit for bit.

mod common;

use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home},
    eventually,
    load::{Intensity, Load},
    messages::{Rng, Shape},
    oracle,
    settings::Settings,
    sink::{Answer, Sink},
};
use rustls::version::TLS13;
use tonic::Code;

const LOAD: Intensity = Intensity {
    connections: 3,
    in_flight: 4,
    pace: None,
    shape: Shape {
        records: 20,
        body_bytes: 200,
    },
    seed: 1,
};

fn start_load(home: &Home, daemon: &Daemon<'_>, seed: u64) -> Load {
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    Load::start(daemon.grpc(), &tls, Intensity { seed, ..LOAD })
}

#[test]
fn records_acked_in_red_survive_kill_and_arrive_bit_for_bit() {
    let home = Home::new();
    let mut sink = Sink::down_with_tls(home.certs());
    sink.come_up();
    let settings = Settings::to(sink.destination("main", "10s"));
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red", "--reason", "crash test"]);
    daemon.await_zone("red");

    let load = start_load(&home, &daemon, 1);
    eventually("500 acknowledgements", PATIENCE, || load.acked() >= 500);
    let acked = load.acked() as u64;
    eventually("the acknowledged entries in the status", PATIENCE, || {
        daemon.figure("/vault/entries_pending") >= acked
    });
    eventually("their records in the status", PATIENCE, || {
        daemon.figure("/vault/records_pending") >= acked * LOAD.shape.records
    });
    assert_eq!(sink.seen(), 0, "Red, and the destination got something");

    let before = load.acked();
    eventually("the load goes on", PATIENCE, || load.acked() > before);
    daemon.kill9();
    let tally = load.stop();
    assert!(!tally.broken.is_empty(), "the kill didn't hit the load");
    assert!(tally.refused.is_empty(), "refused: {:?}", tally.refused);

    let daemon = Daemon::start(&home, &settings);
    assert_eq!(
        daemon.text("/zone"),
        "red",
        "the override survives a restart"
    );
    eventually("the entries of before in the status", PATIENCE, || {
        daemon.figure("/vault/entries_pending") >= tally.acked.len() as u64
    });
    assert_eq!(sink.seen(), 0, "Red, and the destination got something");

    daemon.ctl(&["override", "--clear"]);
    let again = oracle::await_arrival(&tally.acked, &sink, PATIENCE);
    daemon.await_empty_vault();
    assert_eq!(again, 0, "nothing failed, so nothing arrives twice");
}

#[test]
fn records_acked_in_green_survive_kill_and_arrive_bit_for_bit() {
    let home = Home::new();
    let sink = Sink::up();
    // The destination is slow, so that acknowledgements come from the vault with exports in flight.
    sink.answer(Answer::Hold);
    let settings = Settings::to(sink.destination("main", "60s"));
    let daemon = Daemon::start(&home, &settings);

    let load = start_load(&home, &daemon, 2);
    eventually("200 acknowledgements", PATIENCE, || load.acked() >= 200);
    daemon.kill9();
    let tally = load.stop();
    assert!(!tally.broken.is_empty(), "the kill didn't hit the load");
    assert_eq!(sink.stored_count(), 0);

    sink.answer(Answer::Accept);
    let daemon = Daemon::start(&home, &settings);
    oracle::await_arrival(&tally.acked, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn a_second_kill_during_replay_loses_nothing() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "60s"));
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--zone", "red"]);
    daemon.await_zone("red");
    let load = start_load(&home, &daemon, 3);
    eventually("300 acknowledgements", PATIENCE, || load.acked() >= 300);
    let tally = load.stop();
    daemon.kill9();

    sink.answer(Answer::Hold);
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--clear"]);
    eventually("the replay reaches the destination", PATIENCE, || {
        sink.holding() > 0
    });
    daemon.kill9();

    sink.answer(Answer::Accept);
    let daemon = Daemon::start(&home, &settings);
    oracle::await_arrival(&tally.acked, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn what_is_acked_survives_kill_after_kill_whatever_the_daemon_does() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings::to(sink.destination("main", "60s"));
    let mut random = Rng::new(2026);
    let (mut acked, mut unanswered) = (Vec::new(), Vec::new());
    for round in 0..6 {
        // By way of the vault with exports in flight, past the vault, and with replay in between.
        let answer = [
            Answer::Hold,
            Answer::Accept,
            Answer::Refuse(Code::Unavailable),
        ][round % 3];
        sink.answer(answer);
        let daemon = Daemon::start(&home, &settings);
        let load = start_load(&home, &daemon, 10 + round as u64);
        let until = usize::try_from(1 + random.below(200)).unwrap();
        eventually("acknowledgements", PATIENCE, || load.acked() >= until);
        daemon.kill9();
        let tally = load.stop();
        assert!(!tally.broken.is_empty(), "the kill didn't hit the load");
        acked.extend(tally.acked);
        assert!(tally.refused.is_empty(), "{:?}", tally.refused.first());
        unanswered.extend(tally.unanswered);
    }
    sink.answer(Answer::Accept);
    let daemon = Daemon::start(&home, &settings);
    oracle::await_arrival(&acked, &sink, PATIENCE);
    daemon.await_empty_vault();
    oracle::assert_none_invented(acked.iter().chain(&unanswered), &sink.stored());
}

//! The pivot doesn't wait for a verdict: without room in the pipeline, the vault takes the request.

mod common;

use common::{
    PATIENCE,
    daemon::{Daemon, Home},
    eventually, holds_within,
    messages::{Messages, Shape},
    oracle,
    producer::{Call, Pending},
    settings::Settings,
    sink::{Answer, Sink},
};

/// About 64 KiB a request, below the largest batch.
const SHAPE: Shape = Shape {
    records: 8,
    body_bytes: 8_000,
};

#[test]
fn without_room_in_the_pipeline_the_vault_acknowledges_in_green() {
    pivots("off");
}

#[test]
fn without_room_in_the_pipeline_the_vault_acknowledges_under_the_kernels_verdict() {
    pivots("auto");
}

fn pivots(kernel: &'static str) {
    let home = Home::new();
    let sink = Sink::up();
    sink.answer(Answer::Hold);
    let settings = Settings {
        kernel,
        workers: 1,
        memory_total: "128MiB",
        memory_export: "1%",
        batch_max_bytes: "128KiB",
        // Nobody acknowledges by running out of patience: what is acknowledged here had no room.
        ack_within: "300s",
        ..Settings::to(sink.destination("main", "300s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let producer = daemon.producer();
    let mut messages = Messages::new(20, SHAPE);
    // A full budget would soon be a cause of its own; Green by override shows that none is needed.
    daemon.ctl(&["override", "--zone", "green"]);
    daemon.await_zone("green");
    let pivots = daemon.metric("gophership_somatic_pivots_total", &[]);

    // Requests for which there is room wait for the destination; the next one doesn't.
    let mut sent: Vec<(bytes::Bytes, Pending)> = Vec::new();
    let mut acked = Vec::new();
    let found = holds_within(PATIENCE, || {
        if sent.len() < 100 {
            let message = messages.message();
            let pending = producer.start(Call::logs(message.clone()));
            sent.push((message, pending));
        }
        collect(&mut sent, &mut acked);
        !acked.is_empty()
    });
    assert!(
        found,
        "{} requests of 64 KiB wait, none was acknowledged; the destination holds {}",
        sent.len(),
        sink.holding()
    );
    assert!(!sent.is_empty(), "the very first had no room");
    assert_eq!(sink.stored_count(), 0, "nobody but the vault acknowledged");
    assert_eq!(daemon.text("/zone"), "green");
    assert!(daemon.figure("/vault/entries_pending") >= acked.len() as u64);
    let after = daemon.metric("gophership_somatic_pivots_total", &[]);
    assert!(after > pivots, "pivots: {pivots}, then {after}");

    sink.answer(Answer::Accept);
    eventually("the waiting requests' acknowledgements", PATIENCE, || {
        collect(&mut sent, &mut acked);
        sent.is_empty()
    });
    oracle::await_arrival(&acked, &sink, PATIENCE);
    daemon.await_empty_vault();
}

#[test]
fn a_request_larger_than_a_batch_goes_by_way_of_the_vault() {
    let home = Home::new();
    let sink = Sink::up();
    let settings = Settings {
        batch_max_bytes: "128KiB",
        ..Settings::to(sink.destination("main", "10s"))
    };
    let daemon = Daemon::start(&home, &settings);
    let large = Shape {
        records: 64,
        body_bytes: 16_000,
    };
    let messages = Messages::new(21, large).take(3);
    daemon.producer().export_all(&messages);
    oracle::await_arrival(&messages, &sink, PATIENCE);
    daemon.await_empty_vault();
    let cause = [("cause", "oversize")];
    assert_eq!(
        daemon.metric("gophership_somatic_pivots_total", &cause),
        3.0
    );
}

/// Moves what is answered from `sent` to `acked`.
fn collect(sent: &mut Vec<(bytes::Bytes, Pending)>, acked: &mut Vec<bytes::Bytes>) {
    sent.retain(|(message, pending)| match pending.poll() {
        None => true,
        Some(Ok(_)) => {
            acked.push(message.clone());
            false
        }
        Some(Err(failure)) => panic!("a request failed: {failure:?}"),
    });
}

//! How deep a socket is and for how long nobody has read from it: what turns Red, and what does not.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use gophership::pressure::{Cause, Config, Signal, Zone};

use super::{
    HOLD,
    common::judged_listener::{JudgedListener, read_all, write_until_full},
    config, judged,
};

#[test]
fn a_full_socket_turns_red_and_reading_it_empty_turns_green() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    assert_eq!(fixture.judging.zone_and_cause(), (Zone::Green, Cause::None));
    let (mut client, mut server) = fixture.connection();
    let written = write_until_full(&mut client);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
    // It stays Red though the socket sends no more events.
    fixture.judging.wait_for_ticks(3);
    assert_eq!(
        fixture.judging.zone_and_cause(),
        (Zone::Red, Cause::ReceiveQueue)
    );
    fixture.judging.wait("reading", || {
        fixture.judging.value(Signal::SocketsAboveRed) >= 1.0
    });
    assert!(fixture.judging.value(Signal::ReceiveQueue) >= 0.8);
    assert!(fixture.judging.value(Signal::ReceiveQueueStalled) >= 0.005);

    let emptied = Instant::now();
    read_all(&mut server, written);
    fixture.judging.wait_for(Zone::Green, Cause::None);
    assert!(
        emptied.elapsed() >= HOLD,
        "lowered before the hold was over"
    );
    assert!(fixture.judging.value(Signal::SocketsAboveYellow) < 1.0);

    let seen = fixture.judging.transitions();
    let steps: Vec<_> = seen
        .iter()
        .map(|t| (t.from.zone(), t.to.zone(), t.to.cause()))
        .collect();
    assert_eq!(
        steps.first().map(|step| step.0),
        Some(Zone::Green),
        "{steps:?}"
    );
    assert_eq!(
        steps.iter().map(|step| step.1).max(),
        Some(Zone::Red),
        "{steps:?}"
    );
    assert!(
        steps.windows(2).all(|pair| pair[0].1 == pair[1].0),
        "each transition starts where the last ended: {steps:?}"
    );
    let red = seen.iter().find(|t| t.to.zone() == Zone::Red).unwrap();
    assert!(red.values.get(Signal::ReceiveQueue) >= Some(800), "{red:?}");
    assert!(
        red.values.get(Signal::ReceiveQueueStalled) >= Some(5_000),
        "{red:?}"
    );
}

#[test]
fn a_reader_that_keeps_reading_never_turns_red() {
    let config = Config {
        // Longer than a busy machine keeps a runnable reader waiting.
        receive_queue_for: Duration::from_millis(500),
        ..config()
    };
    let Some(fixture) = JudgedListener::start(&config) else {
        return;
    };
    let (mut client, mut server) = fixture.connection();
    server.set_nonblocking(false).unwrap();
    let reader = thread::spawn(move || {
        let mut block = vec![0_u8; 16 * 1024];
        let mut got = 0;
        while let Ok(bytes) = server.read(&mut block)
            && bytes > 0
        {
            got += bytes;
        }
        got
    });
    // Bursts as fast as the socket takes them, for well over the time that would turn Red.
    let mut written = 0;
    let start = Instant::now();
    while start.elapsed() < 3 * config.receive_queue_for {
        written += write_until_full(&mut client);
    }
    fixture.judging.wait_for_ticks(2);
    drop(client);
    assert_eq!(reader.join().unwrap(), written);
    let seen = fixture.judging.transitions();
    assert!(
        seen.iter()
            .all(|transition| transition.to.zone() != Zone::Red),
        "{seen:#?}"
    );
    // Otherwise this proves nothing: the bursts did fill the queue.
    assert!(
        seen.iter()
            .any(|transition| transition.to.zone() == Zone::Yellow),
        "{seen:#?}"
    );
}

#[test]
fn a_slow_reader_of_a_full_socket_does_not_turn_red() {
    let config = Config {
        receive_queue_for: Duration::from_millis(500),
        ..config()
    };
    // So small a capacity that what TCP holds keeps the depth above Red throughout.
    let Some(fixture) = JudgedListener::with_window(&config, 4096) else {
        return;
    };
    let (mut client, mut server) = fixture.connection();
    write_until_full(&mut client);
    fixture.judging.wait_for_ticks(2);
    let start = Instant::now();
    let mut sip = [0; 64];
    let mut stalled = 0.0_f64;
    while start.elapsed() < 3 * config.receive_queue_for {
        server.read_exact(&mut sip).unwrap();
        thread::sleep(Duration::from_millis(20));
        stalled = stalled.max(fixture.judging.value(Signal::ReceiveQueueStalled));
        assert_eq!(fixture.judging.value(Signal::SocketsAboveRed), 1.0);
    }
    assert!(stalled > 0.0, "the time without a dequeue was measured");
    assert_eq!(
        fixture.judging.zone_and_cause(),
        (Zone::Yellow, Cause::ReceiveQueue)
    );
    // The same depth, without the sips.
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
}

#[test]
fn a_probe_raises_without_waiting_for_the_tick() {
    const WINDOW: usize = 16 * 1024;
    let config = Config {
        tick: Duration::from_secs(1),
        ..config()
    };
    let window = u32::try_from(WINDOW).unwrap();
    let Some(fixture) = JudgedListener::with_window(&config, window) else {
        return;
    };
    let (mut client, _server) = fixture.connection();
    client.write_all(&[0; WINDOW * 3 / 4]).unwrap();
    fixture.judging.wait_for(Zone::Yellow, Cause::ReceiveQueue);
    fixture
        .judging
        .wait("transition", || !fixture.judging.transitions().is_empty());
    // A probe knows its own socket only; the tick would have read everything there is.
    let raised = fixture.judging.transitions()[0];
    let own = Signal::ReceiveQueue.bit() | Signal::ReceiveQueueStalled.bit();
    assert_eq!(raised.values.available, own, "{raised:?}");
    let depth = raised.values.get(Signal::ReceiveQueue).unwrap();
    assert!(depth >= 500, "{raised:?}");
    let rule = raised.rules[Signal::ReceiveQueue as usize];
    assert_eq!(rule.entries().0, Some(500), "and what it was judged by");
}

#[test]
fn a_full_socket_counts_whatever_the_size_of_its_segments() {
    let config = Config {
        // Of some sizes the kernel takes three quarters of its capacity, then closes the window.
        receive_queue: judged::levels(900, 950),
        ..config()
    };
    let Some(fixture) = JudgedListener::start(&config) else {
        return;
    };
    for bytes in [100, 1200, 1448, 4000, 30_000] {
        let (mut client, mut server) = fixture.connection();
        client.set_nodelay(true).unwrap();
        let segment = vec![0; bytes];
        let mut written = 0;
        fixture
            .judging
            .wait(&format!("Red by segments of {bytes} bytes"), || {
                while let Ok(bytes) = client.write(&segment) {
                    written += bytes;
                }
                fixture.judging.zone_and_cause() == (Zone::Red, Cause::ReceiveQueue)
            });
        read_all(&mut server, written);
        fixture.judging.wait_for(Zone::Green, Cause::None);
    }
}

#[test]
fn an_http2_window_is_the_capacity_where_it_is_smaller() {
    const WINDOW: u32 = 16 * 1024;
    let Some(fixture) = JudgedListener::with_window(&config(), WINDOW) else {
        return;
    };
    let (mut client, mut server) = fixture.connection();
    client.write_all(&[0; WINDOW as usize]).unwrap();
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
    read_all(&mut server, WINDOW as usize);
    fixture.judging.wait_for(Zone::Green, Cause::None);
}

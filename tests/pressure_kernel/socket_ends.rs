//! However a socket comes to its end, nothing of it is left behind.

use std::{io::Write as _, time::Duration};

use gophership::pressure::{Cause, Config, Signal, Zone};
use gophership_common::{PROGRAM_SOCKET_END, PROGRAM_SOCKET_STATE};

use super::{
    behind::detach,
    common::judged_listener::{JudgedListener, read_all, reset, write_until_full},
    config,
};

#[test]
fn closing_a_full_socket_undoes_its_aggregate() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    write_until_full(&mut client);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
    drop(server);
    fixture.judging.wait_for(Zone::Green, Cause::None);
    for signal in [
        Signal::SocketsAboveYellow,
        Signal::SocketsAboveRed,
        Signal::ReceiveQueue,
        Signal::ReceiveQueueStalled,
    ] {
        assert_eq!(fixture.judging.value(signal), 0.0, "{signal:?}");
    }
    // A new socket at what may be the same address starts from nothing.
    let (mut client, mut server) = fixture.connection();
    client.write_all(b"hello").unwrap();
    read_all(&mut server, 5);
    fixture.judging.wait_for_ticks(2);
    assert_eq!(fixture.judging.zone_and_cause(), (Zone::Green, Cause::None));
}

#[test]
fn a_close_that_no_probe_saw_is_found() {
    let config = Config {
        // A round over the watch slots takes 256 of these.
        tick: Duration::from_millis(2),
        ..config()
    };
    let Some(fixture) = JudgedListener::start(&config) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    write_until_full(&mut client);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
    detach(
        &fixture.judging,
        &[PROGRAM_SOCKET_STATE, PROGRAM_SOCKET_END],
    );
    drop(server);
    fixture.judging.wait_for(Zone::Green, Cause::None);
    for signal in [Signal::SocketsAboveYellow, Signal::SocketsAboveRed] {
        assert_eq!(fixture.judging.value(signal), 0.0, "{signal:?}");
    }
}

#[test]
fn a_close_that_one_probe_missed_is_seen_by_the_other() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    // Too little for a watch slot, which would be looked after.
    client.write_all(b"hello").unwrap();
    let followed = || fixture.judging.pressure.snapshot().followed.sockets;
    fixture.judging.wait("followed socket", || followed() == 1);
    detach(&fixture.judging, &[PROGRAM_SOCKET_STATE]);
    drop(server);
    fixture.judging.wait("end of it", || followed() == 0);
}

#[test]
fn a_full_socket_outlasts_the_search_for_missed_closes() {
    let config = Config {
        tick: Duration::from_millis(1),
        ..config()
    };
    let Some(fixture) = JudgedListener::start(&config) else {
        return;
    };
    let (mut client, _server) = fixture.connection();
    write_until_full(&mut client);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
    // Three rounds and more.
    fixture.judging.wait("a long stall", || {
        fixture.judging.value(Signal::ReceiveQueueStalled) > 1.0
    });
    assert_eq!(fixture.judging.value(Signal::SocketsAboveRed), 1.0);
    assert_eq!(
        fixture.judging.zone_and_cause(),
        (Zone::Red, Cause::ReceiveQueue)
    );
}

#[test]
fn a_reset_by_the_peer_undoes_its_aggregate() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let (mut client, server) = fixture.connection();
    write_until_full(&mut client);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
    reset(client);
    // The engine hasn't closed its end, nor read anything.
    fixture.judging.wait_for(Zone::Green, Cause::None);
    assert_eq!(fixture.judging.value(Signal::SocketsAboveYellow), 0.0);
    drop(server);
}

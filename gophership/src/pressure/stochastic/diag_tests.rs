use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn asked(ports: &[u16]) -> Vec<Found> {
    let mut found = Vec::new();
    Diag::new(ports).ask(|one| found.push(one)).unwrap();
    found
}

fn connections(ports: &[u16]) -> Vec<Connection> {
    let only = |found| match found {
        Found::Connection(connection) => Some(connection),
        Found::Listener { .. } => None,
    };
    asked(ports).into_iter().filter_map(only).collect()
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
    }
}

/// A listener, its port, and the producer's end of a connection.
fn connection(address: &str) -> (TcpListener, u16, TcpStream) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    (listener, address.port(), client)
}

#[test]
fn both_families_show_what_is_unread_and_not_accepted() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (listener, port, mut client) = connection(address);
        client.write_all(&[7; 1000]).unwrap();
        wait("1000 unread bytes", || {
            connections(&[port]).iter().any(|one| one.unread == 1000)
        });
        let [found] = connections(&[port])[..] else {
            panic!("one end only is on the port");
        };
        assert_eq!(found.received, 1000);
        assert!(
            found.charged >= 1000 && found.buffer > found.charged,
            "{found:?}"
        );
        assert!(!found.window_closed);
        let listeners = |found: Vec<Found>| {
            let listens = |one: &Found| matches!(one, Found::Listener { waiting: 1, .. });
            found.iter().filter(|one| listens(one)).count()
        };
        assert_eq!(listeners(asked(&[port])), 1, "nobody has accepted it");

        let (mut server, _) = listener.accept().unwrap();
        io::Read::read_exact(&mut server, &mut [0; 1000]).unwrap();
        let [read] = connections(&[port])[..] else {
            panic!("one end only is on the port");
        };
        assert_eq!((read.unread, read.received), (0, 1000));
        assert_eq!(read.cookie, found.cookie);
    }
}

#[test]
fn connections_outlive_their_listener() {
    let (listener, port, client) = connection("127.0.0.1:0");
    let (server, _) = listener.accept().unwrap();
    let mut diag = Diag::new(&[port]);
    let mut count = || {
        let mut count = 0;
        diag.ask(|_| count += 1).unwrap();
        count
    };
    assert_eq!(count(), 2);
    drop(listener);
    assert_eq!(count(), 1);
    drop((client, server));
}

#[test]
fn a_closed_window_is_told() {
    let (_listener, port, mut client) = connection("127.0.0.1:0");
    client.set_nonblocking(true).unwrap();
    wait("closed window", || {
        while client.write(&[0; 4096]).is_ok() {}
        connections(&[port]).iter().any(|one| one.window_closed)
    });
}

#[test]
fn of_many_ports_exactly_those_asked_for_are_shown() {
    let open: Vec<_> = (0..9).map(|_| connection("127.0.0.1:0")).collect();
    let ports: Vec<u16> = open.iter().map(|(_, port, _)| *port).collect();
    for count in 0..=8 {
        // A listener and a connection each.
        assert_eq!(asked(&ports[..count]).len(), 2 * count, "{count} ports");
        assert_eq!(
            asked(&ports[8 - count..8]).len(),
            2 * count,
            "{count} ports"
        );
    }
}

#[test]
fn a_refusal_is_an_error() {
    let mut answer = 20_u32.to_ne_bytes().to_vec();
    answer.extend(NLMSG_ERROR.to_ne_bytes());
    answer.extend([0; 10]);
    answer.extend((-libc::ENOENT).to_ne_bytes());
    let error = read_answer(&answer, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    answer[16..].fill(0);
    assert!(
        read_answer(&answer, &mut |_| {}).unwrap(),
        "no error: the end"
    );
}

#[test]
fn nonsense_is_an_error_or_nothing() {
    let mut message = vec![0_u8; 200];
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    for length in 0..=220_u32 {
        for attribute in [0_u16, 3, 4, 7, 200] {
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message[HEADER + MESSAGE..][..2].copy_from_slice(&attribute.to_ne_bytes());
            let mut found = 0;
            let _ = read_answer(&message, &mut |_| found += 1);
            assert_eq!(found, 0, "without what a socket takes");
        }
    }
}

use gophership_common::{DISKS_MAX, Levels, OVERRIDE_NONE, PORTS_MAX, Rule, SIGNALS};

use super::*;

const MS: u64 = 1_000_000;
const BUFFER: u32 = 200_000;

fn policy(h2_window_bytes: u32) -> Policy {
    Policy {
        tick_ns: 10 * MS,
        hold_ns: 0,
        receive_queue_for_ns: 5 * MS,
        override_until_ns: 0,
        measured: 0,
        ingress_horizon_ns: 0,
        rules: [Rule::SHOWN; SIGNALS],
        receive_queue: Levels {
            yellow_permille: 500,
            red_permille: 800,
        },
        disks: [0; DISKS_MAX],
        override_zone: OVERRIDE_NONE,
        h2_window_bytes,
        netns_inum: 0,
        workers: 1,
        port_count: 0,
        disk_count: 0,
        ports: [0; PORTS_MAX],
    }
}

/// Half of what is charged is payload, so that 100,000 bytes fit.
fn connection(cookie: u64, received: u64, unread: u32) -> Found {
    Found::Connection(Connection {
        cookie,
        unread,
        received,
        buffer: BUFFER,
        charged: 2 * unread,
        window_closed: false,
    })
}

fn look(sockets: &mut Sockets, at_ms: u64, found: &[Found]) -> Queues {
    let mut look = sockets.begin();
    for one in found {
        sockets.see(&mut look, one, &policy(0), at_ms * MS);
    }
    sockets.end(look)
}

#[test]
fn a_stall_begins_above_red_and_ends_with_a_dequeue() {
    let sockets = &mut Sockets::default();
    let at = |sockets: &mut Sockets, at_ms, received, unread| {
        let seen = look(sockets, at_ms, &[connection(1, received, unread)]);
        (seen.deepest_permille, seen.stalled_ns / MS)
    };
    assert_eq!(at(sockets, 100, 60_000, 60_000), (600, 0));
    assert_eq!(at(sockets, 200, 90_000, 90_000), (900, 0), "just now");
    assert_eq!(at(sockets, 300, 95_000, 95_000), (950, 100));
    assert_eq!(
        at(sockets, 400, 96_000, 95_000),
        (950, 0),
        "1,000 were read"
    );
    assert_eq!(at(sockets, 500, 96_000, 95_000), (950, 100));
    // Still above the exit, and nothing is read any more.
    assert_eq!(at(sockets, 600, 96_000, 70_000), (700, 0));
    assert_eq!(at(sockets, 650, 96_000, 70_000), (700, 50));
    assert_eq!(at(sockets, 700, 96_000, 60_000), (600, 0), "below it");
}

#[test]
fn levels_are_counted_until_their_sockets_are_gone() {
    let sockets = &mut Sockets::default();
    let both = [connection(1, 60_000, 60_000), connection(2, 90_000, 90_000)];
    let seen = look(sockets, 100, &both);
    assert_eq!((seen.above_yellow, seen.above_red), (2, 1));
    assert_eq!(seen.unread_bytes, 150_000);
    // Above the exits: nothing changes.
    let both = [connection(1, 60_000, 45_000), connection(2, 90_000, 70_000)];
    let seen = look(sockets, 200, &both);
    assert_eq!((seen.above_yellow, seen.above_red), (2, 1));
    let seen = look(sockets, 300, &both[..1]);
    assert_eq!((seen.above_yellow, seen.above_red), (1, 0));
    assert_eq!(sockets.followed.len(), 1, "the other one is forgotten");
    // Its name is never used again; a new one begins below.
    let seen = look(sockets, 400, &[connection(3, 45_000, 45_000)]);
    assert_eq!((seen.above_yellow, seen.above_red), (0, 0));
}

#[test]
fn what_arrives_after_the_first_look_counts_once() {
    let sockets = &mut Sockets::default();
    let seen = look(sockets, 100, &[connection(1, 5000, 0)]);
    assert_eq!(seen.arrived_bytes, 0, "nobody knows when that was");
    let twice = [connection(1, 7000, 10); 2];
    let seen = look(sockets, 200, &twice);
    assert_eq!((seen.arrived_bytes, seen.unread_bytes), (2000, 10));
    let more = [connection(1, 7000, 0), connection(2, 300, 0)];
    assert_eq!(look(sockets, 300, &more).arrived_bytes, 2300);
}

#[test]
fn the_smaller_window_and_a_closed_one_are_the_capacity() {
    let seen = Connection {
        cookie: 1,
        unread: 10_000,
        received: 10_000,
        buffer: BUFFER,
        charged: 20_000,
        window_closed: false,
    };
    assert_eq!(capacity(&seen, &policy(0)), 100_000);
    assert_eq!(capacity(&seen, &policy(16_384)), 16_384);
    let closed = Connection {
        window_closed: true,
        ..seen
    };
    assert_eq!(capacity(&closed, &policy(0)), 10_000);
    // Nothing to tell the ratio from.
    let empty = Connection {
        unread: 0,
        charged: 0,
        ..seen
    };
    assert!(capacity(&empty, &policy(0)) > BUFFER / 2);
}

#[test]
fn sockets_beyond_the_bound_are_not_followed() {
    let sockets = &mut Sockets::default();
    let many: Vec<Found> = (0..u64::from(SOCKETS_MAX) + 10)
        .map(|cookie| connection(cookie, 90_000, 90_000))
        .collect();
    let seen = look(sockets, 100, &many);
    assert_eq!(seen.above_red, u64::from(SOCKETS_MAX));
    let seen = look(sockets, 200, &many);
    assert_eq!(seen.above_red, u64::from(SOCKETS_MAX), "the same ones");
    assert_eq!((seen.followed, seen.untracked), (SOCKETS_MAX.into(), 20));
}

#[test]
fn the_fullest_accept_queue_counts() {
    let sockets = &mut Sockets::default();
    assert_eq!(look(sockets, 100, &[]).backlog_permille, None);
    let listeners =
        [(3, 7), (1, 0), (0, 100)].map(|(waiting, backlog)| Found::Listener { waiting, backlog });
    assert_eq!(look(sockets, 200, &listeners).backlog_permille, Some(1000));
    assert_eq!(
        look(sockets, 300, &listeners[..1]).backlog_permille,
        Some(375)
    );
}

#[test]
#[ignore = "a measurement, whose figures are in the module's documentation"]
fn the_cost_of_a_look_at_ten_thousand_connections() {
    use std::net::{TcpListener, TcpStream};

    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut ends = Vec::new();
    for connections in [0, 100, 1000, 10_000] {
        while ends.len() < connections {
            // One end is enough to be followed, and descriptors are limited.
            drop(TcpStream::connect(address).unwrap());
            ends.push(listener.accept().unwrap());
        }
        let mut follower = Follower::of(&[address.port()]);
        let mut costs: Vec<_> = (1..=50)
            .map(|number| {
                follower.due = None;
                let start = cpu_time();
                let seen = follower.look(&policy(0), number * 100 * MS).unwrap();
                assert_eq!(seen.followed, u64::try_from(connections).unwrap());
                cpu_time().saturating_sub(start)
            })
            .collect();
        costs.sort();
        eprintln!(
            "{connections} connections: median {:?}, greatest {:?}",
            costs[25], costs[49]
        );
    }
}

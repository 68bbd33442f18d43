//! Destinations of several servers, and servers that move.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use gophership::export::{Balance, Destination, OtlpConfig, Retry};

use crate::{
    batch, on_a_worker,
    server::{PATIENCE, Script, Server, status},
    servers::{ACCEPTED, connect, ok, plaintext, retried},
};

fn at(last: u8, port: u16, script: Script) -> Server {
    let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
    Server::start_at(address, None, script)
}

fn to(servers: &[&Server], balance: Balance, wait: Duration) -> Destination {
    connect(OtlpConfig {
        endpoints: servers
            .iter()
            .map(|server| format!("http://{}", server.address))
            .collect(),
        balance,
        retry: Retry {
            initial: wait,
            max: wait,
            ..Retry::default()
        },
        ..plaintext(1)
    })
}

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(1);

fn unavailable() -> Script {
    Script::Trailers(status(14, "busy"))
}

#[test]
fn the_next_server_takes_what_the_first_does_not() {
    on_a_worker(async {
        let first = at(2, 0, unavailable());
        let second = at(3, 0, ok());
        let destination = to(&[&first, &second], Balance::Failover, HOUR);
        for _ in 0..3 {
            assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);
        }
        // It isn't asked again before its wait is over.
        assert_eq!((first.calls().len(), second.calls().len()), (1, 3));
    });
}

#[test]
fn the_first_server_has_everything_again_when_it_is_back() {
    on_a_worker(async {
        let first = at(2, 0, ok());
        let second = at(3, 0, ok());
        let port = first.address.port();
        let destination = to(&[&first, &second], Balance::Failover, SOON);
        assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);
        assert_eq!((first.calls().len(), second.calls().len()), (1, 0));
        first.stop().await;
        assert_eq!(destination.deliver(batch("b", 1)).await, ACCEPTED);
        assert_eq!(second.calls().len(), 1);

        let first = at(2, port, ok());
        let begun = Instant::now();
        while first.calls().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "the first isn't tried again");
            assert_eq!(destination.deliver(batch("c", 1)).await, ACCEPTED);
        }
        let before = second.calls().len();
        assert_eq!(destination.deliver(batch("d", 1)).await, ACCEPTED);
        assert_eq!(second.calls().len(), before);
    });
}

#[test]
fn in_turn_each_server_has_its_part_and_those_that_fail_none() {
    on_a_worker(async {
        let servers = [at(2, 0, ok()), at(3, 0, unavailable()), at(4, 0, ok())];
        let all: Vec<_> = servers.iter().collect();
        let destination = to(&all, Balance::RoundRobin, HOUR);
        for _ in 0..9 {
            assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);
        }
        let calls = servers.each_ref().map(|server| server.calls().len());
        assert_eq!(calls[1], 1);
        assert!(calls[0] >= 3 && calls[2] >= 3, "{calls:?}");
    });
}

#[test]
fn when_all_fail_each_is_named_and_the_first_that_is_due_is_waited_for() {
    on_a_worker(async {
        let servers = [at(2, 0, unavailable()), at(3, 0, unavailable())];
        let destination = to(&[&servers[0], &servers[1]], Balance::Failover, HOUR);
        let (after, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(after.is_some_and(|after| after > HOUR / 2), "{after:?}");
        for server in &servers {
            let named = format!("http://{}: UNAVAILABLE: busy", server.address);
            assert!(reason.contains(&named), "{reason}");
        }
        let (_, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(reason.contains("no endpoint is due"), "{reason}");
        assert!(servers.iter().all(|server| server.calls().len() == 1));
    });
}

#[test]
fn what_one_server_rejects_no_other_is_asked_to_take() {
    on_a_worker(async {
        let first = at(2, 0, Script::Trailers(status(3, "bad")));
        let second = at(3, 0, ok());
        let destination = to(&[&first, &second], Balance::Failover, HOUR);
        for _ in 0..2 {
            let outcome = destination.deliver(batch("a", 1)).await;
            assert!(format!("{outcome:?}").contains("INVALID_ARGUMENT: bad"));
        }
        assert_eq!((first.calls().len(), second.calls().len()), (2, 0));
    });
}

/// The file that is `/etc/hosts` to the process; its presence makes `moving_process` do something.
const HOSTS: &str = "GOPHERSHIP_TEST_HOSTS";

/// What a name leads to is the system's affair: the test has a mount namespace, and so a process, of its own.
#[test]
fn a_name_that_leads_elsewhere_is_followed() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: mounting a file over /etc/hosts needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.2 moving.test\n").unwrap();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c"])
        .arg("mount --bind \"$0\" /etc/hosts && exec \"$1\" --exact endpoints::moving_process --nocapture")
        .arg(&hosts)
        .arg(env::current_exe().unwrap())
        .env(HOSTS, &hosts)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
}

/// The part of the test above that has its own `/etc/hosts`.
#[test]
fn moving_process() {
    let Some(hosts) = env::var_os(HOSTS).map(PathBuf::from) else {
        return;
    };
    on_a_worker(async {
        let before = at(2, 0, ok());
        let port = before.address.port();
        let after = at(3, port, ok());
        let destination = connect(OtlpConfig {
            endpoints: vec![format!("http://moving.test:{port}")],
            resolve_every: SOON,
            ..plaintext(port)
        });
        // So many that the first look-up ends before the name moves, on a busy machine, too.
        for _ in 0..50 {
            assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);
        }
        assert_eq!((before.calls().len(), after.calls().len()), (50, 0));
        // In place: it is mounted. The old server goes on as if nothing were.
        fs::write(&hosts, "127.0.0.3 moving.test\n").unwrap();
        let begun = Instant::now();
        while after.calls().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "the name isn't followed");
            assert_eq!(destination.deliver(batch("b", 1)).await, ACCEPTED);
        }
        let calls = before.calls().len();
        assert_eq!(destination.deliver(batch("c", 1)).await, ACCEPTED);
        assert_eq!(before.calls().len(), calls);
        // Nor does a name that can't be looked up cost a connection that works.
        fs::write(&hosts, "").unwrap();
        for _ in 0..20 {
            assert_eq!(destination.deliver(batch("d", 1)).await, ACCEPTED);
        }
    });
}

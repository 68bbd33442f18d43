//! Which sockets count: those of our ports, in our namespace, of either protocol.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use gophership::pressure::{Cause, Signal, Zone};

use super::{
    common::{
        judged_listener::{JudgedListener, connection, read_all, write_until_full},
        judging::PATIENCE,
    },
    config,
};

#[test]
fn ipv6_and_mapped_ipv4_sockets_count() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(fixture) = JudgedListener::on(&config(), listener, 0) else {
        return;
    };
    for address in [
        IpAddr::from(Ipv6Addr::LOCALHOST),
        Ipv4Addr::LOCALHOST.into(),
    ] {
        let mut client = TcpStream::connect((address, port)).unwrap();
        client.set_nonblocking(true).unwrap();
        let (mut server, _) = fixture.listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let written = write_until_full(&mut client);
        fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
        read_all(&mut server, written);
        fixture.judging.wait_for(Zone::Green, Cause::None);
    }
}

#[test]
fn a_connection_not_yet_accepted_counts() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let mut client = TcpStream::connect(fixture.listener.local_addr().unwrap()).unwrap();
    client.set_nonblocking(true).unwrap();
    write_until_full(&mut client);
    fixture.judging.wait_for(Zone::Red, Cause::ReceiveQueue);
}

#[test]
fn sockets_on_other_ports_do_not_count() {
    let ours = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let Some(fixture) = JudgedListener::on(&config(), ours, 0) else {
        return;
    };
    let (mut client, _server) = connection(&other);
    assert_ignored(&fixture, &mut client);
}

#[test]
fn sockets_in_another_network_namespace_do_not_count() {
    let Some(fixture) = JudgedListener::start(&config()) else {
        return;
    };
    let port = fixture.listener.local_addr().unwrap().port();
    let (full, filled) = mpsc::channel();
    let (done, release) = mpsc::channel::<()>();
    let elsewhere = thread::spawn(move || {
        // Namespaces are per thread: the socket lives where its thread was when it was made.
        enter_new_netns();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (mut client, _server) = connection(&listener);
        full.send(write_until_full(&mut client)).unwrap();
        let _ = release.recv();
    });
    let written = filled.recv_timeout(PATIENCE).unwrap();
    assert!(written > 0);
    fixture.judging.wait_for_ticks(5);
    assert_eq!(fixture.judging.zone_and_cause(), (Zone::Green, Cause::None));
    assert_eq!(fixture.judging.value(Signal::ReceiveQueue), 0.0);
    drop(done);
    elsewhere.join().unwrap();
}

/// Fills a socket that isn't ours, and checks that the kernel half takes no notice.
fn assert_ignored(fixture: &JudgedListener, client: &mut TcpStream) {
    write_until_full(client);
    fixture.judging.wait_for_ticks(5);
    assert_eq!(fixture.judging.zone_and_cause(), (Zone::Green, Cause::None));
    assert_eq!(fixture.judging.value(Signal::ReceiveQueue), 0.0);
}

/// Moves this thread into a network namespace of its own, with its loopback up.
fn enter_new_netns() {
    // SAFETY: no memory is involved.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives through the call.
    let raised = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    assert_eq!(raised, 0, "{}", std::io::Error::last_os_error());
}

//! The kernel half judging the connections of one listener, and what fills and empties them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Instant,
};

use gophership::pressure::{Config, IngestScope};
use nix::sys::socket::{setsockopt, sockopt};

use super::judging::{Judging, PATIENCE};

/// A judge and its listener.
pub(crate) struct JudgedListener {
    pub(crate) judging: Judging,
    pub(crate) listener: TcpListener,
}

impl JudgedListener {
    /// `None` where the kernel half can't run and needn't.
    #[track_caller]
    pub(crate) fn start(config: &Config) -> Option<Self> {
        Self::with_window(config, 0)
    }

    /// With so many bytes of HTTP/2's window; 0: only TCP's counts.
    #[track_caller]
    pub(crate) fn with_window(config: &Config, h2_window_bytes: u32) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(config, listener, h2_window_bytes)
    }

    /// On a listener of the test's.
    #[track_caller]
    pub(crate) fn on(config: &Config, listener: TcpListener, h2_window_bytes: u32) -> Option<Self> {
        let scope = IngestScope {
            ports: vec![listener.local_addr().unwrap().port()],
            h2_window_bytes,
            vault_dir: None,
        };
        Some(Self {
            judging: Judging::start(config, &scope)?,
            listener,
        })
    }

    /// Producer's end and engine's end of a new connection.
    pub(crate) fn connection(&self) -> (TcpStream, TcpStream) {
        connection(&self.listener)
    }
}

/// Both ends of a new connection, which never block: the one that connects, the one accepted.
pub(crate) fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    (client, server)
}

/// Writes until the socket takes no more; bytes written.
pub(crate) fn write_until_full(client: &mut TcpStream) -> usize {
    let block = vec![0_u8; 64 * 1024];
    let mut written = 0;
    loop {
        match client.write(&block) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return written,
            Err(error) => panic!("write: {error}"),
        }
    }
}

/// Reads until `expected` bytes have come.
pub(crate) fn read_all(server: &mut TcpStream, expected: usize) {
    let mut block = vec![0_u8; 64 * 1024];
    let mut got = 0;
    let start = Instant::now();
    while got < expected {
        assert!(start.elapsed() < PATIENCE, "{got} of {expected} bytes");
        match server.read(&mut block) {
            Ok(0) => panic!("closed after {got} of {expected} bytes"),
            Ok(bytes) => got += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// Closes with a reset instead of a FIN.
pub(crate) fn reset(end: TcpStream) {
    reset_when_closed(&end);
    drop(end);
}

/// Makes the end's close a reset.
pub(crate) fn reset_when_closed(end: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(end, sockopt::Linger, &linger).unwrap();
}

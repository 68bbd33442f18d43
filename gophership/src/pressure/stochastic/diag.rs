//! The ingest sockets as the kernel's socket diagnostics show them: `NETLINK_SOCK_DIAG`, what `ss`
//! reads.
//!
//! Two queries a family tell of every socket on the ingest ports of this network namespace, those not
//! yet accepted and the listeners included. Nothing has to be noted when a connection comes or goes,
//! as `SIOCINQ` on the daemon's own descriptors would need, and no privilege.
//!
//! ```text
//! request   nlmsghdr | inet_diag_req_v2 | attribute INET_DIAG_REQ_BYTECODE: one of these ports?
//! answer    nlmsghdr | inet_diag_msg | attributes INET_DIAG_INFO, INET_DIAG_SKMEMINFO, …
//! ```
//! Sources: sock_diag(7), netlink(7), `include/uapi/linux/inet_diag.h`; `struct tcp_info` of
//! `include/uapi/linux/tcp.h`. All numbers are in the CPU's order but for ports.

use std::{
    io::{self, ErrorKind},
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const TCP_LISTEN: u8 = 10;
/// The state in which connections wait to be accepted.
const LISTENS: u32 = 1 << TCP_LISTEN;
/// Established, both FIN_WAITs and CLOSE_WAIT: the states in which bytes can wait to be read.
const RECEIVES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKMEMINFO: u16 = 7;
/// `INET_DIAG_BC_JMP` and, since Linux 4.16, `INET_DIAG_BC_S_EQ`.
const JUMP: u8 = 1;
const LOCAL_PORT_IS: u8 = 11;

const HEADER: usize = 16;
const MESSAGE: usize = 72;
/// The kernel fills at most this at once.
const BUFFER: usize = 32 * 1024;
/// Answers read in one query: room for many more sockets than are followed.
const ANSWERS_MAX: usize = 4096;

/// One socket on an ingest port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A connection.
    Connection(Connection),
    /// A listener.
    Listener {
        /// Connections not yet accepted.
        waiting: u32,
        /// Its backlog, which one more exceeds.
        backlog: u32,
    },
}

/// What a connection's receive queue looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    /// The kernel's name for it, never used again.
    pub(super) cookie: u64,
    /// Bytes the application hasn't read.
    pub(super) unread: u32,
    /// Bytes received since it was opened.
    pub(super) received: u64,
    /// Its receive buffer's size.
    pub(super) buffer: u32,
    /// What of that buffer is charged to it.
    pub(super) charged: u32,
    /// The window last offered to the peer was zero; before Linux 6.2 nobody tells.
    pub(super) window_closed: bool,
}

/// The way to ask about some local ports, in the network namespace of the asking thread.
pub(super) struct Diag {
    ports: Vec<u16>,
    buffer: Vec<u8>,
    /// The families that somebody has listened in on these ports.
    families: [(i32, bool); 2],
}

impl Diag {
    pub(super) fn new(ports: &[u16]) -> Self {
        Self {
            ports: ports.to_vec(),
            buffer: vec![0; BUFFER],
            families: [(libc::AF_INET, false), (libc::AF_INET6, false)],
        }
    }

    /// Hands every socket to `each`.
    ///
    /// # Errors
    /// The kernel's; `ENOENT` where it is built without TCP's diagnostics.
    pub(super) fn ask(&mut self, mut each: impl FnMut(Found)) -> io::Result<()> {
        if self.ports.is_empty() {
            return Ok(());
        }
        for index in 0..self.families.len() {
            let (family, mut listened) = self.families[index];
            let asked = self.ask_one(family, LISTENS, &mut |found| {
                listened = true;
                each(found);
            });
            match asked {
                // A kernel without IPv6.
                Err(error) if error.kind() == ErrorKind::NotFound && family == libc::AF_INET6 => {}
                asked => asked?,
            }
            self.families[index].1 = listened;
            // The kernel walks its table of all connections, 3 ms for 262,144 rows and both
            // families; connections are of the family of their listener, present or past.
            if listened {
                self.ask_one(family, RECEIVES, &mut each)?;
            }
        }
        Ok(())
    }

    fn ask_one(
        &mut self,
        family: i32,
        states: u32,
        each: &mut impl FnMut(Found),
    ) -> io::Result<()> {
        // A new one each time: what is left of an answer that failed can't be taken for the next.
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        let request = request(family, states, &self.ports);
        send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
        for _ in 0..ANSWERS_MAX {
            // Nothing to wait for: the kernel answers within the call.
            let flags = MsgFlags::MSG_DONTWAIT;
            let length = match recv(socket.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            if read_answer(&self.buffer[..length], each)? {
                return Ok(());
            }
        }
        Err(io::Error::other("the kernel's answer has no end"))
    }
}

/// The query for one family's sockets in these states.
fn request(family: i32, states: u32, ports: &[u16]) -> Vec<u8> {
    let filter = filter(ports);
    let mut bytes = Vec::new();
    let filter_length = 4 + filter.len();
    let length = HEADER + 56 + filter_length;
    bytes.extend(u32_of(length).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]);
    // inet_diag_req_v2: family, protocol, what to tell, states; an empty socket id.
    let tell = 1 << (INET_DIAG_INFO - 1) | 1 << (INET_DIAG_SKMEMINFO - 1);
    let family = u8::try_from(family).unwrap_or(0);
    let tcp = u8::try_from(libc::IPPROTO_TCP).unwrap_or(0);
    bytes.extend([family, tcp, tell, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend([0; 48]);
    bytes.extend(u16_of(filter_length).to_ne_bytes());
    bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    bytes.extend(filter);
    bytes
}

/// The kernel's own little program: it accepts by coming to its end exactly, refuses by jumping
/// beyond. For each port a comparison (8 bytes), and but for the last a jump to the end (4).
fn filter(ports: &[u16]) -> Vec<u8> {
    const COMPARISON: usize = 8;
    const STEP: usize = COMPARISON + 4;
    let operation = |code: u8, yes: u8, no: usize| {
        let [low, high] = u16_of(no).to_ne_bytes();
        [code, yes, low, high]
    };
    let mut bytes = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let after = ports.len() - index - 1;
        // No: past this comparison's jump, to the next comparison; or beyond the end.
        bytes.extend(operation(LOCAL_PORT_IS, 8, STEP));
        bytes.extend(operation(0, 0, usize::from(*port)));
        if after > 0 {
            bytes.extend(operation(JUMP, 4, after * STEP));
        }
    }
    bytes
}

fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn u16_of(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// Reads one datagram of messages; says whether it was the last.
fn read_answer(mut bytes: &[u8], each: &mut impl FnMut(Found)) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(message) = bytes.get(HEADER..length) else {
            return Err(io::Error::other("the kernel's answer is cut off"));
        };
        match kind {
            NLMSG_ERROR | NLMSG_DONE => {
                return match u32_at(message, 0).map(u32::cast_signed) {
                    None | Some(0..) => Ok(true),
                    Some(error) => Err(io::Error::from_raw_os_error(-error)),
                };
            }
            SOCK_DIAG_BY_FAMILY => {
                if let Some(found) = found(message) {
                    each(found);
                }
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// One socket; `None` if the kernel doesn't tell what it takes.
fn found(message: &[u8]) -> Option<Found> {
    let (state, cookie) = (*message.get(1)?, u64_at(message, 44)?);
    let (unread, limit) = (u32_at(message, 56)?, u32_at(message, 60)?);
    if state == TCP_LISTEN {
        return Some(Found::Listener {
            waiting: unread,
            backlog: limit,
        });
    }
    let (mut memory, mut received, mut window) = (None, None, None);
    let mut attributes = message.get(MESSAGE..)?;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        let content = attributes.get(4..length)?;
        match kind {
            INET_DIAG_INFO => {
                received = u64_at(content, 128);
                window = u32_at(content, 232);
            }
            INET_DIAG_SKMEMINFO => memory = Some((u32_at(content, 0)?, u32_at(content, 4)?)),
            _ => {}
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    let (charged, buffer) = memory?;
    Some(Found::Connection(Connection {
        cookie,
        unread,
        received: received?,
        buffer,
        charged,
        window_closed: window == Some(0),
    }))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
#[path = "diag_tests.rs"]
mod tests;

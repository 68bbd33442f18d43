//! The ingest sockets, one by one: how full each is, who is at the other end.
//!
//! The kernel half's iterators tell, where they run; else `/proc/net/tcp`, which knows the queue but
//! neither what fits nor what was before. Processes are joined by both ends' addresses, so that no
//! other process's descriptors need be read.
//!
//! No snapshot is taken when the kernel half attaches: depths are read from the sockets themselves,
//! so a connection that was there before is listed like any other. The judge needs none either: the
//! listener is this process's own and seconds old, and what waits in its backlog is followed from
//! the first segment that arrives once somebody reads.

mod proc;
mod rank;
mod walk;

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use gophership_common::{End, Zone};

use super::kernel::Iterators;

/// Who listed the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListSource {
    /// The kernel half's iterators.
    Kernel,
    /// `/proc`: without capacity, high-water mark, last dequeue and level.
    Proc,
}

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketOrder {
    /// The most unread bytes.
    Depth,
    /// The greatest depth seen.
    HighWater,
    /// The greatest depth in proportion to what fits.
    Fill,
    /// The longest time since bytes were last taken.
    Idle,
}

/// The ingest sockets, as far as they were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Who listed them.
    pub source: ListSource,
    /// Why not the kernel half, if it didn't.
    pub reason: Option<String>,
    /// Why processes are named by `/proc`, or not at all, if they aren't by the kernel half.
    pub processes_reason: Option<String>,
    /// Connections that there are; `sockets` holds no more than the limit.
    pub total: usize,
    /// The first of them, in order.
    pub sockets: Vec<IngestSocket>,
    /// The listeners.
    pub listeners: Vec<Listener>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestSocket {
    /// The kernel's cookie, where it was told: what `ss -e` shows as `sk:`.
    pub cookie: Option<u64>,
    /// Our end.
    pub local: SocketAddr,
    /// The producer's end.
    pub peer: SocketAddr,
    /// TCP state, such as `established`.
    pub state: &'static str,
    /// Bytes not read yet.
    pub depth_bytes: u64,
    /// The depth that stops the producer, where it was told.
    pub capacity_bytes: Option<u64>,
    /// What the probes remember; `None` if they don't follow it (nothing has arrived since they
    /// run, or the table is full) or don't run.
    pub followed: Option<Followed>,
    /// The producer's process, if it is on this machine and can be told.
    pub process: Option<Process>,
}

/// What the probes remember of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// Greatest depth seen.
    pub high_water_bytes: u64,
    /// Since bytes were last taken from it; `None`: never yet.
    pub since_dequeue: Option<Duration>,
    /// Green below Yellow's level, and so on, with hysteresis.
    pub level: Zone,
}

/// A listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub local: SocketAddr,
    /// Connections not accepted yet.
    pub waiting: u64,
    /// Connections that may wait, where it was told.
    pub backlog: Option<u64>,
}

/// A process on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number in our pid namespace.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
}

impl Process {
    /// A process names itself, with any bytes but NUL: none of them is to move a terminal's cursor,
    /// whatever the listing is written as.
    fn new(pid: u32, name: &[u8]) -> Self {
        let text = String::from_utf8_lossy(name);
        let name = text.replace(char::is_control, "\u{fffd}");
        Self { pid, name }
    }
}

/// Listeners that are listed; there is one a port and address.
const LISTENERS_MAX: usize = 64;

/// Lists the sockets on `ports`; `kernel` are the iterators, or why there are none.
pub(super) fn list(
    kernel: &Result<&Iterators, String>,
    ports: &[u16],
    netns_inum: u32,
    order: SocketOrder,
    limit: usize,
) -> io::Result<Listing> {
    let walked = match kernel {
        Ok(iterators) => walk::sockets(iterators, order, limit),
        Err(reason) => Err(reason.clone()),
    };
    let mut listing = match walked {
        Ok(listing) => listing,
        Err(reason) => proc::sockets(ports, order, limit, reason)?,
    };
    let named = match kernel {
        Ok(iterators) => walk::name_processes(iterators, netns_inum, &mut listing.sockets),
        Err(reason) => Err(reason.clone()),
    };
    if let Err(reason) = named {
        listing.processes_reason = Some(reason);
        proc::name_processes(&mut listing.sockets);
    }
    Ok(listing)
}

/// States of `include/net/tcp_states.h`, as `ss` names them.
fn state_name(state: u32) -> &'static str {
    const NAMES: [&str; 13] = [
        "unknown",
        "established",
        "syn_sent",
        "syn_recv",
        "fin_wait_1",
        "fin_wait_2",
        "time_wait",
        "closed",
        "close_wait",
        "last_ack",
        "listen",
        "closing",
        "new_syn_recv",
    ];
    NAMES.get(state as usize).unwrap_or(&NAMES[0])
}

fn address(end: &End) -> SocketAddr {
    SocketAddr::new(
        IpAddr::V6(Ipv6Addr::from(end.address)).to_canonical(),
        end.port,
    )
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_process_cannot_name_itself_a_command_to_the_terminal() {
        let named = |name: &[u8]| Process::new(1, name).name;
        assert_eq!(named(b"fluent-bit"), "fluent-bit");
        assert_eq!(named(b"a\x1b[2J\nb\xff"), "a\u{fffd}[2J\u{fffd}b\u{fffd}");
        assert_eq!(named("caf\u{e9}\u{9b}2J".as_bytes()), "caf\u{e9}\u{fffd}2J");
    }

    #[test]
    fn without_iterators_proc_tells_and_the_reason_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = listener.local_addr().unwrap();
        let client = TcpStream::connect(ours).unwrap();
        let iterators = Iterators::none("iter/tcp: refused");
        let listing = list(&Ok(&iterators), &[ours.port()], 0, SocketOrder::Depth, 10);
        let listing = listing.unwrap();
        let reason = Some("iter/tcp: refused".to_owned());
        assert_eq!(listing.source, ListSource::Proc);
        assert_eq!(listing.reason, reason);
        assert_eq!(listing.processes_reason, reason);
        assert_eq!(listing.total, 1);
        assert_eq!(listing.sockets[0].peer, client.local_addr().unwrap());
        let process = listing.sockets[0].process.as_ref().unwrap();
        assert_eq!(process.pid, std::process::id());
        assert_eq!(listing.listeners[0].waiting, 1);
    }
}

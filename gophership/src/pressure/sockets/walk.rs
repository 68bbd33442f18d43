//! The kernel half's records → the listing.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use gophership_common::{ProcessRecord, SocketRecord, Zone};

use super::{
    super::{clock::monotonic_ns, kernel::Iterators},
    Followed, IngestSocket, LISTENERS_MAX, ListSource, Listener, Listing, Process, SocketOrder,
    address,
    rank::First,
    state_name,
};

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const TCP_LISTEN: u32 = 10;

/// Every ingest socket; the error is the reason why not.
pub(super) fn sockets(
    iterators: &Iterators,
    order: SocketOrder,
    limit: usize,
) -> Result<Listing, String> {
    let mut records = iterators.sockets()?;
    let mut first = First::new(order, limit);
    let mut listeners = Vec::new();
    let now_ns = monotonic_ns();
    while let Some(record) = records.next().map_err(|error| error.to_string())? {
        if record.state != TCP_LISTEN {
            first.offer(socket(&record, now_ns));
        } else if listeners.len() < LISTENERS_MAX {
            listeners.push(Listener {
                local: address(&record.local),
                waiting: record.depth.into(),
                backlog: Some(record.capacity.into()),
            });
        }
    }
    Ok(Listing {
        source: ListSource::Kernel,
        reason: None,
        processes_reason: None,
        total: first.total,
        sockets: first.into_sorted(),
        listeners,
    })
}

fn socket(record: &SocketRecord, now_ns: u64) -> IngestSocket {
    let followed = (record.followed != 0).then(|| Followed {
        high_water_bytes: record.high_water_bytes.into(),
        since_dequeue: (record.dequeued_at_ns != 0)
            .then(|| Duration::from_nanos(now_ns.saturating_sub(record.dequeued_at_ns))),
        level: match record.level {
            0 => Zone::Green,
            1 => Zone::Yellow,
            _ => Zone::Red,
        },
    });
    IngestSocket {
        cookie: Some(record.cookie),
        local: address(&record.local),
        peer: address(&record.peer),
        state: state_name(record.state),
        depth_bytes: record.depth.into(),
        capacity_bytes: Some(record.capacity.into()),
        followed,
        process: None,
    }
}

/// Finds the process behind each socket's peer; the error is the reason why not.
pub(super) fn name_processes(
    iterators: &Iterators,
    netns_inum: u32,
    sockets: &mut [IngestSocket],
) -> Result<(), String> {
    let mut records = iterators.processes()?;
    let mut names = Names::of(sockets, netns_inum);
    while let Some(record) = records.next().map_err(|error| error.to_string())? {
        names.offer(&record);
    }
    Ok(())
}

/// The join of sockets and processes, by both ends' addresses.
struct Names<'s> {
    sockets: &'s mut [IngestSocket],
    /// By the producer's end and ours.
    wanted: HashMap<(SocketAddr, SocketAddr), usize>,
    /// Who was found for the socket lives in our own network namespace, which settles it.
    settled: Vec<bool>,
    netns_inum: u32,
}

impl<'s> Names<'s> {
    fn of(sockets: &'s mut [IngestSocket], netns_inum: u32) -> Self {
        let ends = sockets.iter().map(|socket| (socket.peer, socket.local));
        Self {
            wanted: ends.zip(0..).collect(),
            settled: vec![false; sockets.len()],
            sockets,
            netns_inum,
        }
    }

    /// A producer in another network namespace counts, unless it is connected to a loopback
    /// address: that is its own namespace's, and not us. Of a family that shares a socket, the
    /// first one offered counts, which is the eldest.
    fn offer(&mut self, record: &ProcessRecord) {
        let ends = (address(&record.local), address(&record.peer));
        let Some(&index) = self.wanted.get(&ends) else {
            return;
        };
        let named = &mut self.sockets[index].process;
        let ours = record.netns_inum == self.netns_inum;
        let neighbour = named.is_none() && !ends.1.ip().is_loopback();
        if !self.settled[index] && (ours || neighbour) {
            self.settled[index] = ours;
            *named = Some(process(record));
        }
    }
}

fn process(record: &ProcessRecord) -> Process {
    let name = record.name.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Process::new(record.pid, name)
}

#[cfg(test)]
mod tests {
    use gophership_common::{End, NAME_BYTES};

    use super::*;

    const OURS: u32 = 1;
    const OTHER: u32 = 2;

    /// Names the process behind a connection from port 50000 to `local`, from these processes.
    fn named(local: [u8; 4], offered: &[ProcessRecord]) -> Option<u32> {
        let mut sockets = [IngestSocket {
            cookie: None,
            local: (local, 4317).into(),
            peer: (local, 50_000).into(),
            state: "established",
            depth_bytes: 0,
            capacity_bytes: None,
            followed: None,
            process: None,
        }];
        let mut names = Names::of(&mut sockets, OURS);
        offered.iter().for_each(|record| names.offer(record));
        let [socket] = sockets;
        socket.process.map(|process| process.pid)
    }

    fn end([a, b, c, d]: [u8; 4], port: u16) -> End {
        End {
            address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
            port,
            padding: 0,
        }
    }

    fn offer(local: [u8; 4], netns_inum: u32, pid: u32) -> ProcessRecord {
        ProcessRecord {
            local: end(local, 50_000),
            peer: end(local, 4317),
            pid,
            netns_inum,
            name: [0; NAME_BYTES],
        }
    }

    #[test]
    fn the_eldest_of_a_family_is_named() {
        let host = [10, 0, 0, 1];
        assert_eq!(named(host, &[]), None);
        let family = [offer(host, OURS, 7), offer(host, OURS, 8)];
        assert_eq!(named(host, &family), Some(7));
        let stranger = ProcessRecord {
            local: end(host, 50_001),
            ..offer(host, OURS, 9)
        };
        assert_eq!(named(host, &[stranger]), None);
    }

    #[test]
    fn a_process_of_our_own_namespace_is_preferred_to_one_of_another() {
        let host = [10, 0, 0, 1];
        let (ours, other) = (offer(host, OURS, 7), offer(host, OTHER, 8));
        assert_eq!(named(host, &[other]), Some(8));
        assert_eq!(named(host, &[ours, other]), Some(7));
        assert_eq!(named(host, &[other, ours]), Some(7));
    }

    #[test]
    fn another_namespaces_loopback_is_not_ours() {
        let host = [127, 0, 0, 1];
        assert_eq!(named(host, &[offer(host, OTHER, 8)]), None);
        assert_eq!(named(host, &[offer(host, OURS, 7)]), Some(7));
    }
}

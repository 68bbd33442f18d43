//! The kernel half's records → the listing.

use std::{collections::HashMap, time::Duration};

use gophership_common::{End, ProcessRecord, SocketRecord, Zone};

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
///
/// A producer in another network namespace counts, unless it is connected to a loopback address:
/// that is its namespace's own, and not us.
pub(super) fn name_processes(
    iterators: &Iterators,
    netns_inum: u32,
    sockets: &mut [IngestSocket],
) -> Result<(), String> {
    let mut records = iterators.processes()?;
    let wanted: HashMap<_, _> = sockets
        .iter()
        .enumerate()
        .map(|(index, socket)| ((socket.peer, socket.local), index))
        .collect();
    // Whether who was found lives in our own network namespace, which settles it.
    let mut settled = vec![false; sockets.len()];
    while let Some(record) = records.next().map_err(|error| error.to_string())? {
        let Some(&index) = wanted.get(&ends(&record)) else {
            continue;
        };
        let ours = record.netns_inum == netns_inum;
        let elsewhere = !ours && !is_loopback(&record.peer) && sockets[index].process.is_none();
        // The first one in a namespace: of a family that shares a socket, the eldest.
        if ours && !settled[index] || elsewhere {
            settled[index] = ours;
            sockets[index].process = Some(process(&record));
        }
    }
    Ok(())
}

/// The connection as its producer has it.
fn ends(record: &ProcessRecord) -> (std::net::SocketAddr, std::net::SocketAddr) {
    (address(&record.local), address(&record.peer))
}

fn is_loopback(end: &End) -> bool {
    address(end).ip().is_loopback()
}

fn process(record: &ProcessRecord) -> Process {
    let name = record.name.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Process {
        pid: record.pid,
        name: String::from_utf8_lossy(name).into_owned(),
    }
}

//! The fallback: `/proc/net/tcp` and `tcp6`, and the descriptors of those processes we may look into.
//!
//! ```text
//!   sl  local_address rem_address   st tx_queue:rx_queue tr:when retrnsmt uid timeout inode …
//!    0: 0100007F:10DD 00000000:0000 0A 00000000:00000000 00:0000 00000000   0       0 21513 …
//! ```
//! Addresses are 32-bit words as the CPU reads them, ports are in host order, all in hexadecimal.
//! `rx_queue` is the unread bytes, or a listener's connections not accepted.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    IngestSocket, LISTENERS_MAX, ListSource, Listener, Listing, Process, SocketOrder, rank::First,
    state_name,
};

const LISTEN: u32 = 10;
const TIME_WAIT: u32 = 6;
const NEW_SYN_RECV: u32 = 12;

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    peer: SocketAddr,
    state: u32,
    unread: u64,
    inode: u64,
}

/// Every socket on `ports`; `reason` is why the kernel half doesn't tell.
pub(super) fn sockets(
    ports: &[u16],
    order: SocketOrder,
    limit: usize,
    reason: String,
) -> io::Result<Listing> {
    let mut first = First::new(order, limit);
    let mut listeners = Vec::new();
    let mut seen = HashSet::new();
    for_each_row(|row| {
        if !ports.contains(&row.local.port()) || [TIME_WAIT, NEW_SYN_RECV].contains(&row.state) {
            return;
        }
        if row.state != LISTEN {
            // The table is read page by page while it changes: a row may be on two of them.
            if seen.insert((row.local, row.peer)) {
                first.offer(socket(&row));
            }
        } else if listeners.len() < LISTENERS_MAX {
            listeners.push(Listener {
                local: row.local,
                waiting: row.unread,
                backlog: None,
            });
        }
    })?;
    Ok(Listing {
        source: ListSource::Proc,
        reason: Some(reason),
        processes_reason: None,
        total: first.total,
        sockets: first.into_sorted(),
        listeners,
    })
}

/// Finds the process behind each socket's peer, as far as its descriptors may be read. Who can't be
/// found stays unnamed.
pub(super) fn name_processes(sockets: &mut [IngestSocket]) {
    let wanted: HashMap<_, _> = sockets
        .iter()
        .enumerate()
        .map(|(index, socket)| ((socket.peer, socket.local), index))
        .collect();
    let mut inodes = HashMap::new();
    let walked = for_each_row(|row| {
        if let Some(&index) = wanted.get(&(row.local, row.peer)) {
            inodes.insert(row.inode, index);
        }
    });
    let Ok(processes) = walked.and_then(|()| fs::read_dir("/proc")) else {
        return;
    };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let Some(index) = inode(&descriptor.path()).and_then(|inode| inodes.remove(&inode))
            else {
                continue;
            };
            let name = fs::read(process.path().join("comm")).unwrap_or_default();
            let name = name.strip_suffix(b"\n").unwrap_or(&name);
            sockets[index].process = Some(Process::new(pid, name));
        }
    }
}

/// The socket behind a descriptor: its link reads `socket:[21513]`.
fn inode(descriptor: &std::path::Path) -> Option<u64> {
    let link = fs::read_link(descriptor).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

fn socket(row: &Row) -> IngestSocket {
    IngestSocket {
        cookie: None,
        local: row.local,
        peer: row.peer,
        state: state_name(row.state),
        depth_bytes: row.unread,
        capacity_bytes: None,
        followed: None,
        process: None,
    }
}

fn for_each_row(mut each: impl FnMut(Row)) -> io::Result<()> {
    for (path, may_be_absent) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
        let file = match File::open(path) {
            // A kernel without IPv6.
            Err(error) if may_be_absent && error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(named)?,
        };
        for line in BufReader::new(file).lines() {
            if let Some(row) = row(&line.map_err(named)?) {
                each(row);
            }
        }
    }
    Ok(())
}

/// One line; `None` for the title.
fn row(line: &str) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let peer = address(fields.next()?)?;
    let state = u32::from_str_radix(fields.next()?, 16).ok()?;
    let (_, unread) = fields.next()?.split_once(':')?;
    Some(Row {
        local,
        peer,
        state,
        unread: u64::from_str_radix(unread, 16).ok()?,
        inode: fields.nth(4)?.parse().ok()?,
    })
}

fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(1)?, word(2)?, word(3)?];
        let mut bytes = [0; 16];
        bytes.copy_from_slice(words.as_flattened());
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_both_tables_are_read() {
        let v4 = "   1: 0100007F:10DD 0200007F:C350 01 00000000:0000002A 00:00000000 00000000  \
                  1000        0 21513 1 0000000000000000 20 4 30 10 -1";
        assert_eq!(
            row(v4),
            Some(Row {
                local: "127.0.0.1:4317".parse().unwrap(),
                peer: "127.0.0.2:50000".parse().unwrap(),
                state: 1,
                unread: 42,
                inode: 21513,
            })
        );
        let v6 = "   0: 00000000000000000000000001000000:10DD 0000000000000000FFFF00000100007F:C350 \
                  0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0";
        let found = row(v6).unwrap();
        assert_eq!(found.local, "[::1]:4317".parse().unwrap());
        assert_eq!(found.peer, "127.0.0.1:50000".parse().unwrap(), "mapped");
        assert_eq!(
            row("  sl  local_address rem_address   st tx_queue rx_queue"),
            None
        );
    }
}

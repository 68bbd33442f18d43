//! The ingest sockets, for people and for machines.

use std::time::Duration;

use gophership::control::pb;
use serde_json::{Value, json};

use crate::{
    human::{bytes, count, duration, plain},
    json::zone,
    table::{paint, titled},
};

/// `sockets --output json`; the keys are promises.
pub(crate) fn value(reply: &pb::SocketsReply) -> Value {
    let source = match reply.source() {
        pb::SocketSource::Unspecified => "unknown",
        pb::SocketSource::Kernel => "kernel",
        pb::SocketSource::Proc => "proc",
    };
    json!({
        "source": source,
        "source_reason": reply.source_reason,
        "processes_reason": reply.processes_reason,
        "total": reply.total,
        "sockets": reply.sockets.iter().map(socket).collect::<Value>(),
        "listeners": reply.listeners.iter().map(|listener| json!({
            "local": listener.local,
            "waiting": listener.waiting,
            "backlog": listener.backlog,
        })).collect::<Value>(),
    })
}

fn socket(socket: &pb::IngestSocket) -> Value {
    json!({
        "peer": socket.peer,
        "local": socket.local,
        "state": socket.state,
        "depth": socket.depth_bytes,
        "capacity": socket.capacity_bytes,
        "fill": permille(socket).map(|permille| permille as f64 / 1000.0),
        "high_water": socket.high_water_bytes,
        "since_dequeue": since_dequeue(socket).map(|since| since.as_secs_f64()),
        "level": level(socket),
        "cookie": socket.cookie,
        "process": socket.process.as_ref().map(|process| json!({
            "pid": process.pid,
            "name": process.name,
        })),
    })
}

/// `sockets`.
pub(crate) fn page(reply: &pb::SocketsReply, colour: bool) -> String {
    let mut out = notes(reply);
    out.push_str(&table(reply, colour));
    let shown = reply.sockets.len() as u64;
    if shown < reply.total {
        let hidden = count(reply.total - shown);
        out.push_str(&format!("… and {hidden} more: see --limit and --sort\n"));
    }
    let rows = reply.listeners.iter().map(|listener| {
        vec![
            listener.local.clone(),
            count(listener.waiting),
            listener.backlog.map_or("-".to_owned(), count),
        ]
    });
    let listeners = titled(&["LISTENER", "NOT ACCEPTED", "BACKLOG"], rows, &[1, 2]);
    if !listeners.is_empty() {
        out.push('\n');
        out.push_str(&listeners);
    }
    out
}

/// What is missing from the table, and why.
pub(crate) fn notes(reply: &pb::SocketsReply) -> String {
    let mut out = String::new();
    if reply.source() == pb::SocketSource::Proc {
        out.push_str(&format!(
            "from /proc, without capacities and history; not from the kernel half: {}\n",
            plain(&reply.source_reason)
        ));
    }
    if !reply.processes_reason.is_empty() && reply.processes_reason != reply.source_reason {
        out.push_str(&format!(
            "processes by /proc, as far as the daemon may look; not by the kernel half: {}\n",
            plain(&reply.processes_reason)
        ));
    }
    out
}

/// The connections alone.
pub(crate) fn table(reply: &pb::SocketsReply, colour: bool) -> String {
    if reply.sockets.is_empty() {
        return "no connections\n".to_owned();
    }
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = reply.sockets.iter().map(|socket| {
        let process = socket.process.as_ref();
        vec![
            socket.peer.clone(),
            known(process.map(|process| format!("{}/{}", plain(&process.name), process.pid))),
            bytes(socket.depth_bytes),
            known(socket.capacity_bytes.map(bytes)),
            known(permille(socket).map(|full| format!("{}.{} %", full / 10, full % 10))),
            known(socket.high_water_bytes.map(bytes)),
            last_read(socket),
            known(level(socket).map(|level| paint(level, ansi(socket.level()), colour))),
            socket.state.clone(),
        ]
    });
    let titles = [
        "PEER",
        "PROCESS",
        "DEPTH",
        "CAPACITY",
        "FULL",
        "HIGH WATER",
        "LAST READ",
        "LEVEL",
        "STATE",
    ];
    titled(&titles, rows, &[2, 3, 4, 5, 6])
}

fn permille(socket: &pb::IngestSocket) -> Option<u64> {
    let capacity = u128::from(socket.capacity_bytes?.max(1));
    u64::try_from(u128::from(socket.depth_bytes) * 1000 / capacity).ok()
}

fn since_dequeue(socket: &pb::IngestSocket) -> Option<Duration> {
    socket.since_dequeue.as_ref()?.to_owned().try_into().ok()
}

/// None if nobody watches the socket.
fn level(socket: &pb::IngestSocket) -> Option<&'static str> {
    (socket.level() != pb::Zone::Unspecified).then(|| zone(socket.level()))
}

fn last_read(socket: &pb::IngestSocket) -> String {
    match (since_dequeue(socket), level(socket)) {
        (Some(since), _) if since < Duration::from_secs(10) => {
            format!("{} ms ago", since.as_millis())
        }
        (Some(since), _) => format!("{} ago", duration(since)),
        (None, Some(_)) => "never".to_owned(),
        (None, None) => "-".to_owned(),
    }
}

fn ansi(level: pb::Zone) -> &'static str {
    match level {
        pb::Zone::Green => "32",
        pb::Zone::Yellow => "33",
        pb::Zone::Red | pb::Zone::Unspecified => "31",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> pb::SocketsReply {
        let full = pb::IngestSocket {
            peer: "10.0.0.2:50000".to_owned(),
            local: "10.0.0.1:4317".to_owned(),
            state: "established".to_owned(),
            depth_bytes: 3 << 20,
            capacity_bytes: Some(4 << 20),
            high_water_bytes: Some(4 << 20),
            since_dequeue: Some(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            level: pb::Zone::Yellow.into(),
            cookie: Some(7),
            process: Some(pb::Process {
                pid: 42,
                name: "app\x1b[2J".to_owned(),
            }),
        };
        let unknown = pb::IngestSocket {
            peer: "[::1]:1".to_owned(),
            state: "established".to_owned(),
            ..pb::IngestSocket::default()
        };
        pb::SocketsReply {
            source: pb::SocketSource::Kernel.into(),
            total: 3,
            sockets: vec![full, unknown],
            listeners: vec![pb::IngestListener {
                local: "0.0.0.0:4317".to_owned(),
                waiting: 2,
                backlog: Some(1024),
            }],
            ..pb::SocketsReply::default()
        }
    }

    #[test]
    fn the_page_shows_everything_that_is_known() {
        let expected = "\
PEER            PROCESS            DEPTH  CAPACITY    FULL  HIGH WATER    LAST READ  LEVEL   STATE
10.0.0.2:50000  app\u{fffd}[2J/42  3.0 MiB   4.0 MiB  75.0 %     4.0 MiB  1500 ms ago  yellow  established
[::1]:1         -                    0 B         -       -           -            -  -       established
… and 1 more: see --limit and --sort

LISTENER      NOT ACCEPTED  BACKLOG
0.0.0.0:4317             2    1 024
";
        let page = page(&reply(), false);
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&page), squeezed(expected), "{page}");
    }

    #[test]
    fn what_is_not_known_is_null() {
        let value = value(&reply());
        assert_eq!(value["sockets"][0]["fill"], 0.75);
        assert_eq!(value["sockets"][0]["since_dequeue"], 1.5);
        for key in [
            "capacity",
            "fill",
            "high_water",
            "since_dequeue",
            "level",
            "process",
        ] {
            assert!(value["sockets"][1][key].is_null(), "{key}: {value:#}");
        }
    }

    #[test]
    fn a_list_from_proc_says_so_and_why() {
        let reply = pb::SocketsReply {
            source: pb::SocketSource::Proc.into(),
            source_reason: "off in the configuration".to_owned(),
            processes_reason: "off in the configuration".to_owned(),
            ..pb::SocketsReply::default()
        };
        let page = page(&reply, false);
        assert_eq!(
            page.matches("off in the configuration").count(),
            1,
            "{page}"
        );
        assert!(page.contains("/proc"), "{page}");
    }
}

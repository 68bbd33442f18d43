//! A listing of sockets → `SocketsReply`.

use super::status::zone;
use crate::{
    control::pb,
    pressure::{
        Listing,
        sockets::{IngestSocket, ListSource, Listener, Process},
    },
};

pub(super) fn reply(listing: Listing) -> pb::SocketsReply {
    let source = match listing.source {
        ListSource::Kernel => pb::SocketSource::Kernel,
        ListSource::Proc => pb::SocketSource::Proc,
    };
    pb::SocketsReply {
        source: source.into(),
        source_reason: listing.reason.unwrap_or_default(),
        processes_reason: listing.processes_reason.unwrap_or_default(),
        total: listing.total as u64,
        sockets: listing.sockets.into_iter().map(socket).collect(),
        listeners: listing.listeners.iter().map(listener).collect(),
    }
}

fn socket(socket: IngestSocket) -> pb::IngestSocket {
    let followed = socket.followed;
    let level = followed.map_or(pb::Zone::Unspecified, |followed| zone(followed.level));
    pb::IngestSocket {
        peer: socket.peer.to_string(),
        local: socket.local.to_string(),
        state: socket.state.to_owned(),
        depth_bytes: socket.depth_bytes,
        capacity_bytes: socket.capacity_bytes,
        high_water_bytes: followed.map(|followed| followed.high_water_bytes),
        since_dequeue: followed
            .and_then(|followed| followed.since_dequeue)
            .and_then(|since| since.try_into().ok()),
        level: level.into(),
        cookie: socket.cookie,
        process: socket
            .process
            .map(|Process { pid, name }| pb::Process { pid, name }),
    }
}

fn listener(listener: &Listener) -> pb::IngestListener {
    pb::IngestListener {
        local: listener.local.to_string(),
        waiting: listener.waiting,
        backlog: listener.backlog,
    }
}

//! The connections of one runtime to the servers of a destination, and when they are given up.
//!
//! A connection that works is used for as long as it does. So the servers' names are looked up again now and then while
//! there is something to send, and when one no longer leads to an address that it led to, new connections take the
//! place of all.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{Uri, uri::Scheme};
use hyper_util::client::legacy::Client;

use super::{
    connect::Connector,
    otlp::{MessageBody, OtlpServer},
};

/// A pool of connections.
pub(super) type OtlpClient = Client<Connector, MessageBody>;

/// Longest that a look-up is waited for.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(super) struct Clients(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    client: OtlpClient,
    /// When the names were last looked up, or a look-up began.
    looked_up: Option<Instant>,
    /// Where each name led then; nothing is known of one that can't be looked up.
    addresses: Vec<Option<BTreeSet<IpAddr>>>,
}

impl Clients {
    pub(super) fn new(server: &OtlpServer) -> Self {
        Self(Arc::new(Mutex::new(State {
            client: server.client(),
            looked_up: None,
            addresses: Vec::new(),
        })))
    }

    pub(super) fn current(&self) -> OtlpClient {
        self.lock().client.clone()
    }

    /// Looks the names up in the background, if it is time to.
    pub(super) fn follow_the_names(&self, server: &Arc<OtlpServer>) {
        let now = Instant::now();
        {
            let mut state = self.lock();
            let is_due = |at: Instant| now.duration_since(at) >= server.resolve_every;
            if !state.looked_up.is_none_or(is_due) {
                return;
            }
            state.looked_up = Some(now);
        }
        let (clients, server) = (self.clone(), Arc::clone(server));
        tokio::spawn(async move {
            let names = names(&server);
            let Ok(addresses) = tokio::time::timeout(LOOKUP_TIMEOUT, look_up(&names)).await else {
                return;
            };
            let mut state = clients.lock();
            let has_moved = state.addresses.iter().zip(&addresses).any(has_moved);
            if has_moved {
                tracing::info!(
                    destination = server.name(),
                    "the servers' addresses have changed: connecting anew"
                );
                // What is on its way goes on over the old connections, which end with it.
                state.client = server.client();
            }
            state.addresses = addresses;
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is connected to: the servers, or the proxy.
fn names(server: &OtlpServer) -> Vec<(String, u16)> {
    let name = |uri: &Uri| {
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        let default = match uri.scheme() == Some(&Scheme::HTTPS) {
            true => 443,
            false => 80,
        };
        Some((host.to_owned(), uri.port_u16().unwrap_or(default)))
    };
    match &server.connector.proxy {
        Some(proxy) => name(&proxy.uri).into_iter().collect(),
        None => {
            let uris = server.targets.iter().map(|target| &target.uri);
            uris.filter_map(name).collect()
        }
    }
}

async fn look_up(names: &[(String, u16)]) -> Vec<Option<BTreeSet<IpAddr>>> {
    let mut addresses = Vec::with_capacity(names.len());
    for (host, port) in names {
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        addresses.push(
            found
                .ok()
                .map(|found| found.map(|address| address.ip()).collect()),
        );
    }
    addresses
}

/// Whether a connection may lead to where the name doesn't any more.
fn has_moved((before, now): (&Option<BTreeSet<IpAddr>>, &Option<BTreeSet<IpAddr>>)) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => !before.is_subset(now),
        // A name server that is away for now is no reason to give up a connection that works.
        (None, _) | (_, None) => false,
    }
}

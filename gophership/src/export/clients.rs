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
    /// Where each name led when that could last be found out.
    addresses: Vec<Option<Addresses>>,
}

type Addresses = BTreeSet<IpAddr>;

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
            if learn(&mut state.addresses, addresses) {
                tracing::info!(
                    destination = server.name(),
                    "the servers' addresses have changed: connecting anew"
                );
                // What is on its way goes on over the old connections, which end with it.
                state.client = server.client();
            }
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

/// Nothing for a name that can't be looked up.
async fn look_up(names: &[(String, u16)]) -> Vec<Option<Addresses>> {
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

/// Takes note of where the names lead now. Gives whether a connection may lead to where its name doesn't any more.
fn learn(known: &mut Vec<Option<Addresses>>, found: Vec<Option<Addresses>>) -> bool {
    known.resize(found.len(), None);
    let mut has_moved = false;
    for (known, found) in known.iter_mut().zip(found) {
        // A name server that is away for now is no reason to give up a connection that works, nor to forget where that
        // leads: the name may have moved meanwhile.
        let Some(found) = found else { continue };
        has_moved |= known.as_ref().is_some_and(|known| !known.is_subset(&found));
        *known = Some(found);
    }
    has_moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: &[u8]) -> Option<Addresses> {
        let address = |last: &u8| IpAddr::from([127, 0, 0, *last]);
        Some(last.iter().map(address).collect())
    }

    #[test]
    fn a_name_has_moved_when_an_address_is_gone_from_it() {
        let mut known = Vec::new();
        assert!(!learn(&mut known, vec![at(&[1]), at(&[7])]));
        assert!(!learn(&mut known, vec![at(&[1, 2]), at(&[7])]));
        assert!(learn(&mut known, vec![at(&[2]), at(&[7])]));
        assert!(!learn(&mut known, vec![at(&[2]), at(&[7])]));
    }

    #[test]
    fn a_look_up_that_fails_forgets_nothing() {
        let mut known = Vec::new();
        learn(&mut known, vec![at(&[1])]);
        assert!(!learn(&mut known, vec![None]));
        assert!(learn(&mut known, vec![at(&[2])]));
    }
}

//! The host's own addresses, kept where the program can look them up.

use std::{
    io,
    mem::offset_of,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use gophership_common::xdp::{Address, LOCAL_ROWS, LOCAL_WAYS, LocalTable, LocalsPage, fill};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

use super::super::Page;
use crate::pressure::xdp::address;

/// Seeds tried before a set of addresses counts as too large.
const SEEDS: u64 = 64;
/// Messages taken from the socket at once; more are taken the next time.
const MESSAGES_MAX: usize = 256;
/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of `linux/rtnetlink.h`.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// The table of local addresses and the news about them.
pub(super) struct Locals {
    page: Page<LocalsPage>,
    /// Hears of addresses that come and go in this network namespace.
    news: OwnedFd,
    published: Vec<Address>,
    suspended: Option<&'static str>,
    /// The last look failed; the news that led to it are gone, so it is repeated without any.
    look_failed: bool,
}

impl Locals {
    /// Publishes the addresses of this moment, and listens for others.
    ///
    /// # Errors
    /// If the system doesn't tell.
    pub(super) fn watch(page: Page<LocalsPage>) -> io::Result<Self> {
        let news = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        // Before the first look, so that nothing is missed in between.
        bind(news.as_raw_fd(), &NetlinkAddr::new(0, ADDRESS_GROUPS))?;
        let mut locals = Self {
            page,
            news,
            published: Vec::new(),
            suspended: None,
            look_failed: false,
        };
        let addresses = addresses()?;
        locals.publish(addresses);
        Ok(locals)
    }

    /// Why the addresses can't be told from others, if they can't.
    pub(super) fn suspended(&self) -> Option<&'static str> {
        self.suspended
    }

    /// Publishes the addresses again if there is news.
    pub(super) fn follow(&mut self) {
        if !self.has_news() && !self.look_failed {
            return;
        }
        match addresses() {
            Ok(addresses) => {
                self.look_failed = false;
                if addresses != self.published || self.suspended.is_some() {
                    self.publish(addresses);
                }
            }
            Err(error) => {
                if !self.look_failed {
                    tracing::error!(%error, "xdp: the local addresses can't be read: nothing is dropped");
                }
                self.look_failed = true;
                self.suspend(Some("the local addresses can't be read"));
            }
        }
    }

    fn has_news(&self) -> bool {
        let mut message = [0; 4096];
        for heard in 0..MESSAGES_MAX {
            match recv(self.news.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(1..) | Err(Errno::EINTR) => {}
                // More than the socket could hold: what they said is lost, that they came isn't.
                Err(Errno::ENOBUFS) => return true,
                Ok(0) | Err(_) => return heard > 0,
            }
        }
        true
    }

    fn publish(&mut self, addresses: Vec<Address>) {
        match table(&addresses) {
            Some((seed, table)) => {
                self.put_in_force(seed, &table);
                self.suspend(None);
                tracing::debug!(addresses = addresses.len(), "xdp: local addresses");
            }
            None => {
                tracing::error!(
                    addresses = addresses.len(),
                    "xdp: too many local addresses to tell them from others: nothing is dropped"
                );
                self.suspend(Some("too many local addresses"));
            }
        }
        self.published = addresses;
    }

    fn put_in_force(&self, seed: u64, table: &LocalTable) {
        let generation = self.page.word(offset_of!(LocalsPage, generation));
        let next = generation.load(Ordering::Acquire).wrapping_add(1);
        let slot = usize::from(next & 1 == 1);
        // Whoever sees what is written below sees the generation published before as well, and knows
        // that this table is no longer in force: a release store alone lets later stores pass it.
        fence(Ordering::Release);
        let seeds = offset_of!(LocalsPage, seeds) + slot * size_of::<u64>();
        self.page.word(seeds).store(seed, Ordering::Relaxed);
        let rows = offset_of!(LocalsPage, tables) + slot * size_of::<LocalTable>();
        for (i, address) in table.iter().flatten().enumerate() {
            self.page.write(rows + i * size_of::<Address>(), address);
        }
        generation.store(next, Ordering::Release);
    }

    fn suspend(&mut self, reason: Option<&'static str>) {
        self.suspended = reason;
        self.page
            .word(offset_of!(LocalsPage, overflown))
            .store(u64::from(reason.is_some()), Ordering::Release);
    }
}

/// A table that holds all of `addresses`, and its seed.
fn table(addresses: &[Address]) -> Option<(u64, Box<LocalTable>)> {
    (1..=SEEDS).find_map(|seed| {
        let mut table = Box::new([[Address::default(); LOCAL_WAYS]; LOCAL_ROWS]);
        fill(&mut table, seed, addresses).then_some((seed, table))
    })
}

/// The addresses of all interfaces, sorted; loopback and unspecified ones need no list.
fn addresses() -> io::Result<Vec<Address>> {
    let mut addresses: Vec<Address> = getifaddrs()?
        .filter_map(|interface| {
            let storage = interface.address?;
            let ip: IpAddr = if let Some(v4) = storage.as_sockaddr_in() {
                v4.ip().into()
            } else {
                storage.as_sockaddr_in6()?.ip().into()
            };
            Some(address(ip))
        })
        .filter(|address| !address.is_loopback_or_unspecified())
        .collect();
    addresses.sort_unstable_by_key(|address| (address.high, address.low));
    addresses.dedup();
    Ok(addresses)
}

/// Whether frames of the interface begin with an Ethernet header; if it can't be told, they do.
pub(super) fn has_ethernet_header(name: &str) -> bool {
    let Ok(mut interfaces) = getifaddrs() else {
        return true;
    };
    let kind = interfaces.find_map(|interface| {
        let link = *interface.address.as_ref()?.as_link_addr()?;
        (interface.interface_name == name).then(|| link.hatype())
    });
    kind.is_none_or(|kind| matches!(kind, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(page: Page<LocalsPage>, address: Address) -> bool {
        let generation: u64 = page.read(offset_of!(LocalsPage, generation));
        let slot = usize::from(generation & 1 == 1);
        let seeds: [u64; 2] = page.read(offset_of!(LocalsPage, seeds));
        let row = address.row(seeds[slot]);
        let at = offset_of!(LocalsPage, tables)
            + slot * size_of::<LocalTable>()
            + row * LOCAL_WAYS * size_of::<Address>();
        (0..LOCAL_WAYS)
            .map(|way| page.read::<Address>(at + way * size_of::<Address>()))
            .any(|place| place == address)
    }

    #[test]
    fn the_last_published_addresses_are_in_force() {
        let page = Page::<LocalsPage>::anonymous().unwrap();
        let mut locals = Locals::watch(page).unwrap();
        let (one, two) = (Address::v4(0x0a01_0203), Address::v4(0x0a01_0204));
        locals.publish(vec![one]);
        assert!(held(page, one) && !held(page, two));
        locals.publish(vec![two]);
        assert!(held(page, two) && !held(page, one));
    }

    #[test]
    fn a_look_that_failed_is_repeated_without_news() {
        let page = Page::<LocalsPage>::anonymous().unwrap();
        let mut locals = Locals::watch(page).unwrap();
        locals.look_failed = true;
        locals.suspend(Some("the local addresses can't be read"));
        locals.follow();
        assert_eq!((locals.suspended(), locals.look_failed), (None, false));
    }

    #[test]
    fn too_many_addresses_suspend_the_guard_until_there_are_fewer() {
        let page = Page::<LocalsPage>::anonymous().unwrap();
        let mut locals = Locals::watch(page).unwrap();
        let overflown = || page.read::<u64>(offset_of!(LocalsPage, overflown));
        let many = (1..).map(Address::v4).take(LOCAL_ROWS * LOCAL_WAYS + 1);
        locals.publish(many.collect());
        assert_eq!((overflown(), locals.suspended().is_some()), (1, true));
        locals.publish(vec![Address::v4(0x0a01_0203)]);
        assert_eq!((overflown(), locals.suspended()), (0, None));
    }
}

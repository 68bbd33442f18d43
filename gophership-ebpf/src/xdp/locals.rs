//! Whether an address is the host's own.

use gophership_common::{
    is_zero, opaque,
    xdp::{Address, LOCAL_ROWS, LOCAL_WAYS, LocalsPage},
};

use crate::{atomic, maps};

/// Of both tables.
const PLACES: usize = 2 * LOCAL_ROWS * LOCAL_WAYS;

/// Where an address lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Locality {
    /// Here.
    Local,
    /// Elsewhere.
    Remote,
    /// It can't be told now, so nothing may be dropped for it.
    Unknown,
}

/// Looks an address up.
#[inline(always)]
pub(super) fn locality(address: Address) -> Locality {
    if address.is_loopback_or_unspecified() {
        return Locality::Local;
    }
    let Some(page) = maps::locals() else {
        return Locality::Unknown;
    };
    // SAFETY: the LOCALS map's only element; indices are masked to what it holds.
    unsafe {
        let generation = atomic::load(&raw const (*page).generation);
        let overflown = atomic::load(&raw const (*page).overflown);
        // Not compared as it is: the compiler would then know it below, and leave it out of `seen`.
        if generation == 0 || is_zero(overflown) == 0 {
            return Locality::Unknown;
        }
        let table = (generation & 1) as usize;
        let seeds = (&raw const (*page).seeds).cast::<u64>();
        let row = address.row(atomic::load(seeds.add(table)));
        let places = (&raw const (*page).tables).cast::<Address>();
        // The compiler makes an OR of this sum, of which the verifier of 6.1 knows no bound. The
        // mask keeps what begins a row.
        let first = opaque(((table * LOCAL_ROWS + row) * LOCAL_WAYS) as u64) as usize;
        let places = places.add(first & (PLACES - LOCAL_WAYS));
        let found = contains(places, address);
        // User space writes to this table again only after it has published the other one. The loads
        // above are of addresses made of the first generation, and this one's is made of them: no CPU
        // takes them in another order.
        let seen = found | overflown;
        if atomic::load_after(&raw const (*page).generation, seen) != generation {
            Locality::Unknown
        } else if found != 0 {
            Locality::Local
        } else {
            Locality::Remote
        }
    }
}

/// Not 0 if one of a row's places holds the address; a branch for each would be too many paths.
///
/// # Safety
/// `places` is a row of [`LocalsPage::tables`].
#[inline(always)]
unsafe fn contains(places: *const Address, address: Address) -> u64 {
    let mut way = 0;
    let mut found = 0;
    while way < LOCAL_WAYS {
        // SAFETY: below LOCAL_WAYS.
        let (high, low) = unsafe {
            let place = places.add(way);
            (
                atomic::load(&raw const (*place).high),
                atomic::load(&raw const (*place).low),
            )
        };
        found |= is_zero((high ^ address.high) | (low ^ address.low));
        way += 1;
    }
    found
}

const _: () = assert!(PLACES.is_power_of_two() && LOCAL_WAYS.is_power_of_two());
const _: () = assert!(size_of::<LocalsPage>() == 32 + PLACES * 16);

//! What the XDP meter and guard share with user space: addresses, counters, settings.
//!
//! User space only ever writes pages it has mapped, never a map: map updates need privileges that
//! the daemon gives up (before Linux 5.19 even reading a map does).

use crate::limits::PORTS_MAX;

/// Interfaces that fit [`RxCpu`].
pub const INTERFACES_MAX: usize = 8;
/// Prefixes of the guard's two lists together.
pub const PREFIXES_MAX: u32 = 1024;
/// Source prefixes whose new connections are limited at once; the longest silent one is forgotten
/// first.
pub const BUCKETS_MAX: u32 = 16_384;
/// Rows of one [`LocalTable`]; a power of two.
pub const LOCAL_ROWS: usize = 512;
/// Addresses that fit a row.
pub const LOCAL_WAYS: usize = 8;

/// An IP address as two numbers; IPv4 is mapped into `::ffff:0:0/96`, which no packet on a wire may
/// come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Address {
    /// The first 64 bits.
    pub high: u64,
    /// The last 64 bits.
    pub low: u64,
}

impl Address {
    /// Bits of `low` above an IPv4 address.
    const V4: u64 = 0xffff;

    /// An IPv4 address, given as a number.
    #[inline(always)]
    #[must_use]
    pub const fn v4(address: u32) -> Self {
        Self {
            high: 0,
            low: Self::V4 << 32 | address as u64,
        }
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == Self::V4
    }

    /// `127.0.0.0/8`, `::1`, and what no host has: `0.0.0.0` and `::`.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback_or_unspecified(self) -> bool {
        if self.is_v4() {
            let address = self.low & 0xffff_ffff;
            address >> 24 == 127 || address == 0
        } else {
            self.high == 0 && self.low <= 1
        }
    }

    /// What shares a token bucket with it: its /24 (IPv4) or /64 (IPv6).
    #[inline(always)]
    #[must_use]
    pub const fn bucket(self) -> Self {
        if self.is_v4() {
            Self {
                high: self.high,
                low: self.low & !0xff,
            }
        } else {
            Self {
                high: self.high,
                low: 0,
            }
        }
    }

    /// Its row in a table of that seed.
    #[inline(always)]
    #[must_use]
    pub const fn row(self, seed: u64) -> usize {
        // Two rounds of splitmix64's multipliers; the top bits are the best mixed.
        let mixed = (self.high ^ seed).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 29 ^ self.low).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 55) as usize & (LOCAL_ROWS - 1)
    }
}

/// Key of the prefixes' trie, without its length: the family first, so that `::/0` holds no IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TrieKey {
    /// 4 or 6, big-endian.
    pub family: u32,
    /// The address, big-endian; IPv4 in the first word only.
    pub words: [u32; 4],
}

/// Bits of [`TrieKey::family`].
pub const FAMILY_BITS: u32 = 32;

impl TrieKey {
    /// The whole address, and its length in bits with the family.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "takes the numbers apart")]
    pub const fn of(address: Address) -> (Self, u32) {
        if address.is_v4() {
            let key = Self {
                family: 4_u32.to_be(),
                words: [(address.low as u32).to_be(), 0, 0, 0],
            };
            return (key, FAMILY_BITS + 32);
        }
        let key = Self {
            family: 6_u32.to_be(),
            words: [
                ((address.high >> 32) as u32).to_be(),
                (address.high as u32).to_be(),
                ((address.low >> 32) as u32).to_be(),
                (address.low as u32).to_be(),
            ],
        };
        (key, FAMILY_BITS + 128)
    }
}

/// Value in the prefixes' trie: never limited.
pub const LIST_ALLOW: u32 = 1;
/// Value in the prefixes' trie: new connections are dropped in any zone.
pub const LIST_DENY: u32 = 2;

/// What came in on one interface, seen by one CPU; one cache line, counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct RxLine {
    /// TCP segments to the ingest ports, dropped ones included.
    pub packets: u64,
    /// Their bytes, from the Ethernet header to the end of the IP packet.
    pub bytes: u64,
    /// Segments of them that ask for a connection: SYN without ACK, RST or FIN.
    pub opens: u64,
    /// Opens dropped because their source is on the list `deny`.
    pub denied: u64,
    /// Opens dropped because their source's bucket was empty in Red.
    pub limited: u64,
    /// Keeps the next one off this cache line.
    pub padding: [u64; 3],
}

/// `RX`: one element a CPU, by its number.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RxCpu {
    /// By the position of the interface in [`GuardPage::interfaces`].
    pub lines: [RxLine; INTERFACES_MAX],
}

/// `GUARD`: what the program is told; written before it is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct GuardPage {
    /// Time that gives a source prefix one more new connection in Red; 0: no limit.
    pub syn_interval_ns: u64,
    /// How far its time may run ahead: the bucket's size less one, as time.
    pub syn_tolerance_ns: u64,
    /// Interface indices, 0 for none: the position is the one in [`RxCpu::lines`].
    pub interfaces: [u32; INTERFACES_MAX],
    /// Local ports of the ingest listeners, host order. The judge's own list is empty where no
    /// receive queue can be measured.
    pub ports: [u16; PORTS_MAX],
    /// Ports in use.
    pub port_count: u32,
    /// Whether the trie holds anything.
    pub has_lists: u32,
}

/// One set of local addresses, by [`Address::row`]; unused places are zero.
pub type LocalTable = [[Address; LOCAL_WAYS]; LOCAL_ROWS];

/// `LOCALS`: the host's own addresses. The table `generation & 1` is in force, the other one is
/// free to write: who reads compares generations before and after.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LocalsPage {
    /// Counts the tables published; 0: none yet.
    pub generation: u64,
    /// Seeds of the two tables.
    pub seeds: [u64; 2],
    /// Not 0: the host has more addresses than fit, and nothing may be concluded from the tables.
    pub overflown: u64,
    /// The two tables.
    pub tables: [LocalTable; 2],
}

/// Puts `addresses` into an empty table; whether all had room in their rows.
#[must_use]
pub fn fill(table: &mut LocalTable, seed: u64, addresses: &[Address]) -> bool {
    for address in addresses {
        let row = &mut table[address.row(seed)];
        let Some(place) = row
            .iter_mut()
            .find(|place| **place == Address::default() || *place == address)
        else {
            return false;
        };
        *place = *address;
    }
    true
}

/// Takes a token from a bucket, which is one number: the time at which it will be full again, less
/// what a full one holds (the generic cell rate algorithm, ITU-T I.371). Gives the bucket's next
/// value, or `None` if it is empty.
#[inline(always)]
#[must_use]
pub const fn take_token(bucket_ns: u64, now_ns: u64, guard: &GuardPage) -> Option<u64> {
    let begin_ns = if bucket_ns > now_ns {
        bucket_ns
    } else {
        now_ns
    };
    if begin_ns - now_ns > guard.syn_tolerance_ns {
        return None;
    }
    Some(begin_ns + guard.syn_interval_ns)
}

const _: () = {
    assert!(size_of::<TrieKey>() == 20);
    assert!(size_of::<RxLine>() == 64);
    assert!(size_of::<RxCpu>() == 64 * INTERFACES_MAX);
    assert!(size_of::<GuardPage>() == 72);
    assert!(size_of::<LocalsPage>() == 32 + 2 * size_of::<LocalTable>());
    assert!(LOCAL_ROWS == 512, "Address::row keeps nine bits");
};

#[cfg(feature = "user")]
mod pod {
    use super::{Address, GuardPage, LocalsPage, RxCpu, RxLine, TrieKey};

    macro_rules! pod {
        ($($name:ty),+ $(,)?) => {$(
            // SAFETY: `repr(C)`, integer fields only, no implicit padding (sizes asserted above),
            // any bit pattern is valid.
            unsafe impl aya::Pod for $name {}
        )+};
    }

    pod!(Address, GuardPage, LocalsPage, RxCpu, RxLine, TrieKey);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn guard(per_second: u64) -> GuardPage {
        let syn_interval_ns = SECOND_NS / per_second;
        GuardPage {
            syn_interval_ns,
            syn_tolerance_ns: syn_interval_ns * (per_second - 1),
            ..GuardPage::default()
        }
    }

    #[test]
    fn a_full_bucket_holds_one_second_and_refills_at_the_rate() {
        let guard = guard(10);
        let now_ns = 77 * SECOND_NS;
        let mut bucket_ns = 0;
        let mut burst = |now_ns| {
            let mut taken = 0;
            while let Some(next) = take_token(bucket_ns, now_ns, &guard) {
                bucket_ns = next;
                taken += 1;
            }
            taken
        };
        assert_eq!(burst(now_ns), 10);
        assert_eq!(burst(now_ns), 0);
        assert_eq!(burst(now_ns + SECOND_NS / 10), 1);
        assert_eq!(burst(now_ns + SECOND_NS / 2), 4);
        assert_eq!(burst(now_ns + 60 * SECOND_NS), 10, "never more than full");
    }

    #[test]
    fn one_a_second_is_one_a_second() {
        let guard = guard(1);
        let next = take_token(0, 5 * SECOND_NS, &guard).unwrap();
        assert_eq!(take_token(next, 6 * SECOND_NS - 1, &guard), None);
        assert!(take_token(next, 6 * SECOND_NS, &guard).is_some());
    }

    #[test]
    fn buckets_are_shared_by_a_prefix() {
        let v4 = |a: [u8; 4]| Address::v4(u32::from_be_bytes(a)).bucket();
        assert_eq!(v4([192, 0, 2, 1]), v4([192, 0, 2, 254]));
        assert_ne!(v4([192, 0, 2, 1]), v4([192, 0, 3, 1]));
        let v6 = |high, low| Address { high, low }.bucket();
        assert_eq!(v6(0x2001_0db8_0000_0001, 1), v6(0x2001_0db8_0000_0001, 99));
        assert_ne!(v6(0x2001_0db8_0000_0001, 1), v6(0x2001_0db8_0000_0002, 1));
        assert_ne!(v6(0, 99), v4([0, 0, 0, 99]), "the families share nothing");
    }

    #[test]
    fn loopback_is_known_without_a_list() {
        let v4 = |a: [u8; 4]| Address::v4(u32::from_be_bytes(a));
        for (address, expected) in [
            (v4([127, 0, 0, 1]), true),
            (v4([127, 255, 0, 9]), true),
            (v4([0, 0, 0, 0]), true),
            (v4([126, 0, 0, 1]), false),
            (v4([128, 0, 0, 1]), false),
            (Address { high: 0, low: 1 }, true),
            (Address { high: 0, low: 0 }, true),
            (Address { high: 0, low: 2 }, false),
            (Address { high: 1, low: 1 }, false),
        ] {
            assert_eq!(
                address.is_loopback_or_unspecified(),
                expected,
                "{address:x?}"
            );
        }
    }

    #[test]
    fn a_table_holds_what_it_was_filled_with() {
        let mut table = [[Address::default(); LOCAL_WAYS]; LOCAL_ROWS];
        let mut addresses = [Address::default(); 600];
        for (place, number) in addresses.iter_mut().zip(0x0a00_0000..) {
            *place = Address::v4(number);
        }
        let seed = (1..64)
            .find(|&seed| {
                table = [[Address::default(); LOCAL_WAYS]; LOCAL_ROWS];
                fill(&mut table, seed, &addresses)
            })
            .expect("a seed that spreads them");
        for address in addresses {
            assert!(table[address.row(seed)].contains(&address));
        }
        let other = Address::v4(0x0a00_0000 + 600);
        assert!(!table[other.row(seed)].contains(&other));
    }

    #[test]
    fn an_overfull_row_is_noticed() {
        let mut table = [[Address::default(); LOCAL_WAYS]; LOCAL_ROWS];
        let same_row = |&a: &Address| a.row(7) == Address::v4(0).row(7);
        let mut addresses = [Address::default(); LOCAL_WAYS + 1];
        for (place, address) in addresses
            .iter_mut()
            .zip((0..u32::MAX).map(Address::v4).filter(same_row))
        {
            *place = address;
        }
        assert!(!fill(&mut table, 7, &addresses));
    }

    #[test]
    fn keys_are_in_network_order_behind_their_family() {
        let (key, bits) = TrieKey::of(Address::v4(0xc000_0201));
        assert_eq!((key.words[0].to_ne_bytes(), bits), ([192, 0, 2, 1], 64));
        assert_eq!(key.family.to_ne_bytes(), [0, 0, 0, 4]);
        let (key, bits) = TrieKey::of(Address {
            high: 0x2001_0db8_0000_0000,
            low: 0x0000_0000_0000_0001,
        });
        assert_eq!(key.words[0].to_ne_bytes(), [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(key.words[3].to_ne_bytes(), [0, 0, 0, 1]);
        assert_eq!(bits, 160);
    }
}

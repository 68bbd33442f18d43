//! Metered and guarded interfaces: what is configured, and what came of it.
//!
//! The programs run in the kernel half ([`gophership_common::xdp`] has the semantics); here are the
//! types the rest of the daemon sees. Without the kernel half, or where the kernel refuses a
//! program, the daemon runs all the same, and the interface's reading says why.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    str::FromStr,
};

use gophership_common::xdp::{Address, FAMILY_BITS, TrieKey};
pub use gophership_common::xdp::{INTERFACES_MAX, PREFIXES_MAX};

/// Most new connections a second that can be asked for: the clock's and the interval's resolution.
pub const SYN_PER_SECOND_MAX: u32 = 1_000_000;

/// How the program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// Native, or generic where the driver can't.
    #[default]
    Auto,
    /// In the driver, before the stack's own work.
    Native,
    /// In the stack: any interface, at more cost.
    Generic,
}

impl XdpMode {
    /// As configured and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Which interfaces are metered, and what is kept out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct XdpConfig {
    /// Names, at most [`INTERFACES_MAX`]; none: off.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub mode: XdpMode,
    /// What is kept out.
    pub guard: GuardConfig,
}

/// Whose new connections are dropped. The most specific prefix decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardConfig {
    /// Never limited.
    pub allow: Vec<Prefix>,
    /// Dropped in any zone.
    pub deny: Vec<Prefix>,
    /// In Red, new connections a second from one /24 (IPv4) or /64 (IPv6), and as many at once;
    /// at most [`SYN_PER_SECOND_MAX`]. `None`: no limit.
    pub syn_per_second: Option<NonZeroU32>,
}

/// An address and how many of its first bits count; the others are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

/// Why a text isn't a [`Prefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Neither IPv4 nor IPv6 before the slash.
    #[error("not an IP address with a length, such as 10.0.0.0/8 or 2001:db8::/32")]
    Address,
    /// A length that the family doesn't have.
    #[error("the length must be a number from 0 to {0}")]
    Length(u8),
    /// Bits beyond the length.
    #[error("has bits beyond its length: {0} is meant?")]
    HostBits(Prefix),
    /// IPv4 written as IPv6 (`::ffff:0:0/96`), which no packet comes from.
    #[error("an IPv4 address must be written as one")]
    Mapped,
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Address)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match length {
            None => width,
            Some(length) => {
                let plain = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
                let bits = length.parse().ok().filter(|&bits| plain && bits <= width);
                bits.ok_or(PrefixError::Length(width))?
            }
        };
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(PrefixError::Mapped);
        }
        let meant = Self {
            address: masked(address, bits),
            bits,
        };
        if meant.address != address {
            return Err(PrefixError::HostBits(meant));
        }
        Ok(meant)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Prefix {
    /// Its key in the kernel's trie, with the length that goes with it.
    pub(super) fn trie_key(self) -> (TrieKey, u32) {
        let (key, _) = TrieKey::of(address(self.address));
        (key, FAMILY_BITS + u32::from(self.bits))
    }
}

/// An address as the kernel half has it.
pub(super) fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::v4(u32::from(v4)),
        IpAddr::V6(v6) => {
            let (high, low) = (u128::from(v6) >> 64, u128::from(v6) & u128::from(u64::MAX));
            let half = |half: u128| u64::try_from(half).unwrap_or(u64::MAX);
            Address {
                high: half(high),
                low: half(low),
            }
        }
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

/// What came in on an interface for the ingest ports, counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InterfaceCounts {
    /// TCP segments, dropped ones included.
    pub packets: u64,
    /// Their bytes, from the Ethernet header to the end of the IP packet.
    pub bytes: u64,
    /// Segments that ask for a connection.
    pub opens: u64,
    /// Of those, dropped because their source is denied.
    pub denied: u64,
    /// Of those, dropped in Red because their source had had its share.
    pub limited: u64,
}

/// One configured interface at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceReading {
    /// Its name.
    pub name: String,
    /// How the program is attached (native or generic), or why it isn't.
    pub attached: Result<XdpMode, String>,
    /// What it has counted, up to now or until it was detached.
    pub counts: InterfaceCounts,
    /// Why nothing is dropped although a guard is configured.
    pub guard_suspended: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_read_back_as_written() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "192.0.2.1/32",
            "::/0",
            "2001:db8::/32",
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        let host: Prefix = "2001:db8::7".parse().unwrap();
        assert_eq!(host.to_string(), "2001:db8::7/128");
        assert_eq!(host.trie_key().1, 160);
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        let refused = |text: &str| text.parse::<Prefix>().expect_err(text);
        for text in [
            "",
            "/8",
            "10/8",
            "10.0.0.0.0/8",
            "collector/8",
            "10.0.0.0-10.0.0.9",
        ] {
            assert_eq!(refused(text), PrefixError::Address, "{text}");
        }
        for text in [
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
        ] {
            assert_eq!(refused(text), PrefixError::Length(32), "{text}");
        }
        assert_eq!(refused("2001:db8::/129"), PrefixError::Length(128));
        assert_eq!(refused("::ffff:10.0.0.1/128"), PrefixError::Mapped);
        assert_eq!(
            refused("10.0.0.1/8").to_string(),
            "has bits beyond its length: 10.0.0.0/8 is meant?"
        );
        assert!(matches!(
            refused("2001:db8::1/32"),
            PrefixError::HostBits(_)
        ));
    }
}

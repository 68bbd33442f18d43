//! Ethernet, up to two VLAN tags, IPv4 with options or IPv6 with a few extension headers, TCP.
//!
//! ```text
//! Ethernet  0 destination │ 6 source │ 12 type        VLAN  0 tag │ 2 type
//! IPv4      0 version, ihl │ 2 total length │ 6 fragment │ 9 protocol │ 12 source │ 16 destination
//! IPv6      4 payload length │ 6 next header │ 8 source │ 24 destination
//! TCP       2 destination port │ 12 data offset │ 13 flags
//! ```
//!
//! The whole packet must be consistent (RFC 791, 8200, 9293): lengths that lead beyond the frame
//! are the stack's to judge.

use aya_ebpf::programs::XdpContext;
use gophership_common::xdp::Address;

const ETHERNET_BYTES: usize = 14;
const VLAN_BYTES: usize = 4;
/// 802.1Q within 802.1ad.
const VLAN_TAGS_MAX: usize = 2;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and what came before the latter.
const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
/// Extension headers followed; real packets have one or two.
const EXTENSIONS_MAX: usize = 6;
const PROTOCOL_TCP: u8 = 6;
/// Hop-by-hop options, routing, destination options: all have the same shape. Fragments (44) are
/// passed, and so is what IPsec or mobility adds.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

const TCP_BYTES: usize = 20;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// A frame as far as its first buffer holds it.
pub(super) struct Frame {
    start: usize,
    end: usize,
    length: usize,
}

/// A TCP segment that is whole.
pub(super) struct Segment {
    /// Where the IP header begins.
    network: usize,
    is_v4: bool,
    /// Local port, host order.
    pub(super) port: u16,
    /// Asks for a connection: SYN without ACK, RST or FIN.
    pub(super) opens: bool,
    /// From the Ethernet header to the end of the IP packet.
    pub(super) bytes: u64,
}

/// What the IP header says.
struct Network {
    is_v4: bool,
    /// Where TCP begins.
    transport: usize,
    /// Where the packet ends.
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub(super) fn of(ctx: &XdpContext, length: usize) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            length,
        }
    }

    /// `N` bytes at `offset`, if the first buffer holds them. Offsets stay below 2^14, as the
    /// verifier wants to see.
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let at = self.start + (offset & 0x3fff);
        if at + N > self.end {
            return None;
        }
        // SAFETY: within the packet, which the verifier checks again; bytes need no alignment.
        Some(unsafe { &*(at as *const [u8; N]) })
    }
}

/// The TCP segment in a frame, if there is one.
#[inline(always)]
pub(super) fn segment(frame: &Frame) -> Option<Segment> {
    let ethernet = frame.bytes::<ETHERNET_BYTES>(0)?;
    let mut ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let mut offset = ETHERNET_BYTES;
    let mut tags = 0;
    while tags < VLAN_TAGS_MAX && is_vlan(ethertype) {
        let tag = frame.bytes::<VLAN_BYTES>(offset)?;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        offset += VLAN_BYTES;
        tags += 1;
    }
    let network = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, offset)?,
        ETHERTYPE_IPV6 => ipv6(frame, offset)?,
        _ => return None,
    };
    if network.end > frame.length {
        return None;
    }
    let tcp = frame.bytes::<TCP_BYTES>(network.transport)?;
    let header = (tcp[12] >> 4) as usize * 4;
    if header < TCP_BYTES || network.transport + header > network.end {
        return None;
    }
    Some(Segment {
        network: offset,
        is_v4: network.is_v4,
        port: u16::from_be_bytes([tcp[2], tcp[3]]),
        opens: tcp[13] & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN,
        bytes: network.end as u64,
    })
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPES_VLAN[0]
        || ethertype == ETHERTYPES_VLAN[1]
        || ethertype == ETHERTYPES_VLAN[2]
}

#[inline(always)]
fn ipv4(frame: &Frame, offset: usize) -> Option<Network> {
    let ip = frame.bytes::<IPV4_BYTES>(offset)?;
    let header = (ip[0] & 0x0f) as usize * 4;
    let total = u16::from_be_bytes([ip[2], ip[3]]) as usize;
    // More fragments, or not the first one; "don't fragment" is neither.
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    let is_sound = ip[0] >> 4 == 4 && header >= IPV4_BYTES && total >= header + TCP_BYTES;
    if !is_sound || fragment || ip[9] != PROTOCOL_TCP {
        return None;
    }
    Some(Network {
        is_v4: true,
        transport: offset + header,
        end: offset + total,
    })
}

#[inline(always)]
fn ipv6(frame: &Frame, offset: usize) -> Option<Network> {
    let ip = frame.bytes::<IPV6_BYTES>(offset)?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    // 0 is a jumbogram, whose length is elsewhere: it ends before its TCP header here.
    let end = offset + IPV6_BYTES + u16::from_be_bytes([ip[4], ip[5]]) as usize;
    let mut next = ip[6];
    let mut transport = offset + IPV6_BYTES;
    let mut seen = 0;
    while seen < EXTENSIONS_MAX && is_extension(next) {
        let extension = frame.bytes::<2>(transport)?;
        next = extension[0];
        transport += (extension[1] as usize + 1) * 8;
        seen += 1;
    }
    (next == PROTOCOL_TCP).then_some(Network {
        is_v4: false,
        transport,
        end,
    })
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    next == EXTENSIONS[0] || next == EXTENSIONS[1] || next == EXTENSIONS[2]
}

/// Source and destination of a segment.
#[inline(always)]
pub(super) fn addresses(frame: &Frame, segment: &Segment) -> Option<(Address, Address)> {
    if segment.is_v4 {
        let ip = frame.bytes::<IPV4_BYTES>(segment.network)?;
        let at = |i: usize| u32::from_be_bytes([ip[i], ip[i + 1], ip[i + 2], ip[i + 3]]);
        return Some((Address::v4(at(12)), Address::v4(at(16))));
    }
    let ip = frame.bytes::<IPV6_BYTES>(segment.network)?;
    let word = |i: usize| {
        u64::from_be_bytes([
            ip[i],
            ip[i + 1],
            ip[i + 2],
            ip[i + 3],
            ip[i + 4],
            ip[i + 5],
            ip[i + 6],
            ip[i + 7],
        ])
    };
    let address = |i: usize| Address {
        high: word(i),
        low: word(i + 8),
    };
    Some((address(8), address(24)))
}

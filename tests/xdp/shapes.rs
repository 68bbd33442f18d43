//! Frames of every shape, and what must become of each.

use super::frames::{ACK, ECE_CWR, FIN, Frame, RST, SYN};

/// One of the ingest ports; the next one is the other.
pub(crate) const PORT: u16 = 4317;
/// Addresses of the host.
pub(crate) const HERE_V4: &str = "198.51.100.1";
pub(crate) const HERE_V6: &str = "2001:db8:1::1";
/// Addresses elsewhere.
pub(crate) const THERE_V4: &str = "192.0.2.7";
pub(crate) const THERE_V6: &str = "2001:db8:2::7";

/// What becomes of a frame where everything is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody has looked at it.
    Passed,
    /// To an ingest port, and passed.
    Counted,
    /// To an ingest port, and a new connection.
    Dropped,
}

/// What it is, its bytes, what becomes of it.
pub(crate) type Row = (&'static str, Vec<u8>, Fate);

use Fate::{Counted, Dropped, Passed};

type Change = (&'static str, fn(&mut Frame), Fate);

const IPV4: &[Change] = &[
    ("SYN", |_| {}, Dropped),
    ("the other port", |f| f.port = PORT + 1, Dropped),
    ("another port", |f| f.port = PORT + 2, Passed),
    ("TCP options", |f| f.tcp_options = 40, Dropped),
    ("data with the SYN", |f| f.payload = 1000, Dropped),
    ("padded", |f| f.padding = 6, Dropped),
    ("ECN", |f| f.flags = SYN | ECE_CWR, Dropped),
    ("options", |f| f.options = 40, Dropped),
    ("don't fragment", |f| f.fragment = 0x4000, Dropped),
    ("first fragment", |f| f.fragment = 0x2000, Passed),
    ("last fragment", |f| f.fragment = 0x0010, Passed),
    ("UDP", |f| f.protocol = 17, Passed),
    ("802.1Q", |f| f.tags = vec![0x8100], Dropped),
    ("QinQ", |f| f.tags = vec![0x88a8, 0x8100], Dropped),
    ("3 tags", |f| f.tags = vec![0x88a8, 0x8100, 0x8100], Passed),
];

const IPV6: &[Change] = &[
    ("SYN, IPv6", |_| {}, Dropped),
    ("ICMPv6", |f| f.protocol = 58, Passed),
    ("802.1Q, IPv6", |f| f.tags = vec![0x8100], Dropped),
    ("old QinQ, IPv6", |f| f.tags = vec![0x9100, 0x8100], Dropped),
    ("hop-by-hop", |f| f.extensions = vec![(0, 0)], Dropped),
    ("routing", |f| f.extensions = vec![(43, 2)], Dropped),
    ("large options", |f| f.extensions = vec![(60, 100)], Dropped),
    ("6 extensions", |f| f.extensions = vec![(60, 0); 6], Dropped),
    ("7 extensions", |f| f.extensions = vec![(60, 0); 7], Passed),
    ("IPv6 fragment", |f| f.extensions = vec![(44, 0)], Passed),
    ("authenticated", |f| f.extensions = vec![(51, 4)], Passed),
];

const FLAGS: &[(&str, u8)] = &[
    ("ACK", ACK),
    ("SYN, ACK", SYN | ACK),
    ("FIN, ACK", FIN | ACK),
    ("RST", RST),
    ("SYN, FIN", SYN | FIN),
    ("SYN, RST", SYN | RST),
    ("no flag", 0),
];

/// New connections that nobody elsewhere asks for.
const SOURCES_HERE: &[&str] = &[HERE_V4, HERE_V6, "127.0.0.9", "::1", "0.0.0.0", "::"];

/// All of them.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = vec![
        ("all ones", vec![0xff; 200], Passed),
        ("all zeros", vec![0; 200], Passed),
        (
            "only an Ethernet header",
            v4().bytes()[..14].to_vec(),
            Passed,
        ),
        (
            "to another host",
            Frame::syn(THERE_V4, "198.51.100.2", PORT).bytes(),
            Passed,
        ),
        (
            "to another host, IPv6",
            Frame::syn(THERE_V6, "2001:db8:1::2", PORT).bytes(),
            Passed,
        ),
    ];
    for (base, changes) in [(v4(), IPV4), (v6(), IPV6)] {
        for (what, change, fate) in changes {
            let mut frame = base.clone();
            change(&mut frame);
            rows.push((what, frame.bytes(), *fate));
        }
        for (what, flags) in FLAGS {
            let mut frame = base.clone();
            frame.flags = *flags;
            rows.push((what, frame.bytes(), Counted));
        }
    }
    rows.extend(
        SOURCES_HERE
            .iter()
            .map(|source| (*source, from(source), Counted)),
    );
    rows.extend(broken());
    rows
}

pub(crate) fn v4() -> Frame {
    Frame::syn(THERE_V4, HERE_V4, PORT)
}

pub(crate) fn v6() -> Frame {
    Frame::syn(THERE_V6, HERE_V6, PORT)
}

/// A new connection from there.
pub(crate) fn from(source: &str) -> Vec<u8> {
    let here = if source.contains(':') {
        HERE_V6
    } else {
        HERE_V4
    };
    Frame::syn(source, here, PORT).bytes()
}

/// Frames with a field that is wrong, at every place where one can be.
fn broken() -> Vec<Row> {
    fn change(frame: &Frame, at: usize, value: u8) -> Vec<u8> {
        let mut bytes = frame.bytes();
        bytes[at] = value;
        bytes
    }
    let (v4, v6) = (v4(), v6());
    let mut frames = vec![
        ("version", change(&v4, v4.network(), 0x65)),
        ("version, IPv6", change(&v6, v6.network(), 0x40)),
        ("short header", change(&v4, v4.network(), 0x44)),
        ("header beyond the packet", change(&v4, v4.network(), 0x4f)),
        (
            "total length without TCP",
            change(&v4, v4.network() + 3, 39),
        ),
        (
            "total length beyond the frame",
            change(&v4, v4.network() + 3, 41),
        ),
        ("no payload (a jumbogram)", change(&v6, v6.network() + 5, 0)),
        (
            "payload beyond the frame",
            change(&v6, v6.network() + 5, 21),
        ),
        ("data offset", change(&v4, v4.transport() + 12, 0x40)),
        (
            "data offset beyond the packet",
            change(&v4, v4.transport() + 12, 0x60),
        ),
        ("data offset, IPv6", change(&v6, v6.transport() + 12, 0x60)),
    ];
    let mut extended = v6;
    extended.extensions = vec![(0, 0)];
    let length = extended.network() + 41;
    frames.push(("extension beyond the frame", change(&extended, length, 255)));
    let mut tagged = v4;
    tagged.tags = vec![0x8100];
    tagged.options = 8;
    for whole in [tagged.bytes(), extended.bytes()] {
        frames.extend((14..whole.len()).map(|end| ("truncated", whole[..end].to_vec())));
    }
    let row = |(what, frame)| (what, frame, Passed);
    frames.into_iter().map(row).collect()
}

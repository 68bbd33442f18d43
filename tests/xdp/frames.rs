//! Frames by hand, valid unless a test breaks them.

use std::net::IpAddr;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
/// Congestion notification, asked for with a SYN.
pub(crate) const ECE_CWR: u8 = 0xc0;

/// A TCP segment in a frame.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    pub(crate) flags: u8,
    /// Ethertypes of VLAN tags, the outermost first.
    pub(crate) tags: Vec<u16>,
    /// IPv4 options, a multiple of four bytes.
    pub(crate) options: usize,
    /// IPv4: the field of flags and fragment offset.
    pub(crate) fragment: u16,
    /// IPv6 extension headers: their types and lengths beyond the first eight bytes.
    pub(crate) extensions: Vec<(u8, u8)>,
    /// What is in IP.
    pub(crate) protocol: u8,
    /// TCP options, a multiple of four bytes.
    pub(crate) tcp_options: usize,
    pub(crate) payload: usize,
    /// Bytes after the packet, as Ethernet pads.
    pub(crate) padding: usize,
}

impl Frame {
    pub(crate) fn syn(source: &str, destination: &str, port: u16) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port,
            flags: SYN,
            tags: Vec::new(),
            options: 0,
            fragment: 0,
            extensions: Vec::new(),
            protocol: 6,
            tcp_options: 0,
            payload: 0,
            padding: 0,
        }
    }

    /// Where the IP header begins.
    pub(crate) fn network(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the TCP header begins.
    pub(crate) fn transport(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(extension_bytes).sum();
        self.network()
            + if self.source.is_ipv4() {
                20 + self.options
            } else {
                40 + extensions
            }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![0x02; 12];
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        let tcp = self.tcp();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(0x0800_u16.to_be_bytes());
                let header = 20 + self.options;
                frame.extend([0x40 | u8::try_from(header / 4).unwrap(), 0]);
                frame.extend(u16::try_from(header + tcp.len()).unwrap().to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                // Option "no operation".
                frame.extend(vec![1; self.options]);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(0x86dd_u16.to_be_bytes());
                let extensions = self.extensions();
                frame.extend([0x60, 0, 0, 0]);
                let payload = extensions.len() + tcp.len();
                frame.extend(u16::try_from(payload).unwrap().to_be_bytes());
                let first = self.extensions.first().map_or(self.protocol, |e| e.0);
                frame.extend([first, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(extensions);
            }
            families => panic!("{families:?}"),
        }
        frame.extend(tcp);
        frame.extend(vec![0; self.padding]);
        frame
    }

    fn extensions(&self) -> Vec<u8> {
        let following = self.extensions.iter().skip(1).map(|extension| extension.0);
        self.extensions
            .iter()
            .zip(following.chain([self.protocol]))
            .flat_map(|(extension, next)| {
                let mut bytes = vec![0; extension_bytes(extension)];
                (bytes[0], bytes[1]) = (next, extension.1);
                bytes
            })
            .collect()
    }

    fn tcp(&self) -> Vec<u8> {
        let mut tcp = 40_000_u16.to_be_bytes().to_vec();
        tcp.extend(self.port.to_be_bytes());
        tcp.extend([0; 8]);
        let header = 20 + self.tcp_options;
        tcp.extend([u8::try_from(header / 4).unwrap() << 4, self.flags]);
        tcp.resize(header + self.payload, 1);
        tcp
    }
}

fn extension_bytes(extension: &(u8, u8)) -> usize {
    (usize::from(extension.1) + 1) * 8
}

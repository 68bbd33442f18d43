//! Producers that keep to no rule: TLS connections whose bytes, and HTTP/2 frames, are written by hand.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::producer;

/// Frame types of RFC 9113.
pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const WINDOW_UPDATE: u8 = 0x8;
pub(crate) const CONTINUATION: u8 = 0x9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

/// Settings.
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 0x4;

/// Error codes.
pub(crate) const CANCEL: u32 = 0x8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 0xb;

/// What HTTP/2 begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A peer that takes nothing for this long won't.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A frame's bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a short frame");
    let mut bytes = len.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header block of an `Export`, without any compression, and `more` headers.
pub(crate) fn export_head(more: &[(&str, &str)]) -> Vec<u8> {
    // Of the static table: POST and https.
    let mut block = vec![0x83, 0x87];
    let mut headers = vec![
        (":path", producer::LOGS),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers.extend(more);
    for (name, value) in headers {
        // Literal, not to be indexed.
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// With a prefix of seven bits.
fn integer(block: &mut Vec<u8>, mut value: usize) {
    let byte = |value: usize| u8::try_from(value).expect("seven bits");
    if value < 127 {
        block.push(byte(value));
        return;
    }
    block.push(127);
    value -= 127;
    while value >= 128 {
        block.push(byte(value % 128) | 128);
        value /= 128;
    }
    block.push(byte(value));
}

/// A TLS connection.
pub(crate) struct Wire(StreamOwned<ClientConnection, TcpStream>);

impl Wire {
    /// Connects and shakes hands.
    #[track_caller]
    pub(crate) fn connect(to: SocketAddr, tls: &Arc<ClientConfig>) -> Self {
        Self::try_connect(to, tls).expect("the connection is made")
    }

    pub(crate) fn try_connect(to: SocketAddr, tls: &Arc<ClientConfig>) -> io::Result<Self> {
        let mut socket = TcpStream::connect(to)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(super::PATIENCE))?;
        socket.set_write_timeout(Some(STUCK_AFTER))?;
        let name = ServerName::try_from("localhost").expect("a valid name");
        let mut session = ClientConnection::new(Arc::clone(tls), name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Self(StreamOwned::new(session, socket)))
    }

    /// Connects and begins with HTTP/2 and `settings`.
    #[track_caller]
    pub(crate) fn http2(to: SocketAddr, tls: &Arc<ClientConfig>, settings: &[(u16, u32)]) -> Self {
        let mut wire = Self::connect(to, tls);
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let opening = [PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat();
        wire.write(&opening).expect("the opening is taken");
        wire
    }

    /// Writes all of it to the socket as it is.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn write_below_tls(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.sock.write_all(bytes)
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// If the peer has closed the connection, or takes nothing.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    /// The next bytes; none at the end, however it comes.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        match self.0.read(buffer) {
            Ok(read) => read,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                panic!("nothing came, and the connection stays open")
            }
            Err(_) => 0,
        }
    }

    /// The next frame; none at the end.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.fill(&mut head)?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        self.fill(&mut payload)?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Option<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]) {
                0 => return None,
                read => filled += read,
            }
        }
        Some(())
    }

    /// Reads to the end; the code of the peer's GOAWAY, if it said one.
    pub(crate) fn good_bye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.frame() {
            if frame.kind == GOAWAY {
                code = frame.payload[4..8].try_into().ok().map(u32::from_be_bytes);
            }
        }
        code
    }
}

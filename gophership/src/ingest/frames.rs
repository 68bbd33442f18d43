//! Above TLS: HTTP/2's frames are looked at before the library reads them, by their heads alone, for what it doesn't bound.
//!
//! It gathers a header block until a header in it is whole, up to six frames of the size that is offered for data, answers
//! any number of PINGs and SETTINGS, and reads whatever it doesn't know, as large as data may be, into the buffers that
//! data is kept in.
//!
//! A frame's head (RFC 9113, 4.1), big-endian:
//! ```text
//! 0       3      4       5        9
//! | length | kind | flags | stream |
//! ```

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context as TaskContext, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::State;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;

/// A header block of a list of 16 KiB, and as much for what HPACK spends on it.
pub(super) const HEADER_BLOCK_BYTES_MAX: u32 = 32 * 1024;
/// Frames that carry neither headers nor data, in a [`super::gate::TICK`]: a peer answers and opens windows for its
/// requests, a few for each.
const CONTROL_FRAMES_MAX: u32 = 20_000;
/// The longest of them: SETTINGS have six bytes a setting, GOAWAY may have a reason.
const CONTROL_FRAME_BYTES_MAX: u32 = 4 * 1024;

/// What a peer does that nobody has to bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Abuse {
    /// Headers of one request.
    #[error("a header block has more than {HEADER_BLOCK_BYTES_MAX} bytes")]
    HeaderBlock,
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, empty DATA.
    #[error("more than {CONTROL_FRAMES_MAX} control frames in a second")]
    ControlFrames,
    /// One of them, or of an unknown kind.
    #[error("a control frame has more than {CONTROL_FRAME_BYTES_MAX} bytes")]
    ControlFrame,
}

/// Where in its frames a connection is.
#[derive(Debug, Default)]
struct Frames {
    /// Of the preface, once it is known to be one.
    preface: usize,
    /// It speaks something else.
    is_other: bool,
    head: [u8; HEAD_BYTES],
    head_len: usize,
    /// Of the payload.
    left: usize,
    header_block: u32,
    control_frames: u32,
    tick: u64,
}

impl Frames {
    /// Whether it is known what the peer speaks.
    const fn is_known(&self) -> bool {
        self.is_other || self.preface == PREFACE.len()
    }

    /// Takes note of what is read in the second `tick`.
    fn pass(&mut self, mut bytes: &[u8], tick: u64) -> Result<(), Abuse> {
        if self.tick != tick {
            (self.tick, self.control_frames) = (tick, 0);
        }
        if self.preface < PREFACE.len() {
            bytes = self.pass_preface(bytes);
        }
        if self.is_other {
            return Ok(());
        }
        while !bytes.is_empty() {
            let payload = self.left.min(bytes.len());
            self.left -= payload;
            bytes = &bytes[payload..];
            let part = (HEAD_BYTES - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + part].copy_from_slice(&bytes[..part]);
            self.head_len += part;
            bytes = &bytes[part..];
            if self.head_len == HEAD_BYTES {
                self.head_len = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    fn pass_preface<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let expected = &PREFACE[self.preface..];
        let part = expected.len().min(bytes.len());
        self.is_other |= expected[..part] != bytes[..part];
        self.preface += part;
        &bytes[part..]
    }

    /// A frame's head is whole.
    fn begin(&mut self) -> Result<(), Abuse> {
        let [l0, l1, l2, kind, ..] = self.head;
        let len = u32::from_be_bytes([0, l0, l1, l2]);
        self.left = len as usize;
        match (kind, len) {
            (HEADERS, _) => self.header_block = len,
            (CONTINUATION, _) => self.header_block = self.header_block.saturating_add(len),
            (DATA, 1..) => {}
            (_, ..=CONTROL_FRAME_BYTES_MAX) => self.control_frames += 1,
            (_, _) => return Err(Abuse::ControlFrame),
        }
        if self.header_block > HEADER_BLOCK_BYTES_MAX {
            return Err(Abuse::HeaderBlock);
        }
        if self.control_frames > CONTROL_FRAMES_MAX {
            return Err(Abuse::ControlFrames);
        }
        Ok(())
    }
}

/// A connection's plaintext.
pub(super) struct Screened<S> {
    stream: S,
    frames: Frames,
    state: Rc<State>,
}

impl<S> Screened<S> {
    pub(super) fn new(stream: S, state: Rc<State>) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            state,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Screened<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        let was_known = this.frames.is_known();
        let passed = this.frames.pass(read, this.state.now());
        if !was_known && this.frames.is_known() {
            this.state.heard();
        }
        Poll::Ready(passed.map_err(|abuse| {
            this.state.context.counters.abusive.fetch_add(1, Relaxed);
            io::Error::new(io::ErrorKind::InvalidData, abuse)
        }))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screened<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 0x6;
    const SETTINGS: u8 = 0x4;

    fn frame(kind: u8, len: u32) -> Vec<u8> {
        let mut bytes = len.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, 0, 0, 0, 0, 1]);
        bytes.resize(HEAD_BYTES + len as usize, 0xff);
        bytes
    }

    /// What becomes of the bytes, in pieces of `size`.
    fn pass(frames: &[Vec<u8>], size: usize, tick: impl Fn(usize) -> u64) -> Result<(), Abuse> {
        let bytes = [&PREFACE[..], &frames.concat()].concat();
        let mut state = Frames::default();
        let mut pieces = bytes.chunks(size).enumerate();
        pieces.try_for_each(|(number, piece)| state.pass(piece, tick(number)))
    }

    #[test]
    fn header_blocks_have_a_bound_over_all_their_frames() {
        let half = HEADER_BLOCK_BYTES_MAX / 2;
        let allowed = [
            frame(HEADERS, half),
            frame(CONTINUATION, half),
            frame(DATA, 1 << 20),
            frame(HEADERS, half),
            frame(CONTINUATION, half),
        ];
        let refused = [
            frame(HEADERS, half),
            frame(CONTINUATION, half),
            frame(CONTINUATION, 1),
        ];
        for size in [1, 7, 9, 10, 1000, usize::MAX] {
            assert_eq!(pass(&allowed, size, |_| 0), Ok(()), "{size}");
            assert_eq!(
                pass(&refused, size, |_| 0),
                Err(Abuse::HeaderBlock),
                "{size}"
            );
        }
    }

    #[test]
    fn control_frames_have_a_bound_in_each_second() {
        let flood = vec![frame(PING, 8); CONTROL_FRAMES_MAX as usize + 1];
        assert_eq!(pass(&flood, 4096, |_| 3), Err(Abuse::ControlFrames));
        assert_eq!(pass(&flood, 4096, |piece| piece as u64 / 50), Ok(()));
        let data = vec![frame(DATA, 1); CONTROL_FRAMES_MAX as usize + 1];
        assert_eq!(pass(&data, 4096, |_| 3), Ok(()));
        let empty = vec![frame(DATA, 0); CONTROL_FRAMES_MAX as usize + 1];
        assert_eq!(pass(&empty, 4096, |_| 3), Err(Abuse::ControlFrames));
    }

    #[test]
    fn only_headers_and_data_are_large() {
        const UNKNOWN: u8 = 0xfa;
        let allowed = [
            frame(DATA, 1 << 20),
            frame(UNKNOWN, 4096),
            frame(SETTINGS, 60),
        ];
        assert_eq!(pass(&allowed, 1000, |_| 0), Ok(()));
        for kind in [UNKNOWN, SETTINGS] {
            let refused = [frame(DATA, 1), frame(kind, 4097)];
            assert_eq!(pass(&refused, 1000, |_| 0), Err(Abuse::ControlFrame));
        }
    }

    #[test]
    fn what_is_not_http_2_passes() {
        let mut frames = Frames::default();
        let bytes = b"POST /v1/logs HTTP/1.1\r\n".repeat(1000);
        for piece in bytes.chunks(3) {
            assert_eq!(frames.pass(piece, 0), Ok(()));
        }
        assert!(frames.is_other);
    }
}

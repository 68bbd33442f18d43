//! A message gathered from the frames of its body, which are kept as they came, not copied; and gRPC's framing of one.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};

use crate::otel::{Ahead, Skim};

/// Length of gRPC's message prefix: a compressed flag and a big-endian length.
const PREFIX_BYTES: usize = 5;

/// A frame keeps the buffer alive that it was read into. One that is smaller than this, and has to wait for others, is
/// copied instead, or few bytes would hold much more than they reserve: HTTP/1.1 is read into buffers of this size, each
/// segment of a slow sender into its own, and HTTP/2 with small frames into ones of hardly more.
const PIN_BYTES_MIN: usize = 8 * 1024;
/// Small frames are copied together, up to so many bytes: each by itself would need more memory beside it than in it.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// What a frame did to the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The prefix isn't whole yet.
    Prefix,
    /// The prefix has just become whole.
    Announced {
        /// The compressed flag.
        compressed: bool,
        /// Length of the message, in bytes.
        len: usize,
    },
    /// More of the message came.
    Body,
}

/// The frames violate gRPC's framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The compressed flag is neither 0 nor 1.
    #[error("the compressed flag of the gRPC message is {0}, not 0 or 1")]
    Flag(u8),
    /// A unary call carries one message.
    #[error("{0} bytes follow the one message of this unary call")]
    Excess(usize),
    /// The stream ended too early.
    #[error("the stream ended {missing} bytes before the end of the message")]
    Truncated {
        /// Bytes that are missing; of the prefix, if that isn't whole.
        missing: usize,
    },
}

/// The message's bytes, in frames.
#[derive(Debug, Default)]
pub struct Parts(Vec<Bytes>);

/// Frames, of which more may come.
#[derive(Debug, Default)]
pub struct Joined {
    frames: Vec<Bytes>,
    /// Copied, behind the others.
    small: Vec<u8>,
}

impl Joined {
    /// Adds a frame behind the others; the last one has to wait for no other.
    pub fn push(&mut self, frame: Bytes, is_last: bool) {
        let is_kept = frame.len() >= PIN_BYTES_MIN || is_last && self.small.is_empty();
        if is_kept {
            self.close_small();
            if !frame.is_empty() {
                self.frames.push(frame);
            }
            return;
        }
        if self.small.len() + frame.len() > COPY_BYTES_MAX {
            self.close_small();
        }
        self.small.extend_from_slice(&frame);
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            let small = std::mem::take(&mut self.small);
            self.frames.push(small.into_boxed_slice().into());
        }
    }

    /// All of them.
    #[must_use]
    pub fn finish(mut self) -> Parts {
        self.close_small();
        Parts(self.frames)
    }
}

impl Parts {
    /// The frames.
    pub fn as_slice(&self) -> &[Bytes] {
        &self.0
    }

    /// Reads over the frames.
    pub fn reader(&self) -> PartsReader<'_> {
        PartsReader {
            parts: &self.0,
            offset: 0,
        }
    }
}

/// The message in the making.
#[derive(Debug, Default)]
pub struct Gather {
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    len: usize,
    have: usize,
    joined: Joined,
    /// Of a message that isn't compressed.
    ahead: Ahead,
}

impl Gather {
    /// Takes one DATA frame.
    ///
    /// # Errors
    /// If it violates the framing.
    pub fn push(&mut self, mut frame: Bytes) -> Result<Progress, Error> {
        let mut progress = Progress::Body;
        if self.prefix_len < PREFIX_BYTES {
            let take = frame.len().min(PREFIX_BYTES - self.prefix_len);
            frame.copy_to_slice(&mut self.prefix[self.prefix_len..self.prefix_len + take]);
            self.prefix_len += take;
            if self.prefix_len < PREFIX_BYTES {
                return Ok(Progress::Prefix);
            }
            let [flag, len @ ..] = self.prefix;
            if flag > 1 {
                return Err(Error::Flag(flag));
            }
            self.len = u32::from_be_bytes(len) as usize;
            progress = Progress::Announced {
                compressed: flag == 1,
                len: self.len,
            };
        }
        let room = self.len - self.have;
        if frame.len() > room {
            return Err(Error::Excess(frame.len() - room));
        }
        self.have += frame.len();
        if self.prefix[0] == 0 {
            self.ahead.push(&frame);
        }
        self.joined.push(frame, self.have == self.len);
        Ok(progress)
    }

    /// What is known of the message's framing by now, if it isn't compressed.
    pub const fn skimmed(&self) -> Option<Skim> {
        match self.prefix[0] {
            0 => self.ahead.finish(),
            _ => None,
        }
    }

    /// The whole message.
    ///
    /// # Errors
    /// If the stream ended before it was whole.
    pub fn finish(self) -> Result<Parts, Error> {
        let missing = if self.prefix_len < PREFIX_BYTES {
            PREFIX_BYTES - self.prefix_len
        } else {
            self.len - self.have
        };
        if missing > 0 {
            return Err(Error::Truncated { missing });
        }
        Ok(self.joined.finish())
    }
}

/// Reads the frames as one stream.
#[derive(Debug)]
pub struct PartsReader<'a> {
    parts: &'a [Bytes],
    offset: usize,
}

impl Read for PartsReader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for PartsReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self
            .parts
            .first()
            .map_or(&[][..], |part| &part[self.offset..]))
    }

    fn consume(&mut self, amount: usize) {
        self.offset += amount;
        if self
            .parts
            .first()
            .is_some_and(|part| self.offset == part.len())
        {
            self.parts = &self.parts[1..];
            self.offset = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8], size: usize) -> Vec<Bytes> {
        bytes.chunks(size).map(Bytes::copy_from_slice).collect()
    }

    #[test]
    fn a_message_is_gathered_whatever_the_frames() {
        let wire = [&[0, 0, 0, 0, 6][..], b"abcdef"].concat();
        for size in 1..=wire.len() {
            let mut gather = Gather::default();
            let mut announced = 0;
            for frame in frames(&wire, size) {
                if gather.push(frame).expect("valid")
                    == (Progress::Announced {
                        compressed: false,
                        len: 6,
                    })
                {
                    announced += 1;
                }
            }
            assert_eq!(announced, 1);
            let parts = gather.finish().expect("whole");
            let mut read = Vec::new();
            parts.reader().read_to_end(&mut read).expect("reads");
            assert_eq!(read, b"abcdef");
            assert_eq!(parts.as_slice().concat(), b"abcdef");
        }
    }

    /// Whether some of `parts` lies in what `read` was read into.
    fn is_pinned(parts: &Parts, read: &Bytes) -> bool {
        let buffer = read.as_ptr_range();
        let mut parts = parts.as_slice().iter();
        parts.any(|part| buffer.contains(&part.as_ptr()))
    }

    #[test]
    fn small_frames_hold_neither_what_they_were_read_into_nor_much_beside_themselves() {
        let read = Bytes::from(
            (0..100_000_u32)
                .map(|n| n.to_le_bytes()[0])
                .collect::<Vec<_>>(),
        );
        // A segment of Ethernet among them, which is a read of HTTP/1.1.
        for size in [1, 7, 1030, 1448, 8191] {
            let mut joined = Joined::default();
            for at in (0..read.len()).step_by(size) {
                let end = read.len().min(at + size);
                // Of a body without a length, none is known to be the last.
                joined.push(read.slice(at..end), false);
            }
            let parts = joined.finish();
            assert_eq!(parts.as_slice().concat(), read);
            assert!(!is_pinned(&parts, &read), "{size}");
            let most = read.len().div_ceil(COPY_BYTES_MAX - PIN_BYTES_MIN);
            assert!(parts.as_slice().len() <= most, "{size}");
        }
    }

    #[test]
    fn large_frames_are_kept_as_they_came_and_so_is_a_small_one_that_waits_for_none() {
        let read = Bytes::from(vec![5; 10 * PIN_BYTES_MIN]);
        let mut joined = Joined::default();
        joined.push(read.slice(..2 * PIN_BYTES_MIN), false);
        joined.push(read.slice(2 * PIN_BYTES_MIN..2 * PIN_BYTES_MIN + 3), true);
        let parts = joined.finish();
        let [first, last] = parts.as_slice() else {
            panic!("{} parts", parts.as_slice().len())
        };
        assert_eq!(first.as_ptr(), read.as_ptr());
        assert_eq!(last.as_ptr(), read[2 * PIN_BYTES_MIN..].as_ptr());
        // Large and small ones by turns stay in order.
        let mut joined = Joined::default();
        let mut expected = Vec::new();
        for (number, len) in [3, 2000, 1, 1, 5000, 9].into_iter().enumerate() {
            let frame = vec![u8::try_from(number).expect("few"); len];
            expected.extend_from_slice(&frame);
            joined.push(frame.into(), number == 5);
        }
        assert_eq!(joined.finish().as_slice().concat(), expected);
    }

    #[test]
    fn excess_truncation_and_bad_flags_are_refused() {
        let mut gather = Gather::default();
        assert_eq!(
            gather.push(Bytes::from_static(&[0, 0, 0, 0, 1, 7, 7])),
            Err(Error::Excess(1))
        );
        let mut gather = Gather::default();
        gather
            .push(Bytes::from_static(&[0, 0, 0, 0, 2, 7]))
            .expect("valid so far");
        assert_eq!(
            gather.finish().map(|_| ()),
            Err(Error::Truncated { missing: 1 })
        );
        assert_eq!(
            Gather::default().finish().map(|_| ()),
            Err(Error::Truncated { missing: 5 })
        );
        let mut gather = Gather::default();
        assert_eq!(
            gather.push(Bytes::from_static(&[9, 0, 0, 0, 0])),
            Err(Error::Flag(9))
        );
    }
}

//! How much one connection may hold before any request of it is admitted, and what that costs the budget.
//!
//! HTTP/2's windows can't be taken back once they are given, so they are chosen when a connection is accepted, from
//! what is left for connections. The charge is the most that the layers can hold of one peer, whatever it sends:
//!
//! | what | bytes |
//! |---|---|
//! | HTTP/2 data that no handler has taken | the connection's window |
//! | a frame in the making, and the room that its buffer grows by | twice the largest frame |
//! | streams: task, state, headers on their way to the handler | [`STREAM_BYTES`] each |
//! | rustls: one record coming, one decrypted, one going; HTTP/2's write buffer and a header block; the socket | [`BASE_BYTES`] |
//!
//! An HTTP/1.1 connection has a buffer for its head and what is pipelined behind it instead of the first three, which
//! is smaller. A handshake, which comes before all of them, may hold 64 KiB.

const KIB: u32 = 1024;
/// HTTP/2 begins with this much, whatever the settings say.
const SMALLEST_BYTES: u32 = 64 * KIB;
const LARGEST_BYTES: u32 = 4096 * KIB;
/// HTTP/2 allows no smaller limit.
const FRAME_BYTES_MIN: u32 = 16 * KIB;
/// Few, so that each can have a large window: clients that use larger frames than 16 KiB spare both sides work.
const STREAMS_MAX: u32 = 16;
const STREAM_BYTES: usize = 8 * 1024;
const BASE_BYTES: usize = 96 * 1024;
/// More of a queue can't be relied on: a peer with four requests has four streams' windows.
const STALLED_BYTES_MAX: u32 = 1024 * KIB;
const HTTP1_RECEIVE_BYTES_MIN: usize = 256 * 1024;
/// What HTTP/1.1 may read ahead of the handler; the head of a request must fit.
const HTTP1_BUFFER_BYTES_MAX: usize = 512 * 1024;

/// Limits of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Bytes that the peer may send on the connection before the daemon reads.
    pub connection: u32,
}

impl Windows {
    /// What a connection has as long as there is room: enough for any distance.
    pub const LARGEST: Self = Self {
        connection: LARGEST_BYTES,
    };
    /// What it has when there is hardly any.
    pub const SMALLEST: Self = Self {
        connection: SMALLEST_BYTES,
    };

    /// The largest that leaves as much again for those who come later, and half of the whole share for connections with
    /// the smallest: few peers need large ones, and there may be many peers.
    #[must_use]
    pub const fn fitting(free: usize, share: usize) -> Self {
        let spendable = free.saturating_sub(share / 2) / 2;
        let mut windows = Self::LARGEST;
        while windows.connection > SMALLEST_BYTES && windows.charge() > spendable {
            windows.connection /= 2;
        }
        windows
    }

    /// Bytes that the peer may send on one stream before the daemon reads: together no more than on the connection, or
    /// requests that wait for the budget could fill that, and those that are admitted never become whole.
    #[must_use]
    pub const fn stream(self) -> u32 {
        self.connection / self.streams()
    }

    /// The largest frame: what a stream can send at once.
    #[must_use]
    pub const fn frame(self) -> u32 {
        self.stream()
    }

    /// Streams that may be open at once.
    #[must_use]
    pub const fn streams(self) -> u32 {
        let streams = self.connection / FRAME_BYTES_MIN;
        if streams < STREAMS_MAX {
            streams
        } else {
            STREAMS_MAX
        }
    }

    /// HTTP/1.1's buffer.
    #[must_use]
    pub const fn http1_buffer(self) -> usize {
        let quarter = self.connection as usize / 4;
        if quarter < HTTP1_BUFFER_BYTES_MAX {
            quarter
        } else {
            HTTP1_BUFFER_BYTES_MAX
        }
    }

    /// Room that a pipelining peer surely has when the daemon stops reading: HTTP/2 windows are re-opened when half of
    /// them is spent, so between half and all of them is left, of as many streams as it uses.
    #[must_use]
    pub const fn stalled(self) -> u32 {
        let half = self.connection / 2;
        if half < STALLED_BYTES_MAX {
            half
        } else {
            STALLED_BYTES_MAX
        }
    }

    /// What the kernel may hold beside it: as much, since the kernel half takes a socket's capacity from that. HTTP/1.1
    /// has no window, and each turn of a small one would cost a request a round trip; `None`: as it likes.
    #[must_use]
    pub fn receive_buffer(self, may_be_http1: bool) -> Option<usize> {
        let least = if may_be_http1 {
            HTTP1_RECEIVE_BYTES_MIN
        } else {
            0
        };
        (self != Self::LARGEST).then(|| least.max(self.stalled() as usize))
    }

    /// Bytes of the ingest budget.
    #[must_use]
    pub const fn charge(self) -> usize {
        self.connection as usize
            + 2 * self.frame() as usize
            + self.streams() as usize * STREAM_BYTES
            + BASE_BYTES
    }
}

/// What connections may be charged with altogether: all of the budget but the workers' buffers and what one request may
/// reserve, and but a quarter, so that idle connections alone are never pressure.
#[must_use]
pub const fn share_of(budget_bytes: usize, buffers_bytes: usize, request_bytes: usize) -> usize {
    let quarter = budget_bytes.div_ceil(4);
    let kept = if request_bytes > quarter {
        request_bytes
    } else {
        quarter
    };
    budget_bytes.saturating_sub(buffers_bytes + kept)
}

#[cfg(test)]
mod tests {
    use super::{
        super::needs::{Needs, buffers_bytes},
        *,
    };

    /// Seats connections until nothing is left; their windows.
    fn seated(share: usize) -> Vec<u32> {
        let (mut used, mut windows) = (0, Vec::new());
        loop {
            let next = Windows::fitting(share - used, share);
            if used + next.charge() > share {
                return windows;
            }
            used += next.charge();
            windows.push(next.connection);
        }
    }

    #[test]
    fn windows_shrink_with_what_is_left_and_never_grow_again() {
        for share in [1 << 20, 16 << 20, 72 << 20, 384 << 20] {
            let windows = seated(share);
            assert!(windows.is_sorted_by(|a, b| a >= b), "{windows:?}");
            assert_eq!(windows.last(), Some(&SMALLEST_BYTES));
            let smallest = windows.iter().filter(|&&w| w == SMALLEST_BYTES).count();
            let half = share / 2 / Windows::SMALLEST.charge();
            assert!(smallest >= half, "{share}: {smallest} of {half}");
        }
        assert_eq!(seated(384 << 20)[0], LARGEST_BYTES);
    }

    #[test]
    fn there_is_room_for_as_many_connections_as_the_documentation_says() {
        let fitting = |ingest_mib: usize, request_mib: usize| {
            let (budget, workers) = (ingest_mib << 20, 2);
            let needs = Needs::of(budget, workers, request_mib << 20);
            let buffers = buffers_bytes(budget, workers);
            let windows = seated(share_of(budget, buffers, needs.kept_bytes()));
            let largest = windows.iter().filter(|&&w| w == LARGEST_BYTES).count();
            (windows.len(), largest)
        };
        let all = [(32, 16), (32, 4), (64, 16), (512, 16)]
            .map(|(ingest, request)| fitting(ingest, request));
        assert_eq!(all, [(42, 0), (60, 1), (116, 3), (914, 39)]);
    }

    #[test]
    fn the_limits_of_a_connection_are_ones_that_http_2_allows() {
        let mut windows = Windows::LARGEST;
        loop {
            assert!((16_384..1 << 24).contains(&windows.frame()));
            assert!(windows.stream() * windows.streams() <= windows.connection);
            assert!(windows.streams() >= 4);
            assert!(windows.http1_buffer() < windows.charge());
            if windows == Windows::SMALLEST {
                break;
            }
            windows.connection /= 2;
        }
    }

    #[test]
    fn the_largest_request_fits_beside_all_connections() {
        assert_eq!(share_of(64, 0, 16), 48);
        assert_eq!(share_of(64, 2, 16), 46);
        assert_eq!(share_of(64, 2, 40), 22);
        assert_eq!(share_of(64, 0, 64), 0);
        assert_eq!(share_of(64, 4, 64), 0);
    }
}

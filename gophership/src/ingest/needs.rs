//! What a request needs of the ingest budget: its length, and what it may unpack to.
//!
//! Each worker has two buffers for what it unpacks itself, and two, at least as large, for what is unpacked aside; they are
//! taken from the budget at the start. A request that surely or probably needs larger ones reserves that with its length, in
//! one take:
//!
//! | request | beside its length |
//! |---|---|
//! | protobuf | nothing: it is placed from where it came to |
//! | JSON | nothing if it fits a buffer, else twice its length: for the frames joined, and for the protobuf |
//! | compressed protobuf | 16 times its length, at most the largest request; nothing if that fits a buffer |
//! | compressed JSON | twice that |
//!
//! What a compressed one needs is a guess: it is capped by what a request may have at all, and what is missing is taken
//! when it shows, if it is there.

use crate::vault::{ContentEncoding, Kind};

const KIB: usize = 1024;
const BUFFER_BYTES_MIN: usize = 64 * KIB;
const BUFFER_BYTES_MAX: usize = 1024 * KIB;
/// Of each pair: for what is decompressed, and for what was JSON.
const BUFFERS: usize = 2;
/// What is reserved of a request whose length nobody says, at first: little beside what a connection is charged with.
const FIRST_STEP_BYTES: usize = 64 * KIB;
/// All buffers for what is unpacked aside are together this part of the budget, unless that makes them too large or too small.
const BUDGET_TO_BUFFERS: usize = 32;
/// What is unpacked on the worker's own thread: little enough for about a millisecond, and too little for handing it over.
const INLINE_BYTES: usize = BUFFER_BYTES_MIN;
/// What is compressed may be that little if it is this part of it. Also that has to be little: tables with nothing behind
/// them are read, too.
const INLINE_TO_COMPRESSED: usize = 8;
/// How much is expected of compression: more than logs mostly have.
const RATIO: usize = 16;

/// How the ingest budget is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Of each buffer for what is unpacked aside.
    buffer_bytes: usize,
    /// Of the largest message, compressed and decompressed.
    max_request_bytes: usize,
    /// What connections leave to requests in any case.
    kept_bytes: usize,
    /// What one request may have altogether.
    most_bytes: usize,
}

impl Needs {
    /// Of requests of up to `max_request_bytes`.
    #[must_use]
    pub fn of(budget_bytes: usize, workers: usize, max_request_bytes: usize) -> Self {
        let left = budget_bytes.saturating_sub(buffers_bytes(budget_bytes, workers));
        let all = max_request_bytes.saturating_mul(1 + BUFFERS);
        let most_bytes = request_bytes_max(left).min(all);
        Self {
            buffer_bytes: buffer_bytes(budget_bytes, workers),
            max_request_bytes,
            kept_bytes: max_request_bytes.max(left / 4),
            most_bytes,
        }
    }

    /// Size of each buffer for what is unpacked aside.
    #[must_use]
    pub const fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// What may be unpacked on the worker's own thread.
    #[must_use]
    pub fn small(&self) -> usize {
        INLINE_BYTES.min(self.max_request_bytes)
    }

    /// Whether a message of `len` bytes may be unpacked to as little.
    #[must_use]
    pub const fn may_be_small(&self, encoding: ContentEncoding, len: usize) -> bool {
        match encoding {
            ContentEncoding::Identity => len <= INLINE_BYTES,
            ContentEncoding::Gzip | ContentEncoding::Zstd => {
                len <= INLINE_BYTES / INLINE_TO_COMPRESSED
            }
        }
    }

    /// Length of the largest message, compressed and decompressed.
    #[must_use]
    pub const fn max_request_bytes(&self) -> usize {
        self.max_request_bytes
    }

    /// What connections leave to requests in any case.
    #[must_use]
    pub const fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// What one request may have altogether.
    #[must_use]
    pub const fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// What is reserved for a request whose length isn't known: it takes more as it comes.
    #[must_use]
    pub fn first_step(&self) -> usize {
        FIRST_STEP_BYTES.min(self.max_request_bytes)
    }

    /// What is reserved for a request of `len` bytes: no more than what connections leave, or idle ones could have it wait
    /// for good.
    #[must_use]
    pub fn reserve(&self, kind: Kind, encoding: ContentEncoding, len: usize) -> usize {
        if (kind, encoding) == (Kind::OtlpLogs, ContentEncoding::Identity) {
            return len;
        }
        let unpacked = match encoding {
            ContentEncoding::Identity => len,
            ContentEncoding::Gzip | ContentEncoding::Zstd => {
                len.saturating_mul(RATIO).min(self.max_request_bytes)
            }
        };
        if unpacked <= self.buffer_bytes {
            return len;
        }
        let all = len.saturating_add(unpacked.saturating_mul(buffers(kind)));
        all.min(self.kept_bytes).min(self.most_bytes).max(len)
    }

    /// What a request of `len` bytes surely needs beside them.
    #[must_use]
    pub fn surely(&self, kind: Kind, encoding: ContentEncoding, len: usize) -> usize {
        let is_json = (kind, encoding) == (Kind::OtlpLogsJson, ContentEncoding::Identity);
        if is_json && len > self.buffer_bytes {
            len.saturating_mul(BUFFERS)
        } else {
            0
        }
    }

    /// What a request of `len` bytes surely needs, if that is more than it may have.
    #[must_use]
    pub fn too_much(&self, kind: Kind, encoding: ContentEncoding, len: usize) -> Option<usize> {
        let needed = len.saturating_add(self.surely(kind, encoding, len));
        (needed > self.most_bytes).then_some(needed)
    }

    /// What each buffer may have for a request that has reserved `extra` bytes beside its length.
    #[must_use]
    pub fn covered(&self, kind: Kind, extra: usize) -> usize {
        let each = extra / buffers(kind);
        each.max(self.buffer_bytes).min(self.max_request_bytes)
    }

    /// What a request of `len` bytes that has turned out to need more than `extra` may take beside that; `None` if it
    /// may have no more.
    #[must_use]
    pub fn missing(&self, kind: Kind, len: usize, extra: usize) -> Option<usize> {
        let most = self.max_request_bytes.saturating_mul(buffers(kind));
        let all = most.min(self.most_bytes.saturating_sub(len));
        let has_more = self.covered(kind, all) > self.covered(kind, extra);
        has_more.then(|| all - extra)
    }
}

/// How many buffers a compressed message of this kind needs.
const fn buffers(kind: Kind) -> usize {
    match kind {
        Kind::OtlpLogs => 1,
        Kind::OtlpLogsJson => 2,
    }
}

/// Size of each worker's buffers for what is unpacked aside.
fn buffer_bytes(budget_bytes: usize, workers: usize) -> usize {
    let share = budget_bytes / BUDGET_TO_BUFFERS / BUFFERS / workers.max(1);
    share.clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX)
}

/// What the buffers of all workers take of the budget.
#[must_use]
pub fn buffers_bytes(budget_bytes: usize, workers: usize) -> usize {
    workers * BUFFERS * (INLINE_BYTES + buffer_bytes(budget_bytes, workers))
}

/// The least of that.
#[must_use]
pub const fn buffers_bytes_min(workers: usize) -> usize {
    workers * BUFFERS * (INLINE_BYTES + BUFFER_BYTES_MIN)
}

/// The largest request, of what the buffers leave of the budget: the rest must do for connections.
#[must_use]
pub const fn request_bytes_max(left_bytes: usize) -> usize {
    left_bytes / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContentEncoding::{Gzip, Identity, Zstd};
    use Kind::{OtlpLogs, OtlpLogsJson};

    const MIB: usize = 1 << 20;

    #[test]
    fn buffers_are_a_small_part_of_the_budget() {
        for (budget, workers, each) in [
            (512 * MIB, 2, MIB),
            (512 * MIB, 16, MIB / 2),
            (16 * MIB, 2, MIB / 8),
            (MIB, 1, MIB / 16),
            (16 * MIB, 100, MIB / 16),
        ] {
            assert_eq!(buffer_bytes(budget, workers), each);
            assert_eq!(
                buffers_bytes(budget, workers),
                2 * workers * (each + MIB / 16)
            );
            assert!(buffers_bytes(budget, workers) >= buffers_bytes_min(workers));
        }
    }

    #[test]
    fn what_is_unpacked_on_the_worker_fits_its_buffers() {
        for (max, small) in [(16 * MIB, MIB / 16), (1000, 1000)] {
            let needs = Needs::of(16 * MIB, 2, max);
            assert_eq!(needs.small(), small);
            assert!(needs.small() <= needs.covered(OtlpLogsJson, 0));
        }
        let needs = Needs::of(16 * MIB, 2, 16 * MIB);
        for (encoding, most) in [(Identity, MIB / 16), (Gzip, MIB / 128), (Zstd, MIB / 128)] {
            assert!(needs.may_be_small(encoding, most));
            assert!(!needs.may_be_small(encoding, most + 1));
        }
    }

    #[test]
    fn a_request_reserves_its_length_and_what_it_may_unpack_to() {
        let needs = Needs::of(512 * MIB, 2, 16 * MIB);
        let extra = |kind, encoding, len| needs.reserve(kind, encoding, len) - len;
        for len in [0, 1, MIB, 16 * MIB] {
            assert_eq!(extra(OtlpLogs, Identity, len), 0);
        }
        assert_eq!(extra(OtlpLogsJson, Identity, MIB), 0);
        assert_eq!(extra(OtlpLogsJson, Identity, MIB + 1), 2 * (MIB + 1));
        for encoding in [Gzip, Zstd] {
            assert_eq!(extra(OtlpLogs, encoding, MIB / 16), 0);
            assert_eq!(extra(OtlpLogs, encoding, MIB / 16 + 1), MIB + 16);
            assert_eq!(extra(OtlpLogs, encoding, 2 * MIB), 16 * MIB);
            assert_eq!(extra(OtlpLogsJson, encoding, MIB / 8), 4 * MIB);
        }
        assert_eq!(needs.too_much(OtlpLogsJson, Identity, 16 * MIB), None);
    }

    #[test]
    fn nothing_is_reserved_beyond_what_a_request_may_have() {
        // 15.25 MiB are left by the buffers.
        let needs = Needs::of(16 * MIB, 2, 8 * MIB);
        let most = 61 * MIB / 16 * 3;
        assert_eq!(needs.most_bytes(), most);
        // What connections leave.
        assert_eq!(needs.kept_bytes(), 8 * MIB);
        assert_eq!(needs.reserve(OtlpLogs, Gzip, 4 * MIB), 8 * MIB);
        assert_eq!(needs.reserve(OtlpLogsJson, Zstd, MIB), 8 * MIB);
        assert_eq!(needs.reserve(OtlpLogs, Identity, 8 * MIB), 8 * MIB);
        // What isn't a guess can be told to be too much.
        let fits = most / 3;
        assert_eq!(needs.too_much(OtlpLogsJson, Identity, fits), None);
        assert_eq!(
            needs.too_much(OtlpLogsJson, Identity, fits + 1),
            Some(3 * (fits + 1))
        );
        assert_eq!(needs.too_much(OtlpLogsJson, Zstd, 8 * MIB), None);
    }

    #[test]
    fn what_is_reserved_for_a_length_does_for_every_shorter_one() {
        let needs = Needs::of(16 * MIB, 2, 8 * MIB);
        for kind in [OtlpLogs, OtlpLogsJson] {
            for encoding in [Identity, Gzip, Zstd] {
                let lens = (0..8 * MIB).step_by(4095);
                let reserved = lens.map(|len| needs.reserve(kind, encoding, len));
                assert!(reserved.is_sorted());
            }
        }
    }

    #[test]
    fn what_turns_out_larger_may_have_the_largest_request_or_what_there_is() {
        let needs = Needs::of(512 * MIB, 2, 16 * MIB);
        assert_eq!(needs.covered(OtlpLogs, 0), MIB);
        assert_eq!(needs.covered(OtlpLogsJson, 4 * MIB), 2 * MIB);
        assert_eq!(needs.missing(OtlpLogs, 100, 0), Some(16 * MIB));
        assert_eq!(needs.missing(OtlpLogsJson, MIB, 4 * MIB), Some(28 * MIB));
        assert_eq!(needs.missing(OtlpLogs, MIB, 16 * MIB), None);
        // Here JSON can't have as much.
        let needs = Needs::of(16 * MIB, 2, 8 * MIB);
        let left = needs.most_bytes() - 1000;
        assert_eq!(needs.missing(OtlpLogsJson, 1000, 0), Some(left));
        assert_eq!(needs.covered(OtlpLogsJson, left), left / 2);
        assert_eq!(needs.missing(OtlpLogsJson, 1000, left), None);
        // Requests may be smaller than the buffers.
        let needs = Needs::of(512 * MIB, 2, 1000);
        assert_eq!(needs.covered(OtlpLogs, 0), 1000);
        assert_eq!(needs.missing(OtlpLogs, 10, 0), None);
    }
}

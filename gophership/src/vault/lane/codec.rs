//! `compression: auto`: the codec of the next block, chosen from what is scarce.
//!
//! Compressing spends the worker's CPU to spare the device and `max_bytes`. Each window of 200 ms is
//! read as:
//! - *CPU waits*: the workers wait for a CPU at least 20 % of the time, and until it is below 10 %
//!   (`Lane::note_cpu_wait`).
//! - *device behind*: at least half of the blocks found half of the lane's buffers in flight, until it is
//!   less than a quarter of them.
//! - *LZ4's share*: what compressing all of the window takes, or would take, of one core.
//!
//! | CPU waits | device behind | LZ4's share | now raw | now LZ4 |
//! |---|---|---|---|---|
//! | yes | no | any | raw | raw |
//! | yes | yes | any | raw | LZ4 |
//! | no | no | below 50 % | LZ4 | LZ4 |
//! | no | no | 50 to 70 % | raw | LZ4 |
//! | no | no | from 70 % on | raw | raw, unless raw is known to be slower |
//! | no | yes | below 90 % | LZ4 | LZ4 |
//! | no | yes | from 90 % on | raw | LZ4 |
//!
//! While neither is scarce, compressing costs nothing that is missed and makes room. How fast raw blocks
//! were when the device was behind is remembered for a minute; then it is tried again. A change needs
//! three windows in a row that want it.

use std::time::{Duration, Instant};

use crate::vault::{Compression, format::Codec};

const WINDOW: Duration = Duration::from_millis(200);
/// Windows in a row that must want a change.
const AGREED: u32 = 3;
const REMEMBER: Duration = Duration::from_secs(60);
/// What LZ4 is taken to need until it was measured: 2 ns a byte.
const NANOS_PER_KIB: u64 = 2_048;

/// What a window shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// The workers wait for a CPU.
    pub(super) cpu_waits: bool,
    /// Blocks wait for the device.
    pub(super) is_behind: bool,
    /// Permille of a core that LZ4 takes or would take.
    pub(super) lz4_permille: u64,
    /// Bytes a second, before compression.
    pub(super) rate: u64,
    /// What `rate` was when raw blocks kept the device behind, if that is known.
    pub(super) raw_rate: Option<u64>,
}

/// The table.
#[must_use]
pub(super) fn choose(now: Codec, seen: &Seen) -> Codec {
    match (seen.cpu_waits, seen.is_behind, now) {
        (true, false, Codec::Raw | Codec::Lz4) => Codec::Raw,
        (true, true, now) => now,
        (false, false, Codec::Raw) if seen.lz4_permille < 500 => Codec::Lz4,
        (false, true, Codec::Raw) if seen.lz4_permille < 900 => Codec::Lz4,
        (false, false | true, Codec::Raw) => Codec::Raw,
        (false, false, Codec::Lz4) if seen.lz4_permille >= 700 => {
            if seen.raw_rate.is_some_and(|raw| raw <= seen.rate) {
                Codec::Lz4
            } else {
                Codec::Raw
            }
        }
        (false, false | true, Codec::Lz4) => Codec::Lz4,
    }
}

/// The choice of one lane, and what it is made from.
#[derive(Debug)]
pub(super) struct Chooser {
    is_auto: bool,
    now: Codec,
    /// Windows in a row that wanted the other codec.
    against: u32,
    cpu_waits: bool,
    is_behind: bool,
    nanos_per_kib: u64,
    raw_rate: Option<(u64, Instant)>,
    began: Instant,
    bytes: u64,
    blocks: u64,
    /// Blocks that found half of the buffers in flight.
    waiting: u64,
}

impl Chooser {
    pub(super) fn new(compression: Compression, began: Instant) -> Self {
        Self {
            is_auto: compression == Compression::Auto,
            now: match compression {
                Compression::Auto | Compression::Lz4 => Codec::Lz4,
                Compression::None => Codec::Raw,
            },
            against: 0,
            cpu_waits: false,
            is_behind: false,
            nanos_per_kib: NANOS_PER_KIB,
            raw_rate: None,
            began,
            bytes: 0,
            blocks: 0,
            waiting: 0,
        }
    }

    /// Codec of the next block, begun at `now` with so many of `buffers` in flight.
    pub(super) fn next(&mut self, now: Instant, in_flight: usize, buffers: usize) -> Codec {
        if self.is_auto {
            let age = now.saturating_duration_since(self.began);
            if age >= WINDOW {
                self.turn(age, now);
            }
            self.blocks += 1;
            self.waiting += u64::from(in_flight * 2 >= buffers);
        }
        self.now
    }

    /// Notes how long a block of `bytes` took to pack.
    pub(super) fn packed(&mut self, codec: Codec, bytes: u64, took: Duration) {
        self.bytes += bytes;
        // A short block says little.
        if self.is_auto && codec == Codec::Lz4 && bytes >= 4096 {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            let sample = nanos.saturating_mul(1024) / bytes;
            self.nanos_per_kib = (self.nanos_per_kib * 15 + sample.min(1 << 24)) / 16;
        }
    }

    /// Notes how much of the time the workers wait for a CPU, permille.
    pub(super) fn note_cpu_wait(&mut self, permille: u64) {
        let least = if self.cpu_waits { 100 } else { 200 };
        self.cpu_waits = permille >= least;
    }

    fn turn(&mut self, age: Duration, now: Instant) {
        let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1);
        let least = if self.is_behind { 4 } else { 2 };
        self.is_behind = self.blocks > 0 && self.waiting * least >= self.blocks;
        let rate = self.bytes.saturating_mul(1000) / millis;
        if self.now == Codec::Raw && self.is_behind {
            self.raw_rate = Some((rate, now));
        }
        let seen = Seen {
            cpu_waits: self.cpu_waits,
            is_behind: self.is_behind,
            // Bytes a second · ns a KiB / 2^10 / 10^9 · 1000.
            lz4_permille: (rate / 1024).saturating_mul(self.nanos_per_kib) / 1_000_000,
            rate,
            raw_rate: self
                .raw_rate
                .filter(|(_, at)| now.saturating_duration_since(*at) < REMEMBER)
                .map(|(rate, _)| rate),
        };
        let wanted = choose(self.now, &seen);
        self.against = if wanted == self.now {
            0
        } else {
            self.against + 1
        };
        if self.against >= AGREED {
            (self.now, self.against) = (wanted, 0);
        }
        (self.began, self.bytes, self.blocks, self.waiting) = (now, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(cpu_waits: bool, is_behind: bool, lz4_permille: u64) -> Seen {
        Seen {
            cpu_waits,
            is_behind,
            lz4_permille,
            rate: 500,
            raw_rate: None,
        }
    }

    #[test]
    fn the_table_is_as_documented() {
        use Codec::{Lz4, Raw};
        let rows = [
            (seen(true, false, 100), Raw, Raw),
            (seen(true, false, 2000), Raw, Raw),
            (seen(true, true, 100), Raw, Lz4),
            (seen(true, true, 2000), Raw, Lz4),
            (seen(false, false, 499), Lz4, Lz4),
            (seen(false, false, 500), Raw, Lz4),
            (seen(false, false, 699), Raw, Lz4),
            (seen(false, false, 700), Raw, Raw),
            (seen(false, true, 899), Lz4, Lz4),
            (seen(false, true, 900), Raw, Lz4),
        ];
        for (seen, from_raw, from_lz4) in rows {
            assert_eq!(choose(Raw, &seen), from_raw, "{seen:?} raw");
            assert_eq!(choose(Lz4, &seen), from_lz4, "{seen:?} lz4");
        }
        let known = |raw_rate| Seen {
            raw_rate: Some(raw_rate),
            ..seen(false, false, 950)
        };
        assert_eq!(choose(Lz4, &known(500)), Lz4, "raw wasn't faster");
        assert_eq!(choose(Lz4, &known(501)), Raw);
    }

    /// A lane with more to write than it can, on a device of `device` MiB/s and a core that compresses
    /// `core` MiB/s to a fifth; returns the share of blocks compressed in the last seconds, permille,
    /// and the changes.
    fn run(device: u64, core: u64, seconds: u64) -> (u64, u32) {
        const BLOCK: u64 = 256 << 10;
        let start = Instant::now();
        let mut chooser = Chooser::new(Compression::Auto, start);
        let (mut at, mut free_at) = (0_u64, 0_u64);
        let (mut last, mut changes) = (Codec::Lz4, 0);
        let (mut compressed, mut all) = (0, 0);
        let nanos = |bytes: u64, mib: u64| bytes * 1_000_000_000 / (mib << 20);
        while at < seconds * 1_000_000_000 {
            let queued = free_at.saturating_sub(at);
            let one = nanos(BLOCK, device);
            let in_flight = usize::try_from(queued.div_ceil(one)).unwrap().min(8);
            let codec = chooser.next(start + Duration::from_nanos(at), in_flight, 8);
            changes += u32::from(codec != last);
            last = codec;
            let (took, stored) = match codec {
                Codec::Lz4 => (nanos(BLOCK, core), BLOCK / 5),
                Codec::Raw => (nanos(BLOCK, 10_000), BLOCK),
            };
            chooser.packed(codec, BLOCK, Duration::from_nanos(took));
            at += took;
            free_at = free_at.max(at) + nanos(stored, device);
            // All buffers are in flight: wait for the device.
            at = at.max(free_at.saturating_sub(8 * one));
            if at > seconds * 750_000_000 {
                all += 1;
                compressed += u64::from(codec == Codec::Lz4);
            }
        }
        (compressed * 1000 / all, changes)
    }

    #[test]
    fn a_slow_disk_is_compressed_for_and_a_fast_one_is_not() {
        for device in [20, 100, 300] {
            let (compressed, changes) = run(device, 600, 20);
            assert!(compressed == 1000, "{device} MiB/s: {compressed} permille");
            assert!(changes <= 2, "{device} MiB/s: {changes} changes");
        }
        for device in [1_500, 3_000] {
            let (compressed, changes) = run(device, 600, 20);
            assert!(compressed == 0, "{device} MiB/s: {compressed} permille");
            assert!(changes <= 2, "{device} MiB/s: {changes} changes");
        }
    }

    #[test]
    fn near_the_break_even_it_doesnt_flap() {
        for device in [500, 550, 600, 650, 700] {
            let (_, changes) = run(device, 600, 50);
            assert!(changes <= 3, "{device} MiB/s: {changes} changes");
        }
    }

    #[test]
    fn a_cpu_that_waits_ends_compression_and_a_moment_doesnt() {
        let start = Instant::now();
        let mut chooser = Chooser::new(Compression::Auto, start);
        let mut at = start;
        let mut after = |chooser: &mut Chooser, windows: u32| {
            let mut codec = Codec::Raw;
            for _ in 0..windows {
                at += WINDOW;
                codec = chooser.next(at, 0, 8);
            }
            codec
        };
        chooser.note_cpu_wait(500);
        assert_eq!(after(&mut chooser, 2), Codec::Lz4, "not yet");
        chooser.note_cpu_wait(50);
        assert_eq!(after(&mut chooser, 2), Codec::Lz4);
        chooser.note_cpu_wait(500);
        assert_eq!(after(&mut chooser, 3), Codec::Raw);
        chooser.note_cpu_wait(150);
        assert_eq!(after(&mut chooser, 5), Codec::Raw, "still waiting");
        chooser.note_cpu_wait(99);
        assert_eq!(after(&mut chooser, 3), Codec::Lz4);
    }

    #[test]
    fn a_fixed_codec_stays() {
        let start = Instant::now();
        for (compression, codec) in [
            (Compression::None, Codec::Raw),
            (Compression::Lz4, Codec::Lz4),
        ] {
            let mut chooser = Chooser::new(compression, start);
            for window in 0..10 {
                chooser.note_cpu_wait(if codec == Codec::Lz4 { 900 } else { 0 });
                let at = start + WINDOW * window;
                assert_eq!(chooser.next(at, 8, 8), codec);
            }
        }
    }
}

//! Reading sealed segments again while nobody needs the disk: to hash those that were just sealed into
//! their lane's chain, and to find what has rotted in the others before it is needed.
//!
//! Invariants
//! - Paced by the weight of background work; while that is 0, nothing is read.
//! - What can't be read is lost once, whoever meets it first: recovery, a reader or this.
//! - Stops between two blocks. Memory: one window, one decoded block, and a line for each segment.

use std::{
    collections::HashMap,
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    examine::{Content, Examination, Found},
    format::PAGE,
    limiter::Limiter,
    reader::{disagree, lose},
    segment::Segment,
    shared::{SEAL_MISMATCH, Shared},
    walk::Identity,
};

/// Bytes a second at full weight, of segments that were hashed before.
const SCRUB_BYTES_PER_SECOND: u64 = 16 << 20;
/// The same of segments that aren't hashed yet: replay, which lets them be removed, reads as fast.
const HASH_BYTES_PER_SECOND: u64 = 128 << 20;
/// A segment is read again this long after it was.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// How often new work is looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Why a whole segment is quarantined whose hash was known.
const HASH_MISMATCH: &str = "what is in it isn't what was hashed when it was sealed";
const SEAL_DAMAGED: &str = "the seal is damaged or unreadable";

/// What was done since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes: AtomicU64,
    pub(super) segments: AtomicU64,
    /// Unix nanoseconds; 0: none was.
    pub(super) last_pass_unix_ns: AtomicU64,
}

/// Scrubs until the vault stops; runs on its own thread.
pub(super) fn scrub(shared: &Shared, mut scrubber: Scrubber) {
    while !shared.is_stopping() {
        let pause = scrubber.step(shared, shared.platform.now());
        if !pause.is_zero() {
            shared.scrub_wanted.wait(pause);
        }
    }
}

/// The state of the work.
#[derive(Debug)]
pub(super) struct Scrubber {
    limiter: Limiter,
    work: Option<Work>,
    /// When each segment, by number and tag, was last read to its end.
    done: HashMap<(u64, u64), Instant>,
    /// Something was read since the last full pass.
    pass_is_open: bool,
}

#[derive(Debug)]
struct Work {
    segment: Arc<Segment>,
    examination: Examination,
    is_hashed: bool,
}

impl Scrubber {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            limiter: Limiter::new(now),
            work: None,
            done: HashMap::new(),
            pass_is_open: false,
        }
    }

    /// Does one piece of work, at most a block if nothing is damaged; gives how long to wait before
    /// the next.
    pub(super) fn step(&mut self, shared: &Shared, now: Instant) -> Duration {
        // Segments of earlier runs may still come, and with them what the chain goes on from.
        if shared.recovering.load(Ordering::Acquire) {
            return LOOK;
        }
        let is_hashed = self.work.as_ref().is_none_or(|work| work.is_hashed);
        let full_rate = if is_hashed {
            SCRUB_BYTES_PER_SECOND
        } else {
            HASH_BYTES_PER_SECOND
        };
        match self.limiter.wait(shared.background_rate(full_rate), now) {
            Some(Duration::ZERO) => {}
            Some(wait) => return wait,
            None => return LOOK,
        }
        match self.work.take() {
            Some(work) => self.go_on(shared, work, now),
            None => return self.begin(shared, now),
        }
        Duration::ZERO
    }

    /// Chooses the segment that was read longest ago, those never read first, in order of number.
    fn begin(&mut self, shared: &Shared, now: Instant) -> Duration {
        let sealed = shared
            .catalog
            .select(|segment| segment.is_sealed() && !segment.is_quarantined());
        let known: HashMap<_, _> = sealed
            .iter()
            .filter_map(|segment| self.done.remove_entry(&key(segment)))
            .collect();
        self.done = known;
        let due = sealed
            .into_iter()
            .filter(|segment| !segment.is_condemned())
            .map(|segment| (self.done.get(&key(&segment)).copied(), segment))
            .filter(|(last, _)| last.is_none_or(|last| now.duration_since(last) >= AGAIN_AFTER))
            .min_by_key(|(last, segment)| (*last, segment.number));
        let Some((_, segment)) = due else {
            if std::mem::take(&mut self.pass_is_open) {
                let counters = &shared.scrubbed;
                counters
                    .last_pass_unix_ns
                    .store(shared.platform.unix_nanos(), Ordering::Relaxed);
            }
            return LOOK;
        };
        self.pass_is_open = true;
        let identity = Identity {
            segment: segment.number,
            tag: Some(segment.tag),
        };
        let limit = segment.readable_bytes() + PAGE as u64;
        match Examination::open(shared.platform.as_ref(), &segment.path, identity, limit) {
            Ok(examination) => {
                let is_hashed = shared
                    .chains
                    .find(shared.platform.as_ref(), shared.dir(), &segment)
                    .is_some();
                self.work = Some(Work {
                    segment,
                    examination,
                    is_hashed,
                });
                return Duration::ZERO;
            }
            // Settled and removed meanwhile.
            Err(gone) if gone.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(path = %segment.path.display(), %error, "can't open a vault segment to scrub it");
            }
        }
        self.done.insert(key(&segment), now);
        Duration::ZERO
    }

    fn go_on(&mut self, shared: &Shared, mut work: Work, now: Instant) {
        let segment = Arc::clone(&work.segment);
        if segment.is_condemned() {
            return;
        }
        let found = work.examination.step();
        // Read while its file was being removed: whatever that was, nobody needs it.
        if segment.is_condemned() {
            return;
        }
        match found {
            Found::Block(bytes) => {
                self.count(shared, bytes);
                self.work = Some(work);
            }
            Found::Damage(damaged) => {
                self.count(shared, damaged.bytes);
                if damaged.position.offset >= segment.readable_bytes() {
                    disagree(shared, &segment, damaged.position, SEAL_DAMAGED);
                } else {
                    lose(
                        shared,
                        &segment,
                        damaged.position,
                        damaged.header.as_ref(),
                        damaged.following.as_ref(),
                        damaged.reason,
                    );
                }
                self.work = Some(work);
            }
            Found::Seal(content) => {
                self.count(shared, PAGE as u64);
                compare(shared, &segment, &content);
                self.finish(shared, &segment, now);
            }
            Found::End(_) => self.finish(shared, &segment, now),
        }
    }

    fn count(&mut self, shared: &Shared, bytes: u64) {
        self.limiter.spent(bytes);
        shared.scrubbed.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finish(&mut self, shared: &Shared, segment: &Segment, now: Instant) {
        self.done.insert(key(segment), now);
        shared.scrubbed.segments.fetch_add(1, Ordering::Relaxed);
    }
}

/// Compares a segment that was read to its seal with the seal and with its lane's chain, or adds it
/// to that.
fn compare(shared: &Shared, segment: &Segment, content: &Content) {
    if segment.is_quarantined() {
        return;
    }
    if !content.is_sealed_so() {
        disagree(shared, segment, content.position, SEAL_MISMATCH);
        return;
    }
    match shared
        .chains
        .find(shared.platform.as_ref(), shared.dir(), segment)
    {
        Some(sealed) if sealed.is_of(content) => {}
        Some(_) => disagree(shared, segment, content.position, HASH_MISMATCH),
        None => {
            if let Err(error) =
                shared
                    .chains
                    .add(shared.platform.as_ref(), shared.dir(), segment, content)
            {
                tracing::error!(path = %segment.path.display(), error = %error, "a sealed vault segment isn't chained; tried again when it is next scrubbed");
            }
        }
    }
}

fn key(segment: &Segment) -> (u64, u64) {
    (segment.number, segment.tag)
}

//! Looking into a vault's directory without owning it: for operators, while a daemon runs or not.
//!
//! Invariants
//! - Nothing is written, removed or locked for longer than an instant.
//! - Memory is bounded: two windows, one decoded block and, where asked for, one entry of at most
//!   [`ENTRY_BYTES_MAX`]; of the directory, one header a segment and the cursors.
//! - No stored byte can panic, loop or over-allocate. What is damaged is reported and passed over.
//! - A daemon may write, cut and remove files meanwhile: what vanishes is left out, what looks damaged is looked
//!   at once more before it is called so.

mod account;
mod seen;
mod summary;
mod walk;

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    seen::{BlockSeen, Damage, Depth, ENTRY_BYTES_MAX, Ending, EntrySeen, Visitor, Walked},
    summary::{Codecs, DAMAGE_MAX, Owed, State, Summary, summarize},
    walk::walk,
};
use super::{
    cursors::Cursors,
    destinations::Destinations,
    directory::{self, lane_of, number_of},
    entry::DestMask,
    error::{Error, io_error},
    format::{BlockHeader, FormatError, PAGE, SegmentHeader},
    outlook::{Next, Successor},
    platform::{Os, Platform},
    quarantine::{self, Quarantine, QuarantineError},
    walk::BlockSource,
};

/// Looks at files, whoever owns the directory.
const FILES: Os = Os::to_read();

/// Who has the directory's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// No daemon runs on it.
    Nobody,
    /// A daemon does, with this process id if that is known.
    Daemon(Option<u32>),
}

/// A vault's directory at one moment.
#[derive(Debug)]
pub struct Directory {
    files: Arc<dyn Platform>,
    dir: PathBuf,
    owner: Owner,
    destinations: Vec<String>,
    notes: Vec<String>,
    cursors: Cursors,
    lanes: Vec<PathBuf>,
    segments: Vec<SegmentFile>,
    /// Segments by the lane's segment before them.
    successors: HashMap<u64, usize>,
}

/// One segment's file.
#[derive(Debug, Clone)]
pub struct SegmentFile {
    /// Lane, from the directory's name.
    pub lane: u16,
    /// Number, from the file's name.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes, when the directory was read.
    pub bytes: u64,
    /// What its first page says.
    pub header: Header,
    /// An operator took it out of replay.
    pub quarantine: Option<Quarantine>,
}

/// First page of a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// Whole, and this file's.
    Whole(SegmentHeader),
    /// Whole, but of another lane or segment than the file's name says.
    Foreign(SegmentHeader),
    /// Not a header.
    Damaged(FormatError),
    /// It can't be read.
    Unreadable(String),
}

impl Header {
    /// The header, if it is whole and the lane has begun the segment.
    #[must_use]
    pub fn begun(&self) -> Option<&SegmentHeader> {
        self.whole().filter(|header| !header.is_ready)
    }

    /// The header, if it is whole and this file's.
    #[must_use]
    pub fn whole(&self) -> Option<&SegmentHeader> {
        match self {
            Self::Whole(header) => Some(header),
            Self::Foreign(_) | Self::Damaged(_) | Self::Unreadable(_) => None,
        }
    }
}

impl Directory {
    /// Reads the directory: which segments there are, what is settled, to whom it is owed.
    ///
    /// # Errors
    /// `dir` isn't a directory that can be listed. What else is wrong is in [`Directory::notes`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_on(Arc::new(FILES), dir)
    }

    /// As [`Directory::open`], with the files of any machine.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open_on(files: Arc<dyn Platform>, dir: &Path) -> Result<Self, Error> {
        let on = files.as_ref();
        let mut notes = Vec::new();
        let owner = match FILES
            .holder(&dir.join("lock"))
            .map_err(io_error("opening", dir.join("lock")))
        {
            Ok(None) => Owner::Nobody,
            Ok(Some(pid)) => Owner::Daemon(pid),
            Err(error) => {
                notes.push(format!("whether a daemon runs on it isn't known: {error}"));
                Owner::Nobody
            }
        };
        let destinations = Destinations::read_names(on, dir).unwrap_or_else(|error| {
            notes.push(error.to_string());
            Vec::new()
        });
        // Before the segments: what is settled meanwhile then shows as owed, not the other way round.
        let cursors = match Cursors::read_noting(on, dir) {
            Ok((cursors, damaged)) => {
                notes.extend(damaged);
                cursors
            }
            Err(error) => {
                notes.push(format!("nothing counts as settled: {error}"));
                Cursors::default()
            }
        };
        let (lanes, segments) = list(on, dir)?;
        let successors = (0..)
            .zip(&segments)
            .filter_map(|(at, segment)| Some((segment.header.begun()?.previous, at)))
            .collect();
        Ok(Self {
            files,
            dir: dir.to_path_buf(),
            owner,
            destinations,
            notes,
            cursors,
            lanes,
            segments,
            successors,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Who has its lock.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Name of a destination by its bit; `#3` where the table doesn't say.
    #[must_use]
    pub fn destination(&self, bit: usize) -> String {
        self.destinations
            .get(bit)
            .cloned()
            .unwrap_or_else(|| format!("#{bit}"))
    }

    /// Destinations that the vault knows.
    #[must_use]
    pub fn destinations(&self) -> &[String] {
        &self.destinations
    }

    /// What is wrong with the files beside the segments, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The lanes' directories, in their order.
    #[must_use]
    pub fn lanes(&self) -> &[PathBuf] {
        &self.lanes
    }

    /// All segments, in the order of their numbers.
    #[must_use]
    pub fn segments(&self) -> &[SegmentFile] {
        &self.segments
    }

    /// The segment with that number.
    #[must_use]
    pub fn segment(&self, number: u64) -> Option<&SegmentFile> {
        let at = self
            .segments
            .binary_search_by_key(&number, |segment| segment.number)
            .ok()?;
        self.segments.get(at)
    }

    /// Whether its lane has begun no later segment.
    fn is_last(&self, segment: &SegmentFile) -> bool {
        !self.segments.iter().any(|other| {
            other.lane == segment.lane
                && other.number > segment.number
                && other.header.begun().is_some()
        })
    }

    /// Who is owed all entries of a block, if the cursors tell.
    fn owed_alike(&self, block: &BlockHeader, entries: Range<u64>) -> Option<DestMask> {
        let destinations = self.destinations.len();
        self.cursors
            .owed_alike(block.segment, block.tag, entries, destinations)
    }

    /// What a lane began after the segment, if that is there.
    fn next(&self, segment: &SegmentFile) -> Next<'_> {
        let known = self.successors.get(&segment.number);
        let next = known.and_then(|&at| self.segments.get(at));
        if let Some((next, header)) = next.and_then(|next| Some((next, next.header.begun()?))) {
            return Next::Here(Successor {
                header,
                path: &next.path,
                bytes: next.bytes,
            });
        }
        let is_unreadable = |other: &SegmentFile| {
            other.lane == segment.lane && matches!(other.header, Header::Unreadable(_))
        };
        match self.segments.iter().any(is_unreadable) {
            true => Next::Unknown,
            false => Next::None,
        }
    }

    fn files(&self) -> &dyn Platform {
        self.files.as_ref()
    }
}

/// Takes a segment out of replay, or puts it back, in a directory that no daemon runs on.
///
/// # Errors
/// A daemon has the lock, there is no such segment, it is so already, or its file can't be changed.
pub fn set_quarantine(
    dir: &Path,
    number: u64,
    order: Option<Quarantine>,
) -> Result<SegmentFile, QuarantineError> {
    if !dir.join("lock").exists() {
        // Not to make one in a directory that isn't a vault's.
        list(&FILES, dir)?;
        return Err(QuarantineError::Unknown(number));
    }
    let _lock = directory::lock(&FILES, dir)?;
    let (_, segments) = list(&FILES, dir)?;
    let mut segment = segments
        .into_iter()
        .find(|segment| segment.number == number)
        .ok_or(QuarantineError::Unknown(number))?;
    match (&order, &segment.quarantine) {
        (Some(_), Some(_)) => return Err(QuarantineError::Already(number)),
        (None, None) => return Err(QuarantineError::NotQuarantined(number)),
        (Some(quarantine), None) => {
            quarantine::write(&FILES, dir, segment.lane, number, quarantine)?;
        }
        (None, Some(_)) => quarantine::remove(&FILES, dir, segment.lane, number)?,
    }
    segment.quarantine = order;
    Ok(segment)
}

impl Quarantine {
    /// One that begins now.
    #[must_use]
    pub fn now(by: String, reason: String) -> Self {
        Self {
            since_unix_ns: FILES.unix_nanos(),
            by,
            reason,
        }
    }
}

/// Finds the lanes, and all segments, in the order of their numbers, of which it reads the first pages.
fn list(files: &dyn Platform, dir: &Path) -> Result<(Vec<PathBuf>, Vec<SegmentFile>), Error> {
    let (mut lanes, mut segments) = (Vec::new(), Vec::new());
    for listed in files.list(dir).map_err(io_error("listing", dir))? {
        let (Some(lane), true) = (lane_of(&listed.path), listed.is_dir) else {
            continue;
        };
        let in_lane = files.list(&listed.path);
        for file in in_lane.map_err(io_error("listing", &listed.path))? {
            let Some(number) = number_of(&file.path) else {
                continue;
            };
            let header = read_header(files, &file.path, lane, number);
            if matches!(header, Header::Unreadable(_)) && !files.exists(&file.path) {
                // A daemon has taken it away since.
                continue;
            }
            segments.push(SegmentFile {
                lane,
                number,
                header,
                quarantine: quarantine::read(files, dir, lane, number),
                path: file.path,
                bytes: file.bytes,
            });
        }
        lanes.push(listed.path);
    }
    lanes.sort_unstable_by_key(|lane| lane_of(lane));
    segments.sort_unstable_by_key(|segment| (segment.number, segment.lane));
    Ok((lanes, segments))
}

fn read_header(files: &dyn Platform, path: &Path, lane: u16, number: u64) -> Header {
    let read = BlockSource::open_for_headers(files, path)
        .and_then(|mut source| source.bytes(0, PAGE, u64::MAX).map(SegmentHeader::decode));
    match read {
        Ok(Ok(header)) if (header.lane, header.segment) == (lane, number) => Header::Whole(header),
        Ok(Ok(header)) => Header::Foreign(header),
        Ok(Err(error)) => Header::Damaged(error),
        Err(error) => Header::Unreadable(error.to_string()),
    }
}

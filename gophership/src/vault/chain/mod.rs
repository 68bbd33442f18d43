//! The chain of hashes through a lane's sealed segments, computed in the background.
//!
//! *Own hash* of a segment: BLAKE3 of the decoded payloads of its data blocks, one after the other in
//! their order, that is, of each piece's 32 bytes of header as drawn in [`super::entry`] and its bytes.
//! Neither the codec nor where blocks begin changes it.
//!
//! *Chained hash*: BLAKE3 of the chained hash before it in the lane's chain (32 zeros at place 0), then
//! bytes 8 to 64 of its record in the manifest (place, number, tag, entries, records, time, blocks,
//! segment CRC), then its own hash.
//!
//! Segments come to the chain in the order in which they were hashed: as a rule that of their numbers,
//! but one that its lane gave up is sealed, and so hashed, after the next start. No key is involved:
//! see docs/vault-format.md for what that finds and what it can't.

mod manifest;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::{BTreeMap, HashSet},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::manifest::{BYTES_MAX, Image, NAME, RECORD, Record};
use super::{
    directory,
    error::{Error, io_error},
    platform::Platform,
    segment::Segment,
};

#[cfg(fuzzing)]
pub(super) use self::manifest::fuzzing;
pub use self::{
    manifest::ManifestError,
    verify::{ChainReport, Known, SegmentReport, State, verify, verify_known},
};
pub use super::examine::Content;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// Records of removed segments that a compaction leaves.
const REMOVED_KEPT: u64 = 256;

/// A sealed segment as its lane's manifest has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Its place in the lane's chain, from 0.
    pub place: u64,
    /// Its number.
    pub number: u64,
    /// Its tag.
    pub tag: u64,
    /// Entries in it.
    pub entries: u64,
    /// Records of those.
    pub records: u64,
    /// When it was sealed, Unix nanoseconds.
    pub sealed_unix_ns: u64,
    /// Blocks before its seal.
    pub blocks: u32,
    /// CRC32 over the CRC fields of those.
    pub segment_crc: u32,
    /// Hash of what is in it.
    pub own: Hash,
    /// Chained hash of the place before.
    pub before: Hash,
    /// Its chained hash.
    pub chained: Hash,
}

impl Sealed {
    fn new(place: u64, before: Hash, content: &Content) -> Self {
        let seal = &content.seal;
        let mut sealed = Self {
            place,
            number: seal.segment,
            tag: seal.tag,
            entries: seal.first_entry,
            records: seal.first_record,
            sealed_unix_ns: seal.wall_unix_ns,
            blocks: content.blocks,
            segment_crc: content.crc,
            own: content.hash,
            before,
            chained: [0; 32],
        };
        sealed.chained = sealed.chained_hash();
        sealed
    }

    /// Bytes 16 to 64 of its record: everything but the hashes and the place.
    fn identity(&self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[0..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.entries.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.records.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.sealed_unix_ns.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.segment_crc.to_le_bytes());
        bytes
    }

    /// What its chained hash must be, from the other fields.
    #[must_use]
    pub fn chained_hash(&self) -> Hash {
        *blake3::Hasher::new()
            .update(&self.before)
            .update(&self.place.to_le_bytes())
            .update(&self.identity())
            .update(&self.own)
            .finalize()
            .as_bytes()
    }

    /// Whether `content` is what was hashed.
    #[must_use]
    pub(super) fn is_of(&self, content: &Content) -> bool {
        let found = Self::new(self.place, self.before, content);
        *self
            == Self {
                chained: self.chained,
                ..found
            }
    }
}

/// The manifests of a running vault, one a lane; also of lanes that only earlier runs had.
#[derive(Debug, Default)]
pub(super) struct Chains {
    lanes: Mutex<BTreeMap<u16, Lane>>,
}

/// A lane's manifest as it is in use.
#[derive(Debug)]
enum Lane {
    Open(Manifest),
    /// It can't be used, which was said; nothing is written to it.
    Unusable,
}

impl Chains {
    /// What is known of a segment.
    #[must_use]
    pub(super) fn find(
        &self,
        platform: &dyn Platform,
        dir: &Path,
        segment: &Segment,
    ) -> Option<Sealed> {
        let mut lanes = self.lock();
        let manifest = manifest_of(&mut lanes, platform, dir, segment.lane)?;
        let same = |sealed: &&Sealed| sealed.number == segment.number && sealed.tag == segment.tag;
        manifest.sealed.iter().find(same).copied()
    }

    /// Adds a segment that was just hashed, durably, unless it is being removed.
    ///
    /// # Errors
    /// The manifest can't be written.
    pub(super) fn add(
        &self,
        platform: &dyn Platform,
        dir: &Path,
        segment: &Segment,
        content: &Content,
    ) -> Result<(), Error> {
        let mut lanes = self.lock();
        match manifest_of(&mut lanes, platform, dir, segment.lane) {
            Some(manifest) if !segment.is_condemned() => {
                let sealed = Sealed::new(manifest.next_place, manifest.head, content);
                manifest.append(platform, &[Record::Sealed(sealed)])
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Notes durably that segments are about to be removed. A note that can't be written doesn't keep
    /// them: removing is what makes room.
    pub(super) fn note_removal(
        &self,
        platform: &dyn Platform,
        dir: &Path,
        segments: &[Arc<Segment>],
    ) {
        let mut by_lane: BTreeMap<u16, Vec<&Segment>> = BTreeMap::new();
        for segment in segments.iter().filter(|segment| segment.is_begun()) {
            by_lane.entry(segment.lane).or_default().push(segment);
        }
        let mut lanes = self.lock();
        segments.iter().for_each(|segment| segment.condemn());
        for (lane, segments) in by_lane {
            let Some(manifest) = manifest_of(&mut lanes, platform, dir, lane) else {
                continue;
            };
            let records: Vec<_> = segments
                .iter()
                .filter(|segment| manifest.is_kept(segment.number, segment.tag))
                .map(|segment| Record::Removed(segment.number, segment.tag))
                .collect();
            if let Err(error) = manifest.append(platform, &records) {
                tracing::warn!(lane, error = %error, "can't note the removal of vault segments: a verification will miss them");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn manifest_of<'a>(
    lanes: &'a mut BTreeMap<u16, Lane>,
    platform: &dyn Platform,
    dir: &Path,
    lane: u16,
) -> Option<&'a mut Manifest> {
    let open = || match Manifest::open(platform, &directory::lane_dir(dir, lane), lane) {
        Ok(manifest) => Lane::Open(manifest),
        Err(error) => {
            tracing::error!(lane, error = %error, "the lane's segments aren't chained");
            Lane::Unusable
        }
    };
    match lanes.entry(lane).or_insert_with(open) {
        Lane::Open(manifest) => Some(manifest),
        Lane::Unusable => None,
    }
}

/// One lane's manifest.
#[derive(Debug)]
struct Manifest {
    dir: PathBuf,
    lane: u16,
    /// Bytes of the file that count; 0 while there is none.
    end: u64,
    compacted_below: u64,
    next_place: u64,
    /// Chained hash of the last place.
    head: Hash,
    /// In the chain's order.
    sealed: Vec<Sealed>,
    removed: HashSet<(u64, u64)>,
}

impl Manifest {
    fn open(platform: &dyn Platform, dir: &Path, lane: u16) -> Result<Self, Error> {
        let mut manifest = Self {
            dir: dir.to_path_buf(),
            lane,
            end: 0,
            compacted_below: 0,
            next_place: 0,
            head: [0; 32],
            sealed: Vec::new(),
            removed: HashSet::new(),
        };
        let path = dir.join(NAME);
        let image = match read(platform, &path)? {
            None => return Ok(manifest),
            Some(Ok(image)) => image,
            Some(Err(reason @ (ManifestError::Version(_) | ManifestError::Long(_)))) => {
                return Err(Error::Manifest { path, reason });
            }
            Some(Err(reason)) => {
                let aside = path.with_extension("damaged");
                platform
                    .rename(&path, &aside)
                    .map_err(io_error("renaming", &path))?;
                tracing::error!(path = %aside.display(), %reason, "damaged vault manifest set aside; the lane's chain begins anew");
                return Ok(manifest);
            }
        };
        if image.damaged > 0 {
            tracing::error!(path = %path.display(), records = image.damaged, "damaged records in a vault manifest");
        }
        manifest.end = image.whole_bytes;
        manifest.compacted_below = image.compacted_below;
        manifest.next_place = image.compacted_below;
        image
            .records
            .into_iter()
            .for_each(|record| manifest.take(record));
        Ok(manifest)
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Sealed(sealed) => {
                self.next_place = self.next_place.max(sealed.place.saturating_add(1));
                self.head = sealed.chained;
                self.sealed.push(sealed);
            }
            Record::Removed(number, tag) => {
                self.removed.insert((number, tag));
            }
        }
    }

    fn is_kept(&self, number: u64, tag: u64) -> bool {
        !self.removed.contains(&(number, tag))
            && self
                .sealed
                .iter()
                .any(|sealed| sealed.number == number && sealed.tag == tag)
    }

    /// Adds records durably.
    fn append(&mut self, platform: &dyn Platform, records: &[Record]) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        if self.end == 0 {
            self.replace(platform)?;
        }
        let path = self.dir.join(NAME);
        let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        // Behind a torn record may be more of it.
        platform
            .append(&path, self.end, &bytes)
            .map_err(io_error("appending to", &path))?;
        self.end += bytes.len() as u64;
        records.iter().for_each(|&record| self.take(record));
        self.compact(platform)
    }

    /// Leaves out what is of segments long gone, when that is much.
    fn compact(&mut self, platform: &dyn Platform) -> Result<(), Error> {
        if (self.removed.len() as u64) < 2 * REMOVED_KEPT {
            return Ok(());
        }
        let below = self.next_place.saturating_sub(REMOVED_KEPT);
        let removed = &self.removed;
        self.sealed.retain(|sealed| {
            sealed.place >= below || !removed.contains(&(sealed.number, sealed.tag))
        });
        let kept: HashSet<_> = self
            .sealed
            .iter()
            .map(|sealed| (sealed.number, sealed.tag))
            .collect();
        self.removed.retain(|removed| kept.contains(removed));
        self.compacted_below = self.compacted_below.max(below);
        self.replace(platform)
    }

    /// Writes the whole file anew.
    fn replace(&mut self, platform: &dyn Platform) -> Result<(), Error> {
        let sealed = self.sealed.iter().copied().map(Record::Sealed);
        let removed = self
            .removed
            .iter()
            .map(|&(number, tag)| Record::Removed(number, tag));
        let records: Vec<_> = sealed.chain(removed).collect();
        let bytes = manifest::encode(self.lane, self.compacted_below, &records);
        directory::replace_file(platform, &self.dir, NAME, &bytes)?;
        self.end = bytes.len() as u64;
        Ok(())
    }
}

/// Reads a manifest; `None` if there is none.
fn read(
    platform: &dyn Platform,
    path: &Path,
) -> Result<Option<Result<Image, ManifestError>>, Error> {
    match platform.read(path, BYTES_MAX + RECORD as u64) {
        Ok(bytes) if bytes.len() as u64 > BYTES_MAX => {
            Ok(Some(Err(ManifestError::Long(bytes.len() as u64))))
        }
        Ok(bytes) => Ok(Some(manifest::decode(&bytes))),
        Err(missing) if missing.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error("reading", path)(source)),
    }
}

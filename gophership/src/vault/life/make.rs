//! Making a segment's file: from nothing, or from a spare.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use super::{FILL_BYTES, Keeper, remove};
use crate::uring::AlignedBytes;
use crate::vault::{
    directory::{UNFINISHED, lane_dir, segment_path, sync_dir},
    error::{Error, io_error},
    format::{PAGE, SegmentHeader},
    ledger::Ledger,
    platform::{Access, DiskFile},
    port::Ready,
    segment::Segment,
};

impl Keeper {
    /// Makes a segment for `lane`, from the longest spare if there is one; `None` if the vault stops
    /// meanwhile.
    pub(super) fn make(&mut self, lane: u16) -> Result<Option<Ready>, Error> {
        let shared = Arc::clone(&self.shared);
        let platform = shared.platform.as_ref();
        let number = shared.next_segment.fetch_add(1, Ordering::Relaxed);
        let path = segment_path(shared.dir(), lane, number);
        let spare = self.spares.pop();
        let (staged, written) = match &spare {
            Some(spare) => (spare.path.clone(), spare.bytes),
            None => (path.with_extension(format!("gsv.{UNFINISHED}")), 0),
        };
        let made = self.prepare(&staged, written).and_then(|filled| {
            let Some(file) = filled else { return Ok(None) };
            let tag = platform
                .random()
                .map_err(io_error("reading", "/dev/urandom"))?;
            self.claim(file.as_ref(), lane, number, tag)
                .map_err(io_error("writing the header of", &staged))?;
            platform
                .rename(&staged, &path)
                .map_err(io_error("renaming", &staged))?;
            let dir = lane_dir(shared.dir(), lane);
            sync_dir(platform, &dir)?;
            if let Some(from) = staged.parent().filter(|from| *from != dir) {
                sync_dir(platform, from)?;
            }
            Ok(Some((tag, file)))
        });
        let Ok(Some((tag, file))) = made else {
            // Nothing in it is owed. The next attempt has another number, so what is left here would
            // add up.
            remove(platform, &staged);
            remove(platform, &path);
            shared.committed_bytes.fetch_sub(written, Ordering::Relaxed);
            return made.map(|_| None);
        };
        let bytes = shared.config.segment_bytes;
        shared
            .committed_bytes
            .fetch_add(bytes - written, Ordering::Relaxed);
        if spare.is_some() {
            shared.recycled.fetch_add(1, Ordering::Relaxed);
        }
        let ledger = Ledger::preallocated(shared.destinations.len());
        let segment = Segment::new(number, lane, tag, path, bytes, ledger);
        Ok(Some(Ready {
            segment: Arc::new(segment),
            file,
        }))
    }

    /// Writes and syncs a header with number and tag, before the file gets the segment's name: from then on
    /// nothing that a producer may have planted in what is now old passes for one of its blocks, whatever
    /// crashes.
    fn claim(&self, file: &dyn DiskFile, lane: u16, number: u64, tag: u64) -> std::io::Result<()> {
        let header = SegmentHeader {
            lane,
            segment: number,
            tag,
            previous: 0,
            previous_durable: 0,
            previous_given_up: false,
            is_ready: true,
            created_unix_ns: 0,
            bytes: self.shared.config.segment_bytes,
            host: self.shared.host,
        };
        let mut page = AlignedBytes::zeroed(PAGE);
        header.encode(&mut page);
        file.write_all_at(&page, 0)?;
        file.sync_data()
    }

    /// Opens a file and fills it with zeros behind the `written` bytes it has; `None` if the vault stops
    /// meanwhile.
    fn prepare(&self, path: &Path, written: u64) -> Result<Option<Arc<dyn DiskFile>>, Error> {
        let access = if written == 0 {
            Access::Create
        } else {
            Access::Write
        };
        let file = self
            .shared
            .platform
            .open(path, access)
            .map_err(io_error("opening", path))?;
        let is_filled = self
            .fill(file.as_ref(), written)
            .map_err(io_error("filling", path))?;
        Ok(is_filled.then_some(file))
    }

    fn fill(&self, file: &dyn DiskFile, written: u64) -> std::io::Result<bool> {
        let bytes = self.shared.config.segment_bytes;
        if written == bytes {
            return Ok(true);
        }
        let mut at = written / PAGE as u64 * PAGE as u64;
        // One contiguous reservation, and an early ENOSPC.
        file.reserve(bytes)?;
        while at < bytes {
            if self.shared.is_stopping() {
                return Ok(false);
            }
            let len = usize::try_from(bytes - at)
                .unwrap_or(FILL_BYTES)
                .min(self.zeros.len());
            file.write_all_at(&self.zeros[..len], at)?;
            at += len as u64;
            if at < bytes {
                // Little at a time: lanes' writes wait behind what a disk has to flush.
                file.sync_data()?;
            }
        }
        file.sync_all()?;
        Ok(true)
    }
}

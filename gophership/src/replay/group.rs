//! Entries of the vault put together into batches.

use std::io::Read;

use flate2::read::MultiGzDecoder;

use crate::{
    export::Batch,
    vault::{ContentEncoding, DestMask, Entry},
};

/// Entries for the same destinations, in one batch.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) entries: Vec<Entry>,
    pub(super) owed: DestMask,
    plain: Vec<u8>,
    records: u64,
}

/// An entry that can't be decompressed: the vault gave back what the producer sent, and that was
/// checked before it was acknowledged.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) entry: Entry,
    pub(super) reason: String,
}

impl Group {
    /// A group of one entry.
    pub(super) fn of(entry: Entry, limit: usize) -> Result<Self, Unreadable> {
        let plain = match plain(&entry, limit) {
            Ok(plain) => plain,
            Err(reason) => return Err(Unreadable { entry, reason }),
        };
        Ok(Self {
            owed: entry.owed,
            records: u64::from(entry.records),
            plain,
            entries: vec![entry],
        })
    }

    /// Takes the entries of `other` in, if they go to the same destinations and fit.
    pub(super) fn join(&mut self, other: Self, bytes_max: usize) -> Option<Self> {
        if self.owed != other.owed || self.plain.len() + other.plain.len() > bytes_max {
            return Some(other);
        }
        self.plain.extend_from_slice(&other.plain);
        self.records += other.records;
        self.entries.extend(other.entries);
        None
    }

    pub(super) fn stored_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes.len()).sum()
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// The batch, taken out of the group.
    pub(super) fn take_batch(&mut self) -> Batch {
        Batch {
            bytes: std::mem::take(&mut self.plain).into(),
            records: self.records,
        }
    }
}

fn plain(entry: &Entry, limit: usize) -> Result<Vec<u8>, String> {
    match entry.encoding {
        ContentEncoding::Identity => Ok(entry.bytes.clone()),
        ContentEncoding::Gzip => {
            let mut plain = Vec::new();
            let bound = limit as u64 + 1;
            let read = MultiGzDecoder::new(&entry.bytes[..])
                .take(bound)
                .read_to_end(&mut plain);
            match read {
                Ok(len) if len > limit => Err(format!("larger than {limit} bytes decompressed")),
                Ok(_) => Ok(plain),
                Err(error) => Err(format!("not valid gzip: {error}")),
            }
        }
        ContentEncoding::Zstd => Err("zstd is not built in".to_owned()),
    }
}

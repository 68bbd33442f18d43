//! Portions of what is owed, the next of which is read while the last is on its way.
//!
//! Reading blocks, so it is done beside the replay's thread. Memory: two portions.

use tokio::task::{JoinHandle, spawn_blocking};

use crate::vault::{DestMask, Entry, Error, Reader, Selection};

/// Reads for one destination.
#[derive(Debug)]
pub(super) struct Source {
    portion_bytes: usize,
    wanted: DestMask,
    /// Absent while it is used to read ahead.
    reader: Option<Reader>,
    ahead: Option<JoinHandle<(Reader, Portion)>>,
}

type Portion = Result<Vec<Entry>, Error>;

impl Source {
    /// Reads portions of `portion_bytes` of stored message bytes, or of one entry, of what `wanted` is owed.
    pub(super) const fn new(reader: Reader, portion_bytes: usize, wanted: DestMask) -> Self {
        Self {
            portion_bytes,
            wanted,
            reader: Some(reader),
            ahead: None,
        }
    }

    /// The next portion; empty if nothing is left, see [`Reader::next`].
    pub(super) async fn next(&mut self) -> Portion {
        self.read_ahead();
        let portion = self.finish_reading().await.unwrap_or(Ok(Vec::new()));
        if portion.as_ref().is_ok_and(|entries| !entries.is_empty()) {
            self.read_ahead();
        }
        portion
    }

    /// Begins again with the first entry that is owed. What was read ahead is forgotten.
    pub(super) async fn rewind(&mut self) {
        self.finish_reading().await;
        if let Some(reader) = &mut self.reader {
            reader.rewind();
        }
    }

    /// As [`Self::rewind`], and gives only what is selected.
    pub(super) async fn select(&mut self, selection: Selection) {
        self.finish_reading().await;
        if let Some(reader) = &mut self.reader {
            reader.select(selection);
        }
    }

    /// Whether something is read that wasn't given out: so from the first portion until there is no more.
    pub(super) const fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    fn read_ahead(&mut self) {
        let (bytes, wanted) = (self.portion_bytes, self.wanted);
        if let Some(mut reader) = self.reader.take() {
            self.ahead = Some(spawn_blocking(move || {
                let portion = reader.next(bytes, wanted);
                (reader, portion)
            }));
        }
    }

    /// What is read ahead, if anything is; then nobody reads any more.
    async fn finish_reading(&mut self) -> Option<Portion> {
        // It stays until it is done: whoever waits may give up meanwhile.
        let (reader, portion) = match self.ahead.as_mut()?.await {
            Ok(read) => read,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.ahead = None;
        self.reader = Some(reader);
        Some(portion)
    }
}

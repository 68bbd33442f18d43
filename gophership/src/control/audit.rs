//! The audit log: one JSON line for each call that changes something, refused ones included.
//!
//! ```json
//! {"time":"2026-01-02T03:04:05.678Z","who":{"uid":0,"gid":0,"pid":42},"what":"set_override",
//!  "arguments":{"zone":"red","for_seconds":3600,"reason":"disk swap"},"result":"ok"}
//! ```
//! (on one line). `result` is `ok`, `not_permitted` or `failed`; the latter two come with `error`.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Error;
use crate::telemetry::lines;

/// Where the lines go. The file is opened for each of the few lines, so that it may be rotated by
/// renaming it.
#[derive(Debug, Clone)]
pub(super) struct Log {
    path: Arc<PathBuf>,
}

/// Who called.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Caller {
    /// User.
    pub(super) uid: u32,
    /// Primary group.
    pub(super) gid: u32,
    /// Process, if it could be told.
    pub(super) pid: Option<i32>,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Done.
    Ok,
    /// Refused because of who called.
    NotPermitted,
    /// Refused or failed for another reason.
    Failed,
}

/// One line.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    time: String,
    who: Option<Caller>,
    what: &'static str,
    arguments: serde_json::Value,
    result: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Line {
    /// A line about a call that ends now.
    pub(super) fn new(
        who: Option<Caller>,
        what: &'static str,
        arguments: serde_json::Value,
        result: Verdict,
        error: Option<String>,
    ) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            // Formatting fails for years beyond 9999 only.
            time: now.format(&Rfc3339).unwrap_or_default(),
            who,
            what,
            arguments,
            result,
            error,
        }
    }
}

impl Log {
    /// Makes the file, for its owner and group, and sees that it can be written.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let log = Self {
            path: Arc::new(path.to_owned()),
        };
        lines::open(path).map_err(|source| Error::Audit {
            path: path.to_owned(),
            source,
        })?;
        Ok(log)
    }

    /// Appends one line and syncs it, on a thread for blocking work.
    pub(super) async fn append(&self, line: Line) -> Result<(), Error> {
        let log = self.clone();
        let written = tokio::task::spawn_blocking(move || log.write(&line)).await;
        written
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|source| Error::Audit {
                path: self.path.to_path_buf(),
                source,
            })
    }

    fn write(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut file = lines::open(&self.path)?;
        // One write to an O_APPEND file: lines of concurrent calls don't mix.
        file.write_all(&text)?;
        file.sync_data()
    }
}

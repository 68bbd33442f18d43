//! `vault`: looking into the daemon's vault, or into any directory of one.

mod args;
mod cat;
mod chain;
mod inspect;
mod list;
mod quarantine;
mod verify;

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::Path,
};

use gophership::{
    control::pb,
    vault::{
        Error,
        inspect::{Directory, Owner, SegmentFile},
    },
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub(crate) use self::args::VaultCommand;
use self::args::{Place, SegmentNumber};
use crate::{
    cli::Cli,
    client,
    failure::Failure,
    human::{bytes, plain},
    output::Sink,
};

/// Runs the command.
pub(crate) async fn run(cli: &Cli, command: &VaultCommand, sink: &mut Sink) -> Result<(), Failure> {
    match command {
        VaultCommand::List { place } => list::run(&Opened::open(cli, place).await?, sink),
        VaultCommand::Verify { place, segments } => {
            verify::run(&Opened::open(cli, place).await?, sink, segments)
        }
        VaultCommand::Inspect {
            place,
            segment,
            blocks,
            entries,
        } => {
            let opened = Opened::open(cli, place).await?;
            inspect::run(&opened, sink, *segment, (*blocks, *entries))
        }
        VaultCommand::Cat {
            place,
            what,
            format,
            owed,
            limit,
        } => {
            let opened = Opened::open(cli, place).await?;
            cat::run(&opened, what, *format, *owed, *limit)
        }
        VaultCommand::Quarantine {
            place,
            segment,
            reason,
            release,
        } => {
            let reason = (!release).then_some(reason.as_str());
            quarantine::run(cli, place, sink, *segment, reason).await
        }
    }
}

/// A vault's directory, and what the daemon says of it if it was asked.
struct Opened {
    directory: Directory,
    live: Option<Live>,
}

/// What the daemon says.
struct Live {
    recovering: bool,
    segments: BTreeMap<u64, pb::VaultSegment>,
}

impl Opened {
    async fn open(cli: &Cli, place: &Place) -> Result<Self, Failure> {
        if let Some(dir) = &place.dir {
            let directory = Directory::open(dir).map_err(failed)?;
            return Ok(Self {
                directory,
                live: None,
            });
        }
        let mut daemon = client::connect(&cli.endpoint).await?;
        let mut parts = daemon
            .vault_list(pb::VaultListRequest {})
            .await?
            .into_inner();
        let mut dir = String::new();
        let mut live = Live {
            recovering: false,
            segments: BTreeMap::new(),
        };
        while let Some(part) = parts.message().await? {
            dir = part.dir;
            live.recovering |= part.recovering;
            let segments = part.segments.into_iter();
            live.segments
                .extend(segments.map(|segment| (segment.number, segment)));
        }
        let directory = Directory::open(Path::new(&dir)).map_err(|error| not_here(&dir, error))?;
        Ok(Self {
            directory,
            live: Some(live),
        })
    }

    /// What the daemon knows of a segment.
    fn live(&self, number: u64) -> Option<&pb::VaultSegment> {
        self.live.as_ref()?.segments.get(&number)
    }

    fn segment(&self, number: SegmentNumber) -> Result<&SegmentFile, Failure> {
        self.directory.segment(number.0).ok_or_else(|| {
            Failure::Usage(format!(
                "{} has no segment {:x}: see `gs-ctl vault list`; what every destination has is removed",
                self.directory.path().display(),
                number.0
            ))
        })
    }

    /// What to know before reading on.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let (None, Owner::Daemon(pid)) = (&self.live, self.directory.owner()) {
            let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            notes.push(format!(
                "a daemon{pid} runs on this directory: what it settled in the last moments shows as owed"
            ));
        }
        if self.live.as_ref().is_some_and(|live| live.recovering) {
            notes.push("the daemon still reads the segments of its last run".to_owned());
        }
        notes.extend(self.directory.notes().iter().cloned());
        notes
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a function for map_err")]
fn failed(error: Error) -> Failure {
    match &error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Failure::NotPermitted(error.to_string())
        }
        _ => Failure::Failed(error.to_string()),
    }
}

fn not_here(dir: &str, error: Error) -> Failure {
    match failed(error) {
        Failure::NotPermitted(why) => Failure::NotPermitted(format!(
            "{why}: uid {} may ask the daemon, but not read its vault; run this as the daemon's user or as root",
            nix::unistd::geteuid()
        )),
        other => Failure::Failed(format!(
            "{other}: the daemon's vault is {dir}, which can't be read here; in a container, run gs-ctl there"
        )),
    }
}

/// A segment's number as people read it.
fn number(number: u64) -> String {
    format!("{number:x}")
}

/// As its file is named, for machines.
fn full_number(number: u64) -> String {
    format!("{number:016x}")
}

/// Unix nanoseconds for machines; null for 0.
fn rfc3339(unix_ns: u64) -> Value {
    time_of(unix_ns)
        .and_then(|time| time.format(&Rfc3339).ok())
        .map_or(Value::Null, |text| json!(text))
}

/// Unix nanoseconds for people, to the second; `-` for 0.
fn short_time(unix_ns: u64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time_of(unix_ns)
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| "-".to_owned())
}

fn time_of(unix_ns: u64) -> Option<OffsetDateTime> {
    (unix_ns != 0)
        .then(|| OffsetDateTime::from_unix_timestamp_nanos(unix_ns.into()).ok())
        .flatten()
}

/// How long ago, in seconds.
fn age_seconds(unix_ns: u64) -> Option<u64> {
    let age = OffsetDateTime::now_utc() - time_of(unix_ns)?;
    u64::try_from(age.whole_seconds()).ok()
}

/// `0-11`, `7`, or `-` for none.
fn range(first: u64, count: u64) -> String {
    match count {
        0 => "-".to_owned(),
        1 => first.to_string(),
        _ => format!("{first}-{}", first.saturating_add(count - 1)),
    }
}

/// One line on standard error, for people alone.
fn tell(text: &str) {
    // Nobody is left to tell if standard error is gone.
    drop(writeln!(std::io::stderr(), "gs-ctl: {}", plain(text)));
}

/// How far reading is, on a terminal's standard error.
struct Progress {
    shown: bool,
    total: u64,
    done: u64,
    told: u64,
}

impl Progress {
    const EVERY_BYTES: u64 = 32 << 20;

    fn new(total: u64) -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            total,
            done: 0,
            told: 0,
        }
    }

    fn add(&mut self, more: u64) {
        self.done += more;
        if self.shown && self.done - self.told >= Self::EVERY_BYTES {
            self.told = self.done;
            let (done, total) = (bytes(self.done), bytes(self.total));
            drop(write!(std::io::stderr(), "\r\x1b[2K{done} of {total}"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.told > 0 {
            drop(write!(std::io::stderr(), "\r\x1b[2K"));
        }
    }
}

//! What can be typed after `vault`.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};

/// Where the vault is.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The vault's directory (`vault.dir`), whether a daemon runs on it or not; else it is asked for at the
    /// control socket.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// `vault`.
#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// List the segments: state, age, size, what is in them and what is still owed.
    #[command(after_help = "\
Reads headers and cursors, and payloads only where those don't tell what is owed: see verify for a full check.

States: unused (made ahead), writing, open (no seal yet), torn (ends in a block that nobody was promised), \
sealed, damaged (kept; what is intact is delivered), quarantined (by an operator).

Examples:
  gs-ctl vault list
  gs-ctl vault list --dir /var/lib/gophership/vault
  gs-ctl --output json vault list | jq '.segments[] | select(.state == \"damaged\")'")]
    List {
        #[command(flatten)]
        place: Place,
    },

    /// Check every checksum and hash; exit code 1 if something is damaged or changed.
    #[command(after_help = "\
Reads everything, at the speed of the disk. A torn end isn't damage: nobody was promised what it held. The chain's head stands for \
all sealed segments of a lane up to then: noted elsewhere, it shows whether all of it was rewritten later.

Examples:
  gs-ctl vault verify
  gs-ctl vault verify 1a 1b --dir /mnt/copy-of-vault")]
    Verify {
        #[command(flatten)]
        place: Place,
        /// Segments, as `list` shows them; else all.
        #[arg(value_name = "SEGMENT")]
        segments: Vec<SegmentNumber>,
    },

    /// Show one segment: its header, its blocks, its entries.
    #[command(after_help = "\
Examples:
  gs-ctl vault inspect 1a
  gs-ctl vault inspect 1a --blocks
  gs-ctl --output json vault inspect 1a --entries | jq '.entries[] | select(.owed != [])'")]
    Inspect {
        #[command(flatten)]
        place: Place,
        /// The segment, as `list` shows it.
        segment: SegmentNumber,
        /// Show its blocks.
        #[arg(long)]
        blocks: bool,
        /// Show its entries.
        #[arg(long)]
        entries: bool,
    },

    /// Write out what is stored: OTLP JSON lines, the bytes as received, or a hex dump.
    #[command(after_help = "\
json: one request a line, {\"resourceLogs\":…}, decompressed. raw: the bytes as the producer sent them, which may be \
gzip, one entry after the other. What can't be shown is named on standard error, and the exit code is then 1.

Examples:
  gs-ctl vault cat --limit 10 | jq .
  gs-ctl vault cat 1a:3 --format raw > request.bin
  gs-ctl vault cat --owed --dir /mnt/copy-of-vault > undelivered.jsonl")]
    Cat {
        #[command(flatten)]
        place: Place,
        /// Segments, or single entries of them; else everything.
        #[arg(value_name = "SEGMENT[:ENTRY]")]
        what: Vec<Selection>,
        /// How.
        #[arg(long, default_value = "json")]
        format: Format,
        /// Only what some destination is still owed, as far as the cursors on disk tell.
        #[arg(long)]
        owed: bool,
        /// At most this many entries.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
    },

    /// Take a segment out of replay, or put it back.
    #[command(after_help = "\
A quarantined segment is neither replayed nor removed, over restarts too; its records count as quarantined. \
What is under way to a destination still arrives. With --dir, no daemon may run on the directory.

Examples:
  gs-ctl vault quarantine 1a --reason 'makes the collector crash'
  gs-ctl vault quarantine 1a --release")]
    Quarantine {
        #[command(flatten)]
        place: Place,
        /// The segment, as `list` shows it.
        segment: SegmentNumber,
        /// Why; shown in the list and kept in the audit log.
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true,
            conflicts_with = "release"
        )]
        reason: String,
        /// Put it back.
        #[arg(long)]
        release: bool,
    },
}

/// How `cat` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// OTLP JSON, one request a line.
    Json,
    /// The bytes as received.
    Raw,
    /// A hex dump.
    Hex,
}

/// A segment's number, in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentNumber(pub(crate) u64);

impl FromStr for SegmentNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_suffix(".gsv").unwrap_or(text);
        let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten()
            .map(Self)
            .ok_or_else(|| "expected a segment's number in hexadecimal, such as 1a".to_owned())
    }
}

/// A segment, or one entry of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) segment: SegmentNumber,
    /// None: all.
    pub(crate) entry: Option<u64>,
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (segment, entry) = match text.split_once(':') {
            Some((segment, entry)) => (segment, Some(entry)),
            None => (text, None),
        };
        let number = |entry: &str| {
            entry
                .parse()
                .map_err(|_| "expected SEGMENT:ENTRY, such as 1a:3".to_owned())
        };
        Ok(Self {
            segment: segment.parse()?,
            entry: entry.map(number).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_hexadecimal_and_entries_decimal() {
        let selection: Selection = "000000000000001a:12".parse().unwrap();
        assert_eq!(selection.segment, "1A.gsv".parse().unwrap());
        assert_eq!((selection.segment.0, selection.entry), (26, Some(12)));
        for wrong in [
            "",
            "+1",
            "0x1a",
            "g",
            "1a:",
            "1a:b",
            ":3",
            "11112222333344445",
        ] {
            assert!(wrong.parse::<Selection>().is_err(), "{wrong:?}");
        }
    }
}

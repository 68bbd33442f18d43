//! What can be typed.

use std::{path::PathBuf, str::FromStr, time::Duration};

use crate::vault::VaultCommand;
use clap::{Args, Parser, Subcommand, ValueEnum};
use gophership::{config::units, control::pb};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Watch and steer a GopherShip daemon.
#[derive(Debug, Parser)]
#[command(
    name = "gs-ctl",
    version,
    after_help = "\
Exit codes: 0 ok, 1 failed, 2 usage, 3 can't connect, 4 not permitted.

Examples:
  gs-ctl status
  gs-ctl --output json status | jq .zone
  gs-ctl top
  gs-ctl override --zone red --for 10m --reason 'collector upgrade'
  gs-ctl replay --follow"
)]
pub(crate) struct Cli {
    /// The daemon's control socket.
    #[arg(
        long,
        global = true,
        env = "GS_CTL_ENDPOINT",
        default_value = "unix:/run/gophership/control.sock"
    )]
    pub(crate) endpoint: Endpoint,

    /// How results are written.
    #[arg(long, global = true, env = "GS_CTL_OUTPUT", default_value = "table")]
    pub(crate) output: Output,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// One document; one a line where there are several.
    Json,
    /// One document; more separated by `---`.
    Yaml,
}

/// Where the daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its Unix socket.
    pub(crate) path: PathBuf,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self { path: path.into() }),
            _ => Err("expected unix:PATH, such as unix:/run/gophership/control.sock".to_owned()),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show zone, cause, who judges, budgets, ingest, destinations, vault, replay and ledger.
    #[command(after_help = "\
Examples:
  gs-ctl status
  gs-ctl status --output json | jq '.vault.records_pending'")]
    Status,

    /// Show zone, cause, signals and the fullest sockets, again and again; Ctrl-C ends it.
    #[command(after_help = "\
Where standard output is no terminal, one block after the other is written; in JSON, one a line.

Examples:
  gs-ctl top
  gs-ctl top --interval 200ms
  gs-ctl --output json top --count 60 > minute.jsonl")]
    Top(TopArgs),

    /// List the ingest sockets: how full each is, and who is at the other end.
    #[command(after_help = "\
Depths and capacities come from the kernel half; where it doesn't run, from /proc, with less.
A process is named if it runs on this machine.

Examples:
  gs-ctl sockets
  gs-ctl sockets --sort high-water --limit 10
  gs-ctl --output json sockets | jq '.sockets[] | select(.level == \"red\") | .process'")]
    Sockets(SocketsArgs),

    /// Show what happened to the zone, when, by which values, and what it cost.
    #[command(after_help = "\
Times are UTC. The timeline outlives the daemon; its size is bounded by telemetry.events_max_bytes.

Examples:
  gs-ctl events
  gs-ctl events --since 1h
  gs-ctl events --follow
  gs-ctl --output json events --since 2026-01-02T03:00:00Z | jq '.events[] | select(.to == \"red\")'")]
    Events(EventsArgs),

    /// Hold a zone whatever the signals say, or give it back to them.
    #[command(after_help = "\
Examples:
  gs-ctl override --zone red --for 10m --reason 'collector upgrade'
  gs-ctl override --zone green --for forever --reason 'sensor broken'
  gs-ctl override --clear")]
    Override(OverrideArgs),

    /// Send what is in the vault to the destinations, or pause and resume that.
    #[command(after_help = "\
Examples:
  gs-ctl replay --follow          start now, and watch until nothing is left
  gs-ctl replay --rate 8MiB       no faster than 8 MiB/s to each destination
  gs-ctl replay --from 2h --to 1h --destination main --dry-run
                                  how much of an hour main is owed
  gs-ctl replay --newest-first --lane 0
  gs-ctl replay --pause
  gs-ctl replay --resume")]
    Replay(ReplayArgs),

    /// Stop accepting, empty the pipeline, sync and seal the vault; then stay, not ready, or exit.
    #[command(after_help = "\
What the pipeline can't deliver in time stays in the vault; nothing acknowledged is lost.

Examples:
  gs-ctl drain                    before maintenance
  gs-ctl drain --cancel           accept again
  gs-ctl drain --timeout 5m --exit")]
    Drain(DrainArgs),

    /// Look into the vault: list, verify, inspect, cat; take a segment out of replay.
    #[command(subcommand)]
    Vault(VaultCommand),

    /// Make and show certificates.
    #[command(subcommand)]
    Certs(CertsCommand),

    /// Print what makes a shell complete this command.
    #[command(after_help = "\
Examples:
  gs-ctl completions bash > /usr/share/bash-completion/completions/gs-ctl
  gs-ctl completions zsh > /usr/share/zsh/site-functions/_gs-ctl
  gs-ctl completions fish > ~/.config/fish/completions/gs-ctl.fish")]
    Completions {
        /// The shell.
        shell: Shell,
    },

    /// Print the manual page, or write all of them to a directory.
    #[command(after_help = "\
Examples:
  gs-ctl man | man -l -
  gs-ctl man --dir /usr/local/share/man/man1")]
    Man {
        /// A page for each command, too, as files in this directory.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

/// Shells that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
}

/// `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Time between two looks, at least 100ms.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// End after this many looks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

/// `sockets`.
#[derive(Debug, Args)]
pub(crate) struct SocketsArgs {
    /// At most this many connections.
    #[arg(
        long,
        value_name = "N",
        default_value = "100",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub(crate) limit: u32,
    /// What comes first.
    #[arg(long, default_value = "depth")]
    pub(crate) sort: Sort,
}

/// Orders of sockets, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// The most unread bytes.
    Depth,
    /// The greatest depth seen.
    HighWater,
    /// The greatest depth in proportion to what fits.
    Fill,
    /// The longest time since bytes were last taken.
    Idle,
}

impl From<Sort> for pb::SocketOrder {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Depth => Self::Depth,
            Sort::HighWater => Self::HighWater,
            Sort::Fill => Self::Fill,
            Sort::Idle => Self::Idle,
        }
    }
}

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what happens, until Ctrl-C or until the daemon stops.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Only what happened then or later: a duration back from now, such as 90s or 1h, or a time such
    /// as 2026-01-02T03:04:05Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) since: Option<OffsetDateTime>,
    /// At most this many of what has happened, the newest; else 100, 10 with --follow, and all of it
    /// with --since.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: Option<u32>,
}

/// `override`.
#[derive(Debug, Args)]
pub(crate) struct OverrideArgs {
    /// The zone to hold.
    #[arg(long, required_unless_present = "clear", conflicts_with = "clear")]
    pub(crate) zone: Option<Zone>,
    /// For how long: a duration such as 30s, 10m or 1h, or forever.
    #[arg(
        long = "for",
        value_name = "TIME",
        default_value = "1h",
        conflicts_with = "clear"
    )]
    pub(crate) duration: HoldFor,
    /// Why; shown in the status and kept in the audit log.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        conflicts_with = "clear"
    )]
    pub(crate) reason: String,
    /// End the override.
    #[arg(long)]
    pub(crate) clear: bool,
}

/// The zones as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Zone {
    /// Requests go through the pipeline.
    Green,
    /// The pipeline with less room.
    Yellow,
    /// Requests go to the vault.
    Red,
}

impl From<Zone> for pb::Zone {
    fn from(zone: Zone) -> Self {
        match zone {
            Zone::Green => Self::Green,
            Zone::Yellow => Self::Yellow,
            Zone::Red => Self::Red,
        }
    }
}

/// How long an override holds; none: forever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HoldFor(pub(crate) Option<Duration>);

impl FromStr for HoldFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self(None));
        }
        match duration(text) {
            Ok(duration) => Ok(Self(Some(duration))),
            Err(expected) => Err(format!("{expected}, or forever")),
        }
    }
}

/// `replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// No faster than this many message bytes a second: 8MiB, 500KiB or plain bytes.
    #[arg(long, value_name = "BYTES", value_parser = rate, conflicts_with_all = ["pause", "resume"])]
    pub(crate) rate: Option<u64>,
    /// Only to this destination.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) destination: Option<String>,
    /// Only what arrived then or later: a time such as 2026-01-02T03:04:05Z, or so long ago.
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with_all = ["pause", "resume"])]
    pub(crate) from: Option<OffsetDateTime>,
    /// Only what arrived before.
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with_all = ["pause", "resume"])]
    pub(crate) to: Option<OffsetDateTime>,
    /// Only what this lane of the vault wrote.
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["pause", "resume"])]
    pub(crate) lane: Option<u16>,
    /// Newest segment first; within a segment the oldest is always first.
    #[arg(long, conflicts_with_all = ["pause", "resume"])]
    pub(crate) newest_first: bool,
    /// Send nothing; count what would be sent.
    #[arg(long, conflicts_with_all = ["pause", "resume", "follow", "rate"])]
    pub(crate) dry_run: bool,
    /// Watch until nothing is left to replay.
    #[arg(long, conflicts_with = "pause")]
    pub(crate) follow: bool,
    /// Stop until resumed.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) pause: bool,
    /// Go on after a pause.
    #[arg(long)]
    pub(crate) resume: bool,
}

/// `drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Longest to wait for the pipeline.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration, conflicts_with = "cancel")]
    pub(crate) timeout: Duration,
    /// Let the daemon exit afterwards.
    #[arg(long, conflicts_with = "cancel")]
    pub(crate) exit: bool,
    /// Accept again.
    #[arg(long)]
    pub(crate) cancel: bool,
}

/// `certs`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make a CA, a server and a client certificate; never overwrites anything.
    #[command(after_help = "\
Writes ca.pem ca.key server.pem server.key client.pem client.key (keys with mode 0600).
Keep ca.key away from the daemon: it needs ca.pem, server.pem and server.key.

Examples:
  gs-ctl certs init --dir /etc/gophership/certs --host logs.example.com --host 10.0.0.7
  gs-ctl certs init --dir ./certs --host localhost --host 127.0.0.1")]
    Init {
        /// Where to write; made if absent.
        #[arg(long)]
        dir: PathBuf,
        /// DNS name or IP address that producers connect to; may be repeated.
        #[arg(long = "host", value_name = "NAME", required = true, num_args = 1..)]
        hosts: Vec<String>,
    },
    /// Show what a PEM file certifies, and until when.
    #[command(after_help = "\
Examples:
  gs-ctl certs show /etc/gophership/certs/server.pem
  gs-ctl certs show server.pem --output json | jq -r '.[0].not_after'")]
    Show {
        /// The PEM file.
        file: PathBuf,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a duration such as 30s, 10m or 1h".to_owned())
}

fn since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    units::parse_duration(text)
        .and_then(|back| OffsetDateTime::now_utc().checked_sub(back.try_into().ok()?))
        .ok_or_else(|| {
            "expected a duration such as 90s or 1h, or a time such as 2026-01-02T03:04:05Z"
                .to_owned()
        })
}

fn interval(text: &str) -> Result<Duration, String> {
    units::parse_duration(text)
        .filter(|interval| *interval >= Duration::from_millis(100))
        .ok_or_else(|| "expected a duration of at least 100ms, such as 500ms or 2s".to_owned())
}

fn rate(text: &str) -> Result<u64, String> {
    units::parse_bytes(text.strip_suffix("/s").unwrap_or(text))
        .filter(|rate| *rate > 0)
        .ok_or_else(|| "expected bytes a second such as 8MiB, 500KiB or plain bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Terminals are narrower or wider than our lines: clap breaks them where it must.
    #[test]
    fn no_help_breaks_a_line_within_a_sentence() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let prose = help.lines().take_while(|line| *line != "Examples:");
            for line in prose.filter(|line| !line.is_empty()) {
                assert!(line.ends_with('.'), "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn an_override_holds_for_an_hour_unless_told_otherwise() {
        let hour = Cli::try_parse_from(["gs-ctl", "override", "--zone", "red"]).unwrap();
        let Command::Override(args) = hour.command else {
            panic!("not an override")
        };
        assert_eq!(args.duration, HoldFor(Some(Duration::from_secs(3600))));
        assert_eq!("forever".parse(), Ok(HoldFor(None)));
    }

    #[test]
    fn since_is_a_time_or_a_duration() {
        let hour_ago = || OffsetDateTime::now_utc() - Duration::from_secs(3600);
        let (before, parsed, after) = (hour_ago(), since("1h").unwrap(), hour_ago());
        assert!(before <= parsed && parsed <= after);
        let time = since("2026-01-02T04:04:05+01:00").unwrap();
        assert_eq!(time.unix_timestamp(), 1_767_323_045);
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            &["override"][..],
            &["override", "--clear", "--zone", "red"],
            &["override", "--zone", "blue"],
            &["replay", "--pause", "--resume"],
            &["replay", "--pause", "--rate", "1MiB"],
            &["replay", "--resume", "--from", "1h"],
            &["replay", "--from", "yesterday"],
            &["replay", "--lane", "65536"],
            &["replay", "--destination", ""],
            &["replay", "--dry-run", "--follow"],
            &["replay", "--pause", "--newest-first"],
            &["drain", "--cancel", "--exit"],
            &["drain", "--timeout", "0"],
            &["top", "--interval", "1ms"],
            &["top", "--count", "0"],
            &["sockets", "--limit", "0"],
            &["sockets", "--sort", "size"],
            &["events", "--since", "yesterday"],
            &["events", "--since", "2026-13-01T00:00:00Z"],
            &["events", "--limit", "0"],
            &["vault", "inspect", "xyz"],
            &["vault", "cat", "1a:b"],
            &["vault", "cat", "--limit", "0"],
            &["vault", "quarantine", "1a", "--release", "--reason", "x"],
            &["certs", "init", "--dir", "x"],
            &["--endpoint", "https://h:9092", "status"],
        ] {
            let line = ["gs-ctl"].iter().chain(line);
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}

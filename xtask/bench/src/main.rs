//! The load generator and the measurements behind `cargo xtask bench`.
//!
//! A package of its own, so that `cargo xtask run` doesn't compile it; with the daemon's own
//! dependencies, so that building both costs little more than one. Measurements tell what they
//! measured; nothing fails for being slow, unless asked to by `--check`.

#![expect(
    clippy::print_stdout,
    reason = "standard output is where the measurements go"
)]

mod daemon;
mod ingest;
mod kernel;
mod load;
mod pipeline;
mod report;
mod sink;
mod splice;
mod vault;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::{
    daemon::Site,
    kernel::{Bench, Part},
    load::{Load, Plan, Protocol, Transport},
    report::Report,
    sink::Sink,
};

/// Measures; prints a JSON object a measurement, and words on standard error.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    bench: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// What the kernel half shows in time and what it costs; needs root
    Kernel(KernelArguments),
    /// How close the vault comes to the disk and to LZ4, and how fast it recovers
    Vault(VaultArguments),
    /// What the front door does in a second of its CPU time, how fast it answers, and what memory it takes
    Ingest(IngestArguments),
    /// How fast requests are enriched, beside the way through `prost`
    Splice(Manner),
    /// What a dead destination and the replay cost live traffic, and how fast the replay is
    Pipeline(PipelineArguments),
    /// Send a load to a daemon that runs
    Load(LoadArguments),
}

/// How to measure.
#[derive(Args)]
struct Manner {
    /// Take less time; the figures are rough
    #[arg(long)]
    quick: bool,
    /// Fail if a promise isn't kept
    #[arg(long)]
    check: bool,
}

/// What to measure, and where.
#[derive(Args)]
struct Place {
    /// Directory of the programs to measure
    #[arg(long)]
    programs: PathBuf,
    /// Directory for the daemons' state, on a real disk
    #[arg(long)]
    scratch: PathBuf,
}

#[derive(Args)]
struct KernelArguments {
    #[command(flatten)]
    place: Place,
    /// The kernel half's object
    #[arg(long)]
    object: PathBuf,
    #[command(flatten)]
    manner: Manner,
    /// Measure only this; may be given more than once
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

#[derive(Args)]
struct VaultArguments {
    /// Directory on the disk to measure
    #[arg(long)]
    scratch: PathBuf,
    #[command(flatten)]
    manner: Manner,
    /// Measure only this; may be given more than once
    #[arg(long, value_enum)]
    only: Vec<vault::Part>,
}

#[derive(Args)]
struct IngestArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    manner: Manner,
    /// Measure only this; may be given more than once
    #[arg(long, value_enum)]
    only: Vec<ingest::Part>,
    /// Of the part `throughput`, only cases whose name has this in it, such as `red grpc tls 1000`
    #[arg(long)]
    case: Option<String>,
}

#[derive(Args)]
struct PipelineArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    manner: Manner,
    /// Measure only this; may be given more than once
    #[arg(long, value_enum)]
    only: Vec<pipeline::Part>,
}

#[derive(Args)]
struct LoadArguments {
    /// Where the daemon takes the protocol
    #[arg(long, default_value = "127.0.0.1:4317")]
    address: SocketAddr,
    /// OTLP/gRPC, or OTLP/HTTP over HTTP/1.1
    #[arg(long, value_enum, default_value = "grpc")]
    protocol: Protocol,
    /// Directory with ca.pem, client.pem and client.key; without it the load is plaintext
    #[arg(long)]
    certs: Option<PathBuf>,
    /// Threads that share the connections
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Connections
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// Records in each request
    #[arg(long, default_value_t = 100)]
    records: u64,
    /// Requests a second over all connections; without it as many as are answered
    #[arg(long)]
    requests_per_second: Option<u64>,
    /// Most bytes of an HTTP/2 DATA frame; the server's own limit counts as well
    #[arg(long, default_value_t = 1024 * 1024)]
    frame_bytes: usize,
    /// Seconds to measure, after one to warm up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().bench {
        Kind::Kernel(arguments) => kernel(arguments),
        Kind::Vault(arguments) => vault(&arguments),
        Kind::Ingest(arguments) => ingest(arguments),
        Kind::Splice(manner) => splice(&manner),
        Kind::Pipeline(arguments) => pipeline(arguments),
        Kind::Load(arguments) => load(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn kernel(arguments: KernelArguments) -> Result<ExitCode> {
    let site = Site::new(arguments.place.programs, arguments.place.scratch)?;
    let sink = Sink::start()?;
    let mut report = Report::new();
    let mut bench = Bench {
        site: &site,
        sink: &sink,
        object: &arguments.object,
        quick: arguments.manner.quick,
        report: &mut report,
        empty_ns: None,
    };
    kernel::run(&mut bench, &arguments.only)?;
    Ok(verdict(&report, arguments.manner.check))
}

fn vault(arguments: &VaultArguments) -> Result<ExitCode> {
    std::fs::create_dir_all(&arguments.scratch)?;
    let mut report = Report::new();
    let mut bench = vault::Bench {
        scratch: &arguments.scratch,
        quick: arguments.manner.quick,
        report: &mut report,
    };
    vault::run(&mut bench, &arguments.only)?;
    Ok(verdict(&report, arguments.manner.check))
}

fn ingest(arguments: IngestArguments) -> Result<ExitCode> {
    let site = Site::new(arguments.place.programs, arguments.place.scratch)?;
    let mut report = Report::new();
    let mut bench = ingest::Bench {
        site: &site,
        quick: arguments.manner.quick,
        report: &mut report,
        case: arguments.case.as_deref().unwrap_or_default(),
    };
    ingest::run(&mut bench, &arguments.only)?;
    Ok(verdict(&report, arguments.manner.check))
}

fn splice(manner: &Manner) -> Result<ExitCode> {
    let mut report = Report::new();
    splice::run(&mut report, manner.quick)?;
    Ok(verdict(&report, manner.check))
}

fn pipeline(arguments: PipelineArguments) -> Result<ExitCode> {
    let site = Site::new(arguments.place.programs, arguments.place.scratch)?;
    let mut report = Report::new();
    let mut bench = pipeline::Bench {
        site: &site,
        quick: arguments.manner.quick,
        report: &mut report,
    };
    pipeline::run(&mut bench, &arguments.only)?;
    Ok(verdict(&report, arguments.manner.check))
}

/// Whether a missed promise counts.
fn verdict(report: &Report, check: bool) -> ExitCode {
    if !check || report.missed().is_empty() {
        return ExitCode::SUCCESS;
    }
    for missed in report.missed() {
        eprintln!("missed: {missed}");
    }
    ExitCode::FAILURE
}

fn load(arguments: &LoadArguments) -> Result<ExitCode> {
    let transport = match &arguments.certs {
        Some(certs) => Transport::Tls(daemon::client_tls(certs)?),
        None => Transport::Plaintext,
    };
    let load = Load::start(Plan {
        address: arguments.address,
        protocol: arguments.protocol,
        transport,
        threads: arguments.threads,
        cpus: Vec::new(),
        connections: arguments.connections,
        in_flight: arguments.in_flight,
        records: arguments.records,
        requests_per_second: arguments.requests_per_second,
        frame_bytes: arguments.frame_bytes.max(1),
    })?;
    let window = Duration::from_secs(arguments.seconds);
    let measured = load.measure(Duration::from_secs(1), window)?;
    if let Some(failure) = load.first_failure() {
        eprintln!("not everything was acknowledged, first: {failure}");
    }
    let mut figures = measured.json();
    figures["records_per_request_count"] = arguments.records.into();
    figures["record_bytes"] = load::RECORD_BYTES.into();
    Report::new().emit("load", &figures);
    Ok(ExitCode::SUCCESS)
}

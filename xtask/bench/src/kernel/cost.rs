//! What the probes cost a segment and the tick a run, by the kernel's own statistics.
//!
//! The kernel half runs in this process and follows a port of ours. One thread sends a message back
//! and forth over one loopback connection, so that it is known how many segments arrive: on the ingest
//! side of the followed port, and everywhere else. A program that does nothing sits at the same
//! tracepoint; what the kernel measures of it is the statistics' own cost, and is subtracted.
//!
//! With S segments each way, the followed port's phase has S expensive runs and S or more cheap ones
//! (the other side, bare acknowledgements, whatever else the machine receives); the cost of a cheap
//! run is known from the phase on a port that isn't followed.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    Btf, EbpfLoader,
    programs::BtfTracePoint,
    sys::{Stats, enable_stats},
};
use gophership::pressure::{Config, IngestScope, KernelMode, Levels, Pressure};
use gophership_common::{PROGRAM_NOTHING, PROGRAM_TCP_DEQUEUE, PROGRAM_TCP_PROBE, PROGRAM_TICK};
use serde_json::json;

use super::{
    Bench,
    loaded::{Cost, Costs},
};

const MESSAGE_BYTES: usize = 1024;
const TICK_MS: u64 = 10;

/// A loopback connection whose two ends are ours.
struct Line {
    client: TcpStream,
    server: TcpStream,
}

impl Line {
    fn open(listener: &TcpListener) -> Result<Self> {
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        Ok(Self { client, server })
    }

    /// A message there and back, `times` times.
    fn exchange(&mut self, times: u64) -> Result<()> {
        let mut message = [7; MESSAGE_BYTES];
        for _ in 0..times {
            self.client.write_all(&message)?;
            self.server.read_exact(&mut message)?;
            self.server.write_all(&message)?;
            self.client.read_exact(&mut message)?;
        }
        Ok(())
    }
}

/// What a phase cost, without the statistics.
struct Phase {
    segments: Cost,
    reads: Cost,
    empty: Cost,
}

impl Phase {
    fn run(line: &mut Line, times: u64) -> Result<Self> {
        let before = Costs::of(process::id());
        line.exchange(times)?;
        let costs = Costs::of(process::id()).since(&before);
        Ok(Self {
            segments: costs.get(PROGRAM_TCP_PROBE),
            reads: costs.get(PROGRAM_TCP_DEQUEUE),
            empty: costs.get(PROGRAM_NOTHING),
        })
    }
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let times = if bench.quick { 20_000 } else { 200_000 };
    eprintln!("cost: {times} exchanges on a port that is followed and on one that isn't");
    let _statistics = enable_stats(Stats::RunTime).context("the kernel keeps no statistics")?;
    let followed = TcpListener::bind("127.0.0.1:0")?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    let scope = IngestScope {
        ports: vec![followed.local_addr()?.port()],
        h2_window_bytes: 0,
        vault_dir: None,
    };
    let pressure = Pressure::start(&config(), &scope, 1)?;
    let nothing = attach_nothing(bench.object)?;

    let mut lines = (Line::open(&other)?, Line::open(&followed)?);
    lines.0.exchange(1000)?;
    lines.1.exchange(1000)?;
    let elsewhere = Phase::run(&mut lines.0, times)?;
    let ingest = Phase::run(&mut lines.1, times)?;
    drop(nothing);
    let ticks = if bench.quick { 2 } else { 5 };
    let (tick, tick_window) = tick(Duration::from_secs(ticks));
    drop(pressure);

    let empty_ns = Cost {
        runs: elsewhere.empty.runs + ingest.empty.runs,
        ns: elsewhere.empty.ns + ingest.empty.ns,
    }
    .ns_per_run();
    bench.empty_ns = Some(empty_ns);
    let segment = split(times, empty_ns, elsewhere.segments, ingest.segments);
    let read = split(times, empty_ns, elsewhere.reads, ingest.reads);
    let tick_ns = tick.ns_per_run() - empty_ns;
    eprintln!(
        "    a segment to an ingest port {:.0} ns, to another {:.0} ns; a read {:.0} ns and {:.0} ns",
        segment.0, segment.1, read.0, read.1
    );
    eprintln!(
        "    a run of the tick {tick_ns:.0} ns, {:.0} a second on all CPUs; statistics themselves {empty_ns:.0} ns a run (subtracted)",
        tick.runs as f64 / tick_window.as_secs_f64()
    );
    bench.report.emit(
        "kernel.cost",
        &json!({
            "exchanges_count": times,
            "message_bytes": MESSAGE_BYTES,
            "segment_ingest_ns": segment.0,
            "segment_elsewhere_ns": segment.1,
            "read_ingest_ns": read.0,
            "read_elsewhere_ns": read.1,
            "tick_run_ns": tick_ns,
            "tick_runs_per_second": tick.runs as f64 / tick_window.as_secs_f64(),
            "tick_ms": TICK_MS,
            "statistics_run_ns": empty_ns,
        }),
    );
    Ok(())
}

/// The tick of an otherwise idle process.
fn tick(window: Duration) -> (Cost, Duration) {
    let before = Costs::of(process::id());
    let started = Instant::now();
    thread::sleep(window);
    let costs = Costs::of(process::id()).since(&before);
    (costs.get(PROGRAM_TICK), started.elapsed())
}

/// Nanoseconds of a run on the ingest side, and of any other.
fn split(times: u64, empty_ns: f64, elsewhere: Cost, ingest: Cost) -> (f64, f64) {
    let cheap_ns = elsewhere.ns_per_run() - empty_ns;
    let total_ns = ingest.ns as f64 - empty_ns * ingest.runs as f64;
    let cheap_runs = ingest.runs.saturating_sub(times);
    let expensive_ns = (total_ns - cheap_ns * cheap_runs as f64) / times as f64;
    (expensive_ns, cheap_ns)
}

/// Attaches the program that does nothing where segments arrive, for as long as what it gives lives.
fn attach_nothing(object: &Path) -> Result<aya::Ebpf> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut ebpf = EbpfLoader::new().load(&bytes)?;
    let program: &mut BtfTracePoint = ebpf
        .program_mut(PROGRAM_NOTHING)
        .context("the object lacks the program that does nothing")?
        .try_into()?;
    program.load(PROGRAM_TCP_PROBE, &Btf::from_sys_fs()?)?;
    program.attach()?;
    Ok(ebpf)
}

/// Judges the queues alone, at the default levels.
pub(super) fn config() -> Config {
    let off = Levels {
        yellow_permille: Levels::OFF,
        red_permille: Levels::OFF,
    };
    let levels = |yellow_permille, red_permille| Levels {
        yellow_permille,
        red_permille,
    };
    Config {
        kernel: KernelMode::Required,
        tick: Duration::from_millis(TICK_MS),
        sample_every: 1024,
        hold: Duration::from_secs(2),
        receive_queue: levels(500, 800),
        receive_queue_for: Duration::from_millis(5),
        listen_backlog: off,
        memory_stall: off,
        memory_available: off,
        cpu_wait: off,
        disk_latency: None,
        ingress_horizon: None,
        budget: levels(800, 950),
        heartbeat_limit: Duration::from_secs(1),
        xdp: gophership::pressure::XdpConfig::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_followed_side_is_told_from_the_other() {
        // Statistics cost 50, a cheap run 15, an expensive one 250; 100 segments each way, and 20
        // bare acknowledgements.
        let elsewhere = Cost {
            runs: 200,
            ns: 200 * 65,
        };
        let ingest = Cost {
            runs: 220,
            ns: 100 * 300 + 120 * 65,
        };
        let (expensive, cheap) = split(100, 50.0, elsewhere, ingest);
        assert!((expensive - 250.0).abs() < 1e-9, "{expensive}");
        assert!((cheap - 15.0).abs() < 1e-9, "{cheap}");
    }
}

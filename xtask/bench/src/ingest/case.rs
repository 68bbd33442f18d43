//! One way through the front door: a daemon for it, and its load.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, Settings, Site, cpu_ns},
    load::{Load, Plan, Protocol, Transport, Window},
    sink::Sink,
};

/// Budgets of all daemons here.
pub(crate) const MEMORY: &str = "64MiB";
/// Of one that has twice as many connections and workers.
pub(crate) const MEMORY_OF_TWO: &str = "128MiB";
/// More than is written to one: with room ahead of it, which costs its zeros, as at the beginning of a spike.
const VAULT_BYTES: &str = "24GiB";
/// gRPC connections, which two of have room for the largest windows; as many times [`IN_FLIGHT`] with HTTP/1.1.
const CONNECTIONS: usize = 2;
const IN_FLIGHT: usize = 16;

/// Frames as a client sends that goes by what is offered.
pub(crate) const LARGE_FRAMES: usize = 1024 * 1024;
/// Frames of grpc-go and grpc-core, whatever is offered.
pub(crate) const SMALL_FRAMES: usize = 16 * 1024;

/// Where requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the vault, on stable storage.
    Red,
    /// To an OTLP destination that counts.
    Green,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) route: Route,
    pub(crate) protocol: Protocol,
    pub(crate) tls: bool,
    /// In each request.
    pub(crate) records: u64,
    /// Most bytes of a DATA frame.
    pub(crate) frame_bytes: usize,
    /// `vault.compression`.
    pub(crate) compression: &'static str,
}

/// A daemon, held in the case's zone, and its load.
pub(crate) struct Running {
    route: Route,
    // Ends first: what it sends has to arrive.
    pub(crate) load: Load,
    pub(crate) daemon: Daemon,
    _sink: Sink,
}

/// One measured window.
pub(crate) struct Measured {
    pub(crate) window: Window,
    pub(crate) cpu_ns: u64,
    pub(crate) peak_rss_bytes: u64,
}

impl Case {
    pub(crate) fn name(&self) -> String {
        let frames = match (self.protocol, self.frame_bytes) {
            (Protocol::Grpc, SMALL_FRAMES) => " 16k-frames",
            _ => "",
        };
        format!(
            "{} {} {} {}{frames}{}",
            match self.route {
                Route::Red => "red",
                Route::Green => "green",
            },
            match self.protocol {
                Protocol::Grpc => "grpc",
                Protocol::Http => "http",
            },
            if self.tls { "tls" } else { "plaintext" },
            self.records,
            match self.compression {
                "none" => "",
                _ => " lz4",
            },
        )
    }

    /// Starts daemon and load; a second of it is left out of everything. `ingest` has more lines below that key, each
    /// beginning with a newline.
    pub(crate) fn start(
        &self,
        site: &Site,
        ingest: &str,
        settings: impl FnOnce(&mut Settings<'_>),
        plan: impl FnOnce(&mut Plan),
    ) -> Result<Running> {
        let sink = Sink::start()?;
        let mut own = Settings {
            plaintext: !self.tls,
            ingest,
            memory: MEMORY,
            vault_bytes: VAULT_BYTES,
            compression: self.compression,
            ..Settings::new(sink.address())
        };
        settings(&mut own);
        let daemon = Daemon::start(site, &own)?;
        daemon.hold(match self.route {
            Route::Red => "red",
            Route::Green => "green",
        })?;
        let load = Load::start(self.plan(site, &daemon, plan)?)?;
        load.measure(Duration::ZERO, Duration::from_secs(1))?;
        Ok(Running {
            route: self.route,
            load,
            daemon,
            _sink: sink,
        })
    }

    /// The case's load on a daemon that runs.
    pub(crate) fn plan(
        &self,
        site: &Site,
        daemon: &Daemon,
        change: impl FnOnce(&mut Plan),
    ) -> Result<Plan> {
        let mut own = Plan {
            address: match self.protocol {
                Protocol::Grpc => daemon.grpc(),
                Protocol::Http => daemon.http(),
            },
            protocol: self.protocol,
            transport: match self.tls {
                true => Transport::Tls(site.tls()?),
                false => Transport::Plaintext,
            },
            threads: 1,
            cpus: Vec::new(),
            connections: CONNECTIONS,
            in_flight: match (self.route, self.records) {
                // What is in flight has to fit the batches, or it goes to the vault.
                (Route::Green, 1000..) => IN_FLIGHT / 2,
                _ => IN_FLIGHT,
            },
            records: self.records,
            requests_per_second: None,
            frame_bytes: self.frame_bytes,
        };
        change(&mut own);
        Ok(own)
    }
}

impl Running {
    /// Requests that didn't go the case's way so far.
    fn elsewhere(&self) -> Result<u64> {
        let own = match self.route {
            Route::Red => "outcome=\"vaulted\"",
            Route::Green => "outcome=\"delivered\"",
        };
        let page = self.daemon.metrics()?;
        let others = page
            .lines()
            .filter(|line| line.starts_with("gophership_ingester_requests_total{"))
            .filter(|line| !line.contains(own));
        let counts = others.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(counts.sum())
    }

    /// Measures for that long.
    ///
    /// # Errors
    /// If a request wasn't acknowledged, or went another way.
    pub(crate) fn measure(&self, window: Duration) -> Result<Measured> {
        let elsewhere = self.elsewhere()?;
        let measured = self.measure_whatever_becomes(window)?;
        let Window {
            refused, broken, ..
        } = measured.window;
        ensure!(
            refused + broken == 0,
            "{refused} requests refused, {broken} connections broken, first: {:?}",
            self.load.first_failure()
        );
        let elsewhere = self.elsewhere()? - elsewhere;
        ensure!(elsewhere == 0, "{elsewhere} requests went another way");
        Ok(measured)
    }

    /// The same of a load that is more than the daemon takes one way.
    pub(super) fn measure_whatever_becomes(&self, window: Duration) -> Result<Measured> {
        let before = cpu_ns(self.daemon.pid());
        let window = self.load.measure(Duration::ZERO, window)?;
        Ok(Measured {
            window,
            cpu_ns: cpu_ns(self.daemon.pid()).saturating_sub(before),
            peak_rss_bytes: self.daemon.memory("VmHWM")?,
        })
    }
}

impl Measured {
    pub(crate) fn records_per_cpu_second(&self) -> f64 {
        self.window.records as f64 * 1e9 / self.cpu_ns as f64
    }

    pub(crate) fn json(&self) -> Value {
        let mut figures = self.window.json();
        figures["acked_records_per_daemon_cpu_second"] = self.records_per_cpu_second().into();
        figures["daemon_cpu_ns"] = json!(self.cpu_ns);
        figures["daemon_peak_rss_bytes"] = json!(self.peak_rss_bytes);
        figures
    }
}

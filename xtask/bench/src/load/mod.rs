//! The load generator: connections that keep a number of requests in flight, as fast as they are
//! answered or at a pace.
//!
//! Requests are encoded beforehand and sent in turn. A paced load has a schedule: a request's time
//! counts from when it was due, so that a server that stalls doesn't hide the requests that would
//! have come meanwhile.

mod connection;
mod corpus;
mod histogram;
mod meter;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use tokio::runtime;

pub(crate) use connection::Transport;
pub(crate) use corpus::{Corpus, RECORD_BYTES};
pub(crate) use histogram::Histogram;
pub(crate) use meter::{Reading, Window};

use connection::{Outcome, Sender};
use meter::Meter;

/// Longest wait for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// How much load, and where to.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) transport: Transport,
    /// Threads, which share the connections among them.
    pub(crate) threads: usize,
    pub(crate) connections: usize,
    /// Requests in flight on each connection.
    pub(crate) in_flight: usize,
    /// Records in each request.
    pub(crate) records: u64,
    /// Over all connections; none: as fast as they are answered.
    pub(crate) requests_per_second: Option<u64>,
    /// Most bytes of a DATA frame, as far as the server allows.
    pub(crate) frame_bytes: usize,
}

/// A load that runs until it is dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    plan: Plan,
    requests: Vec<Bytes>,
    meter: Meter,
    stop: AtomicBool,
    started: Instant,
    /// Requests begun, which gives the next one its place in the schedule.
    begun: AtomicU64,
}

impl Load {
    /// Connects everything, then starts to send.
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        let corpus = Corpus::new(plan.records);
        let shared = Arc::new(Shared {
            requests: corpus.framed_for_grpc(),
            meter: Meter::new(plan.records),
            stop: AtomicBool::new(false),
            started: Instant::now(),
            begun: AtomicU64::new(0),
            plan,
        });
        let (ready, connected) = mpsc::channel();
        let count = shared.plan.threads.max(1);
        let mut load = Self {
            shared,
            threads: Vec::new(),
        };
        for number in 0..count {
            let (shared, ready) = (Arc::clone(&load.shared), ready.clone());
            let thread = thread::Builder::new()
                .name("load".to_owned())
                .spawn(move || run(&shared, number, &ready))?;
            load.threads.push(thread);
        }
        for _ in 0..count {
            connected
                .recv_timeout(CONNECT_WITHIN)
                .with_context(|| format!("no connection within {CONNECT_WITHIN:?}"))??;
        }
        Ok(load)
    }

    pub(crate) fn read(&self) -> Reading {
        self.shared.meter.read()
    }

    /// Lets the load run for `warm_up`, then measures for `window`.
    ///
    /// # Errors
    /// If nothing was acknowledged.
    pub(crate) fn measure(&self, warm_up: Duration, window: Duration) -> Result<Window> {
        thread::sleep(warm_up);
        let before = self.read();
        thread::sleep(window);
        let measured = self.read().since(&before);
        ensure!(
            measured.requests > 0,
            "nothing was acknowledged; the first failure: {:?}",
            self.first_failure()
        );
        Ok(measured)
    }

    pub(crate) fn first_failure(&self) -> Option<String> {
        self.shared.meter.first_failure()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Arc<Shared>, number: usize, ready: &mpsc::Sender<Result<()>>) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // Whoever started us has given up if nobody listens.
            let _ = ready.send(Err(error.into()));
            return;
        }
    };
    runtime.block_on(async {
        let plan = &shared.plan;
        let mut senders = Vec::new();
        for _ in (number..plan.connections).step_by(plan.threads.max(1)) {
            match Sender::connect(plan.address, &plan.transport, plan.frame_bytes).await {
                Ok(sender) => senders.push(sender),
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            }
        }
        let _ = ready.send(Ok(()));
        let mut calls = tokio::task::JoinSet::new();
        for sender in senders {
            for _ in 0..plan.in_flight {
                calls.spawn(keep_calling(Arc::clone(shared), sender.clone()));
            }
        }
        calls.join_all().await;
    });
}

async fn keep_calling(shared: Arc<Shared>, mut sender: Sender) {
    while !shared.stop.load(Relaxed) {
        let place = shared.begun.fetch_add(1, Relaxed);
        let due = shared.due(place).await;
        let index = place % shared.requests.len() as u64;
        let framed = &shared.requests[usize::try_from(index).unwrap_or(0)];
        match sender.call(framed.clone()).await {
            Ok(Outcome::Acked) => shared.meter.acked(framed.len(), due.elapsed()),
            Ok(Outcome::Refused(why)) => shared.meter.refused(why),
            Err(error) => {
                shared.meter.broken(format!("{error:#}"));
                return;
            }
        }
    }
}

impl Shared {
    /// Waits until the request of this place in the schedule is due.
    async fn due(&self, place: u64) -> Instant {
        let Some(per_second) = self.plan.requests_per_second else {
            return Instant::now();
        };
        let after_us = place.saturating_mul(1_000_000) / per_second.max(1);
        let due = self.started + Duration::from_micros(after_us);
        tokio::time::sleep_until(due.into()).await;
        due
    }
}

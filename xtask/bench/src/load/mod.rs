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
    net::{SocketAddr, TcpStream},
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
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::{runtime, sync::Semaphore};

pub(crate) use connection::{Protocol, Transport};
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
    pub(crate) protocol: Protocol,
    pub(crate) transport: Transport,
    /// Threads, which take the connections in turn.
    pub(crate) threads: usize,
    /// The CPU of each thread; none: wherever they are put.
    pub(crate) cpus: Vec<usize>,
    pub(crate) connections: usize,
    /// Requests in flight on each connection; HTTP/1.1 has one, so there are as many more connections.
    pub(crate) in_flight: usize,
    /// Records in each request.
    pub(crate) records: u64,
    /// Over all connections; none: as fast as they are answered.
    pub(crate) requests_per_second: Option<u64>,
    /// Most bytes of a DATA frame, as far as the server allows.
    pub(crate) frame_bytes: usize,
}

impl Plan {
    fn sockets(&self) -> usize {
        match self.protocol {
            Protocol::Grpc => self.connections,
            Protocol::Http => self.connections * self.in_flight,
        }
    }
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
    /// One permit a request that is due, where there is a schedule.
    due: Semaphore,
}

impl Load {
    /// Connects everything, then starts to send.
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        let corpus = Corpus::new(plan.records);
        let shared = Arc::new(Shared {
            requests: match plan.protocol {
                Protocol::Grpc => corpus.framed_for_grpc(),
                Protocol::Http => corpus.messages().to_vec(),
            },
            meter: Meter::new(plan.records),
            stop: AtomicBool::new(false),
            started: Instant::now(),
            begun: AtomicU64::new(0),
            due: Semaphore::new(0),
            plan,
        });
        let (ready, connected) = mpsc::channel();
        let count = shared.plan.threads.max(1);
        let mut sockets: Vec<Vec<TcpStream>> = (0..count).map(|_| Vec::new()).collect();
        for socket in 0..shared.plan.sockets() {
            // One after the other, so that the workers that take them in turn are told beforehand.
            let address = shared.plan.address;
            let tcp = TcpStream::connect_timeout(&address, CONNECT_WITHIN);
            let tcp = tcp.with_context(|| format!("cannot connect to {address}"))?;
            sockets[socket % count].push(tcp);
        }
        let mut load = Self {
            shared,
            threads: Vec::new(),
        };
        for (number, sockets) in sockets.into_iter().enumerate() {
            let (shared, ready) = (Arc::clone(&load.shared), ready.clone());
            let thread = thread::Builder::new()
                .name("load".to_owned())
                .spawn(move || run(&shared, number, sockets, &ready))?;
            load.threads.push(thread);
        }
        if let Some(per_second) = load.shared.plan.requests_per_second {
            let shared = Arc::clone(&load.shared);
            let pacer = thread::Builder::new().name("pacer".to_owned());
            load.threads
                .push(pacer.spawn(move || pace(&shared, per_second))?);
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

fn run(
    shared: &Arc<Shared>,
    number: usize,
    sockets: Vec<TcpStream>,
    ready: &mpsc::Sender<Result<()>>,
) {
    if let Some(&cpu) = shared.plan.cpus.get(number)
        && let Err(error) = pin(cpu)
    {
        let _ = ready.send(Err(error));
        return;
    }
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
        for socket in sockets {
            match Sender::connect(plan, socket).await {
                Ok(of_connection) => senders.extend(of_connection),
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            }
        }
        let _ = ready.send(Ok(()));
        let mut calls = tokio::task::JoinSet::new();
        for sender in senders {
            calls.spawn(keep_calling(Arc::clone(shared), sender));
        }
        calls.join_all().await;
    });
}

/// Lets requests begin when they are due. Runtimes' timers go by milliseconds, which would make bursts of them.
fn pace(shared: &Shared, per_second: u64) {
    let mut due = 0;
    while !shared.stop.load(Relaxed) {
        let elapsed_us = u64::try_from(shared.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let now_due = elapsed_us.saturating_mul(per_second) / 1_000_000;
        shared
            .due
            .add_permits(usize::try_from(now_due - due).unwrap_or(0));
        due = now_due;
        let next = shared.started + at(due + 1, per_second);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // Nobody is left waiting.
    shared.due.close();
}

/// Keeps the calling thread on one CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPU {cpu}"))
}

/// When the request of this number is due, from the start on.
fn at(number: u64, per_second: u64) -> Duration {
    Duration::from_micros(number.saturating_mul(1_000_000).div_ceil(per_second.max(1)))
}

async fn keep_calling(shared: Arc<Shared>, mut sender: Sender) {
    while !shared.stop.load(Relaxed) {
        let place = shared.begun.fetch_add(1, Relaxed);
        let Some(due) = shared.due(place).await else {
            return;
        };
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
    /// Waits until the request of this place in the schedule is due; `None` at the end.
    async fn due(&self, place: u64) -> Option<Instant> {
        let Some(per_second) = self.plan.requests_per_second else {
            return Some(Instant::now());
        };
        self.due.acquire().await.ok()?.forget();
        Some(self.started + at(place + 1, per_second))
    }
}

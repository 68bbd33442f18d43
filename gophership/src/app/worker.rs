//! One worker: a thread with its own runtime, connections, pipeline and vault lane.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, LocalSet},
};

use super::cpus;
use crate::{
    export::Destinations,
    ingest::{
        Mode,
        acceptor::Accepted,
        budget::Budget as IngestBudget,
        connection::{self, Context},
        gate::TICK,
        load::Meter,
        needs::Needs,
        state::Connections,
        tls::Tls,
        unpack::Unpacker,
    },
    otel::Enrichment,
    pipeline::{self, Member, Pipeline, circuit::Circuit},
    pressure::{Budget, CpuWait, EngineLine, Verdict},
    somatic::{self, Held, Hurry, Reflex},
    telemetry::{counters::WorkerCounters, throttle::Throttle},
    vault::{self, Lane, Vault},
};

/// A worker that hasn't beaten for ten times this is a cause of Red.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// What every worker is made of.
#[derive(Clone)]
pub(super) struct Shared {
    /// The set in force; `None`: plaintext.
    pub(super) tls: Option<watch::Receiver<Tls>>,
    pub(super) mode: watch::Receiver<Mode>,
    pub(super) verdict: Verdict,
    pub(super) cpu_wait: CpuWait,
    pub(super) vault: Vault,
    pub(super) destinations: Destinations,
    pub(super) circuits: Vec<Arc<Circuit>>,
    pub(super) enrichment: Arc<Enrichment>,
    pub(super) budget: Arc<IngestBudget>,
    pub(super) pipeline: pipeline::Config,
    pub(super) workers: usize,
    /// This worker's share of the vault's block buffers.
    pub(super) vault_budget_bytes: usize,
    pub(super) needs: Needs,
}

/// What one worker has for itself.
pub(super) struct Own {
    pub(super) index: usize,
    pub(super) inbox: mpsc::Receiver<Accepted>,
    pub(super) engine: EngineLine,
    /// The one CPU it is to run on; `None`: wherever the scheduler puts it.
    pub(super) cpu: Option<usize>,
    pub(super) status: Arc<Status>,
}

/// What the rest of the daemon sees of a worker.
#[derive(Debug, Default)]
pub(super) struct Status {
    pub(super) counters: Arc<WorkerCounters>,
    /// Draining, and nothing is left.
    pub(super) drained: AtomicBool,
    /// Requests in the pipeline, at the last heartbeat.
    pub(super) requests: AtomicU64,
    /// Bytes of batch buffers in use, at the last heartbeat.
    pub(super) export_bytes: AtomicU64,
    /// Bytes of block buffers in use, at the last heartbeat.
    pub(super) vault_bytes: AtomicU64,
}

/// A worker can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its thread or runtime can't be made.
    #[error("worker: {0}")]
    Thread(#[from] std::io::Error),
    /// Its lane of the vault can't be opened.
    #[error(transparent)]
    Lane(#[from] vault::Error),
}

/// Starts the worker; it ends after the mode has become [`Mode::Stopping`].
pub(super) fn spawn(
    shared: Shared,
    own: Own,
    ready: std::sync::mpsc::Sender<Result<(), Error>>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("worker-{}", own.index))
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                // Of the threads that take what would keep this one from its connections. They stay: one that can't be
                // started when it is needed would end the program.
                .thread_name(format!("aside-{}", own.index))
                .thread_keep_alive(Duration::MAX)
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error.into()))),
            };
            // Before anything is allocated: memory comes from where the thread runs.
            if let Some(cpu) = own.cpu
                && let Err(error) = cpus::pin(cpu)
            {
                tracing::warn!(worker = own.index, cpu, %error, "not pinned");
            }
            if let Err(error) = own.engine.enlist() {
                tracing::warn!(worker = own.index, %error, "its waits for a CPU aren't measured");
            }
            LocalSet::new().block_on(&runtime, async move {
                match Worker::build(shared, own) {
                    Ok(worker) => {
                        let _ = ready.send(Ok(()));
                        drop(ready);
                        worker.run().await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        })
}

struct Worker {
    shared: Shared,
    own: Own,
    lane: Lane,
    pipeline: Pipeline<Held>,
    context: Rc<Context>,
    connections: JoinSet<()>,
    hurry: Rc<Hurry>,
}

impl Worker {
    fn build(shared: Shared, own: Own) -> Result<Self, Error> {
        let lane = shared.vault.lane(own.index)?;
        let bit_of = |name: &str| shared.vault.mask_of(name);
        let members = Member::connect(&shared.destinations, &shared.circuits, bit_of);
        let on_held_settled = {
            let (vault, members) = (shared.vault.clone(), members.clone());
            Box::new(move |held, settled| somatic::settle_held(&vault, &members, held, &settled))
        };
        let pipeline = Pipeline::new(
            &shared.pipeline,
            shared.workers,
            members,
            Arc::clone(&shared.enrichment),
            on_held_settled,
        );
        let counters = Arc::clone(&own.status.counters);
        let hurry = Rc::default();
        let reflex = Reflex::new(
            shared.verdict,
            own.engine,
            pipeline.clone(),
            lane.clone(),
            Arc::clone(&counters),
            shared.pipeline.ack_within,
            Rc::clone(&hurry),
        );
        let context = Rc::new(Context {
            reflex,
            counters,
            budget: Arc::clone(&shared.budget),
            connections: Connections::default(),
            needs: shared.needs,
            unpacker: Unpacker::new(shared.needs.small(), shared.needs.buffer_bytes()),
            refusals_told: RefCell::new(Throttle::new(Instant::now())),
        });
        Ok(Self {
            shared,
            own,
            lane,
            pipeline,
            context,
            connections: JoinSet::new(),
            hurry,
        })
    }

    async fn run(mut self) {
        // Starts the thread that there has to be.
        tokio::task::spawn_blocking(|| ());
        tokio::task::spawn_local(self.pipeline.clone().run());
        let beat = self.heartbeat();
        tokio::task::spawn_local(beat);
        tokio::task::spawn_local(look_after(Rc::clone(&self.context)));
        tokio::task::spawn_local(resume_readers(Rc::clone(&self.context)));
        let mut mode = self.shared.mode.clone();
        loop {
            let now = *mode.borrow_and_update();
            match now {
                Mode::Serving => {
                    self.hurry.set(false);
                    self.serve(&mut mode).await;
                }
                Mode::Draining => {
                    self.hurry.set(true);
                    self.drain(&mut mode).await;
                }
                Mode::Stopping => break,
            }
        }
        self.connections.abort_all();
        while self.connections.join_next().await.is_some() {}
        self.context.connections.resume();
        if let Err(error) = self.lane.shutdown().await {
            tracing::error!(worker = self.own.index, %error, "vault lane: not closed cleanly");
        }
        self.own.engine.retire();
    }

    async fn serve(&mut self, mode: &mut watch::Receiver<Mode>) {
        self.own.status.drained.store(false, Relaxed);
        loop {
            tokio::select! {
                accepted = self.own.inbox.recv() => match accepted {
                    Some(accepted) => self.connect(accepted),
                    // The acceptor is gone: only a change of mode can follow.
                    None => { let _ = mode.changed().await; return }
                },
                Some(_) = self.connections.join_next() => {}
                _ = mode.changed() => return,
            }
        }
    }

    fn connect(&mut self, accepted: Accepted) {
        let tls = self.shared.tls.as_ref();
        let tls = tls.map(|tls| tls.borrow().acceptor(accepted.protocol).clone());
        let context = Rc::clone(&self.context);
        self.connections.spawn_local(connection::serve(
            accepted,
            tls,
            context,
            self.shared.mode.clone(),
        ));
    }

    /// Waits until every request has its answer and the lane's segment its seal, and says so.
    async fn drain(&mut self, mode: &mut watch::Receiver<Mode>) {
        let Self {
            own,
            lane,
            connections,
            pipeline,
            ..
        } = self;
        let drained = async {
            // A connection that was handed over before the acceptor paused is closed unserved.
            while let Ok(accepted) = own.inbox.try_recv() {
                own.status.counters.connections.fetch_sub(1, Relaxed);
                drop(accepted);
            }
            while connections.join_next().await.is_some() {}
            pipeline.flushed().await;
            lane.seal().await;
            own.status.drained.store(true, Relaxed);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = drained => {}
            _ = mode.changed() => {}
        }
    }

    fn heartbeat(&self) -> impl Future<Output = ()> + 'static {
        let (engine, pipeline, lane) = (self.own.engine, self.pipeline.clone(), self.lane.clone());
        let context = Rc::clone(&self.context);
        let (first, status) = (self.own.index == 0, Arc::clone(&self.own.status));
        let vault_limit = self.shared.vault_budget_bytes as u64;
        let cpu_wait = self.shared.cpu_wait;
        async move {
            let mut interval = tokio::time::interval(HEARTBEAT);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut meter = Meter::new(Instant::now());
            loop {
                interval.tick().await;
                engine.beat();
                meter.look(&context.counters, Instant::now());
                let (used, all) = pipeline.usage();
                engine.set_used(Budget::Export, used as u64, all as u64);
                status.export_bytes.store(used as u64, Relaxed);
                status.requests.store(pipeline.requests() as u64, Relaxed);
                engine.set_vault_write(lane.write_latency());
                lane.note_cpu_wait(cpu_wait.permille().unwrap_or(0));
                let used = lane.bytes_in_use() as u64;
                engine.set_used(Budget::Vault, used, vault_limit);
                status.vault_bytes.store(used, Relaxed);
                let stopped = context.connections.stopped() as u64;
                context.counters.readers_stopped.store(stopped, Relaxed);
                // The admission budget is one for all workers: the first one reports it.
                if first {
                    let budget = &context.budget;
                    budget.measure(Instant::now());
                    let (used, limit) = (budget.used() as u64, budget.limit() as u64);
                    engine.set_used(Budget::Ingest, used, limit);
                }
            }
        }
    }
}

/// Cuts off peers that are stuck, and lets stopped readers through once in a while.
async fn look_after(context: Rc<Context>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        context.connections.look_after();
    }
}

/// Lets stopped readers go on when the budget has bytes again.
async fn resume_readers(context: Rc<Context>) {
    loop {
        let mut no_longer_spent = std::pin::pin!(context.budget.no_longer_spent());
        // From here on nothing is missed.
        no_longer_spent.as_mut().enable();
        if !context.budget.is_spent() {
            context.connections.resume();
        }
        no_longer_spent.await;
    }
}

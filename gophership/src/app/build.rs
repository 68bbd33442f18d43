//! Config → running daemon: everything that can fail does so here, before the first acceptance.
//!
//! First what needs privileges, on one thread; then the drop; then what is written, and every other
//! thread.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
};

use super::{
    Config, Error, certificates,
    chronicle::Chronicle,
    cpus,
    daemon::Daemon,
    drain::Drain,
    engine::Operated,
    heartbeats, ledger, metrics, pacing, room, service,
    stop::Running,
    worker::{self, Own, Shared},
};
use crate::{
    control,
    export::Destinations,
    ingest::{
        Mode, UnixConfig,
        acceptor::{self, INBOX_CAPACITY, Inbox, Listener},
        budget::Budget,
        connection::STALLED_WINDOW_BYTES,
        room::Room,
        tls::{
            Tls,
            reload::{self, Loaded},
        },
    },
    local_socket,
    otel::Enrichment,
    pipeline::{circuit::Circuit, enrich::Enrichments},
    pressure::{IngestScope, Pressure, monotonic_ns},
    privileges,
    replay::{self, dead_letter::DeadLetters},
    somatic::overrides::Override,
    telemetry::{self, counters::Protocol, timeline::Timeline},
    vault::Vault,
};

/// Starts everything; the listener accepts when this returns.
pub(super) async fn start(config: Config) -> Result<Running, Error> {
    // From now on, SIGHUP doesn't end the process.
    let hangup = signal(SignalKind::hangup()).map_err(Error::system("the SIGHUP handler"))?;
    privileges::raise_limits();
    files_suffice(&config);
    let (service, needs) = service::prepare(&config)?;
    let tls = config.ingest.tls.as_ref().map(Loaded::load).transpose()?;
    let grpc = Bound::to("ingest.grpc.listen", config.ingest.grpc_listen)?;
    let http = Bound::to("ingest.http.listen", config.ingest.http_listen)?;
    let addresses = [grpc.address, http.address];
    let telemetry = Bound::to("telemetry.listen", config.telemetry.listen)?;
    let telemetry_address = telemetry.address;
    let telemetry = telemetry.listen()?;
    let destinations = Destinations::open(&config.destinations)?;
    let enrichments = config.enrich.prepare();
    let started_ns = monotonic_ns();
    let scope = scope(&config, addresses);
    let pressure = Pressure::start(&config.pressure, &scope, config.ingest.workers)?;
    // Only now: the kernel half follows the accept queue of a socket that it sees begin to listen.
    let mut listeners = vec![
        Listener::Tcp(grpc.listen()?, Protocol::Grpc),
        Listener::Tcp(http.listen()?, Protocol::Http),
    ];
    service::enter(&service, &needs, &pressure)?;

    let (tls, reloads) = certificates::keep(tls, hangup)?;
    let control = control::bind(&config.control)?;
    let unix = local_producers(&config)?;
    if let Some(unix) = &unix {
        listeners.push(Listener::Unix(unix.listener()?));
    }
    destinations.start()?;
    let stores = Stores::open(&config, destinations.clone(), enrichments.clone())?;
    let (mode, mode_seen) = watch::channel(Mode::Serving);
    let (daemon, replay_thread) = daemon(config, stores, pressure, (mode, reloads), started_ns)?;
    daemon.tell_started();
    keep_watch(&daemon);
    let watching = Arc::clone(&daemon);
    let watch = daemon
        .pressure
        .spawn_watch(move |occurrence| watching.occurrence(occurrence))
        .map_err(Error::system("the pressure thread"))?;
    restore_override(&daemon).await?;

    let (inboxes, mut threads) = workers(
        &daemon,
        tls,
        mode_seen.clone(),
        &destinations,
        enrichments.live,
    )?;
    threads.push(replay_thread);
    let room = Arc::clone(&daemon.room);
    tokio::task::spawn_local(acceptor::run(listeners, inboxes, room, mode_seen));
    let pages = Rc::new(metrics::Pages(Arc::clone(&daemon)));
    tokio::task::spawn_local(telemetry::http::serve(telemetry, pages, stopping(&daemon)));
    let engine = Arc::new(Operated(Arc::clone(&daemon)));
    let stop = stopping(&daemon);
    let control = tokio::task::spawn_local(async move {
        if let Err(error) = control.serve(engine, stop).await {
            tracing::error!(%error, "control: the service has ended");
        }
    });
    daemon.ready.store(true, Relaxed);
    announce(&daemon, addresses, telemetry_address);
    Ok(Running {
        daemon,
        destinations,
        threads,
        watch,
        control,
        unix,
    })
}

/// What the kernel half looks at.
fn scope(config: &Config, addresses: [SocketAddr; 2]) -> IngestScope {
    IngestScope {
        ports: addresses.iter().map(SocketAddr::port).collect(),
        h2_window_bytes: STALLED_WINDOW_BYTES,
        vault_dir: Some(config.vault.dir.clone()),
    }
}

/// Warns if connections may need more descriptors than there are: those that find none wait in the backlog.
fn files_suffice(config: &Config) {
    let limit = privileges::files_limit();
    let wanted = acceptor::files_wanted(config.ingest.max_connections);
    if limit < wanted {
        tracing::warn!(
            limit,
            wanted,
            "RLIMIT_NOFILE is low for ingest.max_connections: connections may have to wait"
        );
    }
}

/// Starts what the main thread looks at now and then.
fn keep_watch(daemon: &Arc<Daemon>) {
    tokio::task::spawn_local(pacing::keep(Arc::clone(daemon)));
    tokio::task::spawn_local(ledger::keep(Arc::clone(daemon)));
    tokio::task::spawn_local(heartbeats::watch(Arc::clone(daemon)));
    tokio::task::spawn_local(room::predict(Arc::clone(daemon)));
}

/// Connections that may wait to be accepted; the kernel's `net.core.somaxconn` is the limit.
const BACKLOG: u16 = 4096;

/// The socket of local producers, if there is to be one.
fn local_producers(config: &Config) -> Result<Option<local_socket::Socket>, Error> {
    let bind = |unix: &UnixConfig| {
        local_socket::bind("ingest.unix.path", &unix.path, unix.mode, BACKLOG.into())
    };
    Ok(config.ingest.unix.as_ref().map(bind).transpose()?)
}

/// What is open on disk, and where it goes.
struct Stores {
    destinations: Destinations,
    enrichments: Enrichments,
    vault: Vault,
    dead_letters: DeadLetters,
    circuits: Vec<Arc<Circuit>>,
}

impl Stores {
    fn open(
        config: &Config,
        destinations: Destinations,
        enrichments: Enrichments,
    ) -> Result<Self, Error> {
        let names: Vec<String> = config
            .destinations
            .iter()
            .map(|destination| destination.name.clone())
            .collect();
        Ok(Self {
            destinations,
            enrichments,
            vault: Vault::open(&config.vault, &names)?,
            dead_letters: DeadLetters::open(
                &config.vault.dir,
                config.replay.dead_letters_max_bytes,
            )
            .map_err(replay::Error::from)?,
            circuits: config
                .destinations
                .iter()
                .map(|destination| Arc::new(Circuit::new(&destination.name, destination.retry())))
                .collect(),
        })
    }
}

/// Puts the daemon together around its replay thread, which it starts.
fn daemon(
    config: Config,
    stores: Stores,
    pressure: Pressure,
    (mode, tls): (watch::Sender<Mode>, Option<reload::Handle>),
    started_ns: u64,
) -> Result<(Arc<Daemon>, JoinHandle<()>), Error> {
    let (replay, thread) = replay::spawn(replay::Parts {
        config: config.replay.clone(),
        batch_max_bytes: config.pipeline.batch_max_bytes,
        max_entry_bytes: config.ingest.max_request_bytes,
        vault: stores.vault.clone(),
        verdict: pressure.verdict(),
        destinations: stores.destinations,
        enrichment: stores.enrichments.replayed,
        circuits: stores.circuits.clone(),
        dead_letters: stores.dead_letters,
    })?;
    let timeline = Timeline::open(&config.telemetry.timeline)
        .map_err(Error::system("the timeline's thread"))?;
    let ingest = &config.ingest;
    let budget = Arc::new(Budget::new(ingest.budget_bytes));
    let has_buffers = budget.try_take(ingest.buffers_bytes());
    debug_assert!(has_buffers, "the configuration was checked");
    let room = Room::new(
        Arc::clone(&budget),
        ingest.connections_bytes(),
        ingest.max_connections,
        ingest.workers,
    );
    let daemon = Daemon {
        vault: stores.vault,
        pressure: Arc::new(pressure),
        circuits: stores.circuits,
        replay,
        workers: (0..config.ingest.workers).map(|_| Arc::default()).collect(),
        budget,
        room: Arc::new(room),
        tls,
        mode,
        drain: Mutex::new(Drain::serving()),
        overridden: Mutex::new(None),
        override_turn: Mutex::new(()),
        transitions: Mutex::default(),
        chronicle: Chronicle::new(timeline, started_ns),
        ready: AtomicBool::new(false),
        exit: Notify::new(),
        config,
    };
    Ok((Arc::new(daemon), thread))
}

/// The judge takes an override in at its next tick.
const OVERRIDE_TIMEOUT: Duration = Duration::from_secs(2);

/// Puts the override of the last run in force again, before the first request is accepted.
async fn restore_override(daemon: &Daemon) -> Result<(), Error> {
    let Some(kept) = Override::load(&daemon.config.vault.dir)? else {
        return Ok(());
    };
    daemon.tell_restored(&kept);
    daemon.apply_override(Some(&kept));
    let deadline = Instant::now() + OVERRIDE_TIMEOUT;
    let verdict = daemon.pressure.verdict();
    while verdict.load().zone() != kept.zone && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tracing::warn!(
        zone = kept.zone.as_str(),
        by = kept.by,
        reason = kept.reason,
        "override of the last run is in force"
    );
    Ok(())
}

/// Completes when the daemon is past its drain.
fn stopping(daemon: &Daemon) -> impl Future<Output = ()> + 'static {
    let mut mode = daemon.mode.subscribe();
    async move {
        let _ = mode.wait_for(|mode| *mode == Mode::Stopping).await;
    }
}

/// A socket that has its address and doesn't listen yet.
struct Bound {
    key: &'static str,
    socket: TcpSocket,
    address: SocketAddr,
}

impl Bound {
    fn to(key: &'static str, address: SocketAddr) -> Result<Self, Error> {
        let error = |source| Error::Bind {
            key,
            address,
            source,
        };
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }
        .map_err(error)?;
        // A restart needn't wait for the connections of the last run to be forgotten.
        socket.set_reuseaddr(true).map_err(error)?;
        socket.bind(address).map_err(error)?;
        Ok(Self {
            key,
            address: socket.local_addr().map_err(error)?,
            socket,
        })
    }

    fn listen(self) -> Result<TcpListener, Error> {
        let Self {
            key,
            socket,
            address,
        } = self;
        socket.listen(BACKLOG.into()).map_err(|source| Error::Bind {
            key,
            address,
            source,
        })
    }
}

type Workers = (Vec<Inbox>, Vec<JoinHandle<()>>);

/// Starts the workers and waits until each has its lane and its destinations.
fn workers(
    daemon: &Daemon,
    tls: Option<watch::Receiver<Tls>>,
    mode: watch::Receiver<Mode>,
    destinations: &Destinations,
    enrichment: Arc<Enrichment>,
) -> Result<Workers, Error> {
    let config = &daemon.config;
    let shared = Shared {
        tls,
        mode,
        verdict: daemon.pressure.verdict(),
        cpu_wait: daemon.pressure.cpu_wait(),
        vault: daemon.vault.clone(),
        destinations: destinations.clone(),
        circuits: daemon.circuits.clone(),
        enrichment,
        budget: Arc::clone(&daemon.budget),
        pipeline: config.pipeline.clone(),
        workers: config.ingest.workers,
        vault_budget_bytes: config.vault.budget_bytes / config.ingest.workers.max(1),
        needs: config.ingest.needs(),
    };
    let cpus = if config.ingest.pin_workers {
        cpus::allowed()
    } else {
        Vec::new()
    };
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (mut inboxes, mut threads) = (Vec::new(), Vec::new());
    for (index, status) in daemon.workers.iter().enumerate() {
        let (sender, inbox) = mpsc::channel(INBOX_CAPACITY);
        let engine = daemon.pressure.engine(index);
        inboxes.push(Inbox {
            sender,
            counters: Arc::clone(&status.counters),
            engine,
            heartbeat_limit: config.pressure.heartbeat_limit,
        });
        let own = Own {
            index,
            inbox,
            engine,
            cpu: cpus.iter().cycle().nth(index).copied(),
            status: Arc::clone(status),
        };
        let thread =
            worker::spawn(shared.clone(), own, ready.clone()).map_err(worker::Error::from)?;
        threads.push(thread);
    }
    drop(ready);
    while let Ok(ready) = is_ready.recv() {
        ready?;
    }
    Ok((inboxes, threads))
}

fn announce(daemon: &Daemon, [grpc, http]: [SocketAddr; 2], telemetry: SocketAddr) {
    let judged = daemon.pressure.snapshot();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        %grpc,
        %http,
        tls = daemon.config.ingest.tls.is_some(),
        %telemetry,
        control = %daemon.config.control.path.display(),
        vault = %daemon.config.vault.dir.display(),
        vault_rung = daemon.vault.stats().rung,
        workers = daemon.config.ingest.workers,
        source = judged.source.as_str(),
        source_reason = judged.why_not_kernel.as_deref().unwrap_or_default(),
        zone = judged.zone.as_str(),
        "ready"
    );
}

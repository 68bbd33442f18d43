//! Every key there is: path, format, default and meaning, in one place.
//!
//! What isn't listed here isn't built, and is refused. The reader, the environment's names and
//! whatever describes the configuration (reference, schema, commented default) come from this list.

use std::marker::PhantomData;

use super::formats::{
    Address, Attributes, Auto, Balance, Bool, ClientAuth, Compression, Count, Detectors, Endpoint,
    Endpoints, ExportCompression, FileFormat, Format, Headers, Ids, Interfaces, Keep, KernelMode,
    LandlockMode, Level, Limit, LogFormat, LogLevel, Mode, Multiplier, Name, OnFull, Path, Period,
    Protocol, ProxyUrl, Rung, ServiceUser, Shape, Share, Size, SizeLimit, Span, SynRate, Sync,
    Texts, XdpMode,
};

/// What a key is worth where nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This text, as if it were written.
    Default(&'static str),
    /// Nothing; what that means is in the key's description.
    Unset,
    /// It must be set.
    Required,
}

/// A key without the type of its value.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Full path; `[]` stands for the position in a list.
    pub path: &'static str,
    /// What it is worth where nobody sets it.
    pub fallback: Fallback,
    /// Its shape in YAML.
    pub shape: Shape,
    /// What may be written, to complete "expected …".
    pub expects: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// A key whose values have the format `F`.
#[derive(Debug)]
pub struct Key<F> {
    /// The key.
    pub entry: Entry,
    format: PhantomData<fn() -> F>,
}

impl<F: Format> Key<F> {
    const fn new(path: &'static str, fallback: Fallback, doc: &'static str) -> Self {
        Self {
            entry: Entry {
                path,
                fallback,
                shape: F::SHAPE,
                expects: F::EXPECTS,
                doc,
            },
            format: PhantomData,
        }
    }
}

macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $name:ident: $format:ty = $path:literal, $fallback:expr;)*) => {
        $($(#[doc = $doc])+
        pub static $name: Key<$format> = Key::new($path, $fallback, concat!($($doc),+));)*

        /// All keys, in the order in which they are described.
        pub static KEYS: &[&Entry] = &[$(&$name.entry),*];
    };
}

use Fallback::{Default, Required, Unset};

keys! {
    /// Address of the OTLP/gRPC listener.
    INGEST_GRPC_LISTEN: Address = "ingest.grpc.listen", Default("0.0.0.0:4317");
    /// Address of the OTLP/HTTP listener.
    INGEST_HTTP_LISTEN: Address = "ingest.http.listen", Default("0.0.0.0:4318");
    /// Unix socket of OTLP/gRPC for local producers, without TLS; their credentials are logged. Unset: none.
    INGEST_UNIX_PATH: Path = "ingest.unix.path", Unset;
    /// Its permissions, octal.
    INGEST_UNIX_MODE: Mode = "ingest.unix.mode", Default("0666");
    /// Serve both listeners without TLS; their addresses must be loopback ones.
    INGEST_PLAINTEXT: Bool = "ingest.plaintext", Default("false");
    /// PEM certificate chain of the ingest listeners; needed unless plaintext is true.
    INGEST_TLS_CERT: Path = "ingest.tls.cert", Unset;
    /// PEM key of the ingest listeners; needed unless plaintext is true.
    INGEST_TLS_KEY: Path = "ingest.tls.key", Unset;
    /// PEM bundle that producers' certificates must chain to; needed if client_auth is required.
    INGEST_TLS_CLIENT_CA: Path = "ingest.tls.client_ca", Unset;
    /// Whether producers must present a certificate: required (mTLS) or none.
    INGEST_TLS_CLIENT_AUTH: ClientAuth = "ingest.tls.client_auth", Default("required");
    /// Largest message that is accepted, compressed and decompressed.
    INGEST_MAX_REQUEST_BYTES: Size = "ingest.max_request_bytes", Default("16MiB");
    /// Connections of other hosts that are open at once; beyond, the newest idle one is closed for a new one. Local ones
    /// are limited by the memory alone.
    INGEST_MAX_CONNECTIONS: Count = "ingest.max_connections", Default("4096");
    /// Worker threads; auto: one per core.
    INGEST_WORKERS: Auto<Count> = "ingest.workers", Default("auto");
    /// Keep each worker on one CPU, of those that the process may use, in turn.
    INGEST_PIN_WORKERS: Bool = "ingest.pin_workers", Default("false");

    /// What all buffers together may hold; auto: 25 % of the smallest memory limit, at most 1GiB.
    MEMORY_TOTAL: Auto<Size> = "memory.total", Default("auto");
    /// Share of memory.total for requests being received.
    MEMORY_INGEST: Share = "memory.ingest", Default("50%");
    /// Share of memory.total for batches on their way to destinations.
    MEMORY_EXPORT: Share = "memory.export", Default("30%");
    /// Share of memory.total for blocks on their way to the vault.
    MEMORY_VAULT: Share = "memory.vault", Default("20%");

    /// Who judges the pressure: auto (the kernel half if it loads), required (only it), off.
    PRESSURE_KERNEL: KernelMode = "pressure.kernel", Default("auto");
    /// Period of the kernel's full judgement, 1ms to 1s.
    PRESSURE_TICK: Period = "pressure.tick", Default("10ms");
    /// Without the kernel half: sample the host after this many operations.
    PRESSURE_SAMPLE_EVERY: Count = "pressure.sample_every", Default("1024");
    /// The zone is left only after every signal was low for this long.
    PRESSURE_HOLD: Span = "pressure.hold", Default("2s");
    /// Yellow from this fill of an ingest socket's receive queue.
    PRESSURE_RECEIVE_QUEUE_YELLOW: Share = "pressure.receive_queue.yellow", Default("50%");
    /// Red from this fill, if nothing is read from the socket for a while.
    PRESSURE_RECEIVE_QUEUE_RED: Share = "pressure.receive_queue.red", Default("80%");
    /// That while.
    PRESSURE_RECEIVE_QUEUE_FOR: Span = "pressure.receive_queue.for", Default("5ms");
    /// Yellow from this fill of a listener's accept queue, or off.
    PRESSURE_LISTEN_BACKLOG_YELLOW: Level = "pressure.listen_backlog.yellow", Default("50%");
    /// Red from this fill of a listener's accept queue, or off.
    PRESSURE_LISTEN_BACKLOG_RED: Level = "pressure.listen_backlog.red", Default("90%");
    /// Yellow from this share of a second lost to reclaiming memory, or off.
    PRESSURE_MEMORY_STALL_YELLOW: Level = "pressure.memory_stall.yellow", Default("5%");
    /// Red from this share of a second lost to reclaiming memory, or off.
    PRESSURE_MEMORY_STALL_RED: Level = "pressure.memory_stall.red", Default("20%");
    /// Yellow when no more than this share of the memory is available.
    PRESSURE_MEMORY_AVAILABLE_YELLOW: Share = "pressure.memory_available.yellow", Default("15%");
    /// Red when no more than this share of the memory is available.
    PRESSURE_MEMORY_AVAILABLE_RED: Share = "pressure.memory_available.red", Default("7%");
    /// Yellow from this share of a second that a worker waits for a CPU, or off.
    PRESSURE_CPU_WAIT_YELLOW: Level = "pressure.cpu_wait.yellow", Default("30%");
    /// Red from this share of a second that a worker waits for a CPU, or off.
    PRESSURE_CPU_WAIT_RED: Level = "pressure.cpu_wait.red", Default("70%");
    /// Yellow when the vault's disk takes this long for a request, or off; never Red.
    PRESSURE_DISK_LATENCY_YELLOW: Limit = "pressure.disk_latency.yellow", Default("50ms");
    /// Yellow when the ingest budget would be spent within this, if what arrives goes on growing, or off.
    PRESSURE_INGRESS_HORIZON: Limit = "pressure.ingress.horizon", Default("1s");
    /// Yellow from this use of the fullest memory budget.
    PRESSURE_BUDGET_YELLOW: Share = "pressure.budget.yellow", Default("80%");
    /// Red from this use of the fullest memory budget.
    PRESSURE_BUDGET_RED: Share = "pressure.budget.red", Default("95%");

    /// Network interface, or a list of them, whose traffic to the ingest ports is metered and
    /// guarded by an XDP program; unset: none. Needs the kernel half.
    XDP_INTERFACE: Interfaces = "xdp.interface", Unset;
    /// Where the program runs: native (the driver), generic (the stack) or auto (native, else generic).
    XDP_MODE: XdpMode = "xdp.mode", Default("auto");
    /// Prefixes whose new connections are never limited; of several, the most specific one decides.
    XDP_GUARD_ALLOW: Texts = "xdp.guard.allow", Default("");
    /// Prefixes whose new connections to the ingest ports are dropped, in any zone.
    XDP_GUARD_DENY: Texts = "xdp.guard.deny", Default("");
    /// In Red: new connections a second from one /24 (IPv4) or /64 (IPv6); unset: no limit.
    XDP_GUARD_SYN_PER_SECOND: SynRate = "xdp.guard.syn_per_second", Unset;

    /// Directory of the vault; one process owns it.
    VAULT_DIR: Path = "vault.dir", Default("/var/lib/gophership/vault");
    /// Most bytes of segments.
    VAULT_MAX_BYTES: Size = "vault.max_bytes", Default("10GiB");
    /// Bytes of one segment; auto: 64MiB, less where two for each worker wouldn't fit max_bytes,
    /// but enough for max_request_bytes.
    VAULT_SEGMENT_BYTES: Auto<Size> = "vault.segment_bytes", Default("auto");
    /// A segment with entries is sealed when it is this old, full or not.
    VAULT_SEGMENT_MAX_AGE: Period = "vault.segment_max_age", Default("10m");
    /// When max_bytes are used up: refuse requests, or drop_oldest (what it still owed is lost, and counted).
    VAULT_ON_FULL: OnFull = "vault.on_full", Default("refuse");
    /// Keep segments this long after all in them was delivered; they go first when room is needed.
    VAULT_RETAIN: Span = "vault.retain", Default("0s");
    /// Most bytes of dead letters; when there is no room for one, its entry stays owed.
    VAULT_DEAD_LETTERS_MAX_BYTES: Size = "vault.dead_letters_max_bytes", Default("256MiB");
    /// Longest an entry waits for others while a write is in flight.
    VAULT_LINGER: Span = "vault.linger", Default("500us");
    /// Codec of the blocks: lz4, none, or auto: lz4 unless the CPU is scarcer than the disk.
    VAULT_COMPRESSION: Compression = "vault.compression", Default("auto");
    /// Acknowledge after stable storage (always), or after the write (never; for benchmarks).
    VAULT_SYNC: Sync = "vault.sync", Default("always");
    /// How blocks get to the disk: the best that works (auto), or io_uring, pwrite or buffered.
    VAULT_RUNG: Rung = "vault.rung", Default("auto");

    /// Start replaying without being asked.
    REPLAY_AUTO: Bool = "replay.auto", Default("true");
    /// Once Green has held for this long.
    REPLAY_AFTER: Span = "replay.after", Default("10s");
    /// Rate limit to each destination, in message bytes a second.
    REPLAY_MAX_BYTES_PER_SECOND: Size = "replay.max_bytes_per_second", Default("64MiB");
    /// Give each replayed record the attribute gophership.record.id, the same however often it is sent.
    REPLAY_IDENTITY: Bool = "replay.identity", Default("false");

    /// Attributes that resources get which don't have them: keys and texts.
    ENRICH_RESOURCE: Attributes = "enrich.resource", Default("");
    /// What else they get, found out about the host that GopherShip runs on when it starts: host, os, container
    /// and k8s. Right for producers on it; [] for those elsewhere.
    ENRICH_DETECT: Detectors = "enrich.detect", Default("host,os,container,k8s");
    /// Give gophership.replayed = true to resources that come out of the vault.
    ENRICH_MARK_REPLAYED: Bool = "enrich.mark_replayed", Default("false");

    /// A request waits this long for its destinations, then the vault acknowledges it.
    EXPORT_ACK_WITHIN: Span = "export.ack_within", Default("20ms");
    /// Most message bytes of one export.
    EXPORT_BATCH_MAX_BYTES: Size = "export.batch.max_bytes", Default("4MiB");
    /// Longest a request waits for others while an export is in flight.
    EXPORT_BATCH_LINGER: Span = "export.batch.linger", Default("20ms");
    /// Unique name of the destination: a-z, 0-9, _ and -.
    DESTINATION_NAME: Name = "export.destinations[].name", Required;
    /// OTLP server: https://host:port, or http:// with tls.insecure; with protocol http, v1/logs is appended to its path.
    OTLP_ENDPOINT: Endpoint = "export.destinations[].otlp.endpoint", Unset;
    /// Several such servers that are one destination: what one of them has, the destination has. Instead of endpoint.
    OTLP_ENDPOINTS: Endpoints = "export.destinations[].otlp.endpoints", Unset;
    /// Which of several is asked first: failover, the first that works, or round_robin, each in turn.
    OTLP_BALANCE: Balance = "export.destinations[].otlp.balance", Default("failover");
    /// While there is something to send, their names are looked up again this often.
    OTLP_RESOLVE_EVERY: Period = "export.destinations[].otlp.resolve_every", Default("30s");
    /// How it is spoken to: grpc, or http (protobuf).
    OTLP_PROTOCOL: Protocol = "export.destinations[].otlp.protocol", Default("grpc");
    /// How messages are compressed: none, gzip or zstd.
    OTLP_COMPRESSION: ExportCompression = "export.destinations[].otlp.compression", Default("none");
    /// HTTP CONNECT proxy on the way to it: http://[user:password@]host:port. Unset: none, whatever the environment says.
    OTLP_PROXY: ProxyUrl = "export.destinations[].otlp.proxy", Unset;
    /// After a failure, it is tried again after this long.
    OTLP_RETRY_INITIAL: Period = "export.destinations[].otlp.retry.initial", Default("100ms");
    /// After further failures, later and later, but not after more than this.
    OTLP_RETRY_MAX: Period = "export.destinations[].otlp.retry.max", Default("10s");
    /// Each wait is so many times the last one.
    OTLP_RETRY_MULTIPLIER: Multiplier = "export.destinations[].otlp.retry.multiplier", Default("2");
    /// Each wait is longer or shorter by up to this share.
    OTLP_RETRY_JITTER: Share = "export.destinations[].otlp.retry.jitter", Default("20%");
    /// Limit of one export call.
    OTLP_TIMEOUT: Period = "export.destinations[].otlp.timeout", Default("10s");
    /// Headers sent with each call: a value, { env: NAME } or { file: PATH }, which are read at the start.
    OTLP_HEADERS: Headers = "export.destinations[].otlp.headers", Default("");
    /// PEM bundle to verify the server by; unset: the system's.
    OTLP_TLS_CA: Path = "export.destinations[].otlp.tls.ca", Unset;
    /// PEM client certificate chain, for mTLS; needs the key.
    OTLP_TLS_CERT: Path = "export.destinations[].otlp.tls.cert", Unset;
    /// PEM client key, for mTLS; needs the certificate.
    OTLP_TLS_KEY: Path = "export.destinations[].otlp.tls.key", Unset;
    /// Allow plaintext, with an http:// endpoint.
    OTLP_TLS_INSECURE: Bool = "export.destinations[].otlp.tls.insecure", Default("false");
    /// File that OTLP JSON lines are appended to.
    FILE_PATH: Path = "export.destinations[].file.path", Unset;
    /// What is appended: otlp_json, a request a line.
    FILE_FORMAT: FileFormat = "export.destinations[].file.format", Default("otlp_json");
    /// It is rotated from this size, or never (off).
    FILE_ROTATE_BYTES: SizeLimit = "export.destinations[].file.rotate_bytes", Default("100MiB");
    /// Rotated files that stay: path.1, the newest, to path.KEEP.
    FILE_KEEP: Keep = "export.destinations[].file.keep", Default("5");

    /// Socket of the control service.
    CONTROL_UNIX_PATH: Path = "control.unix.path", Default("/run/gophership/control.sock");
    /// Its permissions, octal.
    CONTROL_UNIX_MODE: Mode = "control.unix.mode", Default("0600");
    /// User ids that may use it.
    CONTROL_UNIX_ALLOW_UIDS: Ids = "control.unix.allow_uids", Default("0");
    /// Primary group ids that may use it.
    CONTROL_UNIX_ALLOW_GIDS: Ids = "control.unix.allow_gids", Default("");

    /// Address of /metrics, /healthz and /readyz.
    TELEMETRY_LISTEN: Address = "telemetry.listen", Default("127.0.0.1:9091");
    /// Level of the daemon's own log, optionally followed by target=level pairs.
    TELEMETRY_LOG_LEVEL: LogLevel = "telemetry.log.level", Default("info");
    /// Format of the daemon's own log: json or pretty.
    TELEMETRY_LOG_FORMAT: LogFormat = "telemetry.log.format", Default("json");
    /// JSON lines, one for each operator's call that changes something.
    TELEMETRY_AUDIT_LOG: Path = "telemetry.audit_log", Default("/var/log/gophership/audit.jsonl");
    /// JSON lines, one for each change of the verdict and what else the event timeline tells of.
    TELEMETRY_EVENTS: Path = "telemetry.events", Default("/var/log/gophership/events.jsonl");
    /// Most bytes of the timeline: half in the file, half in the one before it, with the suffix .1.
    TELEMETRY_EVENTS_MAX_BYTES: Size = "telemetry.events_max_bytes", Default("8MiB");

    /// Whom to run as once everything is open, always without capabilities: a name, uid or uid:gid;
    /// auto: the user gophership, if root starts the daemon and there is one, else whoever starts it.
    SERVICE_USER: ServiceUser = "service.user", Default("auto");
    /// Confine it to the files of this configuration: auto (if the kernel can), required, off.
    SERVICE_LANDLOCK: LandlockMode = "service.landlock", Default("auto");
}

/// What a path means to the reader.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meaning {
    /// A key.
    Key(&'static Entry),
    /// A mapping that leads to keys.
    Section,
    /// A sequence of mappings that lead to keys.
    Sections,
    /// Nothing.
    Unknown,
}

/// Looks `path` up, with `[]` for positions in lists.
pub(super) fn meaning(path: &str) -> Meaning {
    for entry in KEYS {
        let Some(rest) = entry.path.strip_prefix(path) else {
            continue;
        };
        if rest.is_empty() {
            return Meaning::Key(entry);
        }
        if rest.starts_with("[]") {
            return Meaning::Sections;
        }
        if rest.starts_with('.') {
            return Meaning::Section;
        }
    }
    Meaning::Unknown
}

/// The known path that `path` was most likely meant to be: a sibling spelt nearly so, else the key
/// of that name elsewhere, else whatever is nearest.
pub(super) fn nearest(path: &str) -> &'static str {
    let likeness = |known: &str| {
        let whole = strsim::normalized_damerau_levenshtein(path, known);
        let (parent, leaf) = split(path);
        let (known_parent, known_leaf) = split(known);
        let leaves = strsim::normalized_damerau_levenshtein(leaf, known_leaf);
        let sibling = parent == known_parent && leaves >= 0.5;
        leaves + whole / 2.0 + if sibling { 1.0 } else { 0.0 }
    };
    known_paths()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .unwrap_or_default()
}

/// The name that an environment variable gives to a key: `GOPHERSHIP_VAULT__DIR`. None inside lists.
pub fn variable(path: &str) -> Option<String> {
    let plain = !path.contains("[]");
    plain.then(|| format!("{PREFIX}{}", path.replace('.', "__").to_uppercase()))
}

/// What the names of overriding environment variables begin with.
pub const PREFIX: &str = "GOPHERSHIP_";

fn known_paths() -> impl Iterator<Item = &'static str> {
    KEYS.iter().flat_map(|entry| {
        let ends = entry.path.match_indices(['.', '[']).map(|(at, _)| at);
        ends.chain([entry.path.len()]).map(|end| &entry.path[..end])
    })
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

//! Settings → the configuration of every module, with the checks between keys.

use std::{net::SocketAddr, time::Duration};

use super::{
    Host, destinations, enrich,
    formats::Share,
    levels,
    schema::{self, Key},
    settings::Settings,
    units::{exact_bytes, exact_permille},
};
use crate::{
    app, control, ingest, pipeline, privileges, replay,
    telemetry::{self, timeline},
    vault,
};

const MIB: u64 = 1 << 20;
/// `memory.total: auto` is this at most.
const MEMORY_AUTO_BYTES_MAX: u64 = 1 << 30;
/// `vault.segment_bytes: auto`, unless `max_bytes` or a request demand otherwise.
const SEGMENT_AUTO_BYTES: u64 = 64 * MIB;
/// Segments are never smaller.
const SEGMENT_BYTES_MIN: u64 = MIB;
/// Segments are whole pages.
const SEGMENT_ALIGN_BYTES: u64 = 4096;
/// Each lane writes one segment while the next is made ready.
const SEGMENTS_PER_LANE_MIN: u64 = 2;
/// One lane directory has two digits.
const WORKERS_MAX: u64 = 100;
/// Bounds the duplicates after a crash.
const CURSOR_INTERVAL: Duration = Duration::from_secs(1);

/// Builds everything; None if a problem is noted.
pub(super) fn app(s: &mut Settings, host: Host) -> Option<app::Config> {
    // Nothing returns before everything was read: all problems are reported at once.
    let budgets = budgets(s, host);
    let lanes = workers(s, host);
    let request_bytes = s.get(&schema::INGEST_MAX_REQUEST_BYTES);
    let ingest = ingest(s, budgets, lanes);
    let pressure = levels::config(s);
    let pipeline = pipeline(s, budgets);
    let enrich = enrich::config(s);
    let destinations = destinations::all(s);
    let vault = vault(s, budgets, lanes, request_bytes);
    let replay = replay(s);
    let control = control(s);
    let telemetry = telemetry(s);
    let service = service(s);
    if let (Some(request_bytes), Some(budgets), Some(workers)) = (request_bytes, budgets, lanes) {
        check_ingest_budget(s, request_bytes, budgets.ingest, workers);
        check_request(s, vault.as_ref());
    }
    Some(app::Config {
        ingest: ingest?,
        pressure: pressure?,
        pipeline: pipeline?,
        enrich: enrich?,
        destinations: destinations?,
        vault: vault?,
        replay: replay?,
        control: control?,
        telemetry: telemetry?,
        service: service?,
        file: None,
        memory_total_bytes: budgets?.total,
    })
}

/// Bytes of each budget.
#[derive(Debug, Clone, Copy)]
struct Budgets {
    total: u64,
    ingest: u64,
    export: u64,
    vault: u64,
}

fn budgets(s: &mut Settings, host: Host) -> Option<Budgets> {
    let total = s.get(&schema::MEMORY_TOTAL);
    let keys: [&Key<Share>; 3] = [
        &schema::MEMORY_INGEST,
        &schema::MEMORY_EXPORT,
        &schema::MEMORY_VAULT,
    ];
    let shares = keys.map(|key| s.get(key));
    let total = match total? {
        Some(total) => {
            if total > host.memory_limit_bytes {
                let message = format!(
                    "memory.total = {} is more than this process may use ({})",
                    exact_bytes(total),
                    exact_bytes(host.memory_limit_bytes)
                );
                s.conflict(&["memory.total"], message);
            }
            total
        }
        None => (host.memory_limit_bytes / 4).min(MEMORY_AUTO_BYTES_MAX),
    };
    let [ingest, export, vault] = shares;
    let (ingest, export, vault) = (ingest?, export?, vault?);
    if ingest + export + vault > 1000 {
        let message = format!(
            "memory.ingest = {}, memory.export = {} and memory.vault = {} add up to more than 100%",
            exact_permille(ingest),
            exact_permille(export),
            exact_permille(vault)
        );
        s.conflict(&["memory.ingest", "memory.export", "memory.vault"], message);
    }
    let share = |permille: u32| {
        let bytes = u128::from(total) * u128::from(permille) / 1000;
        u64::try_from(bytes).unwrap_or(total)
    };
    Some(Budgets {
        total,
        ingest: share(ingest),
        export: share(export),
        vault: share(vault),
    })
}

fn workers(s: &mut Settings, host: Host) -> Option<usize> {
    let workers = match s.get(&schema::INGEST_WORKERS)? {
        Some(workers) => workers.get(),
        None => u64::try_from(host.cores).ok()?.min(WORKERS_MAX),
    };
    if workers > WORKERS_MAX {
        let message = format!("ingest.workers = {workers} is more than {WORKERS_MAX}");
        s.conflict(&["ingest.workers"], message);
    }
    usize::try_from(workers).ok()
}

fn ingest(
    s: &mut Settings,
    budgets: Option<Budgets>,
    workers: Option<usize>,
) -> Option<ingest::Config> {
    let grpc_listen = s.get(&schema::INGEST_GRPC_LISTEN);
    let http_listen = s.get(&schema::INGEST_HTTP_LISTEN);
    let unix_path = s.get(&schema::INGEST_UNIX_PATH);
    let unix_mode = s.get(&schema::INGEST_UNIX_MODE);
    let max_request_bytes = s.get(&schema::INGEST_MAX_REQUEST_BYTES);
    let max_connections = s.get(&schema::INGEST_MAX_CONNECTIONS);
    let plaintext = s.get(&schema::INGEST_PLAINTEXT);
    let pin_workers = s.get(&schema::INGEST_PIN_WORKERS);
    let tls = ingest_tls(s, plaintext == Some(false));
    if plaintext == Some(true) {
        let addresses = [
            ("ingest.grpc.listen", grpc_listen),
            ("ingest.http.listen", http_listen),
        ];
        for (key, address) in addresses {
            check_loopback(s, key, address);
        }
    }
    let unix = match unix_path {
        Some(path) => Some(ingest::UnixConfig {
            path,
            mode: unix_mode?,
        }),
        None => None,
    };
    Some(ingest::Config {
        grpc_listen: grpc_listen?,
        http_listen: http_listen?,
        unix,
        tls: if plaintext? { None } else { Some(tls?) },
        max_request_bytes: size(max_request_bytes?)?,
        budget_bytes: size(budgets?.ingest)?,
        max_connections: size(max_connections?.get())?,
        workers: workers?,
        pin_workers: pin_workers?,
    })
}

fn ingest_tls(s: &mut Settings, is_needed: bool) -> Option<ingest::TlsConfig> {
    let cert = s.get(&schema::INGEST_TLS_CERT);
    let key = s.get(&schema::INGEST_TLS_KEY);
    let client_ca = s.get(&schema::INGEST_TLS_CLIENT_CA);
    let client_auth = s.get(&schema::INGEST_TLS_CLIENT_AUTH);
    if is_needed {
        for (key, value) in [
            (&schema::INGEST_TLS_CERT, &cert),
            (&schema::INGEST_TLS_KEY, &key),
        ] {
            if value.is_none() {
                s.missing(key.entry.path.to_owned(), key.entry.doc);
            }
        }
        if client_auth == Some(ingest::ClientAuth::Required) && client_ca.is_none() {
            let why = "producers' certificates are checked against it, as \
                       ingest.tls.client_auth = required demands (`gs-ctl certs init` makes one)";
            s.missing("ingest.tls.client_ca".to_owned(), why);
        }
    }
    Some(ingest::TlsConfig {
        cert: cert?,
        key: key?,
        client_ca,
        client_auth: client_auth?,
    })
}

/// Nobody but this machine's own processes may be served in plaintext.
fn check_loopback(s: &mut Settings, key: &'static str, address: Option<SocketAddr>) {
    if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
        let message = format!(
            "{key} = {address} is no loopback address, and ingest.plaintext = true serves only those"
        );
        s.conflict(&[key, "ingest.plaintext"], message);
    }
}

fn pipeline(s: &mut Settings, budgets: Option<Budgets>) -> Option<pipeline::Config> {
    let ack_within = s.get(&schema::EXPORT_ACK_WITHIN);
    let batch_max_bytes = s.get(&schema::EXPORT_BATCH_MAX_BYTES);
    let batch_linger = s.get(&schema::EXPORT_BATCH_LINGER);
    if let (Some(batch), Some(budgets)) = (batch_max_bytes, budgets)
        && batch > budgets.export
    {
        let message = format!(
            "export.batch.max_bytes = {} is more than the export budget, memory.export of \
             memory.total = {}",
            exact_bytes(batch),
            exact_bytes(budgets.export)
        );
        s.conflict(
            &["export.batch.max_bytes", "memory.export", "memory.total"],
            message,
        );
    }
    Some(pipeline::Config {
        ack_within: ack_within?,
        batch_max_bytes: size(batch_max_bytes?)?,
        batch_linger: batch_linger?,
        budget_bytes: size(budgets?.export)?,
    })
}

fn vault(
    s: &mut Settings,
    budgets: Option<Budgets>,
    lanes: Option<usize>,
    max_entry_bytes: Option<u64>,
) -> Option<vault::Config> {
    let dir = s.get(&schema::VAULT_DIR);
    let segment_max_age = s.get(&schema::VAULT_SEGMENT_MAX_AGE);
    let on_full = s.get(&schema::VAULT_ON_FULL);
    let retain = s.get(&schema::VAULT_RETAIN);
    let linger = s.get(&schema::VAULT_LINGER);
    let compression = s.get(&schema::VAULT_COMPRESSION);
    let sync = s.get(&schema::VAULT_SYNC);
    let rung = s.get(&schema::VAULT_RUNG);
    let max_bytes = s.get(&schema::VAULT_MAX_BYTES);
    let segment_bytes = s.get(&schema::VAULT_SEGMENT_BYTES);
    let segment_bytes = segments(s, max_bytes?, segment_bytes?, lanes?, max_entry_bytes?);
    Some(vault::Config {
        dir: dir?,
        max_bytes: max_bytes?,
        segment_bytes,
        segment_max_age: segment_max_age?,
        on_full: on_full?,
        retain: retain?,
        linger: linger?,
        compression: compression?,
        sync: sync?,
        cursor_interval: CURSOR_INTERVAL,
        lanes: lanes?,
        budget_bytes: size(budgets?.vault)?,
        max_entry_bytes: size(max_entry_bytes?)?,
        rung: rung?,
    })
}

/// Chooses or checks the size of segments: two a lane must fit the vault, and a request half of one.
fn segments(
    s: &mut Settings,
    max_bytes: u64,
    configured: Option<u64>,
    lanes: usize,
    request: u64,
) -> u64 {
    let lanes = lanes as u64;
    let needed = |segment: u64| segment.saturating_mul(lanes * SEGMENTS_PER_LANE_MIN);
    let segment = configured.unwrap_or_else(|| {
        let mut segment = SEGMENT_AUTO_BYTES.max(request.saturating_mul(2).next_power_of_two());
        let least = SEGMENT_BYTES_MIN.max(request.saturating_mul(2));
        while segment / 2 >= least && needed(segment) > max_bytes {
            segment /= 2;
        }
        segment
    });
    if !segment.is_multiple_of(SEGMENT_ALIGN_BYTES) || segment < SEGMENT_BYTES_MIN {
        let message = format!(
            "vault.segment_bytes = {} must be a multiple of 4KiB, at least 1MiB",
            exact_bytes(segment)
        );
        s.conflict(&["vault.segment_bytes"], message);
    } else if needed(segment) > max_bytes {
        let why = match configured {
            Some(_) => String::new(),
            None => format!(
                ", as ingest.max_request_bytes = {} needs",
                exact_bytes(request)
            ),
        };
        let message = format!(
            "vault.max_bytes = {} is less than {SEGMENTS_PER_LANE_MIN} segments for each worker \
             (ingest.workers = {lanes}, vault.segment_bytes = {}{why}): at least {}",
            exact_bytes(max_bytes),
            exact_bytes(segment),
            exact_bytes(needed(segment))
        );
        s.conflict(
            &[
                "vault.max_bytes",
                "vault.segment_bytes",
                "ingest.workers",
                "ingest.max_request_bytes",
            ],
            message,
        );
    }
    segment
}

/// A request must fit the memory it is received into, beside connections and the workers' buffers.
fn check_ingest_budget(s: &mut Settings, request: u64, budget: u64, workers: usize) {
    let Some(budget_bytes) = size(budget) else {
        return;
    };
    let buffers = ingest::needs::buffers_bytes(budget_bytes, workers);
    let left = budget_bytes.saturating_sub(buffers);
    if request > ingest::needs::request_bytes_max(left) as u64 {
        let message = format!(
            "ingest.max_request_bytes = {} is more than three quarters of what the buffers of \
             ingest.workers = {workers} leave of the ingest budget, memory.ingest of memory.total = {}: {}",
            exact_bytes(request),
            exact_bytes(budget),
            exact_bytes(left as u64)
        );
        s.conflict(
            &[
                "ingest.max_request_bytes",
                "memory.ingest",
                "memory.total",
                "ingest.workers",
            ],
            message,
        );
    }
    let least = ingest::budget_bytes_min(workers);
    if budget < least {
        let message = format!(
            "the ingest budget, memory.ingest of memory.total, is {}: one connection and \
             ingest.workers = {workers} need {} of it",
            exact_bytes(budget),
            exact_bytes(least)
        );
        s.conflict(
            &["memory.ingest", "memory.total", "ingest.workers"],
            message,
        );
    }
}

/// A request must fit the segment it may have to go to; by the vault's own rule, so that what passes here starts.
fn check_request(s: &mut Settings, vault: Option<&vault::Config>) {
    match vault.map(vault::Config::check) {
        // Half of a segment, and what its blocks need for their headers.
        Some(Err(vault::Error::TooBig {
            key: "max_entry_bytes",
            value,
            max,
        })) => {
            let segment_bytes = vault.map_or(0, |vault| vault.segment_bytes);
            let message = format!(
                "ingest.max_request_bytes = {} doesn't fit half of vault.segment_bytes = {}: at most {}",
                exact_bytes(value),
                exact_bytes(segment_bytes),
                exact_bytes(max)
            );
            s.conflict(
                &[
                    "ingest.max_request_bytes",
                    "vault.segment_bytes",
                    "vault.max_bytes",
                ],
                message,
            );
        }
        Some(Err(vault::Error::TooSmall {
            key: "budget_bytes",
            value,
            min,
        })) => {
            let message = format!(
                "the vault's budget, memory.vault of memory.total, is {}: for ingest.workers = {} at \
                 least {}",
                exact_bytes(value),
                vault.map_or(0, |vault| vault.lanes),
                exact_bytes(min)
            );
            s.conflict(&["memory.vault", "memory.total", "ingest.workers"], message);
        }
        // What else it says of these sizes is noted already, where they were read.
        Some(Err(_) | Ok(())) | None => {}
    }
}

fn replay(s: &mut Settings) -> Option<replay::Config> {
    let auto = s.get(&schema::REPLAY_AUTO);
    let after = s.get(&schema::REPLAY_AFTER);
    let max_bytes_per_second = s.get(&schema::REPLAY_MAX_BYTES_PER_SECOND);
    let identity = s.get(&schema::REPLAY_IDENTITY);
    let dead_letters_max_bytes = s.get(&schema::VAULT_DEAD_LETTERS_MAX_BYTES);
    Some(replay::Config {
        auto: auto?,
        after: after?,
        max_bytes_per_second: max_bytes_per_second?,
        identity: identity?,
        dead_letters_max_bytes: dead_letters_max_bytes?,
    })
}

fn control(s: &mut Settings) -> Option<control::Config> {
    let path = s.get(&schema::CONTROL_UNIX_PATH);
    let mode = s.get(&schema::CONTROL_UNIX_MODE);
    let allow_uids = s.get(&schema::CONTROL_UNIX_ALLOW_UIDS);
    let allow_gids = s.get(&schema::CONTROL_UNIX_ALLOW_GIDS);
    let audit_log = s.get(&schema::TELEMETRY_AUDIT_LOG);
    Some(control::Config {
        path: path?,
        mode: mode?,
        allow_uids: allow_uids?,
        allow_gids: allow_gids?,
        audit_log: audit_log?,
    })
}

fn telemetry(s: &mut Settings) -> Option<telemetry::Config> {
    let listen = s.get(&schema::TELEMETRY_LISTEN);
    let log_level = s.get(&schema::TELEMETRY_LOG_LEVEL);
    let log_format = s.get(&schema::TELEMETRY_LOG_FORMAT);
    let events = s.get(&schema::TELEMETRY_EVENTS);
    let events_max_bytes = s.get(&schema::TELEMETRY_EVENTS_MAX_BYTES);
    if let Some(bytes) = events_max_bytes.filter(|bytes| *bytes < timeline::BYTES_MIN) {
        let message = format!(
            "telemetry.events_max_bytes = {} is less than {}",
            exact_bytes(bytes),
            exact_bytes(timeline::BYTES_MIN)
        );
        s.conflict(&["telemetry.events_max_bytes"], message);
    }
    Some(telemetry::Config {
        listen: listen?,
        log_level: log_level?,
        log_format: log_format?,
        timeline: timeline::Config {
            path: events?,
            bytes_max: events_max_bytes?,
        },
    })
}

fn service(s: &mut Settings) -> Option<privileges::Config> {
    let user = s.get(&schema::SERVICE_USER);
    let landlock = s.get(&schema::SERVICE_LANDLOCK);
    Some(privileges::Config {
        user: user?,
        landlock: landlock?,
    })
}

/// Bytes as the machine counts them; every target we build for has 64 bits.
fn size(bytes: u64) -> Option<usize> {
    usize::try_from(bytes).ok()
}

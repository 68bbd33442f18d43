//! From "the message bytes are here" to "in a batch or a vault block", nothing is allocated.

mod counting_allocator;
#[path = "common/pressure.rs"]
mod judged;
#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use counting_allocator::allocations;
use gophership::{
    export::{DestinationConfig, DestinationKind, Destinations, FileConfig, Retry},
    otel::{Enrichment, skim},
    pipeline::{self, Member, Pipeline, circuit::Circuit},
    pressure::{Config as PressureConfig, IngestScope, KernelMode, OverrideUntil, Pressure, Zone},
    somatic::{Answer, Hurry, Placed, Reflex, Request, settle_held},
    telemetry::counters::WorkerCounters,
    vault::{Config, ContentEncoding, Kind, Vault},
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use prost::Message;
use vault_support::{on_worker, real_disk, small};

const RECORDS: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(20);

fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(Value::StringValue(text.to_owned())),
    }
}

/// A request in the frames that HTTP/2 cuts it into.
fn frames() -> Vec<Bytes> {
    let record = |number: u32| LogRecord {
        time_unix_nano: 1_700_000_000_000_000_000 + u64::from(number),
        body: Some(text(&format!("record {number} {}", "x".repeat(400)))),
        ..LogRecord::default()
    };
    let request = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            scope_logs: vec![ScopeLogs {
                log_records: (0..RECORDS).map(record).collect(),
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    };
    let message = Bytes::from(request.encode_to_vec());
    (0..message.len())
        .step_by(1500)
        .map(|start| message.slice(start..message.len().min(start + 1500)))
        .collect()
}

fn pressure() -> Arc<Pressure> {
    let config = PressureConfig {
        sample_every: 16,
        hold: Duration::from_millis(10),
        heartbeat_limit: Duration::from_secs(1000),
        ..judged::config(KernelMode::Off)
    };
    let scope = IngestScope {
        ports: vec![4317],
        h2_window_bytes: 0,
        vault_dir: None,
    };
    Arc::new(Pressure::start(&config, &scope, 1).expect("the fallback starts"))
}

/// A reflex with a real lane and a real file behind it.
fn reflex(pressure: &Pressure, vault: &Vault, dir: &std::path::Path) -> Reflex {
    let config = DestinationConfig {
        name: "main".to_owned(),
        kind: DestinationKind::File(FileConfig {
            path: dir.join("logs.jsonl"),
            rotation: None,
        }),
    };
    let destinations = Destinations::open(&[config]).expect("the file opens");
    destinations.start().expect("its thread starts");
    let member = |destination| Member {
        destination: Rc::new(destination),
        bit: vault.mask_of("main").expect("the vault knows it"),
        circuit: Arc::new(Circuit::new("main", Retry::default())),
        in_flight: Rc::default(),
    };
    let members: Vec<_> = destinations.connect().into_iter().map(member).collect();
    let config = pipeline::Config {
        ack_within: PATIENCE,
        batch_max_bytes: 1 << 20,
        batch_linger: Duration::from_millis(20),
        budget_bytes: 8 << 20,
    };
    let on_held_settled = {
        let (vault, members) = (vault.clone(), members.clone());
        Box::new(move |held, settled| settle_held(&vault, &members, held, &settled))
    };
    // What the requests lack, as they do the observed times.
    let enrichment = Arc::new(Enrichment::new(&["host.name", "os.type"].map(|key| {
        KeyValue {
            key: key.to_owned(),
            value: Some(text("of the tests")),
            ..KeyValue::default()
        }
    })));
    let pipeline = Pipeline::new(&config, 1, members, enrichment, on_held_settled);
    tokio::task::spawn_local(pipeline.clone().run());
    Reflex::new(
        pressure.verdict(),
        pressure.engine(0),
        pipeline,
        vault.lane(0).expect("the lane opens"),
        Arc::new(WorkerCounters::default()),
        config.ack_within,
        Rc::new(Hurry::default()),
    )
}

/// Sends one request through the reflex; gives its answer and what the reflex allocated until the
/// bytes were where they belong.
async fn one(reflex: &Reflex, frames: &[Bytes]) -> (Answer, u64) {
    let before = allocations();
    let records = skim(frames).expect("well formed").records;
    let request = Request {
        kind: Kind::OtlpLogs,
        encoding: ContentEncoding::Identity,
        arrival_unix_ns: 1,
        records,
    };
    let placed = reflex.place(frames, &request);
    let is_placed = matches!(placed, Placed::Pipeline(_));
    let mut allocated = allocations() - before;
    let mut answer = pin!(reflex.answer(placed, request, frames));
    // The first poll copies into the vault's block, if that is the way.
    let first = std::future::poll_fn(|context| {
        let before = allocations();
        let first = answer.as_mut().poll(context);
        if !is_placed {
            allocated += allocations() - before;
        }
        Poll::Ready(first)
    });
    let answer = match first.await {
        Poll::Ready(answer) => answer,
        Poll::Pending => answer.await,
    };
    (answer, allocated)
}

fn override_zone(pressure: &Pressure, zone: Zone) {
    pressure.set_override(Some(OverrideUntil {
        zone,
        until_ns: None,
    }));
    let deadline = Instant::now() + PATIENCE;
    while pressure.verdict().load().zone() != zone {
        assert!(Instant::now() < deadline, "the zone never became {zone:?}");
        std::thread::yield_now();
    }
}

#[test]
fn the_reflex_allocates_nothing_on_either_way() {
    let dir = real_disk();
    let config = Config {
        max_bytes: 256 << 20,
        ..small(dir.path())
    };
    let pressure = pressure();
    let _watch = pressure.spawn_watch(|_| {}).expect("the thread starts");
    let frames = frames();
    let vault = Vault::open(&config, &["main".to_owned()]).expect("the vault opens");
    on_worker(async {
        let reflex = reflex(&pressure, &vault, dir.path());
        for (zone, expected) in [
            (Zone::Green, Answer::Delivered),
            (Zone::Red, Answer::Vaulted),
        ] {
            override_zone(&pressure, zone);
            for _ in 0..50 {
                let (answer, _) = one(&reflex, &frames).await;
                assert_eq!(answer, expected, "warming up, {zone:?}");
            }
            for round in 0..200 {
                let (answer, allocated) = one(&reflex, &frames).await;
                assert_eq!(answer, expected, "{zone:?}");
                assert_eq!(allocated, 0, "{zone:?}, round {round}");
            }
        }
    });
}

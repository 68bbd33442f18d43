//! `splice`: enrichment as the pipeline does it, beside decoding, changing and encoding with `prost`, in turns. One
//! thread, and what counts is bytes of requests a CPU second.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use gophership::otel::Enrichment;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
};
use prost::Message as _;
use serde_json::json;

use crate::{
    load::{Corpus, RECORD_BYTES},
    report::{Report, Spread},
    vault::thread_cpu,
};

/// Bytes a CPU second that splicing reaches with requests of [`BAR_RECORDS`] records with their observed times.
const BAR_BYTES_PER_SECOND: f64 = 5e9;
const BAR_RECORDS: u64 = 100;
/// What HTTP/2 cuts requests into.
const FRAME_BYTES: usize = 16 * 1024;
/// A batch, which is begun again when it is full.
const BATCH_BYTES: usize = 4 << 20;
const ARRIVAL: u64 = 1_700_000_000_000_000_000;
/// Attributes that are added, of which the corpus has one.
const KEYS: [&str; 10] = [
    "host.name",
    "host.id",
    "host.arch",
    "os.type",
    "os.description",
    "container.id",
    "k8s.node.name",
    "k8s.pod.name",
    "k8s.namespace.name",
    "cloud.region",
];

/// Measures requests of several sizes, with and without observed times.
pub(crate) fn run(report: &mut Report, quick: bool) -> Result<()> {
    let added = KEYS.map(|key| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(format!("the value of {key}"))),
        }),
        ..KeyValue::default()
    });
    let (rounds, window) = match quick {
        true => (3, Duration::from_millis(100)),
        false => (9, Duration::from_millis(500)),
    };
    for records in [1, 10, BAR_RECORDS, 1000] {
        for is_observed in [true, false] {
            let case = Case::new(records, is_observed, &added)?;
            measure(report, &case, rounds, window)?;
        }
    }
    Ok(())
}

/// One kind of request.
struct Case<'a> {
    records: u64,
    is_observed: bool,
    /// Each in the frames it comes in.
    requests: Vec<Vec<Bytes>>,
    added: &'a [KeyValue],
    enrichment: Enrichment,
}

impl<'a> Case<'a> {
    fn new(records: u64, is_observed: bool, added: &'a [KeyValue]) -> Result<Self> {
        let mut requests = Vec::new();
        for message in Corpus::new(records).messages() {
            let mut request = ExportLogsServiceRequest::decode(message.clone())?;
            for record in records_of(&mut request) {
                record.observed_time_unix_nano = if is_observed { ARRIVAL } else { 0 };
            }
            let bytes = Bytes::from(request.encode_to_vec());
            let frames = (0..bytes.len()).step_by(FRAME_BYTES);
            let frame = |at| bytes.slice(at..bytes.len().min(at + FRAME_BYTES));
            requests.push(frames.map(frame).collect());
        }
        Ok(Self {
            records,
            is_observed,
            requests,
            added,
            enrichment: Enrichment::new(added),
        })
    }

    fn splice(&self, request: &[Bytes], batch: &mut Vec<u8>) {
        let splice = self.enrichment.splice(request);
        make_room(batch, splice.enriched_bytes());
        splice.write(ARRIVAL, |bytes| batch.extend_from_slice(bytes));
    }

    /// The same by `prost`, which is given one piece.
    fn recode(&self, request: &[u8], batch: &mut Vec<u8>) -> Result<()> {
        let mut request = ExportLogsServiceRequest::decode(request)?;
        for logs in &mut request.resource_logs {
            let attributes = &mut logs.resource.get_or_insert_default().attributes;
            for added in self.added {
                if attributes.iter().all(|present| present.key != added.key) {
                    attributes.push(added.clone());
                }
            }
        }
        for record in records_of(&mut request) {
            if record.observed_time_unix_nano == 0 {
                record.observed_time_unix_nano = ARRIVAL;
            }
        }
        make_room(batch, request.encoded_len());
        request.encode(batch)?;
        Ok(())
    }
}

fn records_of(
    request: &mut ExportLogsServiceRequest,
) -> impl Iterator<Item = &mut opentelemetry_proto::tonic::logs::v1::LogRecord> {
    let scopes = request.resource_logs.iter_mut();
    scopes
        .flat_map(|logs| &mut logs.scope_logs)
        .flat_map(|scope| &mut scope.log_records)
}

fn make_room(batch: &mut Vec<u8>, bytes: usize) {
    if batch.len() + bytes > BATCH_BYTES {
        batch.clear();
    }
}

fn measure(report: &mut Report, case: &Case<'_>, rounds: usize, window: Duration) -> Result<()> {
    let whole: Vec<Vec<u8>> = case.requests.iter().map(|frames| frames.concat()).collect();
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    let mut turns = Vec::new();
    for _ in 0..rounds {
        let spliced = rate(
            &case.requests,
            window,
            |frames| frames.iter().map(Bytes::len).sum(),
            |request| {
                case.splice(request, &mut batch);
                Ok(())
            },
        )?;
        let recoded = rate(&whole, window, Vec::len, |request| {
            case.recode(request, &mut batch)
        })?;
        turns.push((spliced, recoded));
        black_box(&batch);
    }
    let of = |figure: fn(&(f64, f64)) -> f64| {
        Spread::of(turns.iter().map(figure).collect()).context("no round was measured")
    };
    let (spliced, recoded) = (of(|turn| turn.0)?, of(|turn| turn.1)?);
    let ratio = of(|turn| turn.0 / turn.1)?;
    let what = if case.is_observed { "with" } else { "without" };
    eprintln!(
        "splice: {:>4} records {what:<7} observed time: {:.2} GB/s, prost {:.2} GB/s, {:.1} times",
        case.records,
        spliced.p50 / 1e9,
        recoded.p50 / 1e9,
        ratio.p50,
    );
    let mut figures = json!({
        "records_per_request_count": case.records,
        "record_bytes": RECORD_BYTES - if case.is_observed { 0 } else { 9 },
        "attributes_count": case.added.len(),
        "has_observed_time": case.is_observed,
    });
    spliced.add_to(&mut figures, "splice", "bytes_per_cpu_second");
    recoded.add_to(&mut figures, "prost", "bytes_per_cpu_second");
    ratio.add_to(&mut figures, "splice_over_prost", "ratio");
    if case.is_observed && case.records == BAR_RECORDS {
        figures["bars"] = json!([report.bar(
            "splicing at least 5 GB a CPU second where records have their observed times",
            spliced.p50 >= BAR_BYTES_PER_SECOND,
        )]);
    }
    report.emit("splice", &figures);
    Ok(())
}

/// Bytes a CPU second of `enrich` on this thread.
fn rate<R>(
    requests: &[R],
    window: Duration,
    bytes_of: impl Fn(&R) -> usize,
    mut enrich: impl FnMut(&R) -> Result<()>,
) -> Result<f64> {
    let (began, cpu) = (Instant::now(), thread_cpu()?);
    let mut bytes = 0;
    while began.elapsed() < window {
        for request in requests {
            enrich(black_box(request))?;
            bytes += bytes_of(request);
        }
    }
    let cpu = thread_cpu()? - cpu;
    Ok(bytes as f64 / cpu.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_make_the_same() {
        let added = KEYS.map(|key| KeyValue {
            key: key.to_owned(),
            ..KeyValue::default()
        });
        for is_observed in [true, false] {
            let case = Case::new(50, is_observed, &added).unwrap();
            for request in &case.requests {
                let (mut spliced, mut recoded) = (Vec::new(), Vec::new());
                case.splice(request, &mut spliced);
                case.recode(&request.concat(), &mut recoded).unwrap();
                let decode = |bytes: &[u8]| ExportLogsServiceRequest::decode(bytes).unwrap();
                assert_eq!(decode(&spliced), decode(&recoded));
            }
        }
    }
}

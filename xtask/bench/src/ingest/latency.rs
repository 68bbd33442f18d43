//! At half of the most load: from a request's first byte to its bytes placed, by the daemon's own histogram, and from when
//! a request was due to its acknowledgement.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Bench,
    case::{Case, LARGE_FRAMES, Measured, Route},
};
use crate::{load::Protocol, report::Spread};

/// The bound of a bucket of the daemon's histogram.
const REFLEX_P99_MAX: Duration = Duration::from_micros(500);
const ACK_P99_MAX: Duration = Duration::from_millis(10);
const ROUNDS: u32 = 5;
const REFLEX: &str = "gophership_ingester_reflex_seconds_bucket{le=\"";
const SYNC: &str = "gophership_vault_sync_seconds_bucket{le=\"";

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let window = Duration::from_secs(if bench.quick { 3 } else { 20 });
    eprintln!("latency: half of the most load for {window:?}");
    for (route, protocol, tls) in [
        (Route::Red, Protocol::Grpc, true),
        (Route::Red, Protocol::Grpc, false),
        (Route::Red, Protocol::Http, true),
        (Route::Green, Protocol::Grpc, true),
    ] {
        let case = Case {
            route,
            protocol,
            tls,
            records: 100,
            frame_bytes: LARGE_FRAMES,
            compression: "none",
        };
        half(bench, &case, window).with_context(|| case.name())?;
    }
    Ok(())
}

fn half(bench: &mut Bench<'_>, case: &Case, window: Duration) -> Result<()> {
    let most = {
        let running = case.start(bench.site, "", |_| (), |_| ())?;
        running.measure(Duration::from_secs(3))?.window
    };
    let half = u128::from(most.requests) * 500_000 / most.took.as_micros().max(1);
    let per_second = u64::try_from(half)?;
    let paced = case.start(
        bench.site,
        "",
        |_| (),
        |plan| plan.requests_per_second = Some(per_second),
    )?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let before = paced.daemon.metrics()?;
        let measured = paced.measure(window / ROUNDS)?;
        let after = paced.daemon.metrics()?;
        let since = |name| -> Result<Buckets> {
            Ok(Buckets::of(name, &after)?.since(&Buckets::of(name, &before)?))
        };
        rounds.push(Round {
            measured,
            reflex: since(REFLEX)?,
            sync: since(SYNC)?,
        });
    }
    let of = |figure: fn(&Round) -> f64| {
        Spread::of(rounds.iter().map(figure).collect()).context("no round was measured")
    };
    let reflex_p99_s = of(|round| round.reflex.quantile_s(0.99))?;
    let ack_p99_s = of(|round| round.ack_s(990))?;
    eprintln!(
        "    {:<36} {per_second} requests a second: placed within p50 {:.0}, p99 {:.0}, p99.9 {:.0} us at most; ack p50 {:.2}, p99 {:.2} ({:.2} to {:.2}) ms; the disk {:.0} ms at most",
        case.name(),
        of(|round| round.reflex.quantile_s(0.5))?.p50 * 1e6,
        reflex_p99_s.p50 * 1e6,
        of(|round| round.reflex.quantile_s(0.999))?.p50 * 1e6,
        of(|round| round.ack_s(500))?.p50 * 1e3,
        ack_p99_s.p50 * 1e3,
        ack_p99_s.min * 1e3,
        ack_p99_s.max * 1e3,
        of(|round| round.sync.quantile_s(1.0))?.max * 1e3,
    );
    let name = case.name();
    let mut bars = vec![bench.report.bar(
        &format!("{name}: placed within 500 us of the first byte (p99, median of rounds)"),
        reflex_p99_s.p50 <= REFLEX_P99_MAX.as_secs_f64(),
    )];
    if case.route == Route::Red {
        let what = format!("{name}: acknowledged within 10 ms (p99, median of rounds)");
        bars.push(
            bench
                .report
                .bar(&what, ack_p99_s.p50 < ACK_P99_MAX.as_secs_f64()),
        );
    }
    let mut figures = json!({
        "case": name,
        "scheduled_requests_per_second": per_second,
        "rounds": rounds.iter().map(Round::json).collect::<Vec<_>>(),
        "bars": bars,
    });
    reflex_p99_s.add_to(&mut figures, "placed_within_p99_at_most", "s");
    ack_p99_s.add_to(&mut figures, "ack_p99", "s");
    bench.report.emit("ingest.latency", &figures);
    Ok(())
}

/// One of several windows, so that a hiccup of the machine isn't all there is to see.
struct Round {
    measured: Measured,
    reflex: Buckets,
    /// Synced writes of the vault: what takes long there is the disk.
    sync: Buckets,
}

impl Round {
    fn ack_s(&self, permille: u64) -> f64 {
        self.measured.window.ack_ns.quantile_ns(permille) as f64 / 1e9
    }

    fn json(&self) -> Value {
        let mut figures = self.measured.json();
        figures["placed_within_buckets"] = json!(self.reflex.0);
        figures["vault_sync_longest_at_most_s"] = self.sync.quantile_s(1.0).into();
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            figures[format!("placed_within_{name}_at_most_s")] =
                self.reflex.quantile_s(share).into();
        }
        figures
    }
}

/// Upper bounds in seconds, and how many of the requests didn't take longer.
struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    fn of(name: &str, metrics: &str) -> Result<Self> {
        let buckets = metrics.lines().filter_map(|line| {
            let (bound, count) = line.strip_prefix(name)?.split_once("\"} ")?;
            let bound = match bound {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().ok()?,
            };
            Some((bound, count.parse().ok()?))
        });
        let buckets: Vec<_> = buckets.collect();
        ensure!(!buckets.is_empty(), "the daemon has no {name}");
        Ok(Self(buckets))
    }

    fn since(&self, earlier: &Self) -> Self {
        let pairs = self.0.iter().zip(&earlier.0);
        Self(pairs.map(|(now, then)| (now.0, now.1 - then.1)).collect())
    }

    /// The bound that this share of the requests didn't exceed; 0 without requests.
    fn quantile_s(&self, share: f64) -> f64 {
        let all = self.0.last().map_or(0, |bucket| bucket.1);
        let wanted = all as f64 * share;
        let bucket = self.0.iter().find(|bucket| bucket.1 as f64 >= wanted);
        bucket.map_or(0.0, |bucket| bucket.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_of_the_bucket_it_falls_into() {
        let page = |counts: [u64; 3]| {
            let bounds = ["0.0001", "0.0005", "+Inf"];
            let lines = bounds.iter().zip(counts);
            lines.fold("x 1\n".to_owned(), |page, (bound, count)| {
                page + &format!("{REFLEX}{bound}\"}} {count}\n")
            })
        };
        let before = Buckets::of(REFLEX, &page([5, 5, 5])).unwrap();
        let after = Buckets::of(REFLEX, &page([55, 104, 105]))
            .unwrap()
            .since(&before);
        assert!((after.quantile_s(0.5) - 0.0001).abs() < 1e-9);
        assert!((after.quantile_s(0.99) - 0.0005).abs() < 1e-9);
        assert!(after.quantile_s(0.999).is_infinite());
        assert!(Buckets::of(REFLEX, "x 1\n").is_err());
    }
}

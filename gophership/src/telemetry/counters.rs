//! Counters of the hot path: one set a worker, on cache lines of its own, summed on scrape.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use gophership_common::Zone;

use super::timeline::Amount;

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged: every destination accepted it.
    Delivered,
    /// Acknowledged: the vault holds it on stable storage.
    Vaulted,
    /// Answered with a retryable status; nothing is kept.
    Refused,
    /// Answered with a permanent status: malformed or too large.
    Invalid,
}

impl Fate {
    /// Every fate, in the order of its counters.
    pub const ALL: [Self; 4] = [Self::Delivered, Self::Vaulted, Self::Refused, Self::Invalid];

    /// Value of the `outcome` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Vaulted => "vaulted",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
        }
    }
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC, over TCP or a Unix socket.
    Grpc,
    /// OTLP/HTTP.
    Http,
}

impl Protocol {
    /// Every protocol, in the order of its counters.
    pub const ALL: [Self; 2] = [Self::Grpc, Self::Http];

    /// Value of the `protocol` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// Why a TLS handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client presented no certificate.
    NoCertificate,
    /// Its certificate is of an authority that isn't trusted.
    UnknownAuthority,
    /// Its certificate has expired, or isn't valid yet.
    Expired,
    /// It doesn't offer what TLS 1.3 needs.
    Incompatible,
    /// It doesn't trust the server.
    NotTrusted,
    /// It wasn't done in time.
    Timeout,
    /// It wasn't done when another producer needed its room.
    NoRoom,
    /// Anything else, a connection that broke off included.
    Other,
}

impl HandshakeFailure {
    /// Every failure, in the order of its counters.
    pub const ALL: [Self; 8] = [
        Self::NoCertificate,
        Self::UnknownAuthority,
        Self::Expired,
        Self::Incompatible,
        Self::NotTrusted,
        Self::Timeout,
        Self::NoRoom,
        Self::Other,
    ];

    /// Value of the `reason` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired => "expired",
            Self::Incompatible => "incompatible",
            Self::NotTrusted => "not_trusted",
            Self::Timeout => "timeout",
            Self::NoRoom => "no_room",
            Self::Other => "other",
        }
    }
}

/// Something counted by [`Fate`].
pub type ByFate<T> = [T; Fate::ALL.len()];

/// Answered requests of one protocol.
#[derive(Debug, Default)]
struct Answered {
    requests: ByFate<AtomicU64>,
    records: ByFate<AtomicU64>,
    bytes: ByFate<AtomicU64>,
}

/// Answered requests of one protocol, summed over workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnsweredTotal {
    /// Requests.
    pub requests: ByFate<u64>,
    /// Log records.
    pub records: ByFate<u64>,
    /// Message bytes.
    pub bytes: ByFate<u64>,
}

/// Upper bounds of the buckets of times, in microseconds.
pub const TIME_BOUNDS_US: [u64; 16] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 30_000, 50_000, 100_000, 250_000,
    1_000_000, 10_000_000,
];

/// Times of requests.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; TIME_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one observation, in microseconds.
    pub fn observe(&self, us: u64) {
        let bucket = TIME_BOUNDS_US
            .iter()
            .position(|&bound| us <= bound)
            .unwrap_or(TIME_BOUNDS_US.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn add_to(&self, total: &mut HistogramTotal) {
        for (sum, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Relaxed);
        }
        total.sum_us += self.sum_us.load(Relaxed);
    }
}

/// A histogram summed over workers; the last bucket has no upper bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistogramTotal {
    /// Observations per bucket, not cumulative.
    pub buckets: [u64; TIME_BOUNDS_US.len() + 1],
    /// Sum of the observations, in microseconds.
    pub sum_us: u64,
}

/// Most causes of a pivot that are told apart.
pub const PIVOT_CAUSES_MAX: usize = 32;

/// Most destinations: an entry's bitmask of those that are owed it has this many bits.
pub const DESTINATIONS_MAX: usize = 32;

/// Zones that diversions are told apart by.
const ZONES: usize = Zone::Red as usize + 1;

/// What went to the vault in one zone.
#[derive(Debug, Default)]
struct Diverted {
    requests: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Diverted {
    fn get(&self) -> Amount {
        Amount {
            requests: self.requests.load(Relaxed),
            records: self.records.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

/// Counters that one worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    answered: [Answered; Protocol::ALL.len()],
    pivots: [AtomicU64; PIVOT_CAUSES_MAX],
    delivered_records: [AtomicU64; DESTINATIONS_MAX],
    rejected_records: [AtomicU64; DESTINATIONS_MAX],
    diverted: [Diverted; ZONES],
    reflex: Histogram,
    delivered_ack: Histogram,
    vaulted_ack: Histogram,
    failed_handshakes: [AtomicU64; HandshakeFailure::ALL.len()],
    /// Connections open now.
    pub connections: AtomicU64,
    /// Bytes a second that were lately answered for, as of the last heartbeat; by these two connections are spread.
    pub recent_bytes: AtomicU64,
    /// Connections of lately, in parts.
    pub recent_connections: AtomicU64,
    /// Connections that aren't read, at the last heartbeat.
    pub readers_stopped: AtomicU64,
    /// Connections closed because their peers took no answers or sent nothing.
    pub cut_off: AtomicU64,
    /// Connections closed because of floods of frames or headers.
    pub abusive: AtomicU64,
}

impl WorkerCounters {
    /// Counts one connection that was refused before it was served.
    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        self.failed_handshakes[failure as usize].fetch_add(1, Relaxed);
    }

    /// Counts one request whose bytes were placed, in the pipeline or the vault, `us` microseconds after the first of
    /// them was read.
    pub fn placed(&self, us: u64) {
        self.reflex.observe(us);
    }

    /// Counts one finished request of `records` records and `bytes` message bytes, acknowledged
    /// (or not) after `ack_us` microseconds.
    pub fn finished(&self, protocol: Protocol, fate: Fate, records: u64, bytes: u64, ack_us: u64) {
        let (answered, index) = (&self.answered[protocol as usize], fate as usize);
        answered.requests[index].fetch_add(1, Relaxed);
        answered.records[index].fetch_add(records, Relaxed);
        answered.bytes[index].fetch_add(bytes, Relaxed);
        match fate {
            Fate::Delivered => self.delivered_ack.observe(ack_us),
            Fate::Vaulted => self.vaulted_ack.observe(ack_us),
            Fate::Refused | Fate::Invalid => {}
        }
    }

    /// Message bytes of all requests that were answered.
    #[must_use]
    pub fn answered_bytes(&self) -> u64 {
        let bytes = self.answered.iter().flat_map(|answered| &answered.bytes);
        bytes.map(|count| count.load(Relaxed)).sum()
    }

    /// Counts `records` acknowledged records that the destinations of the bitmask have accepted
    /// without the vault.
    pub fn delivered(&self, destinations: u32, records: u64) {
        add_to_each(&self.delivered_records, destinations, records);
    }

    /// Counts `records` acknowledged records that the destinations of the bitmask have rejected for good, in a request
    /// that they accepted without the vault.
    pub fn rejected(&self, destinations: u32, records: u64) {
        add_to_each(&self.rejected_records, destinations, records);
    }

    /// Counts one request that went to the vault instead of the pipeline.
    pub fn pivoted(&self, cause_index: usize) {
        self.pivots[cause_index].fetch_add(1, Relaxed);
    }

    /// Counts a request that is on its way to the vault, by the zone in which that was decided.
    pub fn diverted(&self, zone: Zone, records: u64, bytes: u64) {
        let diverted = &self.diverted[zone as usize];
        diverted.requests.fetch_add(1, Relaxed);
        diverted.records.fetch_add(records, Relaxed);
        diverted.bytes.fetch_add(bytes, Relaxed);
    }

    /// Takes back what [`Self::diverted`] counted: the vault didn't take the request.
    pub fn not_diverted(&self, zone: Zone, records: u64, bytes: u64) {
        let diverted = &self.diverted[zone as usize];
        diverted.requests.fetch_sub(1, Relaxed);
        diverted.records.fetch_sub(records, Relaxed);
        diverted.bytes.fetch_sub(bytes, Relaxed);
    }
}

/// The counters of all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Answered requests by [`Protocol`].
    pub answered: [AnsweredTotal; Protocol::ALL.len()],
    /// Pivots by cause.
    pub pivots: [u64; PIVOT_CAUSES_MAX],
    /// Records that a destination accepted without the vault, by its bit.
    pub delivered_records: [u64; DESTINATIONS_MAX],
    /// Acknowledged records that a destination rejected for good, in requests that it accepted without the vault, by its
    /// bit.
    pub rejected_records: [u64; DESTINATIONS_MAX],
    /// What went to the vault, by the zone's number.
    pub diverted: [Amount; ZONES],
    /// Times from the first byte read to all of them placed.
    pub reflex: HistogramTotal,
    /// Acknowledgement times of the delivered.
    pub delivered_ack: HistogramTotal,
    /// Acknowledgement times of the vaulted.
    pub vaulted_ack: HistogramTotal,
    /// Handshakes that failed, by [`HandshakeFailure`].
    pub failed_handshakes: [u64; HandshakeFailure::ALL.len()],
    /// Connections open now.
    pub connections: u64,
    /// Connections that aren't read.
    pub readers_stopped: u64,
    /// Connections closed because their peers took no answers or sent nothing.
    pub cut_off: u64,
    /// Connections closed because of floods of frames or headers.
    pub abusive: u64,
}

impl Totals {
    /// Sums the counters of `workers`.
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerCounters>) -> Self {
        let mut total = Self::default();
        for worker in workers {
            for (sum, answered) in total.answered.iter_mut().zip(&worker.answered) {
                add(&mut sum.requests, &answered.requests);
                add(&mut sum.records, &answered.records);
                add(&mut sum.bytes, &answered.bytes);
            }
            add(&mut total.pivots, &worker.pivots);
            add(&mut total.delivered_records, &worker.delivered_records);
            add(&mut total.rejected_records, &worker.rejected_records);
            for (sum, diverted) in total.diverted.iter_mut().zip(&worker.diverted) {
                *sum = sum.plus(diverted.get());
            }
            worker.reflex.add_to(&mut total.reflex);
            worker.delivered_ack.add_to(&mut total.delivered_ack);
            worker.vaulted_ack.add_to(&mut total.vaulted_ack);
            add(&mut total.failed_handshakes, &worker.failed_handshakes);
            total.connections += worker.connections.load(Relaxed);
            total.readers_stopped += worker.readers_stopped.load(Relaxed);
            total.cut_off += worker.cut_off.load(Relaxed);
            total.abusive += worker.abusive.load(Relaxed);
        }
        total
    }

    /// Requests of all protocols, by [`Fate`].
    #[must_use]
    pub fn requests(&self) -> ByFate<u64> {
        self.over_protocols(|answered| answered.requests)
    }

    /// Requests, records and bytes acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> (u64, u64, u64) {
        let of =
            |counts: ByFate<u64>| counts[Fate::Delivered as usize] + counts[Fate::Vaulted as usize];
        (
            of(self.requests()),
            of(self.over_protocols(|answered| answered.records)),
            of(self.over_protocols(|answered| answered.bytes)),
        )
    }

    /// What was acknowledged because the destinations have it.
    #[must_use]
    pub fn delivered(&self) -> Amount {
        let fate = Fate::Delivered as usize;
        Amount {
            requests: self.requests()[fate],
            records: self.over_protocols(|answered| answered.records)[fate],
            bytes: self.over_protocols(|answered| answered.bytes)[fate],
        }
    }

    fn over_protocols(&self, of: impl Fn(&AnsweredTotal) -> ByFate<u64>) -> ByFate<u64> {
        let mut sums = ByFate::default();
        for answered in &self.answered {
            for (sum, count) in sums.iter_mut().zip(of(answered)) {
                *sum += count;
            }
        }
        sums
    }
}

fn add_to_each(counters: &[AtomicU64], destinations: u32, records: u64) {
    let mut left = destinations;
    while left != 0 {
        let bit = left.trailing_zeros() as usize;
        counters[bit].fetch_add(records, Relaxed);
        left &= left - 1;
    }
}

fn add(totals: &mut [u64], counters: &[AtomicU64]) {
    for (total, counter) in totals.iter_mut().zip(counters) {
        *total += counter.load(Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_sum_over_workers() {
        let workers = [WorkerCounters::default(), WorkerCounters::default()];
        workers[0].finished(Protocol::Grpc, Fate::Delivered, 10, 1000, 90);
        workers[1].finished(Protocol::Grpc, Fate::Vaulted, 5, 500, 300);
        workers[1].finished(Protocol::Http, Fate::Refused, 7, 700, 300);
        workers[1].pivoted(3);
        workers[1].placed(26);
        workers[0].delivered(0b101, 10);
        workers[1].delivered(0b100, 5);
        workers[1].rejected(0b100, 2);
        workers[0].diverted(Zone::Red, 10, 1000);
        workers[1].diverted(Zone::Red, 5, 500);
        workers[1].diverted(Zone::Green, 7, 700);
        workers[1].not_diverted(Zone::Green, 7, 700);
        let totals = Totals::of(&workers);
        let red = Amount {
            requests: 2,
            records: 15,
            bytes: 1500,
        };
        assert_eq!(totals.diverted, [Amount::default(), Amount::default(), red]);
        assert_eq!(totals.acknowledged(), (2, 15, 1500));
        assert_eq!(totals.requests(), [1, 1, 1, 0]);
        assert_eq!(
            totals.answered[Protocol::Http as usize].requests,
            [0, 0, 1, 0]
        );
        assert_eq!(totals.pivots[3], 1);
        assert_eq!(totals.delivered_records[..3], [10, 0, 15]);
        assert_eq!(totals.rejected_records[..3], [0, 0, 2]);
        assert_eq!(totals.reflex.buckets[1], 1);
        assert_eq!(totals.delivered_ack.buckets[2], 1);
        assert_eq!(totals.vaulted_ack.buckets[4], 1);
        assert_eq!(totals.vaulted_ack.sum_us, 300);
    }

    #[test]
    fn an_observation_beyond_the_last_bound_is_counted() {
        let worker = WorkerCounters::default();
        worker.finished(Protocol::Grpc, Fate::Vaulted, 1, 1, u64::from(u32::MAX));
        let totals = Totals::of([&worker]);
        assert_eq!(totals.vaulted_ack.buckets[TIME_BOUNDS_US.len()], 1);
    }
}

//! What user space measures by itself, where the kernel half doesn't: receive queues and accept
//! queues, the ingress, the workers' waits for a CPU, the vault's disks, kills for lack of memory.
//!
//! Everything is bounded: the sockets followed, the devices, the workers; what is read from files is
//! read ten times a second, and a look at the sockets takes a share of this thread's time at most
//! ([`super::queues`]). What can't be read grows unavailable, with its reason.
//!
//! # What was measured
//! Linux 6.18, a virtual machine with 2 CPUs that others use too, a table of 262,144 rows, an
//! unoptimised build; CPU time of one look, median of 50. Without connections 1.4 ms, nearly all of
//! which is the kernel's walk of its table; 100 connections 1.7 ms, 1,000 4.5 ms, 10,000 35 ms, of which
//! the larger part is the unoptimised reading of the answer. So 10,000 connections are looked at every
//! 0.7 s there, and Red by one of them takes up to two such looks. Again:
//! `cargo test -p gophership --lib -- --ignored --nocapture the_cost_of_a_look`.

use std::{collections::BTreeMap, io, path::Path};

use gophership_common::{Ingress, Policy, Signal, Signals, Tally, rate_per_second, share_permille};

use super::{
    super::{memory::MemorySources, unavailable::Unavailable, waits::Waits},
    disk::Disks,
    oom::Kills,
    past::{Before, Past},
    queues::{Follower, Queues},
};

const PERIOD_NS: u64 = 100_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// What comes from the sockets.
const OF_SOCKETS: [Signal; 10] = [
    Signal::ReceiveQueue,
    Signal::ReceiveQueueStalled,
    Signal::SocketsAboveYellow,
    Signal::SocketsAboveRed,
    Signal::ReceiveQueueBytes,
    Signal::ListenBacklog,
    Signal::IngressRate,
    Signal::IngressRateLong,
    Signal::IngressSlope,
    Signal::TimeToFull,
];
/// What comes from the disks' statistics.
const OF_DISKS: [Signal; 2] = [Signal::DiskLatency, Signal::DiskDepth];

/// Bytes arrived and bytes not yet answered, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    arrived: u64,
    backlog: u64,
}

/// The measuring of one process.
pub(in super::super) struct Own {
    follower: Follower,
    disks: Disks,
    kills: Kills,
    waits: &'static Waits,
    waited_ns: BTreeMap<usize, Past<u64>>,
    flow: Past<Flow>,
    flow_long: Past<u64>,
    /// The last reading.
    last: Signals,
    /// Sockets followed, and found too many.
    followed: (u64, u64),
    due_ns: u64,
}

impl Own {
    /// Nothing is opened yet that could fail.
    pub(in super::super) fn new(
        policy: &Policy,
        ports: &[u16],
        memory: &MemorySources,
        waits: &'static Waits,
    ) -> Self {
        Self {
            follower: Follower::of(ports),
            disks: Disks::of(&policy.disks[..policy.disk_count as usize]),
            kills: Kills::of(Path::new("/"), memory),
            waits,
            waited_ns: BTreeMap::new(),
            flow: Past::new(SECOND_NS),
            flow_long: Past::new(10 * SECOND_NS),
            last: Signals::NONE,
            followed: (0, 0),
            due_ns: 0,
        }
    }

    /// [`Signal::bit`]s of what it may measure.
    pub(in super::super) fn measures(policy: &Policy) -> u64 {
        let mut bits = Signal::CpuWait.bit() | Signal::OomKills.bit();
        let disks = OF_DISKS.iter().filter(|_| policy.disk_count > 0);
        for signal in OF_SOCKETS.iter().chain(disks) {
            bits |= signal.bit();
        }
        bits
    }

    /// Measures.
    pub(in super::super) fn sample(
        &mut self,
        policy: &Policy,
        tally: &Tally,
        now_ns: u64,
        unavailable: &Unavailable,
    ) -> Signals {
        let is_due = now_ns >= self.due_ns;
        if is_due {
            self.due_ns = now_ns + PERIOD_NS;
        }
        match self.follower.look(policy, now_ns) {
            Ok(queues) => {
                self.queues(&queues);
                if is_due {
                    self.ingress(&queues, policy, tally, now_ns);
                }
            }
            Err(error) => self.lose(&OF_SOCKETS, &refused(&error), unavailable),
        }
        if is_due {
            self.cpu_wait(now_ns);
            match self.disks.sample(now_ns) {
                Ok(Some(latency)) => {
                    self.last.set(Signal::DiskLatency, latency.us);
                    self.last.set(Signal::DiskDepth, latency.depth);
                }
                Ok(None) => {}
                Err(error) => self.lose(&OF_DISKS, &error.to_string(), unavailable),
            }
            match self.kills.sample(now_ns) {
                Ok(kills) => self.last.set(Signal::OomKills, kills),
                Err(error) => self.lose(&[Signal::OomKills], &error.to_string(), unavailable),
            }
        }
        self.last
    }

    /// Sockets followed now, and those that found the table full, once a look.
    pub(in super::super) const fn followed(&self) -> (u64, u64) {
        self.followed
    }

    fn lose(&mut self, signals: &[Signal], reason: &str, unavailable: &Unavailable) {
        for &signal in signals {
            self.last.available &= !signal.bit();
            unavailable.set(signal, reason);
        }
    }

    fn queues(&mut self, queues: &Queues) {
        self.followed = (queues.followed, queues.untracked);
        let signals = &mut self.last;
        signals.set(Signal::ReceiveQueue, queues.deepest_permille);
        signals.set(Signal::ReceiveQueueStalled, queues.stalled_ns / 1000);
        signals.set(Signal::SocketsAboveYellow, queues.above_yellow);
        signals.set(Signal::SocketsAboveRed, queues.above_red);
        signals.set(Signal::ReceiveQueueBytes, queues.unread_bytes);
        match queues.backlog_permille {
            Some(fullest) => signals.set(Signal::ListenBacklog, fullest),
            None => signals.available &= !Signal::ListenBacklog.bit(),
        }
    }

    fn ingress(&mut self, queues: &Queues, policy: &Policy, tally: &Tally, now_ns: u64) {
        let (used, limit) = tally.ingest_budget();
        let now = Flow {
            arrived: queues.arrived_bytes,
            backlog: queues.unread_bytes + used,
        };
        let recent = self.flow.compare(now_ns, now);
        let long = self.flow_long.compare(now_ns, now.arrived);
        let rate = |before: Before<u64>| {
            let arrived = now.arrived.saturating_sub(before.reading);
            rate_per_second(arrived, before.elapsed_ns)
        };
        let ingress = Ingress {
            backlog_bytes: now.backlog,
            backlog_before_bytes: recent.reading.backlog,
            elapsed_ns: recent.elapsed_ns,
            limit_bytes: limit,
            rate: rate(Before {
                reading: recent.reading.arrived,
                elapsed_ns: recent.elapsed_ns,
            }),
            rate_long: rate(long),
        };
        let signals = &mut self.last;
        signals.set(Signal::IngressRate, ingress.rate);
        signals.set(Signal::IngressRateLong, ingress.rate_long);
        signals.set(Signal::IngressSlope, ingress.slope());
        let time_to_full_us = ingress.time_to_full_us(policy.ingress_horizon_ns);
        signals.set(Signal::TimeToFull, time_to_full_us);
        if limit == 0 {
            signals.available &= !Signal::TimeToFull.bit();
        }
    }

    /// The worker that has waited longest, of the last second.
    fn cpu_wait(&mut self, now_ns: u64) {
        let mut longest = None;
        let waited_ns = &mut self.waited_ns;
        self.waits.read(|worker, total_ns| {
            let past = waited_ns
                .entry(worker)
                .or_insert_with(|| Past::new(SECOND_NS));
            let before = past.compare(now_ns, total_ns);
            let waited_us = total_ns.saturating_sub(before.reading) / 1000;
            longest = longest.max(Some(share_permille(waited_us, before.elapsed_ns)));
        });
        match longest {
            Some(share) => self.last.set(Signal::CpuWait, share),
            None => self.last.available &= !Signal::CpuWait.bit(),
        }
    }
}

fn refused(error: &io::Error) -> String {
    format!("the kernel's socket diagnostics (NETLINK_SOCK_DIAG): {error}")
}

//! Everything at once, judged from outside: destinations that misbehave, a zone that goes up and down, and `kill -9`.
//!
//! The oracle knows what producers were promised, what destinations took, and what the daemon said of itself before it was
//! killed. Its verdict: every acknowledged record is at every destination, as it was sent, and no more is there twice
//! than may be: what a crash found in flight, and what was settled since the cursors were last written.
//!
//! `GOPHERSHIP_CHAOS_STEPS` makes it longer (8 a round otherwise), `GOPHERSHIP_CHAOS_SEED` another one.

mod common;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use common::{
    PATIENCE,
    certs::ClientIdentity,
    daemon::{Daemon, Home, number},
    eventually, holds_within,
    load::{Intensity, Load},
    messages::{Rng, Shape},
    settings::Settings,
    sink::{Answer, Sink},
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest, common::v1::any_value::Value as Any,
    logs::v1::ResourceLogs,
};
use prost::Message;
use rustls::version::TLS13;
use tonic::Code;

/// How often the daemon is killed.
const KILLS: u64 = 5;
/// Acknowledgements between two changes of the weather.
const ACKS_A_STEP: u64 = 60;
const DESTINATIONS: [&str; 2] = ["steady", "flaky"];

/// What every resource gets.
const ENRICH: &str = "{ detect: [], resource: { deployment.environment.name: chaos } }";
const ADDED: &str = "deployment.environment.name";

#[test]
fn whatever_happens_each_destination_gets_what_was_acknowledged() {
    let number = |name: &str, usual| {
        let set = std::env::var(name).ok();
        set.map_or(usual, |set| set.parse().expect("a number"))
    };
    let steps = number("GOPHERSHIP_CHAOS_STEPS", 8);
    let seed = number("GOPHERSHIP_CHAOS_SEED", 6);
    let mut random = Rng::new(seed);
    let home = Home::new();
    let sinks = [Sink::up(), Sink::up()];
    let mut settings = Settings::to(sinks[0].destination("steady", "60s"));
    settings
        .destinations
        .push(sinks[1].destination("flaky", "2s"));
    settings.enrich = ENRICH;
    let mut oracle = Oracle::default();
    for round in 0..KILLS {
        let daemon = Daemon::start(&home, &settings);
        await_recovery(&daemon);
        let mut window = Window::open(&daemon, &sinks, oracle.ends());
        let load = start_load(&home, &daemon, seed * 100 + round);
        for step in 0..steps {
            let weather = Weather::draw(&mut random);
            eprintln!("round {round}, step {step}: {weather:?}");
            if step + 1 == steps {
                window.await_cursors(&daemon, &sinks);
            }
            weather.set(&daemon, &sinks[1]);
            let until = load.acked() as u64 + ACKS_A_STEP;
            eventually("acknowledgements", PATIENCE, || {
                window.look(&daemon, &sinks);
                load.acked() as u64 >= until
            });
        }
        daemon.kill9();
        let tally = load.stop();
        assert!(!tally.broken.is_empty(), "the kill didn't hit the load");
        assert!(tally.refused.is_empty(), "{:?}", tally.refused.first());
        oracle.sent(&tally.acked, &tally.unanswered);
        // What is on its way to a sink may arrive a moment later.
        oracle.settle_down(&sinks);
        oracle.crashed(window.allowed(&sinks, generation(&home)), &sinks);
    }
    sinks[1].answer(Answer::Accept);
    let daemon = Daemon::start(&home, &settings);
    daemon.ctl(&["override", "--clear"]);
    eventually("nothing is owed", PATIENCE, || {
        assert_explained(&daemon);
        daemon.figure("/vault/entries_pending") == 0
    });
    await_recovery(&daemon);
    daemon.await_empty_vault();
    assert_explained(&daemon);
    oracle.judge(&sinks);
}

/// What a destination and an operator do for a while.
#[derive(Debug)]
struct Weather {
    flaky: Answer,
    zone: Option<&'static str>,
}

impl Weather {
    fn draw(random: &mut Rng) -> Self {
        let delay = Duration::from_millis(20 + random.below(400));
        let flaky = [
            Answer::Accept,
            Answer::Refuse(Code::Unavailable),
            Answer::RefuseFor(Code::Unavailable, delay),
            Answer::RefuseFor(Code::ResourceExhausted, delay),
            Answer::Hold,
            Answer::Reset,
            Answer::StoreAndReset,
            Answer::AcceptAfter(delay),
        ];
        let zones = [None, None, Some("green"), Some("yellow"), Some("red")];
        let mut pick =
            |of: usize| usize::try_from(random.below(of as u64)).expect("a small number");
        Self {
            flaky: flaky[pick(flaky.len())],
            zone: zones[pick(zones.len())],
        }
    }

    fn set(&self, daemon: &Daemon<'_>, flaky: &Sink) {
        flaky.answer(self.flaky);
        match self.zone {
            Some(zone) => daemon.ctl(&["override", "--zone", zone]),
            None => daemon.ctl(&["override", "--clear"]),
        };
    }
}

fn start_load(home: &Home, daemon: &Daemon<'_>, seed: u64) -> Load {
    let intensity = Intensity {
        connections: 2,
        in_flight: 4,
        pace: Some(100),
        shape: Shape {
            records: 5,
            body_bytes: 200,
        },
        seed,
    };
    let tls = home.certs().client(ClientIdentity::Shown, &[&TLS13]);
    Load::start(daemon.grpc(), &tls, intensity)
}

fn await_recovery(daemon: &Daemon<'_>) {
    eventually("the vault is recounted", PATIENCE, || {
        assert_explained(daemon);
        daemon.status()["vault"]["recovery"]["done"] == true
    });
}

/// Every accepted record is somewhere; gives the records each destination has, as far as the books know.
#[track_caller]
fn assert_explained(daemon: &Daemon<'_>) -> [u64; 2] {
    let ledger = daemon.status()["ledger"].clone();
    assert_eq!(ledger["residue"], 0, "{ledger:#}");
    DESTINATIONS.map(|name| {
        let books = &ledger["destinations"][name];
        let records = |account| number(books.get(account)).expect("a number of records");
        let accounts = [
            "delivered",
            "owed",
            "in_flight",
            "quarantined",
            "dead_lettered",
        ];
        let lost = records("rejected") + records("dropped");
        let sum: u64 = accounts.into_iter().map(records).sum::<u64>() + lost;
        assert_eq!(records("accepted"), sum, "{books:#}");
        records("delivered")
    })
}

/// Which writing of the cursors is the newest on the disk.
fn generation(home: &Home) -> u64 {
    let generation = |slot: &str| {
        let bytes = std::fs::read(home.vault().join(slot)).unwrap_or_default();
        let field = bytes.get(16..24)?.try_into().ok()?;
        Some(u64::from_le_bytes(field))
    };
    let slots = ["cursors-a", "cursors-b"].into_iter();
    slots.filter_map(generation).max().unwrap_or(0)
}

/// What one run of the daemon may have to send again: what its destinations took, less what it is known to have
/// noted durably.
#[derive(Debug)]
struct Window {
    taken: [Taken; 2],
    had_before: [u64; 2],
    looks: Vec<Look>,
}

/// The daemon and its destinations at one moment.
#[derive(Debug, Clone)]
struct Look {
    /// Of the cursors, afterwards.
    generation: u64,
    /// Requests that destinations had taken before.
    requests: [usize; 2],
    /// Records that they had taken, and that the daemon didn't know they had.
    in_flight: [u64; 2],
    /// Records that the daemon knew they had.
    has: [u64; 2],
}

/// What a crash may have sent again to one destination, in records.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    /// In all.
    at_most: u64,
    /// Requests that it had taken when the cursors were last known to be as new as what the daemon knew.
    requests: usize,
    /// Of their records, those that the daemon didn't know then that it had them.
    in_flight: u64,
}

impl Window {
    /// Of a run before which they had taken `requests`.
    fn open(daemon: &Daemon<'_>, sinks: &[Sink; 2], requests: [usize; 2]) -> Self {
        let taken = requests.map(|requests| Taken {
            requests,
            ..Taken::default()
        });
        let mut window = Self {
            taken,
            had_before: assert_explained(daemon),
            looks: Vec::new(),
        };
        window.look(daemon, sinks);
        window
    }

    fn look(&mut self, daemon: &Daemon<'_>, sinks: &[Sink; 2]) {
        let requests = [0, 1].map(|to| sinks[to].stored_count());
        let has = assert_explained(daemon);
        let generation = generation(daemon.home());
        let took = Taken::by(&mut self.taken, sinks);
        let in_flight = [0, 1].map(|to| took[to].saturating_sub(has[to] - self.had_before[to]));
        self.looks.push(Look {
            generation,
            requests,
            in_flight,
            has,
        });
    }

    /// Waits until the cursors know all that was noted until now, so that only a little may be sent again.
    fn await_cursors(&mut self, daemon: &Daemon<'_>, sinks: &[Sink; 2]) {
        let known = generation(daemon.home()) + 2;
        eventually("newer cursors", PATIENCE, || {
            self.look(daemon, sinks);
            generation(daemon.home()) >= known
        });
    }

    /// A writing of the cursors that is two later was begun later, too, and knows what was noted then.
    fn allowed(mut self, sinks: &[Sink; 2], last: u64) -> [Allowed; 2] {
        let known = |look: &&Look| look.generation + 2 <= last;
        let look = self.looks.iter().rev().find(known);
        let look = look.unwrap_or(&self.looks[0]).clone();
        let took = Taken::by(&mut self.taken, sinks);
        [0, 1].map(|to| Allowed {
            at_most: took[to].saturating_sub(look.has[to] - self.had_before[to]),
            requests: look.requests[to],
            in_flight: look.in_flight[to],
        })
    }
}

/// Records that a destination has taken in a run, each once, as far as they are counted.
#[derive(Debug, Default)]
struct Taken {
    requests: usize,
    ids: HashSet<String>,
    records: u64,
}

impl Taken {
    fn by(taken: &mut [Self; 2], sinks: &[Sink; 2]) -> [u64; 2] {
        for (taken, sink) in taken.iter_mut().zip(sinks) {
            let stored = sink.stored();
            for logs in stored[taken.requests..].iter().flat_map(decoded) {
                if taken.ids.insert(number_of(&logs)) {
                    taken.records += log_records(&logs);
                }
            }
            taken.requests = stored.len();
        }
        [taken[0].records, taken[1].records]
    }
}

fn records(message: &Bytes) -> u64 {
    decoded(message).iter().map(log_records).sum()
}

fn log_records(logs: &ResourceLogs) -> u64 {
    let scopes = logs.scope_logs.iter();
    scopes.map(|scope| scope.log_records.len() as u64).sum()
}

#[track_caller]
fn decoded(message: &Bytes) -> Vec<ResourceLogs> {
    let request = ExportLogsServiceRequest::decode(message.clone());
    request.expect("it decodes").resource_logs
}

/// The number of a `ResourceLogs`.
#[track_caller]
fn number_of(logs: &ResourceLogs) -> String {
    let attributes = &logs.resource.as_ref().expect("a resource").attributes;
    let id = attributes
        .iter()
        .find(|attribute| attribute.key == "entry.id");
    match id.and_then(|id| id.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(id)) => id.clone(),
        _ => panic!("no number: {logs:?}"),
    }
}

/// Whether the daemon has added what it was configured to.
fn has_added(logs: &ResourceLogs) -> bool {
    let mut attributes = logs
        .resource
        .iter()
        .flat_map(|resource| &resource.attributes);
    attributes.any(|attribute| attribute.key == ADDED)
}

/// Without the resource attributes that the daemon may have added to those that were `sent`.
fn without_added(mut logs: ResourceLogs, sent: &ResourceLogs) -> ResourceLogs {
    let has = |logs: &ResourceLogs, key: &str| {
        let resource = logs.resource.as_ref();
        resource.is_some_and(|resource| resource.attributes.iter().any(|has| has.key == key))
    };
    if let Some(resource) = &mut logs.resource {
        resource
            .attributes
            .retain(|attribute| has(sent, &attribute.key));
    }
    logs
}

/// What was sent, and what may arrive twice.
#[derive(Debug, Default)]
struct Oracle {
    /// By number, and whether it was acknowledged.
    sent: HashMap<String, (ResourceLogs, bool)>,
    /// By destination and run, which ended in a crash when so many requests had been taken.
    runs: [Vec<(usize, Allowed)>; 2],
}

impl Oracle {
    fn sent(&mut self, acked: &[Bytes], unanswered: &[Bytes]) {
        for (messages, is_acked) in [(acked, true), (unanswered, false)] {
            for logs in messages.iter().flat_map(decoded) {
                self.sent.insert(number_of(&logs), (logs, is_acked));
            }
        }
    }

    fn crashed(&mut self, allowed: [Allowed; 2], sinks: &[Sink; 2]) {
        eprintln!("a crash: {allowed:?}");
        for (to, runs) in self.runs.iter_mut().enumerate() {
            runs.push((sinks[to].stored_count(), allowed[to]));
        }
    }

    /// Waits until nothing arrives any more from a daemon that is dead.
    fn settle_down(&self, sinks: &[Sink; 2]) {
        let stored = || [0, 1].map(|to| sinks[to].stored_count());
        let mut before = stored();
        while holds_within(Duration::from_millis(200), || stored() != before) {
            before = stored();
        }
    }

    /// Requests that had been taken when the last run ended.
    fn ends(&self) -> [usize; 2] {
        [0, 1].map(|to| self.runs[to].last().map_or(0, |(end, _)| *end))
    }

    fn judge(&self, sinks: &[Sink; 2]) {
        let acked = self.sent.values().filter(|(_, is_acked)| *is_acked).count();
        assert!(acked > 1000, "only {acked} were acknowledged");
        for (to, sink) in sinks.iter().enumerate() {
            let name = DESTINATIONS[to];
            let runs = &self.runs[to];
            // When it last arrived; how much has come again, and of that what may have been noted durably.
            let mut arrived: HashMap<String, usize> = HashMap::new();
            let (mut again, mut noted, mut in_one_run) = (0, 0, 0);
            let run_of = |index| runs.iter().take_while(|(end, _)| *end <= index).count();
            for (index, message) in sink.stored().iter().enumerate() {
                for logs in decoded(message) {
                    let id = number_of(&logs);
                    let Some((sent, _)) = self.sent.get(&id) else {
                        panic!("{name} got {id}, which nobody sent");
                    };
                    assert!(has_added(&logs), "{name} got {id} as it was sent");
                    assert_eq!(&without_added(logs, sent), sent, "{name} got {id} altered");
                    let Some(before) = arrived.insert(id, index) else {
                        continue;
                    };
                    again += log_records(sent);
                    if run_of(before) == run_of(index) {
                        in_one_run += log_records(sent);
                    }
                    let run = runs.iter().find(|(end, _)| before < *end);
                    if run.is_none_or(|(_, allowed)| before < allowed.requests) {
                        noted += log_records(sent);
                    }
                }
            }
            let missing = self
                .sent
                .iter()
                .filter(|(id, (_, is_acked))| *is_acked && !arrived.contains_key(*id));
            let missing: Vec<_> = missing.map(|(id, _)| id).collect();
            assert!(
                missing.is_empty(),
                "{name} lacks {} of {acked} acknowledged: {:?}…",
                missing.len(),
                &missing[..missing.len().min(10)]
            );
            // It took them and didn't say so, or not at once: whoever sent them had to send them again.
            let doubtful: u64 = sink.doubtful().iter().map(records).sum();
            let sum = |of: fn(&Allowed) -> u64| runs.iter().map(|(_, run)| of(run)).sum::<u64>();
            let at_most = sum(|run| run.at_most) + doubtful;
            let in_flight = sum(|run| run.in_flight) + doubtful;
            eprintln!(
                "{name}: {again} records twice of {at_most} that may be, {noted} of {in_flight} from before the \
                 cursors were last written; {doubtful} were its own fault"
            );
            // Without a crash in between, nobody else is to blame.
            assert!(
                in_one_run <= doubtful,
                "{name}: {in_one_run} twice in one run, {doubtful} of them by its own fault"
            );
            assert!(again <= at_most, "{name}: {again} twice, of {at_most}");
            assert!(noted <= in_flight, "{name}: {noted} of {in_flight} twice");
        }
    }
}

#[test]
fn the_oracle_sees_what_is_altered_and_leaves_out_what_was_added() {
    let message = common::messages::Messages::new(
        1,
        Shape {
            records: 3,
            body_bytes: 10,
        },
    )
    .message();
    let sent = decoded(&message).remove(0);
    let mut added = sent.clone();
    let attributes = &mut added.resource.as_mut().unwrap().attributes;
    let mut host = attributes[0].clone();
    host.key = "host.name".to_owned();
    attributes.push(host);
    assert_eq!(without_added(added, &sent), sent);
    let mut altered = sent.clone();
    altered.scope_logs[0].log_records[0].severity_number += 1;
    assert_ne!(without_added(altered, &sent), sent);
}

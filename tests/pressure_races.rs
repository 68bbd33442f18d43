//! Probes that raise on every CPU while the tick lowers and the policy changes: afterwards nothing is
//! left behind, and every change of the word is accounted for.

mod common;
#[path = "common/pressure.rs"]
mod judged;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::OwnedFd,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use common::{
    judged_listener::{JudgedListener, reset, reset_when_closed},
    judging::{Judging, wait},
};
use gophership::pressure::{
    Cause, Config, KernelMode, Occurrence, OverrideUntil, Pressure, Source, Word, Zone,
};
use gophership_common::{Aggregates, MAP_SIGNALS, MAP_SOCKETS, SignalsPage, WATCH_SLOTS};

/// Bytes that count as a full socket: a few writes cross every level.
const WINDOW: usize = 16 * 1024;

/// One kernel half at a time: its maps are found among this process's descriptors.
static ALONE: Mutex<()> = Mutex::new(());

/// The kernel half judging one listener's sockets.
struct Fixture {
    judged: JudgedListener,
    _alone: MutexGuard<'static, ()>,
}

impl Fixture {
    /// `None` where the kernel half can't run and needn't.
    fn start(config: &Config) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Self {
            judged: JudgedListener::with_window(config, u32::try_from(WINDOW).unwrap())?,
            _alone: alone,
        })
    }

    fn connection(&self) -> (TcpStream, TcpStream) {
        self.judged.connection()
    }

    fn judging(&self) -> &Judging {
        &self.judged.judging
    }

    /// Nothing followed, counted or watched any more.
    fn wait_for_nothing_left(&self) {
        let state = || {
            let page = signals();
            let watched = page.watch.iter().filter(|slot| slot.socket != 0).count();
            (page.aggregates, watched, sockets())
        };
        let is_nothing = || {
            let (counts, watched, sockets) = state();
            let none = Aggregates {
                // Of the past.
                window_permille: 0,
                untracked: counts.untracked,
                unwatched: counts.unwatched,
                swept: counts.swept,
                ..Aggregates::default()
            };
            counts == none && watched == 0 && sockets == 0
        };
        wait("clean slate", is_nothing, || format!("{:#?}", state()));
        assert!(
            signals()
                .watch
                .iter()
                .all(|slot| { (slot.socket, slot.stalled_since_ns, slot.permille) == (0, 0, 0) }),
            "a free slot says nothing"
        );
    }
}

/// The map of this name among this process's descriptors.
fn map(name: &str) -> MapData {
    let id = std::fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .flatten()
        .filter_map(|fd| std::fs::read_to_string(fd.path()).ok())
        .filter_map(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("map_id:"))?;
            line.trim().parse().ok()
        })
        .find(|&id| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str() == Some(name)))
        .unwrap_or_else(|| panic!("this process holds no map {name}"));
    MapData::from_id(id).unwrap()
}

fn signals() -> SignalsPage {
    let map: Array<MapData, SignalsPage> = Array::try_from(Map::Array(map(MAP_SIGNALS))).unwrap();
    map.get(&0, 0).unwrap()
}

/// Sockets that the kernel half follows.
fn sockets() -> usize {
    let map: HashMap<MapData, u64, [u8; 32]> =
        HashMap::try_from(Map::HashMap(map(MAP_SOCKETS))).unwrap();
    map.keys().map(Result::unwrap).count()
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % bound
    }
}

/// Keeps this thread on one CPU.
fn stay_on(cpu: usize) {
    // SAFETY: all zeroes is an empty set; the set lives through the call; 0 is this thread.
    let kept = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(kept, 0, "{}", std::io::Error::last_os_error());
}

/// Reads what is there.
fn read_some(server: &mut TcpStream, most: usize) {
    let mut block = vec![0; most];
    match server.read(&mut block) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => panic!("read: {error}"),
    }
}

/// Writes what fits.
fn write_some(client: &mut TcpStream, bytes: usize) {
    match client.write(&vec![0; bytes]) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => panic!("write: {error}"),
    }
}

/// Two policies, one after the other into each of the two slots: the operator's Green for ever, and a
/// Red long over. Only a mixture of the two publishes Red by override.
fn publish_alternately(pressure: &Pressure, stop: &AtomicBool) -> u64 {
    let green = OverrideUntil {
        zone: Zone::Green,
        until_ns: None,
    };
    let red_until_long_ago = OverrideUntil {
        zone: Zone::Red,
        until_ns: Some(1),
    };
    let mut published = 0;
    while !stop.load(Ordering::Relaxed) {
        // Some periods of the tick full of changes, and some in peace.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2) {
            for chosen in [green, green, red_until_long_ago, red_until_long_ago] {
                pressure.set_override(Some(chosen));
                published += 1;
            }
        }
        thread::sleep(Duration::from_millis(3));
    }
    published
}

/// Fills and empties sockets of its own, opening and closing some.
fn churn(fixture: &Fixture, accepting: &Mutex<()>, seed: u64, stop: &AtomicBool) -> u64 {
    const CONNECTIONS: usize = 12;
    let open = || {
        // One at a time, so that both ends are of the same connection.
        let _one = accepting.lock().unwrap();
        fixture.connection()
    };
    let mut random = Random(seed);
    let mut ends: Vec<_> = (0..CONNECTIONS).map(|_| open()).collect();
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let index = random.below(CONNECTIONS);
        let (client, server) = &mut ends[index];
        match random.below(100) {
            0..45 => write_some(client, 1 + random.below(WINDOW / 2)),
            45..95 => read_some(server, 1 + random.below(2 * WINDOW)),
            95..98 => {
                // A reset, with whatever is unread.
                reset_when_closed(client);
                ends[index] = open();
            }
            _ => ends[index] = open(),
        }
        rounds += 1;
    }
    rounds
}

#[test]
fn raises_on_all_cpus_lowering_and_new_policies_leave_nothing_behind() {
    let config = Config {
        tick: Duration::from_millis(1),
        hold: Duration::from_millis(2),
        receive_queue_for: Duration::from_millis(1),
        ..judged::config(KernelMode::Required)
    };
    let Some(mut fixture) = Fixture::start(&config) else {
        return;
    };
    let cpus = thread::available_parallelism().unwrap().get();
    let (stop, accepting) = (AtomicBool::new(false), Mutex::new(()));
    thread::scope(|scope| {
        let (fixture, stop, accepting) = (&fixture, &stop, &accepting);
        let churning: Vec<_> = (0..2 * cpus)
            .map(|number| {
                let seed = 0x9e37_79b9 + u64::try_from(number).unwrap();
                scope.spawn(move || {
                    stay_on(number % cpus);
                    churn(fixture, accepting, seed, stop)
                })
            })
            .collect();
        let publishing = scope.spawn(|| publish_alternately(&fixture.judging().pressure, stop));
        // Until enough has happened to prove something.
        let raised = || {
            let own = |occurrence: &&Occurrence| matches!(occurrence, Occurrence::Transition(t) if t.to.cause() == Cause::ReceiveQueue);
            fixture.judging().seen().iter().filter(own).count() >= 500
        };
        let start = Instant::now();
        let enough = || raised() && start.elapsed() > Duration::from_secs(3);
        fixture.judging().wait("500 transitions", enough);
        stop.store(true, Ordering::Relaxed);
        let rounds: Vec<_> = churning
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let published = publishing.join().unwrap();
        eprintln!("{rounds:?} rounds, {published} policies");
    });
    fixture.judging().pressure.set_override(None);
    // All sockets are closed by now.
    fixture.judging().wait_for(Zone::Green, Cause::None);
    fixture.wait_for_nothing_left();
    assert_eq!(fixture.judging().pressure.snapshot().source, Source::Kernel);
    accounted_for(&mut fixture);
}

/// Every change of the word has been told, or is counted as lost; none is of two policies.
fn accounted_for(fixture: &mut Fixture) {
    let last = fixture.judging().word();
    let snapshot = fixture.judging().pressure.snapshot();
    // Takes the last events out of the ring.
    fixture.judged.judging.stop_watching();
    let mut seen = fixture.judging().transitions();
    // Two CPUs may change the word and tell of it in another order.
    seen.sort_by_key(|transition| transition.to.epoch());
    let (mut told, mut gaps) = (Word::default(), 0);
    for transition in &seen {
        if transition.from != told {
            let missing = transition.from.epoch().wrapping_sub(told.epoch());
            assert_ne!(missing, 0, "two changes of one word: {transition:?}");
            gaps += u64::from(missing);
        }
        let step = transition.to.epoch().wrapping_sub(transition.from.epoch());
        assert_eq!(step, 1, "{transition:?}");
        told = transition.to;
        let torn = told.overridden() && told.zone() != Zone::Green;
        assert!(!torn, "of two policies: {transition:?}");
    }
    gaps += u64::from(last.epoch().wrapping_sub(told.epoch()));
    assert_eq!(
        gaps, snapshot.events_lost,
        "changes that nobody was told of"
    );
    let changes = u64::try_from(seen.len()).unwrap() + gaps;
    assert_eq!(changes, snapshot.transitions);
    eprintln!("{changes} changes, {gaps} of them lost");
}

/// A way for a full connection to come to its end; what it hands back is closed afterwards.
type Ending = fn(TcpStream, TcpStream) -> Option<TcpStream>;

const ENDINGS: [(&str, Ending); 7] = [
    ("closed by the engine", |_client, server| {
        drop(server);
        None
    }),
    (
        "closed by the producer, then by the engine",
        |client, server| {
            drop(client);
            drop(server);
            None
        },
    ),
    ("shut down by both", |client, server| {
        server.shutdown(Shutdown::Both).unwrap();
        client.shutdown(Shutdown::Both).unwrap();
        None
    }),
    (
        "reset by the producer, while the engine holds on",
        |client, server| {
            reset(client);
            Some(server)
        },
    ),
    ("reset by the engine", |client, server| {
        reset(server);
        Some(client)
    }),
    ("killed with the engine's process", |client, server| {
        killed_with_its_process(server);
        Some(client)
    }),
    ("killed with the producer's process", |client, server| {
        killed_with_its_process(client);
        drop(server);
        None
    }),
];

#[test]
fn a_socket_closed_while_above_red_leaves_no_trace() {
    let Some(fixture) = Fixture::start(&judged::config(KernelMode::Required)) else {
        return;
    };
    for (how, end) in ENDINGS {
        eprintln!("{how}");
        let (mut client, server) = fixture.connection();
        while client.write(&[0; 4096]).is_ok() {}
        fixture.judging().wait_for(Zone::Red, Cause::ReceiveQueue);
        let page = signals();
        assert_eq!(page.aggregates.above_red, 1, "{how}");
        let watched = page.watch.iter().filter(|slot| slot.socket != 0).count();
        assert_eq!((watched, sockets()), (1, 1), "{how}");
        let held = end(client, server);
        fixture.judging().wait_for(Zone::Green, Cause::None);
        fixture.wait_for_nothing_left();
        drop(held);
    }
}

/// Leaves the descriptor to a process alone, and kills that.
fn killed_with_its_process(end: TcpStream) {
    let mut process = Command::new("sleep")
        .arg("600")
        .stdin(OwnedFd::from(end))
        .spawn()
        .unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn more_full_sockets_than_watch_slots_are_counted_and_forgotten() {
    let Some(fixture) = Fixture::start(&judged::config(KernelMode::Required)) else {
        return;
    };
    let mut ends: Vec<_> = (0..WATCH_SLOTS + 30)
        .map(|_| fixture.connection())
        .collect();
    for (client, _) in &mut ends {
        client.write_all(&[0; WINDOW]).unwrap();
    }
    fixture.judging().wait_for(Zone::Red, Cause::ReceiveQueue);
    let all = u64::try_from(ends.len()).unwrap();
    wait(
        "count of all",
        || signals().aggregates.above_red == all,
        || format!("{:#?}", signals().aggregates),
    );
    let followed = fixture.judging().pressure.snapshot().followed;
    assert_eq!(followed.sockets, all);
    assert!(followed.unwatched >= 30, "{followed:?}");
    drop(ends);
    fixture.judging().wait_for(Zone::Green, Cause::None);
    fixture.wait_for_nothing_left();
}

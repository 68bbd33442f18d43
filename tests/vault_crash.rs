//! `kill -9` while a process appends, fifty times over: everything it acknowledged is there afterwards,
//! byte for byte, in order, and nothing else.

#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use gophership::vault::{Config, Entry, Lane, Vault};
use vault_support::{Random, meta, on_worker, open, read_all, real_disk, small};

const DIR: &str = "GOPHERSHIP_TEST_VAULT_CRASH_DIR";
const ROUND: &str = "GOPHERSHIP_TEST_VAULT_CRASH_ROUND";
const ROUNDS: u64 = 50;
/// Lanes of the process in a round: a directory made with some opens with more, or fewer.
const LANES_MAX: u64 = 3;
/// Appends at a time in each lane.
const TASKS: u64 = 12;
/// Every so many rounds, what is there is settled.
const SETTLE_EVERY: u64 = 5;

fn config(dir: &Path, round: u64) -> Config {
    Config {
        max_bytes: 512 << 20,
        segment_bytes: 1 << 20,
        max_entry_bytes: 200_000,
        lanes: usize::try_from(1 + round % LANES_MAX).unwrap(),
        budget_bytes: 3 << 20,
        ..small(dir)
    }
}

/// An append: the `count`th of a task in a lane in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Append {
    round: u64,
    lane: u64,
    task: u64,
    count: u64,
}

impl Append {
    fn number(self) -> u64 {
        (self.round << 48) + (self.lane << 40) + (self.task << 32) + self.count
    }

    fn of(number: u64) -> Self {
        Self {
            round: number >> 48,
            lane: (number >> 40) & 0xff,
            task: (number >> 32) & 0xff,
            count: number & 0xffff_ffff,
        }
    }
}

/// The content of an append, from its number alone.
fn content(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let len = match random.below(64) {
        0..4 => 0,
        // Larger than a block.
        4 => 60_000 + random.below(140_000),
        _ => random.below(4_000),
    };
    let word = random.next().to_le_bytes();
    let is_alike = random.below(2) == 0;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        if is_alike {
            word
        } else {
            random.next().to_le_bytes()
        }
    });
    words.take(len).collect()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
}

/// Not a test by itself: what the killed process runs.
#[test]
fn process_that_is_killed() {
    let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) else {
        return;
    };
    let round: u64 = round.parse().unwrap();
    let config = config(Path::new(&dir), round);
    let vault = open(&config);
    // Recovery goes on beside it. The test harness has begun a line.
    say("\nopened 0");
    std::thread::scope(|scope| {
        for lane in 0..config.lanes {
            let vault = vault.clone();
            scope.spawn(move || on_worker(append_in_lane(vault, round, lane)));
        }
    });
}

async fn append_in_lane(vault: Vault, round: u64, index: usize) {
    let lane = vault.lane(index).unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (lane, vault) = (lane.clone(), vault.clone());
            let first = Append {
                round,
                lane: index as u64,
                task,
                count: 0,
            };
            tokio::task::spawn_local(async move { append_forever(&lane, &vault, first).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn append_forever(lane: &Lane, vault: &Vault, first: Append) {
    for count in 0.. {
        let number = Append { count, ..first }.number();
        let id = lane
            .append(meta(1, number), &[content(number)])
            .await
            .unwrap();
        say(&format!("acknowledged {number}"));
        if count % 5 == 4 {
            say(&format!("settling {number}"));
            vault.settle(id, 1);
        }
    }
}

/// What a killed process had said: the only witness of what it acknowledged.
#[derive(Debug, Default)]
struct Said {
    acknowledged: Vec<u64>,
    settling: Vec<u64>,
}

/// Runs a process until it has said `kill_after` lines, kills it; what it said.
fn run_and_kill(dir: &Path, round: u64, kill_after: usize) -> Said {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_that_is_killed", "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (mut said, mut lines) = (Said::default(), 0);
    let mut line = String::new();
    while {
        line.clear();
        out.read_line(&mut line).unwrap() > 0
    } {
        // The last line may be cut.
        if line.ends_with('\n')
            && let Some((what, number)) = line.trim().split_once(' ')
        {
            match what {
                "opened" => {}
                "acknowledged" => said.acknowledged.push(number.parse().unwrap()),
                "settling" => said.settling.push(number.parse().unwrap()),
                _ => continue,
            }
            lines += 1;
            if lines == kill_after {
                child.kill().unwrap();
            }
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "round {round}: it ended by itself: {status}"
    );
    said
}

/// What the outside knows of all rounds so far.
#[derive(Debug, Default)]
struct Oracle {
    acknowledged: HashSet<u64>,
    /// Settled by a process that was killed: may be there or not.
    perhaps_settled: HashSet<u64>,
    /// Durably settled: must not come back.
    settled: HashSet<u64>,
}

impl Oracle {
    fn heard(&mut self, said: Said) {
        self.acknowledged.extend(said.acknowledged);
        self.perhaps_settled.extend(said.settling);
    }

    /// Every acknowledged entry is there, once; each has its bytes; those of a task are in order, without
    /// a gap; none is one that nobody appended or that was settled.
    fn check(&self, round: u64, entries: &[Entry]) {
        let (mut found, mut last) = (HashSet::new(), HashMap::new());
        for entry in entries {
            let (number, id) = (entry.arrival_unix_ns, entry.id);
            let append = Append::of(number);
            let was_made = (1..=round).contains(&append.round)
                && append.lane < config(Path::new(""), append.round).lanes as u64
                && append.task < TASKS;
            assert!(was_made, "round {round}: {id:?}: {append:?} is invented");
            assert!(
                entry.bytes == content(number),
                "round {round}: {append:?} at {id:?} differs"
            );
            assert!(
                !self.settled.contains(&number),
                "round {round}: {append:?} is back"
            );
            assert!(
                found.insert(number),
                "round {round}: {append:?} is there twice"
            );
            let task = Append { count: 0, ..append };
            if let Some(before) = last.insert(task, append.count) {
                assert!(
                    before < append.count,
                    "round {round}: {before} before {append:?}"
                );
            }
        }
        for &number in &self.acknowledged {
            assert!(
                found.contains(&number)
                    || self.settled.contains(&number)
                    || self.perhaps_settled.contains(&number),
                "round {round}: acknowledged {:?} is lost",
                Append::of(number)
            );
        }
        // A task appends one after the other: at most its last wasn't acknowledged.
        for append in found.iter().map(|&number| Append::of(number)) {
            if append.count > 0 {
                let before = Append {
                    count: append.count - 1,
                    ..append
                };
                assert!(
                    self.acknowledged.contains(&before.number()),
                    "round {round}: {append:?} is there, but {before:?} wasn't acknowledged"
                );
            }
        }
    }
}

#[test]
fn acked_entries_survive_fifty_kills() {
    let dir = real_disk();
    let mut random = Random(2026);
    let mut oracle = Oracle::default();
    for round in 1..=ROUNDS {
        // Some are killed while they recover, before they have acknowledged anything.
        let kill_after = if round % 7 == 0 {
            1
        } else {
            1 + random.below(400)
        };
        oracle.heard(run_and_kill(dir.path(), round, kill_after));
        if round % 3 == 1 && round != ROUNDS {
            // Killed again before anybody has looked.
            continue;
        }
        let vault = open(&config(dir.path(), round));
        let entries = read_all(&vault, 1 << 20);
        oracle.check(round, &entries);
        assert_eq!(
            vault.stats().quarantined_segments,
            0,
            "round {round}: a crash is not damage"
        );
        if round % SETTLE_EVERY == 0 {
            for entry in &entries {
                vault.settle(entry.id, 1);
                oracle.settled.insert(entry.arrival_unix_ns);
            }
        }
        vault.close().unwrap();
    }
    let acknowledged = oracle.acknowledged.len();
    eprintln!(
        "{acknowledged} acknowledged, {} of them settled",
        oracle.settled.len()
    );
    assert!(acknowledged > 3_000, "{acknowledged} acknowledged");
}

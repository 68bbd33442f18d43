//! `kill -9` while a process appends: everything it acknowledged is there afterwards.

#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use gophership::vault::{Config, Vault};
use vault_support::{Random, meta, on_worker, open, read_all, real_disk, small};

const DIR: &str = "GOPHERSHIP_TEST_VAULT_CRASH_DIR";
const ROUND: &str = "GOPHERSHIP_TEST_VAULT_CRASH_ROUND";
/// Appends at a time.
const TASKS: u64 = 24;

fn config(dir: &Path) -> Config {
    Config {
        max_bytes: 512 << 20,
        segment_bytes: 1 << 20,
        max_entry_bytes: 200_000,
        ..small(dir)
    }
}

/// The content of an append, from its number alone.
fn content(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let len = match number % 16 {
        0 => 0,
        1 => 60_000 + random.below(140_000),
        _ => random.below(4_000),
    };
    random.content(len)
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
    let vault = open(&config(Path::new(&dir)));
    on_worker(async {
        let lane = vault.lane(0).unwrap();
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (lane, vault) = (lane.clone(), vault.clone());
                tokio::task::spawn_local(async move {
                    append_forever(&lane, &vault, (round << 32) + task).await;
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

async fn append_forever(lane: &gophership::vault::Lane, vault: &Vault, first: u64) {
    for number in (first..).step_by(usize::try_from(TASKS).unwrap()) {
        let id = lane
            .append(meta(1, number), &[content(number)])
            .await
            .unwrap();
        say(&format!("acknowledged {number}"));
        if number % 5 == 0 {
            say(&format!("settling {number}"));
            vault.settle(id, 1);
        }
    }
}

/// Runs a process until it has acknowledged `kill_after` entries, kills it; what it said.
fn run_and_kill(dir: &Path, round: u64, kill_after: usize) -> Vec<(String, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_that_is_killed", "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut said = Vec::new();
    let mut line = String::new();
    while out.read_line(&mut line).unwrap() > 0 {
        // The last line may be cut.
        if line.ends_with('\n')
            && let Some((what, number)) = line.trim().split_once(' ')
            && ["acknowledged", "settling"].contains(&what)
        {
            said.push((what.to_owned(), number.parse().unwrap()));
            if said.len() == kill_after {
                child.kill().unwrap();
            }
        }
        line.clear();
    }
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "it ended by itself: {status}"
    );
    said
}

#[test]
fn acked_entries_survive_kill() {
    let dir = real_disk();
    let mut random = Random(2026);
    let (mut acknowledged, mut settling) = (Vec::new(), HashSet::new());
    for round in 1..=8 {
        for (what, number) in run_and_kill(dir.path(), round, 1 + random.below(800)) {
            if what == "settling" {
                settling.insert(number);
            } else {
                acknowledged.push(number);
            }
        }
        let vault = open(&config(dir.path()));
        let mut found = HashMap::new();
        for entry in read_all(&vault, 1 << 20) {
            assert!(
                entry.bytes == content(entry.arrival_unix_ns),
                "round {round}: {:?} differs",
                entry.id
            );
            found.insert(entry.arrival_unix_ns, entry.id);
        }
        for number in &acknowledged {
            assert!(
                found.contains_key(number) || settling.contains(number),
                "round {round}: acknowledged entry {number} is lost"
            );
        }
        assert_eq!(
            vault.stats().quarantined_segments,
            0,
            "round {round}: a crash is not damage"
        );
        vault.close().unwrap();
    }
    assert!(
        acknowledged.len() > 500,
        "{} acknowledged",
        acknowledged.len()
    );
}

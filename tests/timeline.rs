//! The event timeline on a real disk: bounded, over restarts, and whatever the file is like.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use gophership::telemetry::timeline::{
    BYTES_MIN, Config, Entry, Event, Moment, Place, Query, Timeline,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

fn config(dir: &TempDir) -> Config {
    Config {
        path: dir.path().join("log/events.jsonl"),
        bytes_max: BYTES_MIN,
    }
}

fn open(config: &Config) -> Timeline {
    Timeline::open(config).expect("the thread starts")
}

/// An event of about 150 bytes that carries its number as its time.
fn event(number: u64) -> (Moment, Event) {
    (Moment::of(number, number), Event::OomKill { ours: true })
}

/// Records events one after the other, so that none is lost for lack of room in the queue.
fn record(timeline: &Timeline, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let (at, event) = event(number);
        timeline.record(at, event);
        if number % 100 == 99 {
            assert!(timeline.flush(PATIENCE));
        }
    }
    assert!(timeline.flush(PATIENCE));
}

fn read(timeline: &Timeline, query: Query) -> Vec<Arc<Entry>> {
    let mut entries = Vec::new();
    timeline.read(query, |entry| {
        entries.push(entry);
        true
    });
    entries
}

fn sequences(timeline: &Timeline, query: Query) -> Vec<u64> {
    let entries = read(timeline, query);
    entries.iter().map(|entry| entry.sequence).collect()
}

fn older(config: &Config) -> PathBuf {
    let mut path = config.path.clone().into_os_string();
    path.push(".1");
    path.into()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[test]
fn the_bound_on_disk_holds_over_thousands_of_events() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let timeline = open(&config);
    let mut largest = 0;
    for round in 0..50 {
        record(&timeline, round * 100..round * 100 + 100);
        largest = largest.max(size(&config.path) + size(&older(&config)));
        assert!(largest <= BYTES_MIN, "{largest} bytes");
    }
    assert!(
        largest > BYTES_MIN / 2,
        "{largest} bytes: the bound is used"
    );
    drop(timeline);

    let timeline = open(&config);
    let kept = sequences(&timeline, Query::after(0));
    assert!(kept.len() > 200, "{}", kept.len());
    assert_eq!(kept.last(), Some(&5000));
    assert!(kept[0] > 1, "the oldest had to go");
    assert!(
        kept.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "without gaps: {kept:?}"
    );
    assert_eq!(timeline.lost(), 0);
}

#[test]
fn a_restart_goes_on_behind_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    record(&open(&config), 0..3);
    let mut file = OpenOptions::new().append(true).open(&config.path).unwrap();
    file.write_all(br#"{"sequence":4,"time":"2026-0"#).unwrap();
    drop(file);

    let timeline = open(&config);
    assert!(timeline.after_crash());
    assert_eq!(sequences(&timeline, Query::after(0)), [1, 2, 3]);
    record(&timeline, 3..5);
    assert_eq!(sequences(&timeline, Query::after(0)), [1, 2, 3, 4, 5]);
    // From the file, not from memory.
    let text = fs::read_to_string(&config.path).unwrap();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert_eq!(sequences(&open(&config), Query::after(0)), [1, 2, 3, 4, 5]);
}

#[test]
fn since_limit_and_after_choose() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let timeline = open(&config);
    // More than memory holds, so that both are read.
    record(&timeline, 0..400);
    assert_eq!(sequences(&timeline, Query::after(0)).len(), 400);
    assert_eq!(sequences(&timeline, Query::after(398)), [399, 400]);
    assert!(sequences(&timeline, Query::after(400)).is_empty());
    let limited = |limit| Query {
        limit,
        ..Query::after(0)
    };
    assert_eq!(sequences(&timeline, limited(2)), [399, 400]);
    let newest: Vec<u64> = (101..=400).collect();
    assert_eq!(sequences(&timeline, limited(300)), newest);
    for at in [50, 300] {
        let entries = read(&timeline, Query::after(0));
        let since = Some(entries[at].at.time);
        let later = read(
            &timeline,
            Query {
                since,
                ..Query::after(0)
            },
        );
        assert_eq!(later[0].at.time, entries[at].at.time);
        assert!(later.len() >= 400 - at, "{}", later.len());
    }
}

#[test]
fn a_file_that_cannot_be_written_costs_only_what_memory_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    // A directory is in the way: nobody, not even root, can write it.
    fs::create_dir_all(&config.path).unwrap();
    let timeline = open(&config);
    record(&timeline, 0..10);
    assert_eq!(timeline.lost(), 10);
    assert_eq!(sequences(&timeline, Query::after(0)).len(), 10, "in memory");

    fs::remove_dir(&config.path).unwrap();
    record(&timeline, 10..11);
    assert_eq!(timeline.lost(), 10);
    let kept = read(&open(&config), Query::after(0));
    let lost = Event::Lost {
        events: 10,
        place: Place::Timeline,
    };
    assert_eq!(kept.len(), 2);
    assert_eq!((kept[0].sequence, &kept[1].event), (11, &lost));
}

#[test]
fn a_disk_that_hangs_never_holds_up_who_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    // Kept open and not read: what is written stays in the pipe until that is full, then writing hangs.
    let mut pipe = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let timeline = open(&Config {
        path,
        bytes_max: BYTES_MIN,
    });
    let (recorder, (sender, recorded)) = (timeline.clone(), mpsc::channel());
    thread::spawn(move || {
        let mut number = 0;
        while recorder.lost() < 10_000 {
            let (at, event) = event(number);
            recorder.record(at, event);
            number += 1;
        }
        sender.send(number)
    });
    let recorded = recorded.recv_timeout(PATIENCE);
    assert!(recorded.is_ok(), "recording waits for the disk");

    // The disk comes back, and the timeline tells of what it lost.
    let (sender, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut chunk) {
            if sender.send(chunk[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut text = Vec::new();
    loop {
        text.extend(chunks.recv_timeout(PATIENCE).expect("more to come"));
        let lines = text.split(|&byte| byte == b'\n');
        let entries = lines.filter_map(|line| serde_json::from_slice::<Entry>(line).ok());
        let told = entries.filter_map(|entry| match entry.event {
            Event::Lost { events, .. } => Some(events),
            _ => None,
        });
        if told.sum::<u64>() == timeline.lost() {
            break;
        }
    }
}

//! The `file` destination.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
};

use gophership::export::{
    Batch, Destination, DestinationConfig, DestinationKind, Destinations, FileConfig, Outcome,
    Rotation, WAITING_MAX,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value::Value},
};
use prost::Message as _;
use tokio::task::JoinSet;

use crate::{batch, file, on_a_worker, request, server::PATIENCE};

const ACCEPTED: Outcome = Outcome::Accepted {
    rejected_records: 0,
};

struct Opened {
    destinations: Destinations,
    destination: Destination,
}

fn open(path: &Path) -> Opened {
    open_as(&file("local", path))
}

fn rotated(path: &Path, bytes: u64, keep: u32) -> Opened {
    open_as(&DestinationConfig {
        name: "local".to_owned(),
        kind: DestinationKind::File(FileConfig {
            path: path.to_owned(),
            rotation: Some(Rotation { bytes, keep }),
        }),
    })
}

fn open_as(config: &DestinationConfig) -> Opened {
    let destinations = Destinations::open(std::slice::from_ref(config)).unwrap();
    destinations.start().unwrap();
    let destination = destinations.connect().remove(0);
    Opened {
        destinations,
        destination,
    }
}

fn lines(path: &Path) -> Vec<ExportLogsServiceRequest> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "torn: {text:?}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn refusal(path: &Path) -> String {
    Destinations::open(&[file("local", path)])
        .and_then(|destinations| destinations.start())
        .unwrap_err()
        .to_string()
}

#[test]
fn accepted_batches_read_back_as_the_same_requests() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let opened = open(&path);
    assert_eq!(opened.destination.name(), "local");
    on_a_worker(async {
        assert_eq!(
            opened.destination.deliver(batch("first", 3)).await,
            ACCEPTED
        );
        // In the file now, not only after closing.
        assert_eq!(lines(&path), [request("first", 3)]);
        assert_eq!(
            opened.destination.deliver(batch("second", 1000)).await,
            ACCEPTED
        );
        assert_eq!(lines(&path), [request("first", 3), request("second", 1000)]);
    });
}

#[test]
fn concurrent_batches_are_all_written_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let opened = open(&path);
    // More than may wait, from several runtimes.
    let each = WAITING_MAX;
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let destinations = opened.destinations.clone();
            scope.spawn(move || {
                on_a_worker(async {
                    let destination = destinations.connect().remove(0);
                    let mut deliveries = JoinSet::new();
                    for number in 0..each {
                        let destination = destination.clone();
                        deliveries.spawn(async move {
                            destination
                                .deliver(batch(&format!("{worker}/{number}"), 2))
                                .await
                        });
                    }
                    assert_eq!(deliveries.join_all().await, vec![ACCEPTED; each]);
                });
            });
        }
    });
    let mut written: Vec<String> = lines(&path)
        .iter()
        .map(|request| format!("{request:?}"))
        .collect();
    assert_eq!(written.len(), 3 * each);
    written.sort_unstable();
    written.dedup();
    assert_eq!(written.len(), 3 * each);
}

#[test]
fn a_batch_that_does_not_decode_is_rejected_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let opened = open(&path);
    let garbage = Batch {
        bytes: vec![0x0a, 0xff].into(),
        records: 1,
    };
    // Its last record breaks in its body, when much of its line is in the file already.
    let mut late = request("late", 10_000);
    let mut broken = late.resource_logs[0].scope_logs[0].log_records[0].clone();
    broken.body = Some(AnyValue {
        value: Some(Value::StringValue("\u{1}".into())),
    });
    broken.trace_id.clear();
    late.resource_logs[0].scope_logs[0].log_records.push(broken);
    let mut bytes = late.encode_to_vec();
    let body = bytes.iter().rposition(|byte| *byte == 1).unwrap();
    bytes[body] = 0xff;
    let late = Batch {
        bytes: bytes.into(),
        records: 10_001,
    };
    on_a_worker(async {
        let destination = &opened.destination;
        let outcomes = tokio::join!(
            destination.deliver(batch("a", 1)),
            destination.deliver(garbage),
            destination.deliver(late),
            destination.deliver(batch("b", 1)),
        );
        for outcome in [outcomes.1, outcomes.2] {
            assert!(
                matches!(&outcome, Outcome::Rejected { reason } if reason.contains("ExportLogsServiceRequest")),
                "{outcome:?}"
            );
        }
        assert_eq!((outcomes.0, outcomes.3), (ACCEPTED, ACCEPTED));
    });
    assert_eq!(lines(&path), [request("a", 1), request("b", 1)]);
}

#[test]
fn a_torn_last_line_is_cut_and_complete_ones_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    on_a_worker(async {
        let opened = open(&path);
        assert_eq!(opened.destination.deliver(batch("kept", 5)).await, ACCEPTED);
        opened.destinations.close();
    });
    let complete = fs::read(&path).unwrap();
    // Short, longer than a search step, and length without bytes, as a power cut leaves it.
    let long = [b"{\"resourceLogs\":[".as_slice(), &[b'x'; 200_000]].concat();
    for torn in [b"{".as_slice(), b"{\"resourceLogs\":[{", &long, &[0; 4096]] {
        for before in [complete.as_slice(), b""] {
            fs::write(&path, [before, torn].concat()).unwrap();
            open(&path).destinations.close();
            assert_eq!(fs::read(&path).unwrap(), before);
        }
    }
    on_a_worker(async {
        fs::write(&path, [&complete, &long[..]].concat()).unwrap();
        let opened = open(&path);
        assert_eq!(opened.destination.deliver(batch("next", 1)).await, ACCEPTED);
        assert_eq!(lines(&path), [request("kept", 5), request("next", 1)]);
    });
}

#[test]
fn a_file_of_something_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes");
    fs::write(&path, "precious").unwrap();
    assert!(refusal(&path).contains("notes: its last line is neither complete nor OTLP JSON"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = refusal(&directory.path().join("missing/logs.jsonl"));
    assert!(
        missing.contains("`local`") && missing.contains("missing/logs.jsonl: No such file"),
        "{missing}"
    );
    assert!(refusal(Path::new("/dev/null")).contains("/dev/null: not a regular file"));
    assert!(refusal(directory.path()).contains("not a regular file"));
}

#[test]
fn a_file_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let opened = open(&path);
    assert!(refusal(&path).contains("logs.jsonl: locked by another"));
    opened.destinations.close();
    open(&path);
}

#[test]
fn closing_writes_what_waits_and_refuses_what_comes_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    on_a_worker(async {
        let opened = open(&path);
        let mut deliveries = JoinSet::new();
        for number in 0..20 {
            let destination = opened.destination.clone();
            deliveries
                .spawn(async move { destination.deliver(batch(&number.to_string(), 1)).await });
        }
        // Polls each once: now they wait for the thread.
        tokio::task::yield_now().await;
        opened.destinations.close();
        opened.destinations.close();
        assert_eq!(deliveries.join_all().await, vec![ACCEPTED; 20]);
        assert_eq!(lines(&path).len(), 20);
        let late = opened.destination.deliver(batch("late", 1)).await;
        assert!(
            matches!(&late, Outcome::Retry { reason, .. } if reason.ends_with("logs.jsonl: closed")),
            "{late:?}"
        );
    });
}

/// The file that `path` became, `number` rotations ago.
fn numbered(path: &Path, number: usize) -> PathBuf {
    PathBuf::from(format!("{}.{number}", path.display()))
}

/// Delivers one batch after the other.
fn deliver_each(destination: &Destination, labels: impl Iterator<Item = usize>) {
    on_a_worker(async {
        for label in labels {
            let outcome = destination.deliver(batch(&label.to_string(), 1)).await;
            assert_eq!(outcome, ACCEPTED, "{label}");
        }
    });
}

/// Bytes of a line of one record.
fn line_bytes(directory: &Path) -> u64 {
    let path = directory.join("one.jsonl");
    deliver_each(&open(&path).destination, 100..101);
    fs::metadata(&path).unwrap().len()
}

#[test]
fn a_full_file_is_rotated_and_the_newest_ones_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let line = line_bytes(directory.path());
    let opened = rotated(&path, 3 * line, 2);
    // Each file takes three: 100 to 102 are gone with the oldest.
    deliver_each(&opened.destination, 100..111);
    let written = |labels: std::ops::Range<usize>| -> Vec<_> {
        labels.map(|label| request(&label.to_string(), 1)).collect()
    };
    assert_eq!(lines(&numbered(&path, 2)), written(103..106));
    assert_eq!(lines(&numbered(&path, 1)), written(106..109));
    assert_eq!(lines(&path), written(109..111));
    assert!(!numbered(&path, 3).exists());
    // The last line that fits is the last one, also in a group, and at the next start.
    opened.destinations.close();
    let opened = rotated(&path, 3 * line, 2);
    on_a_worker(async {
        let deliveries: JoinSet<_> = (111..121)
            .map(|label| {
                let destination = opened.destination.clone();
                async move { destination.deliver(batch(&label.to_string(), 1)).await }
            })
            .collect();
        assert_eq!(deliveries.join_all().await, vec![ACCEPTED; 10]);
    });
    let counts = [numbered(&path, 2), numbered(&path, 1), path].map(|path| lines(&path).len());
    assert_eq!(counts, [3, 3, 3]);
}

#[test]
fn a_rotation_that_a_crash_cut_short_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let write = |path: &Path, label: &str| fs::write(path, format!("{label}\n")).unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    // Crashed when .2 had become .3, before .1 became .2: the gap is filled, and .3 stays.
    write(&numbered(&path, 3), "oldest");
    write(&numbered(&path, 1), "old");
    write(&path, "current");
    fs::write(path.with_extension("jsonl.new"), "").unwrap();
    deliver_each(&rotated(&path, 1, 3).destination, 1..2);
    let names = [3, 2, 1].map(|number| read(&numbered(&path, number)));
    assert_eq!(names, ["oldest\n", "old\n", "current\n"]);
    assert_eq!(lines(&path), [request("1", 1)]);
    // Crashed when the file had become .1, before the new one had its name.
    let before = lines(&path);
    fs::rename(&path, numbered(&path, 1)).unwrap();
    deliver_each(&rotated(&path, 1, 3).destination, 2..3);
    assert_eq!(lines(&numbered(&path, 1)), before);
    assert_eq!(lines(&path), [request("2", 1)]);
}

#[test]
fn who_follows_the_name_sees_every_line_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let opened = rotated(&path, 1, 1);
    let mut tail = Command::new("tail")
        .args(["-n", "+1", "-s", "0.01", "-F"])
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("coreutils are there");
    let (sender, seen) = mpsc::channel();
    let out = BufReader::new(tail.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    // Every line is followed by a rotation; a reader that lags by more than the files that stay would miss some.
    for label in 0..50 {
        deliver_each(&opened.destination, label..label + 1);
        let line = seen.recv_timeout(PATIENCE).expect("tail prints the line");
        assert_eq!(
            serde_json::from_str::<ExportLogsServiceRequest>(&line).unwrap(),
            request(&label.to_string(), 1)
        );
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
    reader.join().unwrap();
    assert_eq!(seen.try_recv().ok(), None, "nothing twice");
}

#[test]
fn a_file_that_cannot_be_rotated_goes_on_taking_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    // Somebody else's: it isn't touched.
    let in_the_way = path.with_extension("jsonl.new");
    fs::write(&in_the_way, "precious").unwrap();
    let opened = rotated(&path, 1, 1);
    deliver_each(&opened.destination, 0..3);
    assert_eq!(lines(&path).len(), 3);
    assert_eq!(fs::read(&in_the_way).unwrap(), b"precious");
    fs::remove_file(&in_the_way).unwrap();
    deliver_each(&opened.destination, 3..4);
    assert_eq!(lines(&path), [request("3", 1)]);
    assert_eq!(lines(&numbered(&path, 1)).len(), 3);
}

#[test]
fn what_others_moved_away_gets_nothing_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let opened = open(&path);
    deliver_each(&opened.destination, 0..1);
    fs::rename(&path, numbered(&path, 1)).unwrap();
    deliver_each(&opened.destination, 1..2);
    assert_eq!(lines(&numbered(&path, 1)), [request("0", 1)]);
    assert_eq!(lines(&path), [request("1", 1)]);
    fs::remove_file(&path).unwrap();
    deliver_each(&opened.destination, 2..3);
    assert_eq!(lines(&path), [request("2", 1)]);
}

/// Where the limited process writes; its presence makes `limited_process` do something.
const LIMITED_PATH: &str = "GOPHERSHIP_TEST_LIMITED_PATH";

/// A file-size limit makes writes short and then fail, as a full file system does, and needs no root. It and the
/// ignored SIGXFSZ hold for a whole process, so the test runs in one of its own.
#[test]
fn a_full_file_system_is_a_retry_and_leaves_no_half_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs.jsonl");
    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; exec \"$0\" --exact files::limited_process --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(LIMITED_PATH, &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
    assert_eq!(
        lines(&path),
        [
            request("first", 10),
            request("small", 1),
            request("large", 4000)
        ]
    );
}

/// The part of the test above that runs under the limit.
#[test]
fn limited_process() {
    let Some(path) = std::env::var_os(LIMITED_PATH).map(PathBuf::from) else {
        return;
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    on_a_worker(async {
        let opened = open(&path);
        let destination = &opened.destination;
        assert_eq!(destination.deliver(batch("first", 10)).await, ACCEPTED);
        let before = fs::read(&path).unwrap();

        setrlimit(Resource::RLIMIT_FSIZE, 100_000, hard).unwrap();
        let full = destination.deliver(batch("large", 4000)).await;
        assert!(
            matches!(&full, Outcome::Retry { reason, .. } if reason.contains("logs.jsonl: File too large")),
            "{full:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), before);
        // What fits is still taken.
        assert_eq!(destination.deliver(batch("small", 1)).await, ACCEPTED);

        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        assert_eq!(destination.deliver(batch("large", 4000)).await, ACCEPTED);
    });
}

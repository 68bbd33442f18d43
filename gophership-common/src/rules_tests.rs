extern crate std;

use std::{string::String, vec::Vec};

use super::*;

/// A level of its own for each threshold, so that no two can be mixed up.
const THRESHOLDS: Thresholds = Thresholds {
    receive_queue: levels(500, 800),
    receive_queue_for_us: 5_000,
    listen_backlog: levels(510, 810),
    memory_stall: levels(50, 200),
    memory_available: levels(150, 70),
    cpu_wait: levels(300, 700),
    disk_latency_us: Some(50_000),
    ingress_horizon_us: Some(1_000_000),
    budget: levels(820, 950),
    heartbeat_us: 999_999,
};

const fn levels(yellow_permille: u32, red_permille: u32) -> Levels {
    Levels {
        yellow_permille,
        red_permille,
    }
}

/// What a cell of the table stands for, in the signal's unit.
fn threshold(cell: &str) -> Option<u64> {
    let t = &THRESHOLDS;
    let permille = |level: u32| Some(u64::from(level));
    match cell {
        "never" => None,
        "at once" | "1" => Some(1),
        "`receive_queue.yellow`" => permille(t.receive_queue.yellow_permille),
        "`receive_queue.for`" => Some(t.receive_queue_for_us),
        "`listen_backlog.yellow`" => permille(t.listen_backlog.yellow_permille),
        "`listen_backlog.red`" => permille(t.listen_backlog.red_permille),
        "`memory_stall.yellow`" => permille(t.memory_stall.yellow_permille),
        "`memory_stall.red`" => permille(t.memory_stall.red_permille),
        "`memory_available.yellow`" => permille(t.memory_available.yellow_permille),
        "`memory_available.red`" => permille(t.memory_available.red_permille),
        "`cpu_wait.yellow`" => permille(t.cpu_wait.yellow_permille),
        "`cpu_wait.red`" => permille(t.cpu_wait.red_permille),
        "`disk_latency.yellow`" => t.disk_latency_us,
        "`ingress.horizon`" => t.ingress_horizon_us,
        "beyond `heartbeat`" => Some(t.heartbeat_us + 1),
        "`budget.yellow`" => permille(t.budget.yellow_permille),
        "`budget.red`" => permille(t.budget.red_permille),
        other => panic!("the table says {other:?}"),
    }
}

/// The rows of the module's documentation: signal, cause, Yellow, Red.
fn table() -> Vec<[String; 4]> {
    include_str!("rules.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `"))
        .map(|row| {
            let cells: Vec<String> = row.split('|').map(|cell| cell.trim().into()).collect();
            cells[..4].to_vec().try_into().unwrap()
        })
        .collect()
}

#[test]
fn the_table_is_what_the_code_does() {
    let table = table();
    assert_eq!(table.len(), SIGNALS, "one row a signal");
    let rules = THRESHOLDS.rules();
    for (signal, row) in Signal::ALL.iter().zip(&table) {
        let [name, cause, yellow, red] = row;
        let (name, arrow) = name.split_once('`').unwrap();
        assert_eq!(name, signal.as_str(), "in the order of the numbers");
        assert_eq!(!arrow.trim().is_empty(), signal.falling(), "{name}");
        let expected = match cause.trim_matches('`') {
            "shown" => "none",
            cause => cause,
        };
        assert_eq!(signal.cause().as_str(), expected, "{name}");
        assert_eq!(
            rules[*signal as usize].entries(),
            (threshold(yellow), threshold(red)),
            "{name}"
        );
    }
}

#[test]
fn exits_are_four_fifths_of_the_entries() {
    let rules = THRESHOLDS.rules();
    let cpu = rules[Signal::CpuWait as usize];
    assert_eq!((cpu.yellow, cpu.yellow_exit), (300, 240));
    assert_eq!((cpu.red, cpu.red_exit), (700, 560));
    let memory = rules[Signal::MemoryAvailable as usize];
    let plain = |threshold: u64| threshold ^ memory.flip;
    // Low is bad: back above 150 / 0.8 = 187.5 to leave Yellow, above 87.5 to leave Red.
    assert_eq!(
        (plain(memory.yellow), plain(memory.yellow_exit)),
        (150, 187)
    );
    assert_eq!((plain(memory.red), plain(memory.red_exit)), (70, 87));
    for rule in rules {
        assert!(rule.yellow_exit <= rule.yellow && rule.red_exit <= rule.red);
    }
    assert_eq!(
        rising_exit(1),
        1,
        "what counts things must be able to leave"
    );
}

#[test]
fn a_level_that_is_off_never_enters() {
    let off = Thresholds {
        cpu_wait: levels(Levels::OFF, Levels::OFF),
        ..THRESHOLDS
    };
    let rule = off.rules()[Signal::CpuWait as usize];
    assert_eq!(rule.entries(), (None, None));
    assert_eq!((rule.yellow_exit, rule.red_exit), (NEVER, NEVER));
}

#[test]
fn no_disk_signal_has_a_red_threshold() {
    for signal in [Signal::DiskLatency, Signal::VaultWrite] {
        assert_eq!(THRESHOLDS.rules()[signal as usize].entries().1, None);
        assert_ne!(signal.flag(), 0);
    }
}

//! What is handed over: a JSON object a measurement on standard output, words on standard error.

use std::{fs, time::SystemTime};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Collects what was missed on the way.
pub(crate) struct Report {
    machine: Value,
    missed: Vec<String>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            machine: machine(),
            missed: Vec::new(),
        }
    }

    /// One measurement. Numbers have their unit in their name.
    pub(crate) fn emit(&self, measurement: &str, figures: &Value) {
        let now = OffsetDateTime::from(SystemTime::now());
        let object = json!({
            "measurement": measurement,
            "at": now.format(&Rfc3339).unwrap_or_default(),
            "machine": self.machine,
            "figures": figures,
        });
        println!("{object}");
    }

    /// Compares with what was promised; a miss is told, and counts if the caller asked to check.
    pub(crate) fn bar(&mut self, what: &str, holds: bool) -> Value {
        eprintln!("    {}  {what}", if holds { "held  " } else { "MISSED" });
        if !holds {
            self.missed.push(what.to_owned());
        }
        json!({ "bar": what, "held": holds })
    }

    pub(crate) fn missed(&self) -> &[String] {
        &self.missed
    }
}

/// What the figures depend on.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let load = read("/proc/loadavg");
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    json!({
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu_model": model,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "virtual": cpuinfo.contains(" hypervisor"),
        "memory_bytes": memory_bytes(&read("/proc/meminfo")),
        "load_1min_before": load.split(' ').next().and_then(|load| load.parse::<f64>().ok()),
        "optimised": !cfg!(debug_assertions),
    })
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Median, 99th percentile and extremes of some values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread<T> {
    pub(crate) count: usize,
    pub(crate) min: T,
    pub(crate) p50: T,
    pub(crate) p99: T,
    pub(crate) max: T,
}

impl<T: Copy + PartialOrd> Spread<T> {
    /// `None` without values. By the nearest rank, so that each is a value that occurred.
    pub(crate) fn of(mut values: Vec<T>) -> Option<Self> {
        values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        let at = |per_cent: usize| {
            let rank = (values.len() * per_cent).div_ceil(100);
            values.get(rank.saturating_sub(1)).copied()
        };
        Some(Self {
            count: values.len(),
            min: *values.first()?,
            p50: at(50)?,
            p99: at(99)?,
            max: *values.last()?,
        })
    }
}

impl<T: Into<Value>> Spread<T> {
    /// Its figures as `NAME_p50_UNIT` and so on.
    pub(crate) fn add_to(self, figures: &mut Value, name: &str, unit: &str) {
        figures[format!("{name}_count")] = self.count.into();
        for (part, value) in [
            ("min", self.min),
            ("p50", self.p50),
            ("p99", self.p99),
            ("max", self.max),
        ] {
            figures[format!("{name}_{part}_{unit}")] = value.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_values_that_occurred() {
        let spread = Spread::of((1..=200_u64).rev().collect()).unwrap();
        let expected = Spread {
            count: 200,
            min: 1,
            p50: 100,
            p99: 198,
            max: 200,
        };
        assert_eq!(spread, expected);
        assert_eq!(Spread::<f64>::of(Vec::new()), None);
        let mut figures = json!({});
        Spread::of(vec![2.5])
            .unwrap()
            .add_to(&mut figures, "a", "s");
        assert_eq!(figures["a_p99_s"], 2.5);
    }

    #[test]
    fn memory_reads_in_bytes() {
        let meminfo = "MemFree: 1 kB\nMemTotal:       16 kB\n";
        assert_eq!(memory_bytes(meminfo), Some(16_384));
        assert_eq!(memory_bytes("MemFree: 1 kB\n"), None);
    }
}

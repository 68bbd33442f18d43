//! Pressure stall information of the host and of the engine's cgroup: shares of the last second.
//!
//! Source: Documentation/accounting/psi.rst. The `total=` counters are used rather than the averages,
//! which lag by ten seconds. Of the host, *full* counts for memory: *some* task stalls whenever any
//! cgroup is at its own limit, which is no concern of ours. On an idle host that is *full*, too:
//! whoever posts it leaves it out while the host has plenty of memory.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gophership_common::{Signal, share_permille};

/// What shares are of.
const WINDOW: Duration = Duration::from_secs(1);

/// One counter, and what it was during the last second.
struct Gauge {
    signal: Signal,
    path: PathBuf,
    line: &'static str,
    past: VecDeque<(Instant, u64)>,
}

/// The gauges that this machine has.
pub(super) struct Psi {
    gauges: Vec<Gauge>,
}

impl Psi {
    /// `root` is `/` outside of tests; `cgroup` the engine's cgroup directory, if it has one of
    /// version 2.
    pub(super) fn discover(root: &Path, cgroup: Option<&Path>) -> Self {
        let host = |signal, resource: &str, line| Gauge {
            signal,
            path: root.join("proc/pressure").join(resource),
            line,
            past: VecDeque::new(),
        };
        let mut gauges = vec![
            host(Signal::MemoryPressure, "memory", "full"),
            host(Signal::CpuPressure, "cpu", "some"),
            host(Signal::IoPressure, "io", "some"),
        ];
        if let Some(cgroup) = cgroup {
            gauges.push(Gauge {
                signal: Signal::MemoryPressureCgroup,
                path: cgroup.join("memory.pressure"),
                line: "some",
                past: VecDeque::new(),
            });
        }
        Self { gauges }
    }

    /// Reads every gauge; hands each one's share in permille, or why there is none, to `each`.
    pub(super) fn sample(&mut self, now: Instant, mut each: impl FnMut(Signal, io::Result<u64>)) {
        for gauge in &mut self.gauges {
            let share = gauge.sample(now);
            each(gauge.signal, share);
        }
    }
}

impl Gauge {
    fn sample(&mut self, now: Instant) -> io::Result<u64> {
        let text = fs::read_to_string(&self.path)
            .map_err(|error| io::Error::new(error.kind(), self.named(&error)))?;
        let total_us = total_us(&text, self.line)
            .ok_or_else(|| io::Error::other(self.named(&format!("no {} total", self.line))))?;
        // Keep one reading that is at least a window old.
        while let Some(&(second, _)) = self.past.get(1)
            && now.saturating_duration_since(second) >= WINDOW
        {
            self.past.pop_front();
        }
        let share = self.past.front().map_or(0, |&(then, before_us)| {
            let elapsed = now.saturating_duration_since(then);
            // At least a window, or a first stall of a millisecond would look like a stalled second.
            let elapsed_ns = u64::try_from(elapsed.max(WINDOW).as_nanos()).unwrap_or(u64::MAX);
            share_permille(total_us.saturating_sub(before_us), elapsed_ns)
        });
        self.past.push_back((now, total_us));
        Ok(share)
    }

    fn named(&self, problem: &impl std::fmt::Display) -> String {
        format!("{}: {problem}", self.path.display())
    }
}

/// `total=` of one line, microseconds.
fn total_us(text: &str, line: &str) -> Option<u64> {
    text.lines()
        .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?
        .split(' ')
        .find_map(|field| field.strip_prefix("total="))?
        .trim()
        .parse()
        .ok()
}

/// A trigger on the host's memory pressure: its descriptor has an exceptional condition (`POLLPRI`)
/// when the share of a second is exceeded, so that a sample needn't wait for its time.
///
/// # Errors
/// The kernel's: it lets only the privileged ask for a window of a second.
pub(super) fn memory_trigger(permille: u32) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/pressure/memory")?;
    let stall_us = u128::from(permille.min(1000)) * WINDOW.as_micros() / 1000;
    // The kernel wants the text with its end.
    file.write_all(format!("full {stall_us} {}\0", WINDOW.as_micros()).as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=900\n\
                        full avg10=0.00 avg60=0.00 avg300=0.00 total=400000\n";

    #[test]
    fn totals_are_found_by_their_line() {
        assert_eq!(total_us(TEXT, "some"), Some(900));
        assert_eq!(total_us(TEXT, "full"), Some(400_000));
        assert_eq!(total_us("some avg10=0.00\n", "some"), None);
    }

    #[test]
    fn shares_are_of_the_last_second() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("proc/pressure");
        fs::create_dir_all(&dir).unwrap();
        let write = |total_us: u64| {
            let text = format!("full avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\n");
            fs::write(dir.join("memory"), text).unwrap();
        };
        let mut psi = Psi::discover(root.path(), None);
        let mut share_at = |now| {
            let mut share = None;
            psi.sample(now, |signal, found| {
                if signal == Signal::MemoryPressure {
                    share = found.ok();
                } else {
                    assert!(found.is_err(), "{signal:?} isn't there");
                }
            });
            share
        };
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        write(1_000_000);
        assert_eq!(
            share_at(at(0)),
            Some(0),
            "the past before the start is unknown"
        );
        write(1_100_000);
        assert_eq!(share_at(at(100)), Some(100), "100 ms of a second");
        write(1_600_000);
        assert_eq!(share_at(at(1000)), Some(600));
        assert_eq!(share_at(at(1100)), Some(500), "the first 100 ms are over");
        assert_eq!(share_at(at(5000)), Some(0));
    }
}

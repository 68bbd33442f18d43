//! How long the vault's disks take, from their statistics in sysfs
//! (Documentation/block/stat.rst).
//!
//! Unlike the kernel half's, these times include the wait in the scheduler's queue, and are known
//! only of what has completed: while nothing completes, a disk at work is as slow as that lasts.

use std::{fs, io};

use super::past::Past;

const WINDOW_NS: u64 = 1_000_000_000;

/// What the disks have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    completed: u64,
    took_ms: u64,
    in_flight: u64,
}

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Latency {
    /// Mean of what completed within the last second.
    pub(super) us: u64,
    /// Requests under way.
    pub(super) depth: u64,
}

pub(super) struct Disks {
    /// `/sys/dev/block/…` of each.
    directories: Vec<String>,
    past: Past<Totals>,
    /// When something was last known to move, or to have nothing to do.
    moved_ns: u64,
    last: Option<Totals>,
}

impl Disks {
    /// `devices` as in [`gophership_common::Policy::disks`].
    pub(super) fn of(devices: &[u32]) -> Self {
        let directory = |device: &u32| {
            let (major, minor) = (device >> 20, device & 0xf_ffff);
            format!("/sys/dev/block/{major}:{minor}")
        };
        Self {
            directories: devices.iter().map(directory).collect(),
            past: Past::new(WINDOW_NS),
            moved_ns: 0,
            last: None,
        }
    }

    /// `None` if there is no disk.
    ///
    /// # Errors
    /// If a disk's statistics can't be read, or aren't kept.
    pub(super) fn sample(&mut self, now_ns: u64) -> io::Result<Option<Latency>> {
        let mut sum = Totals::default();
        for directory in &self.directories {
            let read = |name: &str| {
                let path = format!("{directory}/{name}");
                let named =
                    |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
                fs::read_to_string(&path).map_err(named)
            };
            if read("queue/iostats").is_ok_and(|kept| kept.trim() == "0") {
                let reason = format!("{directory}/queue/iostats is 0");
                return Err(io::Error::other(reason));
            }
            let disk = totals(&read("stat")?)
                .ok_or_else(|| io::Error::other(format!("{directory}/stat isn't understood")))?;
            sum.completed += disk.completed;
            sum.took_ms += disk.took_ms;
            sum.in_flight += disk.in_flight;
        }
        Ok((!self.directories.is_empty()).then(|| self.latency(sum, now_ns)))
    }

    fn latency(&mut self, now: Totals, now_ns: u64) -> Latency {
        let stuck = self
            .last
            .is_some_and(|last| now.completed == last.completed && now.in_flight > 0);
        if !stuck {
            self.moved_ns = now_ns;
        }
        self.last = Some(now);
        let before = self.past.compare(now_ns, now).reading;
        let completed = now.completed.saturating_sub(before.completed);
        let took_us = now.took_ms.saturating_sub(before.took_ms) * 1000;
        let us = took_us
            .checked_div(completed)
            .unwrap_or_else(|| now_ns.saturating_sub(self.moved_ns) / 1000);
        Latency {
            us,
            depth: now.in_flight,
        }
    }
}

/// The sums over reads, writes, discards and flushes; kernels before 5.5 lack the last two.
fn totals(stat: &str) -> Option<Totals> {
    let fields: Option<Vec<u64>> = stat
        .split_whitespace()
        .map(|field| field.parse().ok())
        .collect();
    let fields = fields?;
    let at = |index: usize| fields.get(index).copied().unwrap_or(0);
    (fields.len() >= 11).then(|| Totals {
        completed: at(0) + at(4) + at(11) + at(15),
        took_ms: at(3) + at(7) + at(14) + at(16),
        in_flight: at(8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_writes_discards_and_flushes_count() {
        let stat = " 1 900 900 10 2 900 900 20 5 900 900 4 900 900 40 8 80\n";
        let sum = Totals {
            completed: 15,
            took_ms: 150,
            in_flight: 5,
        };
        assert_eq!(totals(stat), Some(sum));
        assert_eq!(totals("1 2 3"), None);
    }

    #[test]
    fn the_mean_is_of_the_last_second_and_a_stuck_disk_is_as_slow_as_it_is_stuck() {
        const MS: u64 = 1_000_000;
        let mut disks = Disks::of(&[]);
        let mut at = |ms: u64, completed, took_ms, in_flight| {
            let now = Totals {
                completed,
                took_ms,
                in_flight,
            };
            disks.latency(now, (10_000 + ms) * MS).us
        };
        assert_eq!(
            at(0, 100, 5000, 0),
            0,
            "the past before the start is unknown"
        );
        assert_eq!(at(100, 110, 5200, 1), 20_000);
        assert_eq!(at(1100, 110, 5200, 1), 1_000_000);
        assert_eq!(at(1200, 110, 5200, 0), 0, "nothing to do");
        assert_eq!(
            at(1300, 110, 5200, 1),
            100_000,
            "at work for that long at most"
        );
        assert_eq!(at(1400, 111, 6700, 0), 1_500_000);
    }
}

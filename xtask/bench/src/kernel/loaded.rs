//! The kernel half of a process, seen from outside: its maps and what its programs have cost.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Pod,
    maps::{Array, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use gophership_common::{
    MAP_SIGNALS, MAP_VERDICT, Signal, SignalsPage, VerdictPage, WatchSlot, Word,
};

/// The two maps that say how things stand.
pub(super) struct Maps {
    verdict: Array<MapData, VerdictPage>,
    signals: Array<MapData, SignalsPage>,
}

impl Maps {
    /// Finds them among the descriptors that the process holds: other daemons have their own.
    pub(super) fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            verdict: map(pid, MAP_VERDICT)?,
            signals: map(pid, MAP_SIGNALS)?,
        })
    }

    pub(super) fn verdict(&self) -> Result<VerdictPage> {
        self.verdict.get(&0, 0).context("VERDICT can't be read")
    }

    pub(super) fn word(&self) -> Result<Word> {
        Ok(self.verdict()?.word)
    }

    pub(super) fn signals(&self) -> Result<SignalsPage> {
        self.signals.get(&0, 0).context("SIGNALS can't be read")
    }
}

/// The tick's last reading of a signal; `None` where it can't be measured.
pub(super) fn reading(page: &SignalsPage, signal: Signal) -> Option<u64> {
    page.last.get(signal)
}

/// Since when the one socket that is above Red has been so, by the kernel's clock.
pub(super) fn stalled_since_ns(page: &SignalsPage) -> Option<u64> {
    let since = |slot: &WatchSlot| Some(slot.stalled_since_ns).filter(|&since| since != 0);
    page.watch.iter().find_map(since)
}

fn map<T: Pod>(pid: u32, name: &str) -> Result<Array<MapData, T>> {
    let id = descriptors(pid)
        .filter_map(|info| field(&info, "map_id:"))
        .filter_map(|id| u32::try_from(id).ok())
        .find(|&id| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str() == Some(name)))
        .ok_or_else(|| anyhow!("process {pid} holds no map {name}"))?;
    let data = MapData::from_id(id).with_context(|| format!("map {name}"))?;
    Array::try_from(Map::Array(data)).with_context(|| format!("map {name}"))
}

/// Runs and time of programs, as far as statistics were on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cost {
    pub(super) runs: u64,
    pub(super) ns: u64,
}

impl Cost {
    pub(super) fn ns_per_run(self) -> f64 {
        if self.runs == 0 {
            return 0.0;
        }
        self.ns as f64 / self.runs as f64
    }
}

/// The cost of each of a process's programs by name, of which the kernel keeps 15 characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Costs(pub(super) BTreeMap<String, Cost>);

impl Costs {
    pub(super) fn of(pid: u32) -> Self {
        let mut by_id = BTreeMap::new();
        for info in descriptors(pid) {
            // A link names its program, too, but not its cost.
            let fields = (
                field(&info, "prog_id:"),
                field(&info, "run_time_ns:"),
                field(&info, "run_cnt:"),
            );
            if let (Some(id), Some(ns), Some(runs)) = fields {
                by_id.insert(id, Cost { runs, ns });
            }
        }
        let mut costs = BTreeMap::<String, Cost>::new();
        for program in loaded_programs().filter_map(Result::ok) {
            let name = program.name_as_str().unwrap_or("?").to_owned();
            if let Some(cost) = by_id.get(&u64::from(program.id())) {
                // Two that begin alike become one.
                let sum = costs.entry(name).or_default();
                sum.runs += cost.runs;
                sum.ns += cost.ns;
            }
        }
        Self(costs)
    }

    pub(super) fn since(&self, earlier: &Self) -> Self {
        let difference = self.0.iter().map(|(name, now)| {
            let then = earlier.0.get(name).copied().unwrap_or_default();
            let cost = Cost {
                runs: now.runs.saturating_sub(then.runs),
                ns: now.ns.saturating_sub(then.ns),
            };
            (name.clone(), cost)
        });
        Self(difference.collect())
    }

    /// Of the program with this name, however long it is.
    pub(super) fn get(&self, name: &str) -> Cost {
        let kept = &name[..name.len().min(15)];
        self.0.get(kept).copied().unwrap_or_default()
    }
}

fn descriptors(pid: u32) -> impl Iterator<Item = String> {
    let directory = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    directory
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok())
}

fn field(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(runs: u64, ns: u64) -> Costs {
        Costs(BTreeMap::from([(
            "tcp_rcv_space_a".to_owned(),
            Cost { runs, ns },
        )]))
    }

    #[test]
    fn a_descriptor_tells_its_programs_cost() {
        let info = "pos:\t0\nprog_id:\t7\nrun_time_ns:\t120\nrun_cnt:\t3\n";
        assert_eq!(field(info, "run_time_ns:"), Some(120));
        assert_eq!(field(info, "map_id:"), None);
    }

    #[test]
    fn costs_are_differences_and_found_by_the_whole_name() {
        let between = costs(5, 900).since(&costs(3, 500));
        let cost = between.get("tcp_rcv_space_adjust");
        assert_eq!(cost, Cost { runs: 2, ns: 400 });
        assert!((cost.ns_per_run() - 200.0).abs() < f64::EPSILON);
        assert_eq!(between.get("tick").ns_per_run(), 0.0);
    }
}

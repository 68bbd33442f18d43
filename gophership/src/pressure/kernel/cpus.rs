//! Which CPUs have a tick: those that were online when the kernel half was attached.
//!
//! Source: `/sys/devices/system/cpu/online` (Documentation/admin-guide/cputopology.rst).

use std::{collections::BTreeSet, fs, path::PathBuf};

/// The CPUs with a tick, and those known to lack one.
#[derive(Debug)]
pub(super) struct Ticking {
    online: PathBuf,
    ticking: BTreeSet<u32>,
    told: BTreeSet<u32>,
}

impl Default for Ticking {
    fn default() -> Self {
        Self::by("/sys/devices/system/cpu/online".into())
    }
}

impl Ticking {
    /// None yet; `online` lists the CPUs there are.
    fn by(online: PathBuf) -> Self {
        Self {
            online,
            ticking: BTreeSet::new(),
            told: BTreeSet::new(),
        }
    }

    /// Notes a CPU that has a tick.
    pub(super) fn add(&mut self, cpu: u32) {
        self.ticking.insert(cpu);
    }

    /// Whether any has.
    pub(super) fn any(&self) -> bool {
        !self.ticking.is_empty()
    }

    /// The CPUs that are online without a tick, each once for as long as it stays so. Nothing where
    /// the list can't be read.
    pub(super) fn newly_without(&mut self) -> Vec<u32> {
        let online = fs::read_to_string(&self.online).ok();
        let Some(online) = online.and_then(|text| ranges(text.trim())) else {
            return Vec::new();
        };
        // A CPU that goes offline takes its event along, and comes back without.
        self.ticking.retain(|cpu| online.contains(cpu));
        self.told.retain(|cpu| online.contains(cpu));
        let without = |cpu: &&u32| !self.ticking.contains(cpu) && !self.told.contains(cpu);
        let new: Vec<u32> = online.iter().filter(without).copied().collect();
        self.told.extend(&new);
        new
    }
}

/// Reads `0-3,8`.
fn ranges(text: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_without_a_tick_is_told_once_until_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("online");
        let mut ticking = Ticking::by(path.clone());
        let mut look = |online: &str, add: &[u32]| {
            fs::write(&path, format!("{online}\n")).unwrap();
            add.iter().for_each(|cpu| ticking.add(*cpu));
            ticking.newly_without()
        };
        let none = Vec::<u32>::new();
        assert_eq!(look("0-2,8", &[0, 1, 2, 8]), none);
        assert_eq!(look("0-3,8-9", &[]), vec![3, 9], "they came online");
        assert_eq!(look("0-3,8-9", &[]), none, "told already");
        assert_eq!(look("0,2-3", &[]), none);
        assert_eq!(look("0-3,9", &[]), vec![1, 9], "back, without a tick");
        assert_eq!(look("nonsense", &[]), none);
    }

    #[test]
    fn this_machines_cpus_are_understood() {
        let mut ticking = Ticking::default();
        assert!(!ticking.any());
        assert!(!ticking.newly_without().is_empty());
    }
}

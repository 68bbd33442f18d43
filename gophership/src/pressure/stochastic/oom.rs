//! Processes killed for lack of memory in the engine's memory cgroup: `oom_kill` of its
//! `memory.events` (version 2, those below included) or `memory.oom_control` (version 1).
//!
//! Where no memory cgroup accounts for the engine, every kill is the host's: `/proc/vmstat`. Else
//! that number says nothing, for it counts kills under other cgroups' limits, too; so a kill in
//! another cgroup for want of the host's memory goes unseen.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{super::memory::MemorySources, past::Past};

const WINDOW_NS: u64 = 10_000_000_000;

pub(super) struct Kills {
    files: Vec<PathBuf>,
    past: Past<u64>,
}

impl Kills {
    /// `root` is `/` outside of tests.
    pub(super) fn of(root: &Path, memory: &MemorySources) -> Self {
        let mut files = memory.own_files("memory.events", "memory.oom_control");
        if files.is_empty() {
            files.push(root.join("proc/vmstat"));
        }
        Self {
            files,
            past: Past::new(WINDOW_NS),
        }
    }

    /// Kills in the last 10 s.
    ///
    /// # Errors
    /// If the number can't be read.
    pub(super) fn sample(&mut self, now_ns: u64) -> io::Result<u64> {
        let mut total = 0;
        for path in &self.files {
            let named = |problem: &dyn std::fmt::Display| {
                io::Error::other(format!("{}: {problem}", path.display()))
            };
            let text = fs::read_to_string(path).map_err(|error| named(&error))?;
            total += kills(&text).ok_or_else(|| named(&"no oom_kill"))?;
        }
        let before = self.past.compare(now_ns, total).reading;
        Ok(total.saturating_sub(before))
    }
}

fn kills(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_of_the_last_ten_seconds_count() {
        const SECOND: u64 = 1_000_000_000;
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("proc")).unwrap();
        let vmstat = root.path().join("proc/vmstat");
        let memory = MemorySources::discover(root.path());
        let mut kills = Kills::of(root.path(), &memory);
        assert!(kills.sample(0).is_err(), "it isn't there");
        let mut at = |second: u64, total: u64| {
            fs::write(&vmstat, format!("oom_kill_disable 9\noom_kill {total}\n")).unwrap();
            kills.sample(second * SECOND).unwrap()
        };
        assert_eq!(at(100, 5), 0, "the past before the start is unknown");
        assert_eq!(at(101, 7), 2);
        assert_eq!(at(110, 7), 2);
        assert_eq!(at(112, 7), 0);
    }
}

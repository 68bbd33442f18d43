//! Memory limits and what is left of them: every cgroup (v1 and v2) the process is in, all their
//! ancestors, and the host.
//!
//! Sources: `/proc/self/cgroup`, `/proc/self/mountinfo` (proc(5)), `memory.max`, `memory.current`
//! and `memory.stat` (Documentation/admin-guide/cgroup-v2.rst), `memory.limit_in_bytes` and
//! `memory.usage_in_bytes` (cgroup-v1/memory.rst), `/proc/meminfo`.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The smallest memory limit over the process's cgroups, their ancestors and the host, bytes.
/// `u64::MAX` if nothing can be read.
#[must_use]
pub fn memory_limit_bytes() -> u64 {
    let sources = MemorySources::discover(Path::new("/"));
    let host = sources.host().map_or(u64::MAX, |host| host.limit);
    sources
        .levels
        .iter()
        .filter_map(Level::limit)
        .fold(host, u64::min)
}

/// A limit and what can still be taken of it, bytes.
struct Room {
    limit: u64,
    available: u64,
}

/// Where to read. Found once: a process rarely moves between cgroups.
pub(super) struct MemorySources {
    meminfo: PathBuf,
    levels: Vec<Level>,
}

/// One cgroup directory.
struct Level {
    directory: PathBuf,
    unified: bool,
}

impl MemorySources {
    /// Finds the process's cgroup directories; `root` is `/` outside of tests.
    pub(super) fn discover(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let cgroups = read("proc/self/cgroup");
        let mounts = read("proc/self/mountinfo");
        let mut levels = Vec::new();
        for line in cgroups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let unified = controllers.is_empty();
            if !unified && controllers.split(',').all(|name| name != "memory") {
                continue;
            }
            if let Some((mount, below)) = mounts
                .lines()
                .find_map(|line| cgroup_mount(line, unified, path))
            {
                let mount = root.join(mount.trim_start_matches('/'));
                let leaf = mount.join(below.trim_start_matches('/'));
                levels.extend(
                    leaf.ancestors()
                        .take_while(|directory| directory.starts_with(&mount))
                        .map(|directory| Level {
                            directory: directory.to_owned(),
                            unified,
                        }),
                );
            }
        }
        Self {
            meminfo: root.join("proc/meminfo"),
            levels,
        }
    }

    /// The least available share over the host and all limited levels, permille; `None` if even
    /// the host can't be read.
    pub(super) fn available_permille(&self) -> Option<u32> {
        let host = self.host()?;
        let limited = self
            .levels
            .iter()
            .filter_map(Level::room)
            // "Unlimited" is a very large number in v1; the host says it better.
            .filter(|room| room.limit < host.limit);
        let shares = limited.map(|room| gophership_common::permille(room.available, room.limit));
        let host = gophership_common::permille(host.available, host.limit);
        Some(shares.fold(host, u32::min))
    }

    /// The engine's own memory cgroup's files of this name, by the version of its hierarchy.
    pub(super) fn own_files(&self, unified: &str, version_1: &str) -> Vec<PathBuf> {
        let own = |wanted: bool, name: &str| {
            let level = self.levels.iter().find(|level| level.unified == wanted)?;
            Some(level.directory.join(name)).filter(|path| path.exists())
        };
        let found = [own(true, unified), own(false, version_1)];
        found.into_iter().flatten().collect()
    }

    /// Whether the host has so much memory left that nobody can be stalled for want of the host's.
    pub(super) fn host_has_plenty(&self) -> bool {
        const PLENTY_PERMILLE: u32 = 250;
        self.host().is_some_and(|host| {
            gophership_common::permille(host.available, host.limit) >= PLENTY_PERMILLE
        })
    }

    /// The engine's own cgroup directory, if its memory is accounted for by version 2.
    pub(super) fn cgroup(&self) -> Option<&Path> {
        self.levels
            .first()
            .filter(|level| level.unified && level.directory.join("memory.pressure").exists())
            .map(|level| &*level.directory)
    }

    fn host(&self) -> Option<Room> {
        let text = fs::read_to_string(&self.meminfo).ok()?;
        let bytes = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            kib.checked_mul(1024)
        };
        Some(Room {
            limit: bytes("MemTotal:")?,
            available: bytes("MemAvailable:")?,
        })
    }
}

impl Level {
    fn number(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.directory.join(name)).ok()?;
        text.trim().parse().ok()
    }

    /// The level's limit; `None` if it has none ("max").
    fn limit(&self) -> Option<u64> {
        self.number(if self.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        })
    }

    fn room(&self) -> Option<Room> {
        let limit = self.limit()?;
        let (usage, reclaimable) = if self.unified {
            ("memory.current", "inactive_file ")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file ")
        };
        let usage = self.number(usage)?;
        // Page cache that nobody uses counts as available, as MemAvailable does.
        let reclaimable = fs::read_to_string(self.directory.join("memory.stat"))
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let used = usage.saturating_sub(reclaimable);
        Some(Room {
            limit,
            available: limit.saturating_sub(used),
        })
    }
}

/// If this line of mountinfo mounts the hierarchy: the mount point, and the cgroup's path below it.
fn cgroup_mount<'a>(line: &'a str, unified: bool, cgroup: &'a str) -> Option<(&'a str, &'a str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let kind = after.next()?;
    let options = after.nth(1)?;
    let matches = if unified {
        kind == "cgroup2"
    } else {
        kind == "cgroup" && options.split(',').any(|option| option == "memory")
    };
    if !matches {
        return None;
    }
    // In a container the mount shows a subtree: strip its root where the path lies below it.
    let below = match cgroup.strip_prefix(root.trim_end_matches('/')) {
        Some(below) if below.is_empty() || below.starts_with('/') => below,
        Some(_) | None => "",
    };
    Some((point, below))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;

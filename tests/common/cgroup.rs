//! Control groups of a test's own, of either version: made below the test's group (version 1) or the
//! root (version 2), and removed, with what is left in them, when dropped.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Tells a process that [`Cgroup::inside`] started which group it is in.
const INSIDE: &str = "GS_TEST_CGROUP";

/// A group with one controller's limits.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    /// Of version 2.
    unified: bool,
    /// This process has made it.
    made: bool,
}

impl Cgroup {
    /// A group of `controller` (`memory`, `cpu`, `blkio`: named as in version 1), without limits yet.
    /// `None` where there is no such controller and none is required.
    pub(crate) fn new(controller: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Some((parent, unified)) = parent_of(controller) else {
            let required = std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL").is_some_and(|v| v == "1");
            assert!(
                !required,
                "GOPHERSHIP_REQUIRE_KERNEL=1, but there is no {controller} controller to use"
            );
            eprintln!("nothing tested: there is no {controller} controller to use");
            return None;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("gs-test-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Some(Self {
            dir,
            unified,
            made: true,
        })
    }

    /// In a process that [`Self::inside`] started: the group that it is in.
    pub(crate) fn joined() -> Option<Self> {
        let dir = PathBuf::from(std::env::var_os(INSIDE)?);
        let unified = dir.join("cgroup.type").exists();
        Some(Self {
            dir,
            unified,
            made: false,
        })
    }

    /// A command whose process enters the group before it becomes `program`.
    pub(crate) fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.dir.join("cgroup.procs"))
            .arg(program)
            .env(INSIDE, &self.dir);
        command
    }

    /// Moves a process here.
    pub(crate) fn take(&self, process: Pid) {
        self.write("cgroup.procs", &process.to_string());
    }

    /// Most memory, bytes; nothing is swapped out.
    pub(crate) fn limit_memory(&self, bytes: u64) {
        if self.unified {
            self.write("memory.max", &bytes.to_string());
            // Absent without swap.
            let _ = fs::write(self.dir.join("memory.swap.max"), "0");
        } else {
            self.write("memory.limit_in_bytes", &bytes.to_string());
            self.write("memory.swappiness", "0");
        }
    }

    /// How often the memory limit was reached.
    pub(crate) fn memory_limited(&self) -> u64 {
        let text = if self.unified {
            let events = self.read("memory.events");
            let line = events.lines().find_map(|line| line.strip_prefix("max "));
            line.unwrap_or("0").to_owned()
        } else {
            self.read("memory.failcnt")
        };
        text.trim().parse().unwrap_or(0)
    }

    /// Most CPU time in each 100 ms; `None`: no limit.
    pub(crate) fn limit_cpu(&self, quota: Option<Duration>) {
        let micros = quota.map(|quota| quota.as_micros().to_string());
        if self.unified {
            let quota = micros.unwrap_or_else(|| "max".to_owned());
            self.write("cpu.max", &format!("{quota} 100000"));
        } else {
            self.write("cpu.cfs_quota_us", micros.as_deref().unwrap_or("-1"));
        }
    }

    /// Most bytes written to a block device (`major:minor`) in a second; `None`: no limit.
    pub(crate) fn limit_writes(&self, device: &str, bytes: Option<u64>) {
        if self.unified {
            let bytes = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
            self.write("io.max", &format!("{device} wbps={bytes}"));
        } else {
            let bytes = bytes.unwrap_or(0);
            let line = format!("{device} {bytes}");
            self.write("blkio.throttle.write_bps_device", &line);
        }
    }

    fn write(&self, file: &str, value: &str) {
        let path = self.dir.join(file);
        fs::write(&path, value).unwrap_or_else(|e| panic!("{value} to {}: {e}", path.display()));
    }

    fn read(&self, file: &str) -> String {
        let path = self.dir.join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn kill_members(&self) {
        let members = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.made {
            return;
        }
        // Whoever is in here was put in here by the test.
        let start = Instant::now();
        while fs::remove_dir(&self.dir).is_err() {
            self.kill_members();
            if start.elapsed() > Duration::from_secs(5) {
                eprintln!("left behind: {}", self.dir.display());
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where a group with the controller may be made, and whether that is of version 2.
fn parent_of(controller: &str) -> Option<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let point = Path::new(point);
        match kind {
            "cgroup" if options.split(',').any(|option| option == controller) => {
                let own = point.join(own_group(controller)?.trim_start_matches('/'));
                let parent = if own.is_dir() { own } else { point.to_owned() };
                Some((parent, false))
            }
            "cgroup2" => {
                let name = if controller == "blkio" {
                    "io"
                } else {
                    controller
                };
                let given = fs::read_to_string(point.join("cgroup.subtree_control")).ok()?;
                let given = given.split_whitespace().any(|given| given == name);
                given.then(|| (point.to_owned(), true))
            }
            _ => None,
        }
    })
}

fn own_group(controller: &str) -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = controllers.split(',').any(|name| name == controller);
        ours.then(|| path.to_owned())
    })
}

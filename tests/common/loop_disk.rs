//! A disk of a test's own: a loop device with a file system, mounted where only this thread and its
//! children see it. It goes with them, whatever ends them.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{major, minor},
};

/// Where the commands are that make disks.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Block size of the file system.
const BLOCK: u64 = 4096;
/// A file system stays frozen this long at most, whatever becomes of the test.
const FROZEN_SECONDS_MAX: &str = "120";

/// Runs a test on a thread that may leave the mount namespace.
pub(crate) fn apart(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(test).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The loop device.
#[derive(Debug)]
pub(crate) struct LoopDisk {
    /// Its number, `major:minor`.
    pub(crate) number: String,
    /// The number of the disk that its file lies on.
    pub(crate) backed_by: String,
    at: PathBuf,
    file: PathBuf,
    /// The small tmpfs that the file lies on, if it does.
    memory: Option<PathBuf>,
}

impl LoopDisk {
    /// Makes a file beside the directory `at` and mounts it there. Moves this thread into a mount
    /// namespace of its own. `None` where there are no loop devices and none are required.
    pub(crate) fn mount(at: &Path, bytes: u64) -> Option<Self> {
        or_required(Self::try_mount(at, bytes))
    }

    /// As [`Self::mount`], but the file is sparse and lies on a tmpfs: what isn't written yet can't be
    /// written once that is full, and the device answers EIO. See [`Self::starve`].
    pub(crate) fn mount_on_memory(at: &Path, bytes: u64, memory_bytes: u64) -> Option<Self> {
        or_required(Self::try_mount_on_memory(at, bytes, memory_bytes))
    }

    fn try_mount(at: &Path, bytes: u64) -> Result<Self, String> {
        enter_namespace()?;
        let file = at.with_extension("disk");
        let made = File::create_new(&file).map_err(|error| error.to_string())?;
        nix::fcntl::posix_fallocate(&made, 0, i64::try_from(bytes).unwrap())
            .map_err(|error| format!("{}: {error}", file.display()))?;
        let backed_by = disk_of(made.metadata().unwrap().dev())?;
        Self::attach(at, file, "--direct-io=on", backed_by, None)
    }

    fn try_mount_on_memory(at: &Path, bytes: u64, memory_bytes: u64) -> Result<Self, String> {
        enter_namespace()?;
        let memory = at.with_extension("memory");
        fs::create_dir(&memory).map_err(|error| error.to_string())?;
        let size = format!("size={memory_bytes}");
        let dir = memory.to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", dir])?;
        let file = memory.join("disk");
        let made = File::create_new(&file).map_err(|error| error.to_string())?;
        made.set_len(bytes).map_err(|error| error.to_string())?;
        Self::attach(at, file, "--direct-io=off", String::new(), Some(memory))
    }

    fn attach(
        at: &Path,
        file: PathBuf,
        direct: &str,
        backed_by: String,
        memory: Option<PathBuf>,
    ) -> Result<Self, String> {
        let path = file.to_str().unwrap();
        let device = run("losetup", &["--find", "--show", direct, path])?;
        let device = device.trim();
        // Without a journal, the file system goes on after an error of the device.
        let format = ["-q", "-m0", "-b4096", "-O", "^has_journal", "-E"];
        let tables = ["lazy_itable_init=0,nodiscard", device];
        let mounted = run("mkfs.ext4", &[&format[..], &tables[..]].concat()).and_then(|_| {
            run(
                "mount",
                &["-o", "errors=continue", device, at.to_str().unwrap()],
            )
        });
        // While it is mounted, this only says that it goes with the mount.
        run("losetup", &["--detach", device])?;
        mounted?;
        let number = fs::metadata(device).unwrap().rdev();
        Ok(Self {
            number: format!("{}:{}", major(number), minor(number)),
            backed_by,
            at: at.to_owned(),
            file,
            memory,
        })
    }

    /// How often the device was told to flush its cache, since it exists.
    pub(crate) fn flushes(&self) -> u64 {
        let path = format!("/sys/dev/block/{}/stat", self.number);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        // Documentation/block/stat.rst: the 16th field counts flushes.
        let field = text.split_whitespace().nth(15).expect("Linux 5.5 or later");
        field.parse().expect("a number")
    }

    /// Whether the device has a cache, without which nobody would need to flush it.
    pub(crate) fn has_write_cache(&self) -> bool {
        let path = format!("/sys/dev/block/{}/queue/write_cache", self.number);
        fs::read_to_string(path).is_ok_and(|text| text.trim() == "write back")
    }

    /// Bytes that files can still take.
    pub(crate) fn free_bytes(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.at).expect("the disk is mounted");
        stat.blocks_available() * stat.fragment_size()
    }

    /// Takes the blocks below `path`, from `offset` on, away from the device: they read as zeros.
    pub(crate) fn punch(&self, path: &Path, offset: u64) {
        let listed = run("filefrag", &["-v", "-b4096", path.to_str().unwrap()]).unwrap();
        let extents: Vec<_> = listed.lines().filter_map(extent).collect();
        assert!(!extents.is_empty(), "no extents: {listed}");
        for (logical, physical, blocks) in extents {
            let skip = (offset / BLOCK).saturating_sub(logical).min(blocks);
            if skip < blocks {
                let at = ((physical + skip) * BLOCK).to_string();
                let length = ((blocks - skip) * BLOCK).to_string();
                let file = self.file.to_str().unwrap();
                run(
                    "fallocate",
                    &["--punch-hole", "-o", &at, "-l", &length, file],
                )
                .unwrap();
            }
        }
    }

    /// From now on the device answers EIO where it would need more memory.
    pub(crate) fn starve(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        for size in [1 << 20, 4096] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Takes [`Self::starve`] back.
    pub(crate) fn feed(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.memory
            .as_ref()
            .expect("a disk on memory")
            .join("ballast")
    }

    /// Freezes the file system: whoever writes waits, until the guard goes.
    pub(crate) fn freeze(&self) -> Frozen {
        // A process of its own that thaws when its pipe ends, by whatever end this process takes.
        let thaw = format!("timeout {FROZEN_SECONDS_MAX} cat; exec fsfreeze --unfreeze \"$0\"");
        let thaw = Command::new("sh")
            .args(["-c", &thaw])
            .arg(&self.at)
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let frozen = Frozen(thaw);
        run("fsfreeze", &["--freeze", self.at.to_str().unwrap()]).unwrap();
        frozen
    }
}

impl Drop for LoopDisk {
    /// Lets the directory below go before its thread does.
    fn drop(&mut self) {
        for at in [Some(&self.at), self.memory.as_ref()].into_iter().flatten() {
            if let Err(reason) = run("umount", &["--lazy", at.to_str().unwrap()]) {
                eprintln!("left to its mount namespace: {reason}");
            }
        }
    }
}

/// A frozen file system; thawed when dropped.
#[derive(Debug)]
pub(crate) struct Frozen(Child);

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        match self.0.wait() {
            Ok(status) if status.success() => {}
            ended => eprintln!("thawing: {ended:?}"),
        }
    }
}

fn enter_namespace() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare: {error}"))?;
    run("mount", &["--make-rprivate", "/"]).map(drop)
}

fn or_required(made: Result<LoopDisk, String>) -> Option<LoopDisk> {
    match made {
        Ok(disk) => Some(disk),
        Err(reason) => {
            let required = std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL");
            assert!(
                required.is_none_or(|value| value != "1"),
                "GOPHERSHIP_REQUIRE_KERNEL=1, but there is no loop device: {reason}"
            );
            eprintln!("nothing tested: no loop device: {reason}");
            None
        }
    }
}

/// Logical start, physical start and length, in blocks, of a line of `filefrag -v`:
/// `   0:        0..       7:       8705..      8712:      8:             last,eof`.
fn extent(line: &str) -> Option<(u64, u64, u64)> {
    let mut fields = line.split(':').map(str::trim);
    fields.next()?.parse::<u64>().ok()?;
    let mut start = || fields.next()?.split("..").next()?.trim().parse().ok();
    let (logical, physical) = (start()?, start()?);
    Some((logical, physical, fields.next()?.parse().ok()?))
}

/// The whole disk of a file system's device.
fn disk_of(device: u64) -> Result<String, String> {
    let node = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let node = fs::canonicalize(&node).map_err(|error| format!("{node}: {error}"))?;
    let disk = if node.join("partition").exists() {
        node.parent().unwrap()
    } else {
        &node
    };
    let number = fs::read_to_string(disk.join("dev")).map_err(|error| error.to_string())?;
    Ok(number.trim().to_owned())
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {arguments:?}: {}", said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

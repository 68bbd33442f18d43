//! A disk of a test's own: a loop device with a file system, mounted where only this thread and its
//! children see it. It goes with them, whatever ends them.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{major, minor},
};

/// The loop device.
#[derive(Debug)]
pub(crate) struct LoopDisk {
    /// Its number, `major:minor`.
    pub(crate) number: String,
    /// The number of the disk that its file lies on.
    pub(crate) backed_by: String,
    at: PathBuf,
}

impl LoopDisk {
    /// Makes a file beside the directory `at` and mounts it there. Moves this thread into a mount
    /// namespace of its own. `None` where there are no loop devices and none are required.
    pub(crate) fn mount(at: &Path, bytes: u64) -> Option<Self> {
        match Self::try_mount(at, bytes) {
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

    fn try_mount(at: &Path, bytes: u64) -> Result<Self, String> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare: {error}"))?;
        run("mount", &["--make-rprivate", "/"])?;
        let file = at.with_extension("disk");
        let made = File::create_new(&file).map_err(|error| error.to_string())?;
        nix::fcntl::posix_fallocate(&made, 0, i64::try_from(bytes).unwrap())
            .map_err(|error| format!("{}: {error}", file.display()))?;
        let backed_by = disk_of(made.metadata().unwrap().dev())?;
        let path = file.to_str().unwrap();
        let device = run("losetup", &["--find", "--show", "--direct-io=on", path])?;
        let device = device.trim();
        let mounted = run("mkfs.ext4", &["-q", "-m0", "-O", "^has_journal", device])
            .and_then(|_| run("mount", &[device, at.to_str().unwrap()]));
        // While it is mounted, this only says that it goes with the mount.
        run("losetup", &["--detach", device])?;
        mounted?;
        let number = fs::metadata(device).unwrap().rdev();
        Ok(Self {
            number: format!("{}:{}", major(number), minor(number)),
            backed_by,
            at: at.to_owned(),
        })
    }
}

impl Drop for LoopDisk {
    /// Lets the directory below go before its thread does.
    fn drop(&mut self) {
        if let Err(reason) = run("umount", &["--lazy", self.at.to_str().unwrap()]) {
            eprintln!("left to its mount namespace: {reason}");
        }
    }
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
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {arguments:?}: {}", said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! Which block devices a directory lies on, as the kernel's request queues know them: whole disks,
//! below partitions, RAID and device mapper.
//!
//! Source: `/sys/dev/block` (Documentation/ABI/testing/sysfs-block), `/proc/self/mountinfo` (proc(5)).

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

/// Devices below devices; the bound keeps a broken tree from looping.
const DEPTH_MAX: usize = 8;

/// The disks below `dir`, as `major << 20 | minor`; or why there are none.
pub(super) fn below(dir: &Path) -> Result<Vec<u32>, String> {
    let device = fs::metadata(dir)
        .map_err(|error| format!("{}: {error}", dir.display()))?
        .dev();
    let device = if major(device) == 0 {
        // Not a block device's own number: the mount may name the device that it stands for.
        mounted_from(&mountinfo(), device)
            .ok_or_else(|| format!("{} is not on a block device", dir.display()))?
    } else {
        device
    };
    let mut found = Vec::new();
    let node = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let node = fs::canonicalize(&node).map_err(|error| format!("{node}: {error}"))?;
    disks(&node, DEPTH_MAX, &mut found);
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return Err(format!("{} names no disk", node.display()));
    }
    Ok(found)
}

fn mountinfo() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// The block device that the mount with this device number was made from (btrfs shows an anonymous
/// number for each subvolume).
fn mounted_from(mountinfo: &str, device: u64) -> Option<u64> {
    let number = format!("{}:{}", major(device), minor(device));
    let source = mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (before.split(' ').nth(2)? == number)
            .then(|| after.split(' ').nth(1))
            .flatten()
    })?;
    let found = fs::metadata(source).ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

/// Collects the disks at or below a device's directory in sysfs.
fn disks(node: &Path, depth: usize, found: &mut Vec<u32>) {
    if depth == 0 {
        return;
    }
    if node.join("partition").exists() {
        if let Some(disk) = node.parent() {
            disks(disk, depth - 1, found);
        }
        return;
    }
    let slaves: Vec<PathBuf> = fs::read_dir(node.join("slaves"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .collect();
    if slaves.is_empty() {
        found.extend(number(&node.join("dev")));
    }
    for slave in slaves {
        disks(&slave, depth - 1, found);
    }
}

fn number(dev: &Path) -> Option<u32> {
    let text = fs::read_to_string(dev).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A device in a sysfs of our own.
    fn device(root: &Path, name: &str, number: &str, slaves: &[&Path]) -> PathBuf {
        let node = root.join(name);
        fs::create_dir_all(node.join("slaves")).unwrap();
        fs::write(node.join("dev"), format!("{number}\n")).unwrap();
        for slave in slaves {
            let name = slave.file_name().unwrap();
            symlink(slave, node.join("slaves").join(name)).unwrap();
        }
        node
    }

    #[test]
    fn partitions_and_mirrors_lead_to_their_disks() {
        let root = tempfile::tempdir().unwrap();
        let (sda, sdb) = (
            device(root.path(), "sda", "8:0", &[]),
            device(root.path(), "sdb", "8:16", &[]),
        );
        let sda1 = device(&sda, "sda1", "8:1", &[]);
        fs::write(sda1.join("partition"), "1\n").unwrap();
        let mirror = device(root.path(), "md0", "9:0", &[&sda1, &sdb]);
        let volume = device(root.path(), "dm-0", "253:0", &[&mirror]);
        let mut found = Vec::new();
        disks(&volume, DEPTH_MAX, &mut found);
        found.sort_unstable();
        assert_eq!(found, [8 << 20, 8 << 20 | 16]);
    }

    #[test]
    fn a_file_system_without_a_device_says_so() {
        let reason = below(Path::new("/proc")).unwrap_err();
        assert!(
            reason.contains("/proc is not on a block device"),
            "{reason}"
        );
    }

    #[test]
    fn a_mount_is_found_by_its_number() {
        let mounts = "29 1 0:26 / /data rw - btrfs /dev/null rw\n";
        let device = nix::sys::stat::makedev(0, 26);
        assert_eq!(mounted_from(mounts, device), None, "no block device");
        assert_eq!(mounted_from("", device), None);
    }
}

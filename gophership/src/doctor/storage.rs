//! The vault's disk, tried with a file in its directory (or the nearest above it that exists).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, StatxFlags, statvfs, statx},
    io::{ReadWriteFlags, pwritev2},
};

use super::Check;
use crate::{
    uring::{self, ALIGNMENT, AlignedBytes, BufferPool, Ring},
    vault,
};

/// Buffers of the ring that is tried.
const BUFFERS: usize = 4;

pub(super) fn check(vault: Option<&vault::Config>) -> Vec<Check> {
    let mut checks = vec![io_uring()];
    let Some(vault) = vault else {
        let why = "the configuration doesn't name a usable vault";
        checks.extend(
            ["o_direct", "rwf_dsync", "space"]
                .map(|name| Check::not_applicable(format!("vault.{name}"), why)),
        );
        return checks;
    };
    let directory = nearest_existing(&vault.dir);
    checks.extend(direct_writes(directory));
    checks.push(space(directory, vault));
    checks
}

fn io_uring() -> Check {
    let name = "io_uring";
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let found = match setting.trim() {
        "" => String::new(),
        value => format!("; kernel.io_uring_disabled = {value}"),
    };
    match Ring::new(vec![BufferPool::new(BUFFERS, ALIGNMENT)]) {
        Ok(ring) => {
            let buffers = if ring.is_registered() { "" } else { "un" };
            Check::ok(
                name,
                format!("a ring with {buffers}registered buffers works{found}"),
            )
        }
        Err(error @ uring::Error::Setup { .. }) => Check::warning(
            name,
            format!("{error}{found}; a thread for each lane writes the vault instead"),
            "allow io_uring: set kernel.io_uring_disabled to 0, and in containers use a seccomp profile that has \
             io_uring_setup, io_uring_enter and io_uring_register",
        ),
        Err(error) => Check::warning(
            name,
            format!("{error}{found}; a thread for each lane writes the vault instead"),
            "allow io_uring_register: is it blocked by a container's seccomp profile?",
        ),
    }
}

/// The nearest of the path and its parents that is there.
fn nearest_existing(path: &Path) -> &Path {
    let found = path.ancestors().find(|dir| dir.is_dir());
    found.unwrap_or_else(|| Path::new("."))
}

/// A file that is gone when it is dropped.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn create(directory: &Path, flags: i32) -> io::Result<Self> {
        let path = directory.join(format!(".gophership-doctor-{}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path);
        // Some file systems create the file before they refuse the flag.
        if file
            .as_ref()
            .is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
        {
            let _ = fs::remove_file(&path);
        }
        Ok(Self { file: file?, path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn direct_writes(directory: &Path) -> Vec<Check> {
    let at = directory.display();
    let elsewhere = "put vault.dir on a local ext4, XFS or btrfs file system";
    let no_dsync = || Check::not_applicable("vault.rwf_dsync", "needs O_DIRECT to be tried");
    let scratch = match Scratch::create(directory, libc::O_DIRECT) {
        Ok(scratch) => scratch,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let found = format!(
                "{at}: the file system refuses O_DIRECT; the vault writes through the page cache instead"
            );
            return vec![
                Check::warning("vault.o_direct", found, elsewhere),
                no_dsync(),
            ];
        }
        Err(error) => {
            let remedy =
                "run doctor as the daemon is started, or chown the directory to the service user";
            let check = Check::failed("vault.o_direct", format!("{at}: {error}"), remedy);
            return vec![check, no_dsync()];
        }
    };
    let page = AlignedBytes::zeroed(ALIGNMENT);
    let direct = match scratch.file.write_all_at(&page, 0) {
        Ok(()) => aligned(&scratch.file, &at.to_string()),
        Err(error) => Check::failed("vault.o_direct", format!("{at}: {error}"), elsewhere),
    };
    let written = pwritev2(
        &scratch.file,
        &[IoSlice::new(&page)],
        0,
        ReadWriteFlags::DSYNC,
    );
    let durable = match written {
        Ok(ALIGNMENT) => Check::ok("vault.rwf_dsync", format!("{at}: a synced write works")),
        Ok(short) => Check::failed(
            "vault.rwf_dsync",
            format!("{at}: {short} of {ALIGNMENT} bytes"),
            elsewhere,
        ),
        Err(error) => Check::failed("vault.rwf_dsync", format!("{at}: {error}"), elsewhere),
    };
    vec![direct, durable]
}

/// Whether the vault's 4 KiB suffice for what the file system asks of O_DIRECT.
fn aligned(file: &File, at: &str) -> Check {
    let name = "vault.o_direct";
    let wanted = StatxFlags::DIOALIGN;
    let found = statx(file, "", AtFlags::EMPTY_PATH, wanted).ok();
    let found = found.filter(|found| found.stx_mask & wanted.bits() != 0);
    match found.map(|found| (found.stx_dio_mem_align, found.stx_dio_offset_align)) {
        None => Check::ok(
            name,
            format!("{at}: an aligned write works; the kernel doesn't tell the alignment"),
        ),
        Some((memory, offset)) if memory.max(offset) as usize <= ALIGNMENT => Check::ok(
            name,
            format!("{at}: works; asks for {memory} bytes in memory, {offset} in the file"),
        ),
        Some((memory, offset)) => Check::failed(
            name,
            format!("{at}: asks for {memory} bytes in memory, {offset} in the file"),
            format!("use a file system with blocks of at most {ALIGNMENT} bytes"),
        ),
    }
}

fn space(directory: &Path, vault: &vault::Config) -> Check {
    let name = "vault.space";
    let at = directory.display();
    let stat = match statvfs(directory) {
        Ok(stat) => stat,
        Err(error) => {
            return Check::warning(
                name,
                format!("{at}: {error}"),
                "make the directory readable",
            );
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let wanted = vault.max_bytes.saturating_sub(segment_bytes(&vault.dir));
    let mib = |bytes: u64| bytes >> 20;
    let found = format!(
        "{at}: {} MiB free, {} MiB more allowed to the vault",
        mib(free),
        mib(wanted)
    );
    let least = vault.segment_bytes.saturating_mul(2 * vault.lanes as u64);
    if free >= wanted {
        Check::ok(name, found)
    } else if free >= least {
        Check::warning(
            name,
            found,
            "lower vault.max_bytes or make room: a full disk refuses requests",
        )
    } else {
        let remedy = format!(
            "make room: {} MiB are the least for {} workers",
            mib(least),
            vault.lanes
        );
        Check::failed(name, found, remedy)
    }
}

/// What the vault has taken already.
fn segment_bytes(vault: &Path) -> u64 {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    list(vault)
        .flat_map(|lane| list(&lane.path()).collect::<Vec<_>>())
        .filter(|file| file.path().extension().is_some_and(|kind| kind == "gsv"))
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.len())
        .sum()
}

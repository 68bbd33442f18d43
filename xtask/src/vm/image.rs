//! The two file systems of a machine: the first one, with the modules and the first process, and
//! the disk with the programs under test at the very paths that they were built at.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    cpio::Archive,
    modules::{self, Module},
    plan::{MODULES, PLAN, Step},
};
use crate::process;

/// Room on the disk beyond what is copied there. The file has holes until it is written to.
const ROOM_BYTES: u64 = 3 << 30;

/// Directories that the first process, or any program, expects.
const DIRECTORIES: &[&str] = &["dev", "proc", "sys", "run", "tmp", "etc", "root", "var/log"];

/// Writes the first file system: this very program as the first process.
///
/// # Errors
/// Something can't be read or written.
pub(super) fn initramfs(path: &Path, kernel_modules: &Path, plan: &[Step]) -> Result<()> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let mut archive = Archive::default();
    // The kernel opens it for the first process, before that can mount anything.
    archive.device("/dev/console", 5, 1);
    archive.directory("/root");
    archive.file("/init", &read(&own)?);
    for library in libraries(&own)? {
        archive.file(&library.display().to_string(), &read(&library)?);
    }
    let ordered = modules::in_order(kernel_modules)?;
    for (index, Module { name, code }) in ordered.iter().enumerate() {
        archive.file(&format!("{MODULES}/{index:03}-{name}.ko"), code);
    }
    archive.file(PLAN, &serde_json::to_vec(plan)?);
    fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the disk: `programs` with their libraries, and empty `directories`.
///
/// # Errors
/// Something can't be read or written, or `mkfs.ext4` fails.
pub(super) fn disk(
    path: &Path,
    staging: &Path,
    programs: &[PathBuf],
    directories: &[PathBuf],
    files: &[(PathBuf, String)],
) -> Result<()> {
    if staging.exists() {
        fs::remove_dir_all(staging)?;
    }
    for directory in DIRECTORIES {
        fs::create_dir_all(staging.join(directory))?;
    }
    for directory in directories {
        fs::create_dir_all(below(staging, directory)?)?;
    }
    // One set of libraries, under each name that a program may look for them.
    for merged in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(staging.join("usr").join(merged))?;
        symlink(format!("usr/{merged}"), staging.join(merged))?;
    }
    let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
    for program in programs {
        needed.insert(program.clone());
        needed.extend(libraries(program)?);
    }
    for file in &needed {
        let to = below(staging, file)?;
        if !to.exists() {
            place(file, &to)?;
        }
    }
    for (at, text) in files {
        let to = below(staging, at)?;
        create_parent(&to)?;
        fs::write(to, text)?;
    }
    make_file_system(path, staging)
}

fn make_file_system(path: &Path, staging: &Path) -> Result<()> {
    let size = size_of_files(staging)? + ROOM_BYTES;
    if path.exists() {
        fs::remove_file(path)?;
    }
    let file =
        fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(size)?;
    let mut mkfs = Command::new("mkfs.ext4");
    // Debian has it where only root looks.
    if let Some(search) = std::env::var_os("PATH") {
        let mut search = search;
        search.push(":/usr/sbin:/sbin");
        mkfs.env("PATH", search);
    }
    mkfs.args(["-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=0", "-d"])
        .arg(staging)
        .arg(path);
    process::succeed(&mut mkfs)
}

/// Libraries that a program is loaded with, and the loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = process::output_of(Command::new("ldd").arg(program))?;
    parse_libraries(&listing).with_context(|| format!("ldd {}", program.display()))
}

fn parse_libraries(listing: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in listing.lines() {
        if line.contains("not found") {
            bail!("{}", line.trim());
        }
        let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        // Without a path: the kernel's own, or "statically linked".
        if path.starts_with('/') {
            let path = path.split(" (").next().unwrap_or(path);
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// Links, since nothing writes to it, or copies what lies on another file system.
fn place(from: &Path, to: &Path) -> Result<()> {
    create_parent(to)?;
    // The file itself: `mkfs.ext4` would copy a symbolic link as one.
    let from = fs::canonicalize(from).with_context(|| format!("no {}", from.display()))?;
    if fs::hard_link(&from, to).is_ok() {
        return Ok(());
    }
    fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn create_parent(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    Ok(())
}

fn below(root: &Path, path: &Path) -> Result<PathBuf> {
    let relative = path
        .strip_prefix("/")
        .with_context(|| format!("{} is not absolute", path.display()))?;
    Ok(root.join(relative))
}

fn size_of_files(directory: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            size += size_of_files(&entry.path())?;
        } else if kind.is_file() {
            size += entry.metadata()?.len();
        }
    }
    Ok(size)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                       \tlibelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            parse_libraries(listing).unwrap(),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libelf.so.1"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(parse_libraries("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse_libraries("\tlibelf.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libelf.so.1"), "{error}");
    }
}

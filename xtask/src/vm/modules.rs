//! Kernel modules: which ones the test machine loads, and in which order.
//!
//! Debian's packages hold no `modules.dep`; each module names what it needs in its own `.modinfo`
//! section, as `depends=` and a list separated by commas.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// What a machine with a virtio disk and an ext4 file system loads, and what tests of the network
/// use. What the kernel has built in, or hasn't at all, is passed over: a mount says so.
const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    // ext4 asks for it by the name of the algorithm, not as a module.
    "crc32c_generic",
    "ext4",
    // What user space asks where it judges.
    "tcp_diag",
    "veth",
    "dummy",
    "8021q",
];

/// A module's code, as `init_module(2)` takes it.
pub(super) struct Module {
    /// As in `lsmod`.
    pub(super) name: String,
    /// The ELF file.
    pub(super) code: Vec<u8>,
}

/// The modules to load, each after those it needs.
///
/// # Errors
/// A module that another one needs can't be read.
pub(super) fn in_order(modules: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(&modules.join("kernel"), &mut files)?;
    let mut loaded = BTreeMap::new();
    let order = order(WANTED, |name| {
        let Some(path) = files.get(name) else {
            return Ok(None);
        };
        let code = code(path)?;
        let needs = needs(&code);
        loaded.insert(name.to_owned(), code);
        Ok(Some(needs))
    })?;
    Ok(order
        .into_iter()
        .filter_map(|name| {
            let code = loaded.remove(&name)?;
            Some(Module { name, code })
        })
        .collect())
}

/// Sorts `wanted` and what they need, so that each comes after its needs. `needs` gives a module's
/// own, or nothing if there is no such module.
fn order(
    wanted: &[&str],
    mut needs: impl FnMut(&str) -> Result<Option<Vec<String>>>,
) -> Result<Vec<String>> {
    enum Visit {
        Enter(String),
        Leave(String),
    }
    let mut order: Vec<String> = Vec::new();
    let mut entered: Vec<String> = Vec::new();
    let mut left_to_do: Vec<Visit> = wanted
        .iter()
        .rev()
        .map(|name| Visit::Enter((*name).to_owned()))
        .collect();
    while let Some(visit) = left_to_do.pop() {
        match visit {
            Visit::Leave(name) => order.push(name),
            Visit::Enter(name) if order.contains(&name) => {}
            Visit::Enter(name) if entered.contains(&name) => {
                bail!("module {name} needs itself")
            }
            Visit::Enter(name) => {
                let Some(needed) = needs(&name)? else {
                    continue;
                };
                entered.push(name.clone());
                left_to_do.push(Visit::Leave(name));
                left_to_do.extend(needed.into_iter().rev().map(Visit::Enter));
            }
        }
    }
    Ok(order)
}

/// Module files by name. The kernel takes `-` and `_` in a name for the same.
fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn code(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{}: an unknown compression", path.display()),
    };
    process::bytes_of(Command::new(program).args(["-d", "-c"]).arg(path))
}

/// Names after `depends=` in a module's `.modinfo`.
fn needs(code: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = code.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = code[at + KEY.len()..].split(|&byte| byte == 0).next();
    String::from_utf8_lossy(value.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(wanted: &[&str], modules: &[(&str, &[&str])]) -> Result<Vec<String>> {
        order(wanted, |name| {
            let found = modules.iter().find(|module| module.0 == name);
            Ok(found.map(|(_, needs)| needs.iter().map(|&need| need.to_owned()).collect()))
        })
    }

    #[test]
    fn a_module_comes_after_all_it_needs_and_once() {
        let modules: &[(&str, &[&str])] = &[
            ("ext4", &["jbd2", "mbcache", "crc16"]),
            ("jbd2", &["crc16"]),
            ("mbcache", &[]),
            ("crc16", &[]),
            ("virtio_blk", &["virtio_ring"]),
            ("virtio_ring", &[]),
        ];
        assert_eq!(
            ordered(&["virtio_blk", "ext4", "jbd2"], modules).unwrap(),
            [
                "virtio_ring",
                "virtio_blk",
                "crc16",
                "jbd2",
                "mbcache",
                "ext4"
            ]
        );
    }

    #[test]
    fn what_is_built_in_is_passed_over() {
        let modules: &[(&str, &[&str])] = &[("ext4", &["crc16"])];
        assert_eq!(ordered(&["virtio_pci", "ext4"], modules).unwrap(), ["ext4"]);
    }

    #[test]
    fn a_circle_is_an_error() {
        let modules: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &["a"])];
        let error = ordered(&["a"], modules).unwrap_err();
        assert!(error.to_string().contains("module a"), "{error}");
    }

    #[test]
    fn needs_are_read_from_modinfo() {
        let code = b"\x7fELF\0license=GPL\0depends=jbd2,crc-16,mbcache\0retpoline=Y\0";
        assert_eq!(needs(code), ["jbd2", "crc_16", "mbcache"]);
        assert!(needs(b"\x7fELF\0license=GPL\0depends=\0retpoline=Y\0").is_empty());
        assert!(needs(b"\x7fELF").is_empty());
    }
}

//! Debian's kernels: where each comes from, and fetching it.
//!
//! apt works in a directory of its own here, with its own list of sources and as any user: the
//! system's packages and sources stay as they are, and what comes is verified by Debian's keys.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{process, setup::DEBIAN_KEYRING};

/// A kernel that can be tested on.
pub(super) struct Kernel {
    /// As asked for.
    pub(super) name: &'static str,
    /// Suites of Debian that have it as `linux-image-amd64`, with their archive.
    suites: &'static [(&'static str, &'static str)],
    /// What the kernel half is to do there.
    pub(super) supported: bool,
    /// How QEMU translates its processors, where it must.
    pub(super) threads: Threads,
}

/// How QEMU translates a machine's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// A thread for each.
    Multi,
    /// One for all, in turn: none runs a breakpoint that another has taken back, see
    /// [`super::outcome::translator_has_failed`]. Kernels from 6.12 on died of it once in about
    /// thirty attachments of all probes.
    Single,
}

const DEBIAN: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://security.debian.org/debian-security";
/// Depends on the newest image of a suite, by its name.
const META_PACKAGE: &str = "linux-image-amd64";

/// All kernels, in the order of their age.
pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        name: "5.10",
        suites: &[("bullseye", DEBIAN), ("bullseye-security", SECURITY)],
        // 64-bit compare-and-exchange came with 5.12.
        supported: false,
        threads: Threads::Multi,
    },
    Kernel {
        name: "6.1",
        suites: &[("bookworm", DEBIAN), ("bookworm-security", SECURITY)],
        supported: true,
        threads: Threads::Multi,
    },
    Kernel {
        name: "6.12",
        suites: &[("trixie", DEBIAN), ("trixie-security", SECURITY)],
        supported: true,
        threads: Threads::Single,
    },
    Kernel {
        name: "backports",
        suites: &[("trixie-backports", DEBIAN)],
        supported: true,
        threads: Threads::Single,
    },
];

/// A kernel on this machine's disk.
pub(super) struct Fetched {
    /// As in `uname -r`.
    pub(super) release: String,
    /// What boots.
    pub(super) image: PathBuf,
    /// Its modules.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// Fetches it, unless `cache` has it from before: then no server is asked, and what is there is
    /// used as it is.
    ///
    /// # Errors
    /// What apt or dpkg said.
    pub(super) fn fetch(&self, cache: &Path) -> Result<Fetched> {
        let directory = cache.join(self.name);
        let unpacked = directory.join("unpacked");
        if !unpacked.is_dir() {
            self.download(&directory)
                .with_context(|| format!("cannot fetch kernel {}", self.name))?;
        }
        installed(&unpacked)
    }

    fn download(&self, directory: &Path) -> Result<()> {
        let apt = Apt::in_directory(&directory.join("apt"), &self.sources())?;
        process::succeed(apt.command("apt-get").args(["update", "--quiet"]))?;
        let mut packages = apt.images_of(META_PACKAGE)?;
        // From 7.x on the image is a package that depends on its parts.
        for image in packages.clone() {
            packages.extend(apt.images_of(&image)?);
        }
        if packages.is_empty() {
            bail!("{META_PACKAGE} depends on no image");
        }
        let packed = directory.join("packed");
        empty(&packed)?;
        let mut download = apt.command("apt-get");
        download.args(["download", "--quiet"]).args(&packages);
        process::succeed(download.current_dir(&packed))?;
        // Unpacked elsewhere first: a directory that is there is complete.
        let half = directory.join("half-unpacked");
        empty(&half)?;
        for package in fs::read_dir(&packed)? {
            let mut unpack = Command::new("dpkg-deb");
            process::succeed(unpack.arg("-x").arg(package?.path()).arg(&half))?;
        }
        installed(&half)?;
        fs::remove_dir_all(&packed)?;
        fs::rename(&half, directory.join("unpacked"))?;
        Ok(())
    }

    fn sources(&self) -> String {
        let line = |(suite, archive): &(&str, &str)| {
            format!("deb [arch=amd64 signed-by={DEBIAN_KEYRING}] {archive} {suite} main\n")
        };
        self.suites.iter().map(line).collect()
    }
}

/// apt, with nothing of the system's own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn in_directory(directory: &Path, sources: &str) -> Result<Self> {
        for below in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(below))
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        fs::write(directory.join("sources.list"), sources)?;
        fs::write(directory.join("status"), "")?;
        let path = |name: &str| directory.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State={}", path("state")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // apt's own user can't write below somebody's checkout.
            "APT::Sandbox::User=".to_owned(),
        ];
        Ok(Self {
            options: options.into(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// The images and modules that a package depends on.
    fn images_of(&self, package: &str) -> Result<Vec<String>> {
        let mut depends = self.command("apt-cache");
        depends.args(["depends", package]);
        Ok(images(&process::output_of(&mut depends)?))
    }
}

/// Parts of one kernel in what `apt-cache depends` prints; others only name what is
/// newest.
fn images(depends: &str) -> Vec<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| {
            ["linux-image-", "linux-binary-", "linux-modules-"]
                .iter()
                .filter_map(|prefix| name.strip_prefix(prefix))
                .any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        })
        .map(str::to_owned)
        .collect()
}

/// Finds an unpacked kernel.
fn installed(root: &Path) -> Result<Fetched> {
    let all_modules = ["lib/modules", "usr/lib/modules"]
        .map(|directory| root.join(directory))
        .into_iter()
        .find(|directory| directory.is_dir())
        .with_context(|| format!("no modules in {}", root.display()))?;
    let release = fs::read_dir(&all_modules)?
        .find_map(|entry| entry.ok()?.file_name().into_string().ok())
        .with_context(|| format!("{} is empty", all_modules.display()))?;
    let modules = all_modules.join(&release);
    let image = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ]
    .into_iter()
    .find(|image| image.is_file())
    .with_context(|| format!("no kernel {release} in {}", root.display()))?;
    Ok(Fetched {
        release,
        image,
        modules,
    })
}

/// Makes an empty directory, whatever was there.
fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_told_from_what_else_a_package_depends_on() {
        let depends = "linux-image-amd64\n  Depends: linux-base-amd64\n  \
                       Depends: linux-image-7.3.4+deb13-amd64\n  Depends: linux-modules-amd64\n";
        assert_eq!(images(depends), ["linux-image-7.3.4+deb13-amd64"]);
        let depends = "linux-image-7.3.4+deb13-amd64\n  Depends: linux-base\n |Depends: kmod\n  \
                       Depends: linux-modules-7.3.4+deb13-amd64\n  \
                       Depends: linux-binary-7.3.4+deb13-amd64\n  \
                       Suggests: linux-image-6.1.0-1-amd64\n";
        assert_eq!(
            images(depends),
            [
                "linux-modules-7.3.4+deb13-amd64",
                "linux-binary-7.3.4+deb13-amd64"
            ]
        );
    }

    #[test]
    fn every_source_is_verified() {
        for kernel in KERNELS {
            assert!(!kernel.suites.is_empty());
            for line in kernel.sources().lines() {
                assert!(line.contains("signed-by=/"), "{line}");
            }
        }
    }

    #[test]
    fn an_unpacked_kernel_is_found_wherever_its_packages_have_it() {
        for (image, modules) in [
            ("boot/vmlinuz-6.1.0-9-amd64", "lib/modules/6.1.0-9-amd64"),
            (
                "usr/lib/modules/7.3-amd64/vmlinuz",
                "usr/lib/modules/7.3-amd64",
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            assert!(installed(root.path()).is_err());
            let at = |path: &str| root.path().join(path);
            fs::create_dir_all(at(modules)).unwrap();
            fs::create_dir_all(at("boot")).unwrap();
            assert!(installed(root.path()).is_err(), "no image");
            fs::write(at(image), "").unwrap();
            let kernel = installed(root.path()).unwrap();
            assert_eq!((kernel.image, kernel.modules), (at(image), at(modules)));
            assert!(modules.ends_with(&kernel.release));
        }
    }
}

//! Where things are: the checkout and what is made below its target directory.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Paths of this checkout. All are absolute.
pub(crate) struct Workspace {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// The workspace that this very program was built in.
    pub(crate) fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask/ has no parent directory")?
            .to_owned();
        // The program is TARGET/debug/xtask, wherever the user's configuration puts TARGET.
        let program = env::current_exe().context("cannot find this program's own path")?;
        let target = program
            .ancestors()
            .nth(2)
            .context("this program is not in a target directory")?;
        Ok(Self {
            root,
            target: target.to_owned(),
        })
    }

    /// Tools that setup builds; nothing outside the checkout is touched.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The linker of the kernel half.
    pub(crate) fn bpf_linker(&self) -> PathBuf {
        self.tools().join("bin/bpf-linker")
    }

    /// Target directory of the kernel half: its flags differ, so it must not share ours.
    pub(crate) fn ebpf_target(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    /// The finished kernel half, at a path that never changes.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.ebpf_target().join("gophership.bpf.o")
    }

    /// Target directory of the fuzz targets: their flags differ, too.
    pub(crate) fn fuzz_target(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// State of `cargo xtask run`.
    pub(crate) fn dev(&self) -> PathBuf {
        self.target.join("dev")
    }

    /// Kernels and disks of `cargo xtask vm-test`.
    pub(crate) fn vm(&self) -> PathBuf {
        self.target.join("vm")
    }

    /// A program of the dev profile.
    pub(crate) fn dev_program(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }
}

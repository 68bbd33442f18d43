//! Embeds the kernel half when `GOPHERSHIP_EBPF_OBJ` names its object; xtask sets it. Without it
//! the daemon builds all the same, and the kernel source reports "not built in".

use std::{env, error::Error, fs, path::PathBuf};

const VARIABLE: &str = "GOPHERSHIP_EBPF_OBJ";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(gophership_ebpf)");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    let Some(object) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
        return Ok(());
    };
    let object = PathBuf::from(object);
    println!("cargo::rerun-if-changed={}", object.display());
    let copy = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?)
        .join("gophership-ebpf.o");
    fs::copy(&object, &copy)
        .map_err(|error| format!("{VARIABLE}={}: {error}", object.display()))?;
    println!("cargo::rustc-cfg=gophership_ebpf");
    Ok(())
}

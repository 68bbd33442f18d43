//! Opens the doors in the vault's sources, however this is built: cargo-fuzz does so itself.

fn main() {
    println!("cargo::rustc-cfg=fuzzing");
    println!("cargo::rerun-if-changed=build.rs");
}

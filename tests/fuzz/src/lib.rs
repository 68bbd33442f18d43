//! What the fuzz targets do: each reader of the vault is given bytes, and what it makes of them has to add up.
//!
//! A target is `check`, which panics if something doesn't, and `mutate`, which makes new inputs from old
//! ones and mends their checksums, mostly: else hardly any would get past them.
//!
//! The corpus, `corpus/TARGET/`, has pieces of real files: `cargo run --package gophership-fuzz --example
//! seed` cuts them from `tests/fixtures/`. To it comes what a longer `cargo xtask fuzz` has found.

pub mod block;
pub mod checksums;
pub mod cursors;
pub mod entries;
pub mod manifest;
pub mod mutation;
pub mod packed;
mod scratch;
pub mod segment;
pub mod tables;

// Not the daemon's library: that has two hundred more crates below it, and a compiler of C among them.
#[path = "../../../gophership/src/jitter.rs"]
mod jitter;
#[path = "../../../gophership/src/uring/mod.rs"]
pub mod uring;
#[path = "../../../gophership/src/vault/mod.rs"]
pub mod vault;

#[doc(hidden)]
pub use libfuzzer_sys;

/// The entry points of a target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        use gophership_fuzz::libfuzzer_sys::{self, fuzz_mutator, fuzz_target, fuzzer_mutate};

        fuzz_target!(|data: &[u8]| gophership_fuzz::$name::check(data));

        fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            gophership_fuzz::$name::mutate(data, size, max_size, seed, fuzzer_mutate)
        });
    };
}

//! See `gophership_fuzz::manifest`.

#![no_main]

gophership_fuzz::target!(manifest);

//! See `gophership_fuzz::tables`.

#![no_main]

gophership_fuzz::target!(tables);

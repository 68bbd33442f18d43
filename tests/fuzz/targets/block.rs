//! See `gophership_fuzz::block`.

#![no_main]

gophership_fuzz::target!(block);

//! See `gophership_fuzz::segment`.

#![no_main]

gophership_fuzz::target!(segment);

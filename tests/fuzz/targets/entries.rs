//! See `gophership_fuzz::entries`.

#![no_main]

gophership_fuzz::target!(entries);

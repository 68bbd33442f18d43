//! See `gophership_fuzz::cursors`.

#![no_main]

gophership_fuzz::target!(cursors);

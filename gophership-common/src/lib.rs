//! Shared by both halves.
#![no_std]

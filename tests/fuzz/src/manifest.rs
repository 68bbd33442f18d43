//! A lane's manifest, by itself and as a chain without its segments.

use std::fs;

use crate::{
    checksums::mend_manifest,
    mutation::{self, Bytewise},
    scratch,
    vault::{
        chain::{self, State},
        fuzzing,
    },
};

/// Reads `data` as a manifest.
pub fn check(data: &[u8]) {
    fuzzing::manifest(data);
    let dir = scratch::empty();
    let lane = dir.path().join("lane-00");
    fs::create_dir(&lane).expect("a directory can be made");
    fs::write(lane.join("manifest"), data).expect("a file can be written");
    let Ok(report) = chain::verify(&lane) else {
        return;
    };
    assert_eq!(report, chain::verify(&lane).expect("verified before"));
    assert_eq!(report.head.is_none(), report.segments.is_empty());
    for segment in &report.segments {
        assert!(matches!(segment.state, State::Missing | State::Removed));
    }
}

/// Makes a new input.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: Bytewise,
) -> usize {
    mutation::mutate(data, size, max_size, seed, bytewise, mend_manifest)
}

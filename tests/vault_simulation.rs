//! The vault's real lanes, recovery and readers on a simulated disk, against a model.
//!
//! Every story is told by a seed. `GOPHERSHIP_SIMULATION_SEED` tells one of them again, with the
//! vault's log; `GOPHERSHIP_SIMULATION_SEEDS` says how many there are of each kind.

#[path = "vault_simulation/mod.rs"]
mod simulation;
#[expect(dead_code, reason = "each test file uses its part")]
mod vault_support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use gophership::vault::Sync;
use simulation::{Profile, disk::Faults, run};

const SEEDS: u64 = 300;

const CRASHES: Profile = Profile {
    faults: Faults {
        write_errors: 0,
        sync_errors: 0,
        no_space: 0,
        read_errors: 0,
        lost_writes: 0,
        misdirected_writes: 0,
        flipped_bits: 0,
    },
    sync: Sync::Always,
    lives: 3,
    crashes: true,
};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Tells the stories of many seeds; the first one that fails is named.
fn tell(kind: &str, profile: Profile) {
    let seeds = match number("GOPHERSHIP_SIMULATION_SEED") {
        Some(seed) => {
            // A story of interest is told with the vault's own log; a second test finds it set up.
            drop(tracing_subscriber::fmt().with_test_writer().try_init());
            seed..seed + 1
        }
        None => 0..number("GOPHERSHIP_SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    let mut acknowledged = 0;
    for seed in seeds {
        let story = catch_unwind(AssertUnwindSafe(|| run(seed, profile)));
        let Ok(promised) = story else {
            panic!("{kind}: tell it again with GOPHERSHIP_SIMULATION_SEED={seed}");
        };
        acknowledged += promised;
    }
    assert!(acknowledged > 0, "nothing was ever acknowledged");
}

#[test]
fn a_clean_end_keeps_everything() {
    let profile = Profile {
        crashes: false,
        ..CRASHES
    };
    tell("clean", profile);
}

#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged() {
    tell("crashes", CRASHES);
}

#[test]
fn failing_and_torn_writes_lose_nothing_acknowledged() {
    for crashes in [false, true] {
        let faults = Faults {
            write_errors: 20,
            sync_errors: 20,
            no_space: 50,
            ..Faults::default()
        };
        let profile = Profile {
            faults,
            crashes,
            ..CRASHES
        };
        tell("write errors", profile);
    }
}

#[test]
fn what_cannot_be_read_for_a_while_is_not_invented() {
    let faults = Faults {
        read_errors: 20,
        ..Faults::default()
    };
    let profile = Profile { faults, ..CRASHES };
    tell("read errors", profile);
}

#[test]
fn a_medium_that_loses_misdirects_and_forgets_is_reported() {
    for crashes in [false, true] {
        let faults = Faults {
            lost_writes: 10,
            misdirected_writes: 10,
            flipped_bits: 300,
            ..Faults::default()
        };
        let profile = Profile {
            faults,
            lives: 1,
            crashes,
            ..CRASHES
        };
        tell("medium", profile);
    }
}

#[test]
fn the_simulation_catches_a_vault_that_does_not_sync() {
    let profile = Profile {
        sync: Sync::Never,
        ..CRASHES
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught =
        (0..SEEDS).any(|seed| catch_unwind(AssertUnwindSafe(|| run(seed, profile))).is_err());
    std::panic::set_hook(hook);
    assert!(caught, "{SEEDS} crashes, and nobody missed anything");
}

//! When files that other programs replace are worth reading again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A change is read once nothing more has changed for this long, …
const SETTLE: Duration = Duration::from_millis(250);
/// … or after this long, whatever changes.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// What couldn't be used is read again after this long: not everything that stands in the way shows in the files.
const RETRY: Duration = Duration::from_mins(1);

/// What tells one state of a file from another, whether it is replaced, or a link on its way, or written in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            modified_ns: (found.mtime(), found.mtime_nsec()),
            changed_ns: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// The state of all files; `None`: one of them isn't there, or out of reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State(Option<Vec<Mark>>);

impl State {
    pub(super) fn of(paths: &[PathBuf]) -> Self {
        let marks = paths.iter().map(|path| Mark::of(path));
        Self(marks.collect::<io::Result<_>>().ok())
    }
}

/// Decides when the files are read.
#[derive(Debug)]
pub(super) struct Changes {
    /// The state that was read last.
    read: State,
    /// It couldn't be used, as was found then.
    unusable_since: Option<Instant>,
    moving: Option<Moving>,
}

/// Files that aren't as they were read.
#[derive(Debug)]
struct Moving {
    state: State,
    still_since: Instant,
    since: Instant,
}

impl Changes {
    /// Since `read`.
    pub(super) fn since(read: State) -> Self {
        Self {
            read,
            unusable_since: None,
            moving: None,
        }
    }

    /// Whether the files should be read, if they are in this state now. Where one is missing there is nothing to read.
    pub(super) fn is_time(&mut self, state: &State, now: Instant) -> bool {
        if *state == self.read || state.0.is_none() {
            self.moving = None;
            let retry = |since| now.saturating_duration_since(since) >= RETRY;
            return state.0.is_some() && self.unusable_since.is_some_and(retry);
        }
        let first = || Moving {
            state: state.clone(),
            still_since: now,
            since: now,
        };
        let moving = self.moving.get_or_insert_with(first);
        if moving.state != *state {
            (moving.state, moving.still_since) = (state.clone(), now);
        }
        now.saturating_duration_since(moving.still_since) >= SETTLE
            || now.saturating_duration_since(moving.since) >= SETTLE_MAX
    }

    /// They were read, in this state.
    pub(super) fn were_read(&mut self, state: State, is_usable: bool, now: Instant) {
        *self = Self {
            read: state,
            unusable_since: (!is_usable).then_some(now),
            moving: None,
        };
    }

    /// How long to wait before the next look.
    pub(super) const fn pause(&self) -> Duration {
        match self.moving {
            Some(_) => SETTLE,
            None => LOOK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(inode: u64) -> State {
        State(Some(vec![Mark {
            device: 1,
            inode,
            bytes: 1,
            modified_ns: (1, 0),
            changed_ns: (1, 0),
        }]))
    }

    #[test]
    fn a_change_is_read_once_it_stands_still() {
        let start = Instant::now();
        let mut changes = Changes::since(state(1));
        assert!(!changes.is_time(&state(1), start + LOOK));
        assert_eq!(changes.pause(), LOOK);
        assert!(!changes.is_time(&state(2), start + LOOK));
        assert_eq!(changes.pause(), SETTLE, "looked at more often");
        assert!(
            !changes.is_time(&state(3), start + LOOK + SETTLE),
            "moves on"
        );
        assert!(changes.is_time(&state(3), start + LOOK + SETTLE * 2));
        changes.were_read(state(3), true, start + LOOK + SETTLE * 2);
        assert!(!changes.is_time(&state(3), start + RETRY * 10), "read once");
        assert_eq!(changes.pause(), LOOK);
    }

    #[test]
    fn what_never_stands_still_is_read_all_the_same() {
        let start = Instant::now();
        let mut changes = Changes::since(state(1));
        let looks = (2_u64..).take(100);
        let read = looks
            .zip(0_u32..)
            .find(|&(inode, look)| changes.is_time(&state(inode), start + SETTLE / 2 * look));
        let (_, look) = read.expect("read");
        assert_eq!(SETTLE / 2 * look, SETTLE_MAX);
    }

    #[test]
    fn a_file_that_is_missing_is_no_change_and_one_that_comes_back_changed_is() {
        let start = Instant::now();
        let mut changes = Changes::since(state(1));
        for later in [LOOK, RETRY, RETRY * 2] {
            assert!(!changes.is_time(&State(None), start + later));
        }
        assert!(!changes.is_time(&state(1), start + RETRY * 3));
        assert!(!changes.is_time(&state(2), start + RETRY * 3));
        assert!(changes.is_time(&state(2), start + RETRY * 3 + SETTLE));
    }

    #[test]
    fn what_cannot_be_used_is_tried_again_after_a_change_and_after_a_while() {
        let start = Instant::now();
        let mut changes = Changes::since(state(1));
        changes.were_read(state(2), false, start);
        assert!(!changes.is_time(&state(2), start + RETRY / 2));
        assert!(!changes.is_time(&state(3), start + RETRY / 2));
        assert!(changes.is_time(&state(3), start + RETRY / 2 + SETTLE));
        assert!(changes.is_time(&state(2), start + RETRY));
        assert!(
            !changes.is_time(&State(None), start + RETRY),
            "nothing there"
        );
    }

    #[test]
    fn files_replaced_by_renaming_by_turning_a_link_or_in_place_are_in_another_state() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for version in ["1", "2"] {
            fs::create_dir(at(version)).expect("a directory");
            fs::write(at(version).join("cert"), version).expect("a file");
        }
        std::os::unix::fs::symlink("1", at("current")).expect("a link");
        let paths = [at("current/cert")];
        let mut last = State::of(&paths);
        assert_eq!(last, State::of(&paths));
        let mut is_new = |what: &str| {
            let state = State::of(&paths);
            assert!(state.0.is_some() && state != last, "{what}: {state:?}");
            last = state;
        };
        std::os::unix::fs::symlink("2", at("next")).expect("a link");
        fs::rename(at("next"), at("current")).expect("turned");
        is_new("another link");
        fs::write(at("2/new"), "3").expect("a file");
        fs::rename(at("2/new"), at("2/cert")).expect("renamed");
        is_new("another file");
        fs::write(at("2/cert"), "longer").expect("written over");
        is_new("other bytes");
        fs::remove_file(at("2/cert")).expect("removed");
        assert_eq!(State::of(&paths), State(None));
    }
}

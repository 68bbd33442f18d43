//! What keeps a lane's segments from being made: told when it begins, changes and ends, and every minute.

use std::time::{Duration, Instant};

use crate::vault::error::Error;

/// What lasts is told again after this long.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// One lane's.
#[derive(Debug, Default)]
pub(super) struct Trouble(Option<Present>);

#[derive(Debug)]
struct Present {
    kind: String,
    since: Instant,
    told: Instant,
}

impl Trouble {
    /// An attempt failed at `now`. How long attempts have failed in this way, if that is to be told.
    pub(super) fn failed(&mut self, error: &Error, now: Instant) -> Option<Duration> {
        let kind = kind_of(error);
        match &mut self.0 {
            Some(present) if present.kind == kind => {
                let is_due = now.saturating_duration_since(present.told) >= TELL_EVERY;
                is_due.then(|| {
                    present.told = now;
                    now.saturating_duration_since(present.since)
                })
            }
            changed => {
                *changed = Some(Present {
                    kind,
                    since: now,
                    told: now,
                });
                Some(Duration::ZERO)
            }
        }
    }

    /// An attempt succeeded at `now`. How long they had failed before, if they had.
    pub(super) fn ended(&mut self, now: Instant) -> Option<Duration> {
        let present = self.0.take()?;
        Some(now.saturating_duration_since(present.since))
    }
}

/// The error without the file's name, which is another one with every attempt.
fn kind_of(error: &Error) -> String {
    match error {
        Error::Io { action, source, .. } => format!("{action}: {source}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::vault::error::io_error;

    #[test]
    fn it_is_told_when_it_begins_changes_and_ends_and_once_a_minute() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let full = |number: u64| {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            io_error("filling", format!("/vault/{number}.gsv.new"))(source)
        };
        assert_eq!(trouble.ended(at(0)), None);
        let mut told = Vec::new();
        for second in 0..150 {
            let lasted = trouble.failed(&full(second), at(second));
            told.extend(lasted.map(|lasted| (second, lasted.as_secs())));
        }
        assert_eq!(told, [(0, 0), (60, 60), (120, 120)]);
        let other = io_error("opening", "/vault")(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(trouble.failed(&other, at(150)), Some(Duration::ZERO));
        assert_eq!(trouble.ended(at(153)), Some(Duration::from_secs(3)));
        assert_eq!(trouble.ended(at(154)), None);
        assert_eq!(trouble.failed(&other, at(155)), Some(Duration::ZERO));
    }
}

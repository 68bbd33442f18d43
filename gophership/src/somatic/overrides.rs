//! The operator's override as it survives a restart: one small file in the vault's directory.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gophership_common::Zone;
use serde::{Deserialize, Serialize};

use crate::pressure::OverrideUntil;

const FILE: &str = "override.json";

/// Why the override can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read, written or removed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{}: not an override: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
}

/// A zone that an operator has set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// `green`, `yellow` or `red`.
    #[serde(with = "zone_name")]
    pub zone: Zone,
    /// End of it, in milliseconds since the Unix epoch; `None` is forever.
    pub until_unix_ms: Option<u64>,
    /// Who set it.
    pub by: String,
    /// Why, in the operator's words.
    pub reason: String,
}

impl Override {
    /// An override from now on.
    #[must_use]
    pub fn starting_now(
        zone: Zone,
        duration: Option<Duration>,
        by: String,
        reason: String,
    ) -> Self {
        let until = duration.map(|duration| unix_ms().saturating_add(millis(duration)));
        Self {
            zone,
            until_unix_ms: until,
            by,
            reason,
        }
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.until_unix_ms.is_some_and(|until| until <= unix_ms())
    }

    /// The same on the kernel's monotonic clock.
    #[must_use]
    pub fn on_monotonic_clock(&self, monotonic_now_ns: u64) -> OverrideUntil {
        let until_ns = self.until_unix_ms.map(|until| {
            let left_ms = until.saturating_sub(unix_ms());
            monotonic_now_ns.saturating_add(left_ms.saturating_mul(1_000_000))
        });
        OverrideUntil {
            zone: self.zone,
            until_ns,
        }
    }

    /// Reads the override kept in `dir`; `None` if there is none or its time is over.
    ///
    /// # Errors
    /// If the file can't be read or isn't one.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, source }),
        };
        let kept: Self =
            serde_json::from_slice(&text).map_err(|source| Error::Content { path, source })?;
        Ok(Some(kept).filter(|kept| !kept.is_expired()))
    }

    /// Keeps the override in `dir`, durably.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn store(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(FILE);
        let new = dir.join("override.json.new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })
    }

    /// Forgets the override kept in `dir`.
    ///
    /// # Errors
    /// If the file can't be removed.
    pub fn forget(dir: &Path) -> Result<(), Error> {
        let path = dir.join(FILE);
        match fs::remove_file(&path).and_then(|()| File::open(dir)?.sync_all()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { path, source })
            }
            _ => Ok(()),
        }
    }
}

fn unix_ms() -> u64 {
    millis(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

mod zone_name {
    use gophership_common::Zone;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(zone: &Zone, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(zone.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Zone, D::Error> {
        let name = String::deserialize(from)?;
        [Zone::Green, Zone::Yellow, Zone::Red]
            .into_iter()
            .find(|zone| zone.as_str() == name)
            .ok_or_else(|| D::Error::custom(format!("no zone {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forever() -> Override {
        Override::starting_now(Zone::Red, None, "uid 0".to_owned(), "drill".to_owned())
    }

    #[test]
    fn an_override_survives_and_is_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Override::load(dir.path()).expect("nothing there"), None);
        forever().store(dir.path()).expect("stored");
        assert_eq!(
            Override::load(dir.path()).expect("readable"),
            Some(forever())
        );
        Override::forget(dir.path()).expect("removed");
        Override::forget(dir.path()).expect("gone already");
        assert_eq!(Override::load(dir.path()).expect("nothing there"), None);
    }

    #[test]
    fn an_expired_override_is_not_loaded() {
        let dir = tempfile::tempdir().expect("a directory");
        let expired = Override {
            until_unix_ms: Some(1),
            ..forever()
        };
        expired.store(dir.path()).expect("stored");
        assert_eq!(Override::load(dir.path()).expect("readable"), None);
    }

    #[test]
    fn the_end_is_carried_to_the_monotonic_clock() {
        let hour = Override {
            until_unix_ms: Some(unix_ms() + 3_600_000),
            ..forever()
        };
        let until = hour.on_monotonic_clock(1_000).until_ns.expect("it ends");
        assert!(
            (3_500_000_000_000..=3_600_000_001_000).contains(&until),
            "{until}"
        );
        assert_eq!(forever().on_monotonic_clock(1_000).until_ns, None);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(FILE), b"{}").expect("written");
        let error = Override::load(dir.path()).expect_err("not an override");
        assert!(error.to_string().contains(FILE), "{error}");
    }
}

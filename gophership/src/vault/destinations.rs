//! Which bit of an entry's mask means which destination, for the vault's whole life.
//!
//! ```text
//! gophership-vault-destinations 1 <CRC32 of the rest, 8 hex digits>
//! <name of bit 0>
//! <name of bit 1>
//! …
//! ```
//!
//! A bit is assigned once and never reused: a destination that is taken out of the configuration and
//! comes back finds what is still owed to it.

use std::{io, path::Path};

use super::{
    directory::replace_file,
    entry::DestMask,
    error::{Error, io_error},
    platform::Platform,
};

const FILE: &str = "destinations";
const MAGIC: &str = "gophership-vault-destinations 1 ";
/// Most bytes of the table that are read; names are far shorter.
const BYTES_MAX: u64 = 1 << 20;
/// Bits of a mask.
const NAMES_MAX: usize = DestMask::BITS as usize;

/// Names by bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destinations {
    names: Vec<String>,
    configured: DestMask,
}

impl Destinations {
    /// Reads the table of `dir`, adds the names it doesn't have, and makes that durable.
    /// `has_segments` says whether there are entries whose bits need the table.
    ///
    /// # Errors
    /// The table is damaged, missing though needed, full, or can't be written.
    pub(super) fn open(
        platform: &dyn Platform,
        dir: &Path,
        configured: &[String],
        has_segments: bool,
    ) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let mut names = match platform.read(&path, BYTES_MAX) {
            Ok(bytes) => decode(&bytes).map_err(|reason| Error::DestinationTable {
                path: path.clone(),
                reason,
            })?,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound && !has_segments => {
                Vec::new()
            }
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                return Err(Error::DestinationTable {
                    path,
                    reason: "missing",
                });
            }
            Err(source) => return Err(io_error("reading", path)(source)),
        };
        let known = names.len();
        let mut mask = 0;
        for name in configured {
            if name.is_empty() || name.contains(['\n', '\r']) {
                return Err(Error::DestinationName(name.clone()));
            }
            let bit = names
                .iter()
                .position(|known| known == name)
                .unwrap_or_else(|| {
                    names.push(name.clone());
                    names.len() - 1
                });
            if bit < NAMES_MAX {
                mask |= 1 << bit;
            }
        }
        if names.len() > NAMES_MAX {
            return Err(Error::TooManyDestinations {
                path,
                names: names.len(),
                max: NAMES_MAX,
            });
        }
        if names.len() > known || !platform.exists(&path) {
            replace_file(platform, dir, FILE, encode(&names).as_bytes())?;
        }
        Ok(Self {
            names,
            configured: mask,
        })
    }

    /// Reads the names of `dir` by bit; none if there is no table yet.
    ///
    /// # Errors
    /// The table is damaged or can't be read.
    pub(super) fn read_names(platform: &dyn Platform, dir: &Path) -> Result<Vec<String>, Error> {
        let path = dir.join(FILE);
        match platform.read(&path, BYTES_MAX) {
            Ok(bytes) => decode(&bytes).map_err(|reason| Error::DestinationTable { path, reason }),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(io_error("reading", path)(source)),
        }
    }

    /// Names ever known.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Name of each bit, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Bit of a configured destination.
    #[must_use]
    pub(super) fn mask_of(&self, name: &str) -> Option<DestMask> {
        let bit = self.names.iter().position(|known| known == name)?;
        Some(1 << bit).filter(|mask| mask & self.configured != 0)
    }

    /// Bits of the destinations in the configuration.
    #[must_use]
    pub(super) fn configured(&self) -> DestMask {
        self.configured
    }
}

fn encode(names: &[String]) -> String {
    let body: String = names
        .iter()
        .flat_map(|name| [name.as_str(), "\n"])
        .collect();
    format!("{MAGIC}{:08x}\n{body}", crc32fast::hash(body.as_bytes()))
}

fn decode(bytes: &[u8]) -> Result<Vec<String>, &'static str> {
    let text = str::from_utf8(bytes).map_err(|_| "not text")?;
    let (head, body) = text.split_once('\n').ok_or("no first line")?;
    let crc = head
        .strip_prefix(MAGIC)
        .ok_or("not a table of destinations of version 1")?;
    if u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(body.as_bytes())) {
        return Err("checksum doesn't match");
    }
    let names: Vec<String> = body.split_terminator('\n').map(str::to_owned).collect();
    if names.len() > NAMES_MAX {
        Err("too many names")
    } else {
        Ok(names)
    }
}

#[cfg(fuzzing)]
#[path = "fuzzing/destinations.rs"]
pub(super) mod fuzzing;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::vault::platform::{Os, Rung};

    const PLATFORM: Os = Os::on(Rung::Buffered);

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn bits_survive_removal_and_return_of_a_destination() {
        let dir = tempfile::tempdir().unwrap();
        Destinations::open(&PLATFORM, dir.path(), &names(&["a", "b"]), false).unwrap();
        let without_a =
            Destinations::open(&PLATFORM, dir.path(), &names(&["c", "b"]), true).unwrap();
        assert_eq!(without_a.mask_of("a"), None);
        assert_eq!(
            (without_a.mask_of("b"), without_a.mask_of("c")),
            (Some(2), Some(4))
        );
        assert_eq!(without_a.configured(), 6);
        let back = Destinations::open(&PLATFORM, dir.path(), &names(&["a"]), true).unwrap();
        assert_eq!(back.mask_of("a"), Some(1));
    }

    #[test]
    fn a_damaged_or_missing_table_is_refused_when_entries_need_it() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Destinations::open(&PLATFORM, dir.path(), &names(&["a"]), true);
        assert!(matches!(missing, Err(Error::DestinationTable { .. })));
        Destinations::open(&PLATFORM, dir.path(), &names(&["a"]), false).unwrap();
        let table = dir.path().join(FILE);
        let changed = fs::read_to_string(&table).unwrap().replace("a\n", "z\n");
        fs::write(&table, changed).unwrap();
        let damaged = Destinations::open(&PLATFORM, dir.path(), &names(&["a"]), true);
        assert!(matches!(damaged, Err(Error::DestinationTable { .. })));
    }
}

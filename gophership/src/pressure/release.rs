//! The running kernel's version: which interfaces it has.

use std::{fmt, fs};

/// The first two numbers of a kernel's version; they order as versions do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// The first.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl Release {
    /// Of the running kernel; `None` if it can't be told.
    #[must_use]
    pub fn running() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
    }

    /// From text such as `6.1.0-28-amd64`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood_and_ordered() {
        let parse = |text| Release::parse(text).map(|release| (release.major, release.minor));
        assert_eq!(parse("6.1.0-28-amd64\n"), Some((6, 1)));
        assert_eq!(parse("5.19-rc1+"), Some((5, 19)));
        assert_eq!(parse("linux"), None);
        assert!(Release::parse("5.4.0") < Release::parse("5.12"));
        assert!(Release::parse("6.1") > Release::parse("5.19"));
        assert!(Release::running().is_some());
    }
}

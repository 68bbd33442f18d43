//! What can be wrong with a configuration, said so that it can be put right.

use std::fmt;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the file.
    File {
        /// Its name.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// In this environment variable.
    Variable(String),
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Kind {
    /// The file can't be read.
    #[error("can't be read: {0}")]
    Unreadable(String),
    /// It isn't YAML, or uses YAML that a configuration doesn't need.
    #[error("not a configuration: {0}")]
    Syntax(String),
    /// There is no such key.
    #[error("unknown key; did you mean {nearest}?")]
    UnknownKey {
        /// The nearest key there is.
        nearest: String,
    },
    /// There is no such environment variable.
    #[error("unknown variable; did you mean {nearest}?")]
    UnknownVariable {
        /// The nearest variable there is.
        nearest: String,
    },
    /// The key stands twice in one mapping.
    #[error("written twice, first on line {first}")]
    Duplicate {
        /// Line of the first.
        first: usize,
    },
    /// The value can't be read.
    #[error("expected {expected}")]
    BadValue {
        /// What can.
        expected: String,
    },
    /// The key must be set.
    #[error("must be set: {doc}")]
    Missing {
        /// What it means.
        doc: String,
    },
    /// The value is well written, but doesn't go with something else; names all keys itself.
    #[error("{0}")]
    Conflict(String),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it is written.
    pub origin: Origin,
    /// Full path of the key, such as `export.destinations[0].name`; empty: the whole file.
    pub key: String,
    /// The value as written; none if there is none, or if it may be a secret.
    pub value: Option<String>,
    /// What is wrong.
    pub kind: Kind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() && !matches!(self.kind, Kind::Conflict(_)) {
            write!(f, "{}", self.key)?;
            if let Some(value) = &self.value {
                write!(f, ": {value:?}")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}", self.kind)
    }
}

/// Everything that is wrong, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    problems: Vec<Problem>,
}

impl Errors {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.origin {
            Origin::File { line, .. } => (0, *line),
            Origin::Variable(_) => (1, 0),
            Origin::Default => (2, 0),
        });
        Self { problems }
    }

    /// Each problem.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Errors {
    /// One problem a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

//! `cargo xtask tidy`: the rules of the code that compilers and linters don't know. Also a test.

mod layers;
mod rules;
mod source;

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use self::source::Source;

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Relative to the checkout.
    path: String,
    /// From 1; 0 if it is about the whole file.
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// A rule about one file.
type Rule = fn(&Source) -> Vec<Finding>;

const RULES: &[Rule] = &[
    rules::files_are_short,
    rules::unsafe_is_confined,
    rules::modules_are_introduced,
    rules::text_is_clean,
    layers::dependencies_point_down,
];

/// Fails if any rule is broken anywhere in the checkout, and says where.
pub(crate) fn check(root: &Path) -> Result<()> {
    let sources = source::below(root)?;
    let mut findings: Vec<Finding> = sources
        .iter()
        .flat_map(|source| RULES.iter().flat_map(move |rule| rule(source)))
        .collect();
    let manifest = fs::read_to_string(root.join("gophership/Cargo.toml"))
        .context("cannot read gophership/Cargo.toml")?;
    findings.extend(rules::integration_tests_are_listed(&manifest, &sources));
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!(
        "{} broken rule(s); they are explained in CONTRIBUTING.md",
        findings.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_is_tidy() {
        check(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap();
    }

    #[test]
    fn a_finding_is_printed_as_editors_like_it() {
        assert_eq!(Finding::new("a.rs", 3, "bad").to_string(), "a.rs:3: bad");
        assert_eq!(Finding::new("a.rs", 0, "bad").to_string(), "a.rs: bad");
    }
}

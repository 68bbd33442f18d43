//! The files that the rules look at, with code told from comments, strings and tests.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Directories that hold nothing of ours.
const SKIPPED: &[&str] = &["target", ".git", "__pycache__"];

/// A text file of the checkout.
pub(super) struct Source {
    /// Relative to the checkout, with `/`.
    pub(super) path: String,
    pub(super) text: String,
}

impl Source {
    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Written by a program, which marks its first line.
    pub(super) fn is_generated(&self) -> bool {
        self.text
            .lines()
            .next()
            .is_some_and(|line| line.contains("@generated"))
    }

    /// A file of tests only.
    pub(super) fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || name == "tests.rs"
            || name.ends_with("_tests.rs")
    }

    /// The lines, numbered from 1, that are not in an inline `#[cfg(test)] mod … { … }`, which
    /// rustfmt begins and ends in the first column.
    pub(super) fn lines_without_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut pending = false;
        let mut inside = false;
        self.text
            .lines()
            .enumerate()
            .filter_map(move |(index, line)| {
                if inside {
                    inside = line != "}";
                    return None;
                }
                if line == "#[cfg(test)]" {
                    pending = true;
                    return None;
                }
                let begins = pending && line.starts_with("mod ") && line.ends_with('{');
                // Between the attribute and the module there may be other attributes only.
                pending = pending && line.starts_with("#[");
                if begins {
                    inside = true;
                    return None;
                }
                Some((index + 1, line))
            })
    }
}

/// A line of Rust without its comment and without the content of its string literals.
pub(super) fn code_of(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' if in_string => {
                rest.next();
            }
            '"' => {
                in_string = !in_string;
                code.push(c);
            }
            _ if in_string => {}
            // '"' is a character, not the beginning of a string.
            '\'' if rest.peek() == Some(&'"') => {
                rest.next();
            }
            '/' if rest.peek() == Some(&'/') => break,
            _ => code.push(c),
        }
    }
    code
}

/// All text files below `root` that are ours.
pub(super) fn below(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    collect(root, "", &mut sources)?;
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn collect(directory: &Path, prefix: &str, sources: &mut Vec<Source>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            collect(&entry.path(), &format!("{prefix}{name}/"), sources)?;
        } else if kind.is_file() && is_text(&name) {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("cannot read {}", entry.path().display()))?;
            sources.push(Source {
                path: format!("{prefix}{name}"),
                text,
            });
        }
    }
    Ok(())
}

fn is_text(name: &str) -> bool {
    const EXTENSIONS: &[&str] = &[
        "rs", "toml", "proto", "py", "sh", "md", "yaml", "yml", "json", "service",
    ];
    match name.rsplit_once('.') {
        Some((_, extension)) => EXTENSIONS.contains(&extension),
        None => matches!(name, "run" | "cc" | "Dockerfile"),
    }
}

#[cfg(test)]
pub(super) fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inline_test_module_is_left_out_and_what_follows_is_not() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        let source = source("a.rs", text);
        let lines: Vec<_> = source.lines_without_tests().collect();
        assert_eq!(lines, [(1, "fn a() {}"), (6, "fn c() {}")]);
    }

    #[test]
    fn a_test_module_in_its_own_file_hides_nothing() {
        let source = source("a.rs", "#[cfg(test)]\nmod tests;\nfn a() {}\n");
        assert_eq!(source.lines_without_tests().last(), Some((3, "fn a() {}")));
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        assert_eq!(
            code_of("let a = \"x // \\\" y\"; // unsafe"),
            "let a = \"\"; "
        );
        assert_eq!(code_of("if c == '\"' { b }"), "if c == ' { b }");
        assert_eq!(code_of("/// unsafe"), "");
    }

    #[test]
    fn files_of_tests_are_known_by_their_names() {
        assert!(source("tests/trial.rs", "").is_test());
        assert!(source("gophership/src/vault/tests.rs", "").is_test());
        assert!(source("gophership-common/src/judge_tests.rs", "").is_test());
        assert!(!source("gophership/src/vault/lane.rs", "").is_test());
    }
}

//! Rules about single files, and the list of integration tests.

use super::{
    Finding,
    source::{Source, code_of},
};

/// Most lines of a Rust file, without its tests.
const MAX_LINES: usize = 600;

/// A file is one idea.
pub(super) fn files_are_short(source: &Source) -> Vec<Finding> {
    if !source.is_rust() || source.is_generated() || source.is_test() {
        return Vec::new();
    }
    let lines = source.lines_without_tests().count();
    if lines <= MAX_LINES {
        return Vec::new();
    }
    let what = format!("{lines} lines without tests; split it (at most {MAX_LINES})");
    vec![Finding::new(&source.path, 0, what)]
}

/// Where `unsafe` may be written, by the beginning of the path.
const UNSAFE_ALLOWED: &[&str] = &[
    "gophership/src/uring/",
    "gophership/src/pressure/kernel",
    "gophership-ebpf/",
    // An empty `asm!` for the kernel half, which keeps arithmetic free of branches.
    "gophership-common/src/branchless.rs",
    // Allocators that count, and system calls that no safe wrapper has.
    "tests/",
    "xtask/bench/src/bin/counted.rs",
];

/// Where only `unsafe impl` may be written: the shared types promise aya to be plain data.
const UNSAFE_IMPL_ALLOWED: &str = "gophership-common/src/";

/// Memory safety rests on a few files that can be read in one sitting.
pub(super) fn unsafe_is_confined(source: &Source) -> Vec<Finding> {
    if !source.is_rust()
        || UNSAFE_ALLOWED
            .iter()
            .any(|allowed| source.path.starts_with(allowed))
    {
        return Vec::new();
    }
    let impl_allowed = source.path.starts_with(UNSAFE_IMPL_ALLOWED);
    let mut findings = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let code = code_of(line);
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let is_unsafe = words.any(|word| word == "unsafe");
        let is_impl = code.trim_start().starts_with("unsafe impl ");
        if is_unsafe && !(impl_allowed && is_impl) {
            findings.push(Finding::new(
                &source.path,
                index + 1,
                "`unsafe` is not allowed here",
            ));
        }
    }
    findings
}

/// Whoever opens a module learns first what it is for.
pub(super) fn modules_are_introduced(source: &Source) -> Vec<Finding> {
    let is_module = source.path.ends_with("/mod.rs") || source.path.ends_with("/lib.rs");
    if !is_module || source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![Finding::new(
        &source.path,
        1,
        "a module begins with `//! ` and its purpose",
    )]
}

/// What may not be in any line, and why. Written apart, so that this file passes.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "finish it, or leave it out"),
    (concat!("FIX", "ME"), "finish it, or leave it out"),
    (concat!("dbg", "!("), "left over from debugging"),
];

/// Directories that exist on one machine only.
const FOREIGN_DIRECTORIES: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
];

/// Nothing unfinished, nothing of one machine, no invisible differences.
pub(super) fn text_is_clean(source: &Source) -> Vec<Finding> {
    if source.is_generated() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let mut find = |what: String| findings.push(Finding::new(&source.path, index + 1, what));
        if line.ends_with([' ', '\t']) {
            find("white space at the end of the line".to_owned());
        }
        for (word, why) in FORBIDDEN {
            if line.contains(word) {
                find(format!("`{word}`: {why}"));
            }
        }
        for directory in FOREIGN_DIRECTORIES {
            if contains_absolute(line, directory) {
                find(format!("`{directory}` exists on one machine only"));
            }
        }
    }
    findings
}

/// Whether `directory` stands in `line` as the beginning of a path, not inside of one.
fn contains_absolute(line: &str, directory: &str) -> bool {
    line.match_indices(directory).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-~}/".contains(c))
    })
}

/// A virtual workspace finds no tests in `tests/` by itself: one that isn't listed never runs.
pub(super) fn integration_tests_are_listed(manifest: &str, sources: &[Source]) -> Vec<Finding> {
    let listed: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("path = \"../")?.strip_suffix('"'))
        .filter(|path| path.starts_with("tests/"))
        .collect();
    let existing: Vec<&str> = sources
        .iter()
        .map(|source| source.path.as_str())
        .filter(|path| path.starts_with("tests/") && path.ends_with(".rs"))
        .filter(|path| path.matches('/').count() == 1)
        .collect();
    let unlisted = existing
        .iter()
        .filter(|path| !listed.contains(path))
        .map(|path| {
            Finding::new(
                path,
                0,
                "has no [[test]] in gophership/Cargo.toml, so it never runs",
            )
        });
    let missing = listed
        .iter()
        .filter(|path| !existing.contains(path))
        .map(|path| {
            Finding::new(
                "gophership/Cargo.toml",
                0,
                format!("lists {path}, which doesn't exist"),
            )
        });
    unlisted.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::source::source, *};

    #[test]
    fn a_long_file_is_found_unless_its_length_is_tests() {
        let long = "fn a() {}\n".repeat(MAX_LINES + 1);
        assert_eq!(files_are_short(&source("a.rs", &long)).len(), 1);
        let fitting = "fn a() {}\n".repeat(MAX_LINES);
        assert!(files_are_short(&source("a.rs", &fitting)).is_empty());
        let tests = format!("#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(files_are_short(&source("a.rs", &tests)).is_empty());
        assert!(files_are_short(&source("tests/a.rs", &long)).is_empty());
        let generated = format!("// @generated\n{long}");
        assert!(files_are_short(&source("a.rs", &generated)).is_empty());
    }

    #[test]
    fn unsafe_code_is_found_outside_of_its_places() {
        let block = "fn a() {\n    unsafe { b() }\n}\n";
        let findings = unsafe_is_confined(&source("gophership/src/vault/lane.rs", block));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 2);
        for path in [
            "gophership/src/uring/ring.rs",
            "gophership/src/pressure/kernel/mod.rs",
            "gophership/src/pressure/kernel.rs",
            "gophership-ebpf/src/main.rs",
            "tests/pivot.rs",
        ] {
            assert!(
                unsafe_is_confined(&source(path, block)).is_empty(),
                "{path}"
            );
        }
    }

    #[test]
    fn the_word_unsafe_is_no_unsafe_code() {
        let text = "// unsafe\n#![deny(unsafe_op_in_unsafe_fn)]\nlet a = \"unsafe\";\n";
        assert!(unsafe_is_confined(&source("gophership/src/lib.rs", text)).is_empty());
    }

    #[test]
    fn shared_types_may_promise_but_not_do_unsafe_things() {
        let path = "gophership-common/src/pages.rs";
        assert!(unsafe_is_confined(&source(path, "unsafe impl Pod for A {}\n")).is_empty());
        assert_eq!(
            unsafe_is_confined(&source(path, "unsafe fn a() {}\n")).len(),
            1
        );
    }

    #[test]
    fn a_module_without_introduction_is_found() {
        let path = "gophership/src/vault/mod.rs";
        assert_eq!(
            modules_are_introduced(&source(path, "use std::fs;\n")).len(),
            1
        );
        assert!(modules_are_introduced(&source(path, "//! The vault.\n")).is_empty());
        assert!(modules_are_introduced(&source("gophership/src/vault/lane.rs", "")).is_empty());
    }

    #[test]
    fn unfinished_and_foreign_text_is_found() {
        for (word, _) in FORBIDDEN {
            assert_eq!(
                text_is_clean(&source("a.md", &format!("a\n{word} b)\n"))).len(),
                1,
                "{word}"
            );
        }
        for directory in FOREIGN_DIRECTORIES {
            let text = format!("cd {directory}x\n");
            assert_eq!(
                text_is_clean(&source("a.sh", &text)).len(),
                1,
                "{directory}"
            );
            let inside = format!("cd a{directory}x\n");
            assert!(
                text_is_clean(&source("a.sh", &inside)).is_empty(),
                "{inside}"
            );
        }
        assert_eq!(text_is_clean(&source("a.toml", "a = 1 \n")).len(), 1);
        assert!(text_is_clean(&source("a.toml", "a = 1\n")).is_empty());
    }

    #[test]
    fn an_integration_test_must_be_listed_and_a_listed_one_exist() {
        let manifest = "[[test]]\nname = \"a\"\npath = \"../tests/a.rs\"\n";
        let file = |path| source(path, "");
        let sources = [file("tests/a.rs"), file("tests/common/mod.rs")];
        assert!(integration_tests_are_listed(manifest, &sources).is_empty());
        let sources = [file("tests/a.rs"), file("tests/b.rs")];
        let findings = integration_tests_are_listed(manifest, &sources);
        assert_eq!(
            (findings.len(), findings[0].path.as_str()),
            (1, "tests/b.rs")
        );
        let findings = integration_tests_are_listed(manifest, &[]);
        assert_eq!(
            (findings.len(), findings[0].path.as_str()),
            (1, "gophership/Cargo.toml")
        );
    }
}

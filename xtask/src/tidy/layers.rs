//! Which module of the daemon may use which: dependencies point down, towards the table's end.

use super::{
    Finding,
    source::{Source, code_of},
};

/// Each module and what it may use. A module not listed here may use nothing, and `config` and
/// `app` may be used by nobody but each other, `doctor` and the programs.
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "doctor",
        &[
            "app",
            "config",
            "control",
            "ingest",
            "export",
            "vault",
            "uring",
            "pressure",
            "privileges",
            "render",
        ],
    ),
    (
        "app",
        &[
            "config",
            "control",
            "ingest",
            "replay",
            "somatic",
            "pipeline",
            "export",
            "vault",
            "uring",
            "pressure",
            "privileges",
            "otel",
            "telemetry",
            "local_socket",
        ],
    ),
    (
        "config",
        &[
            "app",
            "control",
            "ingest",
            "replay",
            "somatic",
            "pipeline",
            "export",
            "vault",
            "pressure",
            "privileges",
            "telemetry",
        ],
    ),
    (
        "control",
        &[
            "ingest",
            "replay",
            "somatic",
            "pipeline",
            "export",
            "vault",
            "pressure",
            "otel",
            "telemetry",
            "local_socket",
        ],
    ),
    (
        "ingest",
        &[
            "decompress",
            "jitter",
            "local_socket",
            "somatic",
            "pipeline",
            "export",
            "vault",
            "pressure",
            "otel",
            "telemetry",
        ],
    ),
    (
        "somatic",
        &[
            "pipeline",
            "export",
            "vault",
            "pressure",
            "otel",
            "telemetry",
        ],
    ),
    (
        "replay",
        &[
            "decompress",
            "pipeline",
            "export",
            "vault",
            "pressure",
            "otel",
            "telemetry",
        ],
    ),
    ("decompress", &["vault"]),
    ("pipeline", &["export", "otel", "pressure", "telemetry"]),
    ("export", &["otel", "telemetry"]),
    ("vault", &["jitter", "uring", "telemetry"]),
    ("pressure", &["telemetry"]),
    ("jitter", &[]),
    ("privileges", &[]),
    ("render", &[]),
    ("uring", &[]),
    ("local_socket", &[]),
    ("otel", &[]),
    ("telemetry", &[]),
];

/// No module of the daemon uses one above it.
pub(super) fn dependencies_point_down(source: &Source) -> Vec<Finding> {
    let Some(module) = module_of(&source.path).filter(|_| !source.is_test()) else {
        return Vec::new();
    };
    let allowed = ALLOWED
        .iter()
        .find(|(name, _)| *name == module)
        .map_or(&[][..], |(_, uses)| uses);
    used_modules(source)
        .into_iter()
        .filter(|(_, used)| used != module && !allowed.contains(&used.as_str()))
        .map(|(line, used)| {
            let what = format!("`{module}` may not use `{used}` (see xtask/src/tidy/layers.rs)");
            Finding::new(&source.path, line, what)
        })
        .collect()
}

/// The top-level module of the daemon's library that a file belongs to.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("gophership/src/")?.strip_suffix(".rs")?;
    let module = inside.split('/').next()?;
    (!matches!(module, "lib" | "bin")).then_some(module)
}

/// Every module named after `crate::`, alone or in braces, with the line of its `crate::`.
fn used_modules(source: &Source) -> Vec<(usize, String)> {
    let mut code = String::new();
    let mut line_starts = Vec::new();
    for (number, line) in source.lines_without_tests() {
        line_starts.push((code.len(), number));
        code += &code_of(line);
        code.push('\n');
    }
    let line_at = |at: usize| {
        let next = line_starts.partition_point(|&(start, _)| start <= at);
        line_starts
            .get(next.saturating_sub(1))
            .map_or(0, |&(_, number)| number)
    };
    let mut used = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let after = &code[at + path.len()..];
        let names = match after.strip_prefix('{') {
            Some(group) => names_in_group(group),
            None => first_word(after).into_iter().collect(),
        };
        used.extend(names.into_iter().map(|name| (line_at(at), name.to_owned())));
    }
    // Types and functions of the crate's root are no modules.
    used.retain(|(_, name)| name.starts_with(|c: char| c.is_ascii_lowercase()));
    used
}

/// The first word of each entry of `a, b::{c, d}, e}`.
fn names_in_group(group: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut entry_begins = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => entry_begins = true,
            _ if entry_begins && is_word(c) => {
                entry_begins = false;
                names.extend(first_word(&group[at..]));
            }
            _ => {}
        }
    }
    names
}

fn first_word(text: &str) -> Option<&str> {
    let word = text.split(|c| !is_word(c)).next()?;
    (!word.is_empty()).then_some(word)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::{super::source::source, *};

    const NONE: [usize; 0] = [];

    fn lines_found(path: &str, text: &str) -> Vec<usize> {
        dependencies_point_down(&source(path, text))
            .iter()
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn a_use_downwards_passes_and_one_upwards_is_found() {
        let path = "gophership/src/ingest/service.rs";
        assert_eq!(lines_found(path, "use crate::somatic::Reflex;\n"), NONE);
        assert_eq!(lines_found(path, "use crate::ingest::Config;\n"), NONE);
        let path = "gophership/src/vault/lane.rs";
        assert_eq!(
            lines_found(path, "use crate::uring::Ring;\nuse crate::somatic::Zone;\n"),
            [2]
        );
    }

    #[test]
    fn nobody_below_uses_config_or_app() {
        let path = "gophership/src/control/service.rs";
        assert_eq!(lines_found(path, "fn a(app: &crate::app::App) {}\n"), [1]);
        assert_eq!(
            lines_found("gophership/src/export/mod.rs", "use crate::config;\n"),
            [1]
        );
        assert_eq!(
            lines_found("gophership/src/bin/gophership.rs", "use crate::app;\n"),
            NONE
        );
        assert_eq!(
            lines_found("gophership/src/app/mod.rs", "use crate::config;\n"),
            NONE
        );
    }

    #[test]
    fn groups_are_looked_into() {
        let text = "use crate::{\n    uring::{Ring, Slot},\n    pipeline::Batch,\n};\n";
        let findings = dependencies_point_down(&source("gophership/src/vault/mod.rs", text));
        assert_eq!(findings.len(), 1);
        assert!(
            findings[0].what.contains("`vault` may not use `pipeline`"),
            "{}",
            findings[0]
        );
    }

    #[test]
    fn tests_comments_and_other_crates_are_free() {
        let path = "gophership/src/vault/mod.rs";
        assert_eq!(
            lines_found(path, "// like crate::app\nuse other_crate::app;\n"),
            NONE
        );
        assert_eq!(
            lines_found(path, "#[cfg(test)]\nmod tests {\n    use crate::app;\n}\n"),
            NONE
        );
        assert_eq!(
            lines_found("gophership/src/vault/tests.rs", "use crate::app;\n"),
            NONE
        );
        assert_eq!(
            lines_found("gophership-common/src/lib.rs", "use crate::app;\n"),
            NONE
        );
    }

    #[test]
    fn the_table_lists_modules_in_layers() {
        for (at, (module, uses)) in ALLOWED.iter().enumerate() {
            for used in *uses {
                let below = ALLOWED.iter().position(|(name, _)| name == used);
                let mutual = matches!((*module, *used), ("config", "app"));
                assert!(
                    mutual || below > Some(at),
                    "{module} uses {used}, which is not below it"
                );
            }
        }
    }
}

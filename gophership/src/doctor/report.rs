//! Verdicts, and how they are shown.

use serde_json::{Value, json};

use crate::render::table::{paint, titled};

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The daemon runs, but not at its best.
    Warning,
    /// The daemon, or what the configuration requires, won't work.
    Failed,
    /// There is nothing to check here.
    NotApplicable,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Ok, Self::Warning, Self::Failed, Self::NotApplicable];

    /// For scripts; a promise.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotApplicable => "not_applicable",
        }
    }

    const fn shown(self) -> (&'static str, &'static str) {
        match self {
            Self::Ok => ("ok", "32"),
            Self::Warning => ("WARNING", "33"),
            Self::Failed => ("FAILED", "31"),
            Self::NotApplicable => ("not applicable", "90"),
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Area and thing, such as `kernel.btf`; a promise.
    pub name: String,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found, with its value.
    pub found: String,
    /// What to do, where something is to be done.
    pub remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found, None)
    }

    pub(super) fn not_applicable(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::NotApplicable, found, None)
    }

    pub(super) fn warning(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Warning, found, Some(remedy.into()))
    }

    pub(super) fn failed(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Failed, found, Some(remedy.into()))
    }

    pub(super) fn new(
        name: impl Into<String>,
        verdict: Verdict,
        found: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        let found: String = found.into();
        Self {
            name: name.into(),
            verdict,
            // One line each: what was found may quote a configuration or a kernel.
            found: found.trim().replace('\n', "; "),
            remedy,
        }
    }
}

/// All checks, in the order of the areas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Checks with that verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        let same = |check: &&Check| check.verdict == verdict;
        self.checks.iter().filter(same).count()
    }

    /// For scripts; the keys are promises.
    #[must_use]
    pub fn value(&self) -> Value {
        let checks = self.checks.iter().map(|check| {
            json!({
                "name": check.name,
                "verdict": check.verdict.as_str(),
                "found": check.found,
                "remedy": check.remedy,
            })
        });
        let counts = Verdict::ALL
            .iter()
            .map(|verdict| (verdict.as_str().to_owned(), self.count(*verdict).into()));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "checks": checks.collect::<Value>(),
            "summary": counts.collect::<serde_json::Map<_, _>>(),
        })
    }

    /// For people: what was found, then what to do, then the sum.
    #[must_use]
    pub fn table(&self, colour: bool) -> String {
        let rows = self.checks.iter().map(|check| {
            let (text, ansi) = check.verdict.shown();
            vec![
                check.name.clone(),
                paint(text, ansi, colour),
                check.found.clone(),
            ]
        });
        let mut out = titled(&["CHECK", "VERDICT", "FOUND"], rows, &[]);
        let remedies = self.checks.iter().filter_map(|check| {
            let (_, ansi) = check.verdict.shown();
            Some(vec![
                paint(&check.name, ansi, colour),
                check.remedy.clone()?,
            ])
        });
        let remedies = titled(&["WHAT TO DO", ""], remedies, &[]);
        if !remedies.is_empty() {
            out.push('\n');
            out.push_str(&remedies);
        }
        out.push_str(&format!(
            "\n{} ok, {} warnings, {} failed, {} not applicable\n",
            self.count(Verdict::Ok),
            self.count(Verdict::Warning),
            self.count(Verdict::Failed),
            self.count(Verdict::NotApplicable),
        ));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            checks: vec![
                Check::ok("a.b", "1"),
                Check::failed("a.c", "two\nlines\n", "do it"),
                Check::not_applicable("a.d", "no"),
            ],
        }
    }

    #[test]
    fn a_script_finds_every_key() {
        let value = report().value();
        assert_eq!(value["checks"][1]["verdict"], "failed");
        assert_eq!(value["checks"][1]["found"], "two; lines");
        assert_eq!(value["checks"][1]["remedy"], "do it");
        assert_eq!(value["checks"][0]["remedy"], Value::Null);
        assert_eq!(
            value["summary"],
            json!({"ok": 1, "warning": 0, "failed": 1, "not_applicable": 1})
        );
    }

    #[test]
    fn the_table_ends_with_remedies_and_a_sum() {
        let table = report().table(false);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[2], "a.c    FAILED          two; lines");
        assert_eq!(lines[5], "WHAT TO DO");
        assert_eq!(lines[6], "a.c         do it");
        assert_eq!(lines[8], "1 ok, 0 warnings, 1 failed, 1 not applicable");
    }
}

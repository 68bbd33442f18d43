//! What a machine's console says about its run.

use std::collections::BTreeMap;

use serde_json::Value;

use super::plan::Report;

/// Which half is to judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// The kernel half.
    Kernel,
    /// The fallback, whose reason mentions this.
    Fallback { because: &'static str },
}

/// A run, as far as its console has been read.
#[derive(Default)]
pub(super) struct Outcome {
    /// What is expected of each step's daemon.
    expected: BTreeMap<String, Judge>,
    /// Steps that are to be done, by name.
    steps: Vec<String>,
    facts: BTreeMap<String, String>,
    ended: Vec<Ended>,
    /// Tests by their outcome's word (`ok`, `FAILED`, `ignored`), of the step that runs.
    tests: BTreeMap<String, Vec<String>>,
    running: Option<String>,
    done: bool,
}

struct Ended {
    step: String,
    failure: Option<String>,
    milliseconds: u64,
    tests: BTreeMap<String, Vec<String>>,
    notes: Vec<String>,
}

impl Outcome {
    /// Nothing read yet.
    pub(super) fn new(steps: Vec<String>, expected: BTreeMap<String, Judge>) -> Self {
        Self {
            steps,
            expected,
            ..Self::default()
        }
    }

    /// Takes in a line of the console; says what is worth telling at once.
    pub(super) fn line(&mut self, line: &str) -> Option<String> {
        let Some(report) = Report::of_line(line) else {
            if let Some((test, word)) = test_result(line) {
                self.tests
                    .entry(word.to_owned())
                    .or_default()
                    .push(test.to_owned());
            }
            return None;
        };
        match report {
            Report::Fact { name, value } => {
                let told = format!("  {name}: {value}");
                self.facts.insert(name, value);
                Some(told)
            }
            Report::Begin { step } => {
                self.tests.clear();
                self.running = Some(step.clone());
                self.ended.push(Ended {
                    step,
                    failure: Some("it has not ended".to_owned()),
                    milliseconds: 0,
                    tests: BTreeMap::new(),
                    notes: Vec::new(),
                });
                None
            }
            Report::Status {
                status,
                verified,
                links,
                warnings,
                ..
            } => {
                let expected = self
                    .running
                    .as_ref()
                    .and_then(|step| self.expected.get(step));
                let wrong = expected.and_then(|judge| judge.differs(&status));
                let ended = self.ended.last_mut()?;
                ended.notes = notes(&status, &verified, links, warnings);
                ended
                    .notes
                    .extend(wrong.map(|wrong| format!("WRONG: {wrong}")));
                None
            }
            Report::End {
                failure,
                milliseconds,
                ..
            } => {
                self.running = None;
                let ended = self.ended.last_mut()?;
                ended.failure = failure.or_else(|| {
                    let wrong = ended.notes.iter().find(|note| note.starts_with("WRONG"));
                    wrong.map(|_| "another judge than expected".to_owned())
                });
                ended.milliseconds = milliseconds;
                ended.tests = std::mem::take(&mut self.tests);
                Some(ended.text())
            }
            Report::Done => {
                self.done = true;
                None
            }
        }
    }

    /// As in `uname -r`.
    pub(super) fn release(&self) -> &str {
        self.facts.get("release").map_or("?", String::as_str)
    }

    /// What went wrong; empty if all is well.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self
            .ended
            .iter()
            .filter_map(|step| Some(format!("{}: {}", step.step, step.failure.as_ref()?)))
            .collect();
        let missing = |step: &&String| self.ended.iter().all(|ended| ended.step != **step);
        failures.extend(
            self.steps
                .iter()
                .filter(missing)
                .map(|step| format!("{step}: not reached")),
        );
        if self.facts.contains_key("tainted") {
            failures.push("the kernel has warned or died: see its messages".to_owned());
        }
        if !self.done && failures.is_empty() {
            failures.push("the machine has ended before its time".to_owned());
        }
        failures
    }
}

impl Ended {
    fn text(&self) -> String {
        let verdict = if self.failure.is_none() {
            "ok"
        } else {
            "FAILED"
        };
        let seconds = u32::try_from(self.milliseconds).unwrap_or(u32::MAX);
        let seconds = f64::from(seconds) / 1000.0;
        let mut text = format!("  {:32} {verdict:6} {seconds:6.1} s", self.step);
        for (word, tests) in &self.tests {
            text += &format!("  {} {word}", tests.len());
        }
        if let Some(failure) = &self.failure {
            text += &format!("\n      {failure}");
        }
        for test in self.tests.get("FAILED").into_iter().flatten() {
            text += &format!("\n      FAILED {test}");
        }
        for note in &self.notes {
            text += &format!("\n      {note}");
        }
        text
    }
}

impl Judge {
    /// What is wrong with this status, if something is.
    fn differs(self, status: &Value) -> Option<String> {
        let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default();
        let (source, reason) = (text("source"), text("source_reason"));
        match self {
            Self::Kernel if source == "kernel" => None,
            Self::Kernel => Some("the kernel half was to judge".to_owned()),
            Self::Fallback { .. } if source == "kernel" => {
                Some("the kernel half was not to judge".to_owned())
            }
            Self::Fallback { because } if reason.contains(because) => None,
            Self::Fallback { because } => Some(format!("the reason was to mention {because:?}")),
        }
    }
}

/// What people want to know of a status.
fn notes(status: &Value, verified: &[u64], links: usize, warnings: Vec<String>) -> Vec<String> {
    let text = |value: &Value, key: &str| {
        let found = value.get(key).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let mut notes = vec![match text(status, "source_reason") {
        reason if reason.is_empty() => format!(
            "{} judges: {} programs loaded, {links} links, {verified:?} instructions verified",
            text(status, "source"),
            verified.len(),
        ),
        reason => format!("{} judges: {reason}", text(status, "source")),
    }];
    let signals = status.get("signals").and_then(Value::as_object);
    for (name, signal) in signals.into_iter().flatten() {
        if signal.get("available").and_then(Value::as_bool) == Some(false) {
            let note = format!("unavailable: {name} {}", text(signal, "reason"));
            notes.push(note.trim_end().to_owned());
        }
    }
    notes.extend(warnings);
    notes
}

/// Whether QEMU's translator, not the kernel, is at fault. When the kernel patches its own code, as it
/// does to attach a probe, a processor may run a breakpoint of before the patch, which nobody expects
/// any more: Red Hat bug 2216496, and "still see int3" on the kernel's list in July 2023.
pub(super) fn translator_has_failed(console: &str) -> bool {
    console.lines().any(|line| line.contains(" int3: 0000 [#"))
}

/// What people want to read of a console: all but the reports.
pub(super) fn prose(console: &str) -> String {
    let lines = console.lines();
    let prose: Vec<&str> = lines
        .filter(|line| Report::of_line(line).is_none())
        .collect();
    prose.join("\n")
}

/// Name and outcome in a line of libtest's.
fn test_result(line: &str) -> Option<(&str, &str)> {
    let (test, rest) = line.trim_end().strip_prefix("test ")?.split_once(" ... ")?;
    let word = rest.split([' ', ',']).next()?;
    // Elsewhere than at the end of its line if the test itself has printed something.
    let word = ["ok", "FAILED", "ignored"]
        .into_iter()
        .find(|known| *known == word)?;
    (!test.contains(' ')).then_some((test, word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome(expected: Judge) -> Outcome {
        Outcome::new(
            vec!["daemon".to_owned(), "tests".to_owned()],
            BTreeMap::from([("daemon".to_owned(), expected)]),
        )
    }

    fn begin(step: &str) -> String {
        let step = step.to_owned();
        Report::Begin { step }.line()
    }

    fn end(step: &str, failure: Option<&str>) -> String {
        Report::End {
            step: step.to_owned(),
            failure: failure.map(str::to_owned),
            milliseconds: 1500,
        }
        .line()
    }

    fn status(status: Value) -> String {
        Report::Status {
            step: "daemon".to_owned(),
            status,
            verified: vec![120, 4, 71, 9000],
            links: 5,
            warnings: vec!["WARN one".to_owned()],
        }
        .line()
    }

    #[test]
    fn a_run_in_which_all_is_well_has_no_failures() {
        let mut outcome = outcome(Judge::Kernel);
        let signals = json!({"disk": {"available": false, "reason": "no such device"}});
        outcome.line(&begin("daemon"));
        outcome.line(&status(json!({"source": "kernel", "signals": signals})));
        let told = outcome.line(&end("daemon", None)).unwrap();
        assert!(
            told.contains("4 programs") && told.contains("disk no such device"),
            "{told}"
        );
        assert!(told.contains("WARN one"), "{told}");
        outcome.line(&begin("tests"));
        for line in [
            "test a::b ... ok",
            "[  1.0] noise",
            "test c ... ignored, slow",
            "test d - x ... ok",
        ] {
            outcome.line(line);
        }
        let told = outcome.line(&end("tests", None)).unwrap();
        assert!(
            told.contains("1 ok") && told.contains("1 ignored"),
            "{told}"
        );
        outcome.line(&Report::Done.line());
        assert_eq!(outcome.failures(), [""; 0]);
    }

    #[test]
    fn another_judge_than_expected_is_a_failure() {
        let fallback = json!({"source": "stochastic", "source_reason": "no type information"});
        for (judge, said, fails) in [
            (Judge::Kernel, json!({"source": "kernel"}), false),
            (Judge::Kernel, fallback.clone(), true),
            (
                Judge::Fallback {
                    because: "type information",
                },
                fallback.clone(),
                false,
            ),
            (
                Judge::Fallback {
                    because: "lockdown",
                },
                fallback,
                true,
            ),
            (
                Judge::Fallback {
                    because: "lockdown",
                },
                json!({"source": "kernel"}),
                true,
            ),
        ] {
            let mut outcome = outcome(judge);
            outcome.steps.clear();
            outcome.line(&begin("daemon"));
            outcome.line(&status(said.clone()));
            outcome.line(&end("daemon", None));
            outcome.line(&Report::Done.line());
            assert_eq!(!outcome.failures().is_empty(), fails, "{judge:?} {said}");
        }
    }

    #[test]
    fn a_machine_that_dies_fails_what_it_was_at_and_what_was_to_come() {
        let mut outcome = outcome(Judge::Kernel);
        outcome.line(&begin("daemon"));
        let failures = outcome.failures();
        assert_eq!(failures, ["daemon: it has not ended", "tests: not reached"]);
    }

    #[test]
    fn a_failed_test_is_named() {
        let mut outcome = outcome(Judge::Kernel);
        outcome.line(&begin("tests"));
        outcome.line("test a_full_socket ... FAILED");
        let told = outcome
            .line(&end("tests", Some("exit status: 101")))
            .unwrap();
        assert!(told.contains("FAILED a_full_socket"), "{told}");
        assert!(outcome.failures()[0].contains("exit status: 101"));
    }

    #[test]
    fn a_stale_breakpoint_is_the_translators_fault_and_another_oops_is_not() {
        for (line, expected) in [
            ("[   31.8] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI", true),
            ("[    3.0] int3: 0000 [#1] PREEMPT SMP NOPTI", true),
            ("[    3.0] Oops: 0000 [#1] PREEMPT SMP NOPTI", false),
            ("test int3 ... ok", false),
        ] {
            let console = format!("before\n{line}\nafter");
            assert_eq!(translator_has_failed(&console), expected, "{line}");
        }
    }

    #[test]
    fn a_kernel_that_warned_is_a_failure() {
        let mut outcome = Outcome::default();
        let (name, value) = ("tainted".to_owned(), "512".to_owned());
        outcome.line(&Report::Fact { name, value }.line());
        outcome.line(&Report::Done.line());
        assert_eq!(outcome.failures().len(), 1);
    }
}

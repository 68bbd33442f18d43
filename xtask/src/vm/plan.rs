//! What the two sides of a test machine's console say to each other: the plan, which the host puts
//! into the machine, and reports, which come back as lines among all else that is printed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the plan lies in the machine's first file system.
pub(super) const PLAN: &str = "/plan.json";
/// Where its modules lie; their names begin with their place in the order.
pub(super) const MODULES: &str = "/modules";
/// Begins the lines that are reports.
const MARK: &str = "@vm ";

/// One thing to do in the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Step {
    /// For people, and unique in a plan.
    pub(super) name: String,
    /// What.
    pub(super) action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Action {
    /// Runs a program to its end.
    Run(Run),
    /// Writes to a file that exists.
    Write {
        /// The file.
        path: PathBuf,
        /// What.
        text: String,
    },
    /// Starts the daemon, asks for its status, and ends it.
    Daemon {
        /// The daemon, with all arguments.
        daemon: Run,
        /// The command that prints its status as JSON.
        status: Run,
    },
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Its path.
    pub(super) program: PathBuf,
    /// Its arguments.
    pub(super) args: Vec<String>,
    /// How long it may take, or in case of the daemon how long it may take to answer.
    pub(super) seconds_max: u64,
}

/// What the machine reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Report {
    /// Something about the machine.
    Fact {
        /// What it is.
        name: String,
        /// As read.
        value: String,
    },
    /// A step begins; lines up to its end are its own.
    Begin {
        /// The step.
        step: String,
    },
    /// What the daemon said of itself.
    Status {
        /// The step.
        step: String,
        /// `gs-ctl status`.
        status: serde_json::Value,
        /// Of each BPF program that the daemon holds, the instructions that the verifier has walked.
        verified: Vec<u64>,
        /// Links of programs to where they are attached.
        links: usize,
        /// What it warned of.
        warnings: Vec<String>,
    },
    /// A step has ended.
    End {
        /// The step.
        step: String,
        /// Nothing if it went well.
        failure: Option<String>,
        /// How long it took.
        milliseconds: u64,
    },
    /// The plan is done; nothing follows but the machine's end.
    Done,
}

impl Report {
    /// As a line, without its end.
    pub(super) fn line(&self) -> String {
        let json = serde_json::to_string(self).expect("reports have string keys only");
        format!("{MARK}{json}")
    }

    /// Reads a line of the console; nothing if it is no report. What the kernel or a program left on
    /// the line before is passed over.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        let (_, json) = line.split_once(MARK)?;
        serde_json::from_str(json.trim_end()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_console() {
        let report = Report::End {
            step: "a\nb".to_owned(),
            failure: Some("it said \"no\"".to_owned()),
            milliseconds: 12,
        };
        let line = report.line();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(Report::of_line(&format!("{line}\r")), Some(report.clone()));
        // A program that ended without a newline.
        assert_eq!(
            Report::of_line(&format!("test x ... {line}\r")),
            Some(report)
        );
    }

    #[test]
    fn other_lines_are_no_reports() {
        for line in [
            "",
            "@vm",
            "@vm {",
            "test a ... ok",
            "[    0.1] Linux version",
        ] {
            assert_eq!(Report::of_line(line), None, "{line}");
        }
    }
}

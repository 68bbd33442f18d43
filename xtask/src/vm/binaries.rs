//! The programs under test, as cargo builds and names them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{build, process, setup::KernelHalf, workspace::Workspace};

const PACKAGE: &str = "gophership";

/// What cargo has built, by its name there: tests, and the programs they start.
pub(super) struct Binaries {
    /// Test binaries, in the order asked for.
    pub(super) tests: Vec<(String, PathBuf)>,
    /// The daemon, at the path that is built into the tests.
    pub(super) gophership: PathBuf,
    /// The operator's command, likewise.
    pub(super) gs_ctl: PathBuf,
}

/// Builds the daemon with the kernel half in it, and the tests.
///
/// # Errors
/// Something doesn't build, or there is no such test.
pub(super) fn build(workspace: &Workspace, tests: &[String]) -> Result<Binaries> {
    let object = build::kernel_object(workspace, &KernelHalf::Buildable)?;
    let mut cargo = build::daemon_cargo(workspace, object.as_deref());
    cargo.args(["test", "--package", PACKAGE, "--no-run"]);
    // The programs are only built along with tests if they are asked for.
    cargo.args(["--bins", "--message-format", "json-render-diagnostics"]);
    for test in tests {
        cargo.args(["--test", test]);
    }
    named(&process::output_of(&mut cargo)?, tests)
}

/// A line of cargo's output.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

fn named(messages: &str, tests: &[String]) -> Result<Binaries> {
    let messages: Vec<Message> = messages
        .lines()
        .map(|line| serde_json::from_str(line).context("cargo's output makes no sense"))
        .collect::<Result<_>>()?;
    let find = |name: &str, is_test: bool| {
        messages
            .iter()
            .filter(|message| {
                message
                    .target
                    .as_ref()
                    .is_some_and(|target| target.name == name)
                    && message
                        .profile
                        .as_ref()
                        .is_some_and(|profile| profile.test == is_test)
            })
            .find_map(|message| message.executable.clone())
            .with_context(|| format!("cargo has built no {name}"))
    };
    let tests = tests
        .iter()
        .map(|name| Ok((name.clone(), find(name, true)?)))
        .collect::<Result<Vec<_>>>()?;
    let built = Binaries {
        tests,
        gophership: find("gophership", false)?,
        gs_ctl: find("gs-ctl", false)?,
    };
    ensure!(
        [&built.gophership, &built.gs_ctl]
            .iter()
            .all(|path| Path::is_absolute(path)),
        "cargo names relative paths"
    );
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"{"reason":"build-script-executed","package_id":"x"}
{"reason":"compiler-artifact","target":{"name":"gophership"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"gophership"},"profile":{"test":true},"executable":"/t/deps/gophership-1"}
{"reason":"compiler-artifact","target":{"name":"gophership"},"profile":{"test":false},"executable":"/t/gophership"}
{"reason":"compiler-artifact","target":{"name":"gs-ctl"},"profile":{"test":false},"executable":"/t/gs-ctl"}
{"reason":"compiler-artifact","target":{"name":"pivot"},"profile":{"test":true},"executable":"/t/deps/pivot-2"}
{"reason":"build-finished","success":true}"#;

    #[test]
    fn programs_are_told_from_their_tests() {
        let built = named(MESSAGES, &["pivot".to_owned()]).unwrap();
        assert_eq!(built.gophership, Path::new("/t/gophership"));
        assert_eq!(built.gs_ctl, Path::new("/t/gs-ctl"));
        let tests = [("pivot".to_owned(), PathBuf::from("/t/deps/pivot-2"))];
        assert_eq!(built.tests, tests);
    }

    #[test]
    fn a_test_that_was_not_built_is_named() {
        let error = named(MESSAGES, &["ledger".to_owned()]).err().unwrap();
        assert!(error.to_string().contains("ledger"), "{error}");
    }
}

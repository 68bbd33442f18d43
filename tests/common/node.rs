//! The OpenTelemetry SDK for Node.js, in a directory that all tests share.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::process;

/// Package index and mirrors may be slow.
const INSTALL_WITHIN: Duration = Duration::from_secs(300);

const MANIFESTS: [&str; 2] = ["package.json", "package-lock.json"];

/// A copy of the script `name` beside the packages that it imports.
#[track_caller]
pub(crate) fn script(name: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/node");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = File::create(target.join("node.lock")).expect("a lock file");
    // Tests run in parallel, in several processes.
    lock.lock().expect("the lock on the packages");
    let dir = target.join("node");
    let read = |name| fs::read_to_string(sources.join(name)).expect("a manifest");
    let wanted = MANIFESTS.map(read).concat();
    let stamp = dir.join("installed.txt");
    if !fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        fs::create_dir_all(&dir).expect("a directory for the packages");
        for name in MANIFESTS {
            fs::copy(sources.join(name), dir.join(name)).expect("the manifest is copied");
        }
        install(&dir);
        fs::write(&stamp, wanted).expect("the stamp of the packages");
    }
    let script = dir.join(name);
    let text = fs::read_to_string(sources.join(name)).expect("the script");
    // Not written anew under another test's feet.
    if !fs::read_to_string(&script).is_ok_and(|there| there == text) {
        fs::write(&script, text).expect("the script is copied");
    }
    script
}

#[track_caller]
fn install(dir: &Path) {
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(dir);
    let installed = process::try_run(&mut npm, INSTALL_WITHIN).unwrap_or_else(|problem| {
        panic!("npm doesn't run (on Debian and Ubuntu: apt install nodejs npm): {problem}")
    });
    assert_eq!(
        installed.code,
        Some(0),
        "the OpenTelemetry SDK can't be installed from npm: {installed}"
    );
}

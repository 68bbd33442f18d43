//! The OpenTelemetry Python SDK, in a virtual environment that all tests share.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::process;

/// Package index and mirrors may be slow.
const INSTALL_WITHIN: Duration = Duration::from_secs(300);

/// Directory of the Python sources of the tests.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python")
}

/// The interpreter of an environment that has `requirements.txt` installed.
#[track_caller]
pub(crate) fn interpreter() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = File::create(target.join("python-venv.lock")).expect("a lock file");
    // Tests run in parallel, in several processes.
    lock.lock().expect("the lock on the environment");
    let venv = target.join("python-venv");
    let python = venv.join("bin/python");
    let requirements = sources().join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).expect("requirements.txt");
    let stamp = venv.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && imports(&python) {
        return python;
    }
    let made = process::run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv),
        INSTALL_WITHIN,
    );
    assert_eq!(
        made.code,
        Some(0),
        "python3 can't make a virtual environment (on Debian and Ubuntu: apt install \
         python3-venv): {made}"
    );
    let installed = process::run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(&requirements)
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        INSTALL_WITHIN,
    );
    assert_eq!(
        installed.code,
        Some(0),
        "the OpenTelemetry SDK can't be installed from PyPI: {installed}"
    );
    assert!(
        imports(&python),
        "the OpenTelemetry SDK is installed, but can't be imported"
    );
    fs::write(&stamp, wanted).expect("the stamp of the environment");
    python
}

fn imports(python: &Path) -> bool {
    let import = "import opentelemetry.sdk._logs, opentelemetry.exporter.otlp.proto.grpc, \
                  opentelemetry.exporter.otlp.proto.http";
    let mut command = Command::new(python);
    command.args(["-c", import]);
    process::try_run(&mut command, INSTALL_WITHIN).is_ok_and(|finished| finished.code == Some(0))
}

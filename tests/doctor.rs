//! `gophership doctor`: what it finds, what it says to do, and its exit code.

mod common;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::Command,
};

use common::{
    PATIENCE,
    daemon::{GOPHERSHIP, Home},
    process::{self, Finished},
    settings::Settings,
};
use nix::unistd::geteuid;
use serde_json::Value;

/// An unprivileged user that needs no entry anywhere.
const NOBODY: u32 = 65534;

/// A home whose configuration and certificates everybody may read, and a program everybody may run.
struct Patient {
    home: Home,
    public: tempfile::TempDir,
}

impl Patient {
    fn new(settings: &Settings) -> Self {
        let home = Home::new();
        let public = tempfile::tempdir().expect("a directory");
        let all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(public.path(), all).expect("its mode");
        let text = settings.yaml(&home);
        fs::write(public.path().join("c.yaml"), text).expect("the configuration");
        fs::copy(GOPHERSHIP, public.path().join("gophership")).expect("the program");
        Self { home, public }
    }

    fn config(&self) -> PathBuf {
        self.public.path().join("c.yaml")
    }

    fn command(&self, output: &str) -> Command {
        let mut command = Command::new(self.public.path().join("gophership"));
        command.args(["doctor", "--output", output, "--config"]);
        command.arg(self.config());
        command
    }

    fn json(&self) -> (Finished, Value) {
        parsed(process::run(&mut self.command("json"), PATIENCE))
    }
}

#[track_caller]
fn parsed(finished: Finished) -> (Finished, Value) {
    let value = serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("not JSON ({error}): {finished}"));
    (finished, value)
}

/// The check of that name.
#[track_caller]
fn check<'v>(report: &'v Value, name: &str) -> &'v Value {
    let checks = report["checks"].as_array().expect("a list of checks");
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check {name}: {report:#}"))
}

fn settings() -> Settings {
    Settings::to("{ name: local, file: { path: /dev/shm/never-written } }".to_owned())
}

/// Whether programs can be loaded here; otherwise the test says that it says nothing.
#[track_caller]
fn loads() -> bool {
    is_root() && {
        let (_, report) = Patient::new(&settings()).json();
        let found = check(&report, "kernel_half")["found"].to_string();
        let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|value| value == "1");
        let absent = found.contains("not built in") && !required;
        if absent {
            eprintln!("not tested: the kernel half is {found}");
        }
        !absent
    }
}

#[track_caller]
fn is_root() -> bool {
    let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|value| value == "1");
    let is_root = geteuid().is_root();
    assert!(
        is_root || !required,
        "GOPHERSHIP_REQUIRE_KERNEL=1 needs root"
    );
    if !is_root {
        eprintln!("not tested: needs root");
    }
    is_root
}

#[test]
fn root_finds_the_kernel_half_working_and_nothing_failed() {
    if !loads() {
        return;
    }
    let patient = Patient::new(&settings());
    let (finished, report) = patient.json();
    for name in [
        "config.valid",
        "kernel.version",
        "kernel.btf",
        "kernel.capabilities",
        "kernel.map_type_ringbuf",
        "kernel_half",
        "kernel_half.tcp_probe",
        "kernel_half.tick",
        "io_uring",
        "vault.o_direct",
        "vault.rwf_dsync",
        "vault.space",
        "config.ingest.tls.cert",
        "confinement.files",
    ] {
        assert_eq!(check(&report, name)["verdict"], "ok", "{name}: {finished}");
    }
    // The tests' and the measurements' own, which the daemon never loads.
    for name in ["judge_recorded", "kernel_half.nothing"] {
        assert!(!finished.stdout.contains(name), "{name}: {finished}");
    }
    assert_eq!(report["summary"]["failed"], 0, "{finished}");
    assert_eq!(finished.code, Some(0), "{finished}");
    let left = fs::read_dir(patient.home.vault()).expect("the vault's directory");
    assert_eq!(left.count(), 0, "files left behind");
}

#[test]
fn every_check_has_the_promised_keys() {
    let patient = Patient::new(&settings());
    let (_, report) = patient.json();
    assert!(report["version"].is_string());
    let checks = report["checks"].as_array().expect("a list");
    let mut counted = std::collections::BTreeMap::new();
    for check in checks {
        let keys: Vec<_> = check.as_object().expect("a mapping").keys().collect();
        assert_eq!(keys, ["found", "name", "remedy", "verdict"]);
        assert!(
            !check["found"].as_str().expect("a text").is_empty(),
            "{check}"
        );
        let verdict = check["verdict"].as_str().expect("a text");
        if matches!(verdict, "warning" | "failed") {
            assert!(check["remedy"].is_string(), "nothing to do about {check}");
        }
        *counted.entry(verdict.to_owned()).or_insert(0_u64) += 1;
    }
    for verdict in ["ok", "warning", "failed", "not_applicable"] {
        let counted = counted.remove(verdict).unwrap_or_default();
        assert_eq!(report["summary"][verdict], counted, "{verdict}");
    }
    assert!(counted.is_empty(), "unknown verdicts: {counted:?}");

    let table = process::run(&mut patient.command("table"), PATIENCE).stdout;
    assert!(table.starts_with("CHECK "), "{table}");
    let last = table.lines().last().expect("a summary");
    assert!(last.ends_with(" not applicable"), "{last}");
    let yaml = process::run(&mut patient.command("yaml"), PATIENCE).stdout;
    assert!(yaml.starts_with("checks:\n  - found: "), "{yaml}");
}

#[test]
fn without_capabilities_the_kernel_half_is_missing_and_the_remedy_names_them() {
    if !loads() {
        return;
    }
    for (kernel, verdict) in [("auto", "warning"), ("required", "failed")] {
        let patient = Patient::new(&Settings {
            kernel,
            ..settings()
        });
        let mut command = patient.command("json");
        command.uid(NOBODY).gid(NOBODY);
        let (finished, report) = parsed(process::run(&mut command, PATIENCE));
        let half = check(&report, "kernel_half");
        assert_eq!(half["verdict"], verdict, "{finished}");
        let found = half["found"].as_str().unwrap_or_default();
        assert!(found.contains("CAP_BPF"), "{found}");
        let remedy = half["remedy"].as_str().unwrap_or_default();
        assert!(remedy.contains("needs CAP_PERFMON, CAP_BPF"), "{remedy}");
        // The home is root's alone.
        assert_eq!(check(&report, "vault.o_direct")["verdict"], "failed");
        assert_eq!(finished.code, Some(1), "{finished}");
    }
}

#[test]
fn a_missing_kernel_half_alone_fails_only_where_it_is_required() {
    if !loads() {
        return;
    }
    for (kernel, verdict, code) in [("auto", "warning", 0), ("required", "failed", 1)] {
        let patient = Patient::new(&Settings {
            kernel,
            ..settings()
        });
        // In a mount namespace of its own, where the kernel describes no types.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" doctor --output json --config \"$1\"");
        command.arg(patient.public.path().join("gophership"));
        command.arg(patient.config());
        let (finished, report) = parsed(process::run(&mut command, PATIENCE));
        for name in ["kernel.btf", "kernel_half"] {
            let check = check(&report, name);
            assert_eq!(check["verdict"], verdict, "{finished}");
            let found = check["found"].as_str().unwrap_or_default();
            assert!(
                found.contains("/sys/kernel/btf/vmlinux: not there"),
                "{found}"
            );
        }
        assert_eq!(finished.code, Some(code), "{finished}");
    }
}

#[test]
fn a_bad_configuration_fails_and_says_where() {
    let patient = Patient::new(&settings());
    fs::write(patient.config(), "vault: { dri: /x }\n").expect("written");
    let (finished, report) = patient.json();
    let config = check(&report, "config.valid");
    assert_eq!(config["verdict"], "failed");
    let found = config["found"].as_str().unwrap_or_default();
    assert!(found.contains("did you mean vault.dir"), "{found}");
    assert_eq!(
        check(&report, "vault.o_direct")["verdict"],
        "not_applicable"
    );
    assert_eq!(finished.code, Some(1), "{finished}");
}

#[test]
fn a_file_system_without_o_direct_is_a_warning() {
    if !is_root() {
        return;
    }
    let patient = Patient::new(&settings());
    // In a mount namespace of its own; ramfs has no O_DIRECT.
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg("mount -t ramfs none \"$2\" && exec \"$0\" doctor --output json --config \"$1\"");
    command.arg(patient.public.path().join("gophership"));
    command.arg(patient.config()).arg(patient.home.vault());
    let (finished, report) = parsed(process::run(&mut command, PATIENCE));
    let direct = check(&report, "vault.o_direct");
    assert_eq!(direct["verdict"], "warning", "{finished}");
    let found = direct["found"].as_str().unwrap_or_default();
    assert!(found.contains("refuses O_DIRECT"), "{found}");
    assert!(found.contains("page cache"), "{found}");
    assert_eq!(
        check(&report, "vault.rwf_dsync")["verdict"],
        "not_applicable"
    );
}

#[test]
fn a_taken_port_is_found() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let patient = Patient::new(&settings());
    let text = fs::read_to_string(patient.config()).expect("the configuration");
    fs::write(patient.config(), text.replacen("127.0.0.1:0", &address, 1)).expect("written");
    let (finished, report) = patient.json();
    let port = check(&report, "config.ingest.grpc.listen");
    assert_eq!(port["verdict"], "warning", "{finished}");
    assert!(
        port["found"]
            .as_str()
            .unwrap_or_default()
            .contains(&address),
        "{port}"
    );
}

#[test]
fn lockdown_that_forbids_reading_the_kernel_is_named() {
    if !is_root() {
        return;
    }
    for (mode, verdict) in [("integrity", "ok"), ("confidentiality", "warning")] {
        let patient = Patient::new(&settings());
        // The file that the kernel would show, since its mode can't be taken back.
        let modes = "none integrity confidentiality".replace(mode, &format!("[{mode}]"));
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg(
            "mount -t tmpfs none /sys/kernel/security && echo \"$2\" > /sys/kernel/security/lockdown \
             && exec \"$0\" doctor --output json --config \"$1\"",
        );
        command.arg(patient.public.path().join("gophership"));
        command.arg(patient.config()).arg(modes);
        let (finished, report) = parsed(process::run(&mut command, PATIENCE));
        let lockdown = check(&report, "kernel.lockdown");
        assert_eq!(lockdown["verdict"], verdict, "{finished}");
        assert_eq!(lockdown["found"], mode, "{finished}");
    }
}

#[test]
fn files_that_the_service_user_could_not_use_are_found() {
    if !is_root() {
        return;
    }
    let patient = Patient::new(&Settings {
        service_user: format!("{NOBODY}:{NOBODY}"),
        ..settings()
    });
    // Closed on the way, then open but the vault root's.
    for (mode, wrong) in [(0o700, "may not pass through"), (0o755, "may not write to")] {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(patient.home.path(""), mode).expect("its mode");
        let (finished, report) = patient.json();
        let files = check(&report, "confinement.files");
        assert_eq!(files["verdict"], "failed", "{finished}");
        assert!(files["found"].to_string().contains(wrong), "{files}");
        assert_eq!(finished.code, Some(1), "{finished}");
    }
}

#[test]
fn an_interface_that_is_not_here_is_found() {
    for (interface, verdict) in [("no-such-if0", "failed"), ("lo", "ok")] {
        if verdict == "ok" && !is_root() {
            return;
        }
        let patient = Patient::new(&Settings {
            extra: format!("xdp: {{ interface: {interface} }}\n"),
            ..settings()
        });
        let (finished, report) = patient.json();
        let found = check(&report, "config.xdp.interface");
        assert_eq!(found["verdict"], verdict, "{finished}");
        assert!(found["found"].to_string().contains(interface), "{found}");
    }
}

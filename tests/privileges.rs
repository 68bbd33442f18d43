//! What is left of root once the daemon runs, and that it can still do all of its work.

mod common;

use std::{
    fs,
    io::ErrorKind,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    PATIENCE,
    daemon::{Daemon, GOPHERSHIP, Home},
    eventually, jsonl,
    messages::{Messages, Shape},
    process,
    settings::Settings,
};
use gophership::privileges::{
    self, Config, Enforcement, LandlockMode, Needs, Service, User, Written,
};
use nix::unistd::geteuid;

/// An unprivileged user that needs no entry anywhere.
const NOBODY: u32 = 65534;
/// Set in the child that a test makes of its own binary: the directory to confine itself to.
const CHILD: &str = "PRIVILEGES_TEST_DIRECTORY";
/// Set beside it: the uid to become.
const CHILD_UID: &str = "PRIVILEGES_TEST_UID";

const SHAPE: Shape = Shape {
    records: 3,
    body_bytes: 200,
};

/// Whether there are privileges to drop; otherwise the test says that it says nothing.
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

/// A home that belongs to the service user, with a file as its destination.
struct Served {
    home: Home,
    settings: Settings,
}

impl Served {
    fn by(user: &str) -> Self {
        // Beside the build, other users might not get through.
        let home = Home::new_in(Path::new("/var/tmp"));
        let logs = home.path("logs.jsonl");
        let file = format!(
            "{{ name: local, file: {{ path: \"{}\" }} }}",
            logs.display()
        );
        let settings = Settings {
            service_user: user.to_owned(),
            ..Settings::to(file)
        };
        Self { home, settings }
    }

    /// As an operator prepares it: the service user owns what it writes to.
    fn owned_by(self, uid: u32) -> Self {
        let own = [
            self.home.path(""),
            self.home.vault(),
            self.home
                .control_socket()
                .parent()
                .expect("a directory")
                .to_owned(),
        ];
        for path in own {
            chown(&path, Some(uid), Some(uid)).expect("given away");
        }
        self
    }

    fn logs(&self) -> PathBuf {
        self.home.path("logs.jsonl")
    }
}

/// One line of a status file in /proc.
#[track_caller]
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Asserts that no thread of the process has anything left.
#[track_caller]
fn assert_unprivileged(daemon: &Daemon<'_>, uid: u32) {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("its threads");
    let mut seen = Vec::new();
    for task in tasks {
        let task = task.expect("a thread").path();
        let Ok(status) = fs::read_to_string(task.join("status")) else {
            // A thread for one blocking call may have ended meanwhile.
            continue;
        };
        let name = field(&status, "Name:");
        let ids = [uid; 4].map(|id| id.to_string()).join(" ");
        assert_eq!(field(&status, "Uid:"), ids, "{name}");
        assert_eq!(field(&status, "Gid:"), ids, "{name}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set} of {name}");
        }
        assert_eq!(field(&status, "NoNewPrivs:"), "1", "{name}");
        seen.push(name);
    }
    for thread in [
        "gophership",
        "worker-0",
        "replay",
        "pressure-watch",
        "export-file",
        "vault-segments",
    ] {
        assert!(
            seen.iter().any(|name| name == thread),
            "{thread} is not in {seen:?}"
        );
    }
}

/// A request through the pipeline, one through the vault, and back to Green.
#[track_caller]
fn assert_works(served: &Served, daemon: &Daemon<'_>) {
    let mut messages = Messages::new(90, SHAPE);
    let green = messages.message();
    daemon.producer().export_all(std::slice::from_ref(&green));
    daemon.ctl(&["override", "--zone", "red", "--for", "1h"]);
    daemon.await_zone("red");
    let red = messages.message();
    daemon.producer().export_all(std::slice::from_ref(&red));
    assert_eq!(daemon.figure("/vault/entries_pending"), 1);
    daemon.ctl(&["override", "--clear"]);
    daemon.await_zone("green");
    daemon.await_empty_vault();
    let written = jsonl::records(&served.logs());
    assert_eq!(
        written.len() as u64,
        2 * SHAPE.records,
        "records in the file"
    );
    let audit = fs::read_to_string(served.home.audit_log()).expect("the audit log");
    assert_eq!(audit.lines().count(), 2, "{audit}");
}

#[test]
fn the_service_user_does_all_the_work_without_a_capability() {
    if !is_root() {
        return;
    }
    let served = Served::by("65534").owned_by(NOBODY);
    let daemon = Daemon::start(&served.home, &served.settings);
    assert_unprivileged(&daemon, NOBODY);
    let drop = daemon.log_lines("privileges dropped").remove(0);
    assert!(drop.contains("\"capabilities\":\"none\""), "{drop}");
    assert_works(&served, &daemon);
    assert_unprivileged(&daemon, NOBODY);
    let owner = |path: &Path| fs::metadata(path).expect("it exists").uid();
    assert_eq!(owner(&served.logs()), NOBODY);
    assert_eq!(owner(&served.home.control_socket()), NOBODY);
    let socket = served.home.control_socket();
    assert!(daemon.terminate(PATIENCE).success());
    assert!(!socket.exists(), "the socket is still there");
}

/// As Kubernetes mounts a secret, on another file system than anything that the daemon may write to.
#[test]
fn the_service_user_reads_new_certificates_that_a_turned_link_leads_to() {
    if !is_root() {
        return;
    }
    let served = Served::by("65534").owned_by(NOBODY);
    let certs = served.home.certs().path("");
    // Root's, and readable to the service user as far as it needs.
    let version = |number: u32| {
        let directory = certs.join(format!("..{number}"));
        common::certs::Certs::init(&directory);
        for file in ["server.key", "client.key"] {
            let readable = fs::Permissions::from_mode(0o644);
            fs::set_permissions(directory.join(file), readable).expect("its mode");
        }
        let next = certs.join("..next");
        symlink(&directory, &next).expect("a link");
        fs::rename(next, certs.join("..data")).expect("turned");
    };
    version(1);
    for file in [
        "ca.pem",
        "server.pem",
        "server.key",
        "client.pem",
        "client.key",
    ] {
        fs::remove_file(certs.join(file)).expect("removed");
        symlink(Path::new("..data").join(file), certs.join(file)).expect("a link");
    }
    for directory in [served.home.path(""), certs.clone(), certs.join("..1")] {
        let pass = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory, pass).expect("its mode");
    }
    let daemon = Daemon::start(&served.home, &served.settings);
    assert_unprivileged(&daemon, NOBODY);
    daemon
        .producer()
        .export_all(&Messages::new(91, SHAPE).take(1));
    version(2);
    let outcome =
        |outcome: &str| daemon.metric("gophership_tls_reloads_total", &[("outcome", outcome)]);
    eventually("the new certificates", PATIENCE, || {
        assert_eq!(outcome("failure"), 0.0, "{}", daemon.status());
        outcome("success") > 0.0
    });
    // The client's files are the new ones, too: of an authority that wasn't there before.
    daemon
        .producer()
        .export_all(&Messages::new(92, SHAPE).take(1));
}

#[test]
fn the_kernel_half_keeps_judging_after_the_drop() {
    if !is_root() {
        return;
    }
    let served = Served::by("65534").owned_by(NOBODY);
    let daemon = Daemon::start(&served.home, &served.settings);
    if daemon.text("/source") != "kernel" {
        let why = daemon.status()["source_reason"].to_string();
        let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|v| v == "1");
        assert!(!required, "the kernel half doesn't judge: {why}");
        eprintln!("not tested: the kernel half doesn't judge here: {why}");
        return;
    }
    assert_works(&served, &daemon);
    // The workers made themselves known to the kernel half without a capability.
    let status = daemon.status();
    let cpu_wait = &status["signals"]["cpu_wait"];
    assert_eq!(cpu_wait["available"], true, "{cpu_wait}");
    // In the kernel's ring, which was opened before the drop.
    for zone in ["red", "green"] {
        eventually("the kernel's events", PATIENCE, || {
            daemon.metric("gophership_zone_transitions_total", &[("to", zone)]) >= 1.0
        });
    }
    assert_eq!(daemon.text("/source"), "kernel");
}

#[test]
fn root_without_capabilities_does_all_the_work_too() {
    if !is_root() {
        return;
    }
    let served = Served::by("0");
    let daemon = Daemon::start(&served.home, &served.settings);
    assert_unprivileged(&daemon, 0);
    assert_works(&served, &daemon);
    assert!(daemon.terminate(PATIENCE).success());
}

#[test]
fn what_the_service_user_cannot_write_to_is_refused_by_name_with_the_remedy() {
    if !is_root() {
        return;
    }
    let served = Served::by("65534").owned_by(NOBODY);
    let vault = served.home.vault();
    fs::create_dir(vault.join("lane-00")).expect("a lane");
    fs::write(vault.join("lane-00/0000000000000001.gsv"), "").expect("a segment");
    let lane = fs::Permissions::from_mode(0o755);
    fs::set_permissions(vault.join("lane-00"), lane).expect("its mode");
    chown(vault.join("lane-00"), Some(NOBODY), Some(NOBODY)).expect("given away");
    let config = served
        .home
        .write_config("c.yaml", &served.settings.yaml(&served.home));
    let config = config.display().to_string();
    let refused = served.home.gophership(&["run", "--config", &config]);
    assert_eq!(refused.code, Some(1), "{refused}");
    let segment = vault.join("lane-00/0000000000000001.gsv");
    let named = format!("may not write to {} (vault.dir)", segment.display());
    let remedy = format!("`chown -R 65534:65534 {}`", vault.display());
    assert!(refused.stderr.contains(&named), "{refused}");
    assert!(refused.stderr.contains(&remedy), "{refused}");
}

#[test]
fn what_is_missing_is_made_for_the_service_user() {
    if !is_root() {
        return;
    }
    let served = Served::by("65534");
    // Root's, but for everybody to pass through; the service user could make nothing in it.
    let pass = fs::Permissions::from_mode(0o755);
    fs::set_permissions(served.home.path(""), pass.clone()).expect("its mode");
    let sockets = served.home.control_socket();
    let sockets = sockets.parent().expect("a directory");
    fs::remove_dir(served.home.vault()).expect("no vault yet");
    chown(sockets, Some(NOBODY), Some(NOBODY)).expect("given away");
    // The audit log's directory exists and is root's: its file can't be made later.
    fs::write(served.home.audit_log(), "").expect("an audit log");
    chown(served.home.audit_log(), Some(NOBODY), Some(NOBODY)).expect("given away");
    let daemon = Daemon::start(&served.home, &served.settings);
    assert_works(&served, &daemon);
    for made in [served.home.vault(), served.logs()] {
        assert_eq!(
            fs::metadata(&made).expect("made").uid(),
            NOBODY,
            "{}",
            made.display()
        );
    }
    // The certificates' key is root's alone, which a reload would stumble over.
    let key = daemon.log_lines("a reload would fail");
    assert!(
        key.iter().any(|line| line.contains("server.key")),
        "{key:?}"
    );
}

/// What a service user that is somebody else's tool by now could prepare for the next start.
#[test]
fn root_makes_nothing_where_the_service_user_could_lead_it() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (own, roots) = (directory.path().join("own"), directory.path().join("roots"));
    for path in [&own, &roots] {
        fs::create_dir(path).expect("a directory");
    }
    let link = own.join("link");
    symlink(&roots, &link).expect("a link");
    chown(&own, Some(NOBODY), Some(NOBODY)).expect("given away");
    lchown(&link, Some(NOBODY), Some(NOBODY)).expect("given away");
    let written = |directory: &Path| {
        vec![
            Written::Tree {
                key: "vault.dir",
                path: directory.join("vault"),
            },
            Written::Socket {
                key: "control.unix.path",
                path: directory.join("run/control.sock"),
            },
            Written::File {
                key: "telemetry.audit_log",
                path: directory.join("audit.jsonl"),
                directory_mode: None,
            },
        ]
    };
    let prepare = |directory: &Path| {
        let needs = Needs {
            written: written(directory),
            read: Vec::new(),
        };
        privileges::prepare(&needs, &nobody()).expect("prepared");
    };
    let made = || {
        let entries = fs::read_dir(&roots).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    prepare(&link);
    assert!(made().is_empty(), "{:?}", made());
    prepare(&roots);
    assert_eq!(made().len(), 3, "{:?}", made());
    for name in made() {
        let owner = fs::metadata(roots.join(&name)).expect("made").uid();
        assert_eq!(owner, NOBODY, "{}", name.display());
    }
}

#[test]
fn a_vault_on_a_file_system_of_its_own_is_usable() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), all).expect("its mode");
    let vault = directory.path().join("vault");
    for path in ["vault", "vault/lane-00"].map(|path| directory.path().join(path)) {
        fs::create_dir(&path).expect("a directory");
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("given away");
    }
    // As mkfs.ext4 leaves it: root's, and nobody else may look into it.
    let found = vault.join("lost+found");
    fs::create_dir(&found).expect("a directory");
    fs::set_permissions(&found, fs::Permissions::from_mode(0o700)).expect("its mode");
    let needs = Needs {
        written: vec![Written::Tree {
            key: "vault.dir",
            path: vault.clone(),
        }],
        read: Vec::new(),
    };
    let unreadable = nobody().rehearse(&needs).expect("usable");
    assert!(unreadable.is_empty(), "{unreadable:?}");
    fs::write(vault.join("lane-00/0000000000000001.gsv"), "").expect("root's segment");
    let refused = nobody().rehearse(&needs).expect_err("root's segment");
    assert!(refused.to_string().contains("lane-00/0000"), "{refused}");
    assert!(
        geteuid().is_root(),
        "the rehearsal has changed this process"
    );
}

fn nobody() -> Service {
    Service::find(&Config {
        user: User::Numeric {
            uid: NOBODY,
            gid: Some(NOBODY),
        },
        landlock: LandlockMode::Off,
    })
    .expect("root may become anybody")
}

#[test]
fn an_unknown_user_is_refused() {
    let served = Served::by("no-such-user");
    let config = served
        .home
        .write_config("c.yaml", &served.settings.yaml(&served.home));
    let config = config.display().to_string();
    let refused = served.home.gophership(&["run", "--config", &config]);
    assert_eq!(refused.code, Some(2), "{refused}");
    assert!(
        refused.stderr.contains("there is no user \"no-such-user\""),
        "{refused}"
    );
}

/// The daemon as somebody without privileges, or on a kernel without BTF: it runs, by the fallback.
#[test]
fn without_privileges_or_btf_the_fallback_judges_and_says_why() {
    if !is_root() {
        return;
    }
    let unprivileged = Served::by("auto").owned_by(NOBODY);
    for file in ["ca.pem", "server.pem", "server.key"] {
        let path = unprivileged.home.certs().path(file);
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("given away");
    }
    let public = tempfile::tempdir().expect("a directory");
    fs::set_permissions(public.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let program = public.path().join("gophership");
    fs::copy(GOPHERSHIP, &program).expect("a program that everybody may run");
    let mut command = Command::new(&program);
    process::without_own_variables(&mut command);
    command.uid(NOBODY).gid(NOBODY);
    let daemon = Daemon::start_by(&unprivileged.home, &unprivileged.settings, command);
    assert_falls_back(&daemon, "lacks CAP_PERFMON, CAP_BPF");
    assert_works(&unprivileged, &daemon);
    drop(daemon);

    let untyped = Served::by("auto");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"");
    command.arg(GOPHERSHIP);
    process::without_own_variables(&mut command);
    let daemon = Daemon::start_by(&untyped.home, &untyped.settings, command);
    assert_falls_back(&daemon, "/sys/kernel/btf/vmlinux: not there");
    assert_works(&untyped, &daemon);
}

#[track_caller]
fn assert_falls_back(daemon: &Daemon<'_>, reason: &str) {
    assert_eq!(daemon.text("/source"), "stochastic");
    let found = daemon.text("/source_reason");
    let required = std::env::var("GOPHERSHIP_REQUIRE_KERNEL").is_ok_and(|value| value == "1");
    if found.starts_with("not built in") && !required {
        eprintln!("not tested: the kernel half is {found}");
        return;
    }
    assert!(found.contains(reason), "{found}");
}

/// Runs in a process of its own, since there is no way back: not a test by itself.
#[test]
fn child_that_confines_itself() {
    let (Ok(directory), Ok(uid)) = (std::env::var(CHILD), std::env::var(CHILD_UID)) else {
        return;
    };
    let directory = PathBuf::from(directory);
    // The harness runs tests on threads; the drop wants one thread, so a fork is made of this one.
    // SAFETY: the child only makes system calls and allocates, and leaves by `_exit`.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Child => {
            let code = match confined(&directory, uid.parse().expect("a uid")) {
                Ok(()) => 0,
                Err(what) => {
                    eprintln!("{what}");
                    1
                }
            };
            // SAFETY: ends the process at once, without the parent's handlers.
            unsafe { libc::_exit(code) };
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).expect("the child ends");
            let fine = nix::sys::wait::WaitStatus::Exited(child, 0);
            assert_eq!(status, fine);
        }
    }
}

fn confined(directory: &Path, uid: u32) -> Result<(), String> {
    let text = |error: privileges::Error| error.to_string();
    let service = Service::find(&Config {
        user: User::Numeric {
            uid,
            gid: Some(uid),
        },
        landlock: LandlockMode::Required,
    })
    .map_err(text)?;
    let needs = Needs {
        written: ["inside", "own/deep"]
            .map(|path| Written::Tree {
                key: "vault.dir",
                path: directory.join(path),
            })
            .into(),
        read: vec![directory.join("read/c.yaml")],
    };
    privileges::prepare(&needs, &service).map_err(text)?;
    let dropped = service.enter(&needs, uid == 0).map_err(text)?;
    if !matches!(dropped.landlock, Enforcement::Enforced { .. }) {
        return Err(dropped.landlock.to_string());
    }
    // Asked for, so it is all that is left.
    let kept = if uid == 0 { "CAP_BPF" } else { "" };
    if dropped.capabilities != kept {
        return Err(format!("{:?} are left", dropped.capabilities));
    }
    let works = |what: &str, done: std::io::Result<()>| done.map_err(|e| format!("{what}: {e}"));
    let inside = directory.join("inside/file");
    works("writing inside", fs::write(&inside, "x"))?;
    works(
        "renaming inside",
        fs::rename(&inside, directory.join("inside/renamed")),
    )?;
    works(
        "removing inside",
        fs::remove_file(directory.join("inside/renamed")),
    )?;
    works(
        "reading the configuration",
        fs::read(directory.join("read/c.yaml")).map(drop),
    )?;
    works(
        "writing to what it had to make itself",
        fs::write(directory.join("own/deep/file"), "x"),
    )?;
    works("reading /proc", fs::read("/proc/meminfo").map(drop))?;
    works(
        "reading what a resolver reads",
        fs::read("/etc/passwd").map(drop),
    )?;
    let refused = |what: &str, done: std::io::Result<()>| match done {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        other => Err(format!("{what}: {other:?}, not refused")),
    };
    // Everybody may read and write this one, as far as permissions go.
    let outside = directory.join("outside");
    refused("reading outside", fs::read(&outside).map(drop))?;
    refused("writing outside", fs::write(&outside, "x"))?;
    refused("making outside", fs::write(directory.join("new"), "x"))?;
    refused(
        "writing the configuration",
        fs::write(directory.join("read/c.yaml"), "x"),
    )?;
    refused(
        "running a program",
        Command::new("/usr/bin/true").status().map(drop),
    )?;
    Ok(())
}

#[test]
fn files_outside_of_the_configuration_are_out_of_reach_also_for_root() {
    if !is_root() {
        return;
    }
    for uid in [NOBODY, 0] {
        let directory = tempfile::tempdir().expect("a directory");
        let all = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
        };
        all(directory.path(), 0o777);
        fs::write(directory.path().join("outside"), "secret").expect("a file");
        all(&directory.path().join("outside"), 0o666);
        let own = directory.path().join("own");
        fs::create_dir(&own).expect("a directory");
        chown(&own, Some(uid), Some(uid)).expect("given away");
        fs::create_dir(directory.path().join("read")).expect("a directory");
        fs::write(directory.path().join("read/c.yaml"), "").expect("a file");
        all(&directory.path().join("read/c.yaml"), 0o666);
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "child_that_confines_itself", "--nocapture"]);
        command
            .env(CHILD, directory.path())
            .env(CHILD_UID, uid.to_string());
        process::run(&mut command, PATIENCE).expect_success();
        let left = fs::read_to_string(directory.path().join("outside")).expect("a file");
        assert_eq!(left, "secret");
    }
}

//! What `gs-ctl` says of itself: completions as a shell uses them, and manual pages.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

const GS_CTL: &str = env!("CARGO_BIN_EXE_gs-ctl");

fn gs_ctl(arguments: &[&str]) -> String {
    let output = Command::new(GS_CTL).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let completed = |line: &[&str]| {
        let script = gs_ctl(&["completions", "bash"]);
        // What the shell does when the tabulator is pressed behind the last word.
        let ask = format!(
            "{script}\n\
             function=$(complete -p gs-ctl | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
             COMP_WORDS=({})\nCOMP_CWORD={}\n\
             $function gs-ctl \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
             echo \"${{COMPREPLY[@]}}\"\n",
            line.join(" "),
            line.len() - 1
        );
        let mut bash = Command::new("bash")
            .args(["--norc", "-s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        bash.stdin
            .take()
            .unwrap()
            .write_all(ask.as_bytes())
            .unwrap();
        let output = bash.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(completed(&["gs-ctl", "ov"]), "override");
    assert_eq!(completed(&["gs-ctl", "override", "--rea"]), "--reason");
    let zones = completed(&["gs-ctl", "override", "--zone", "''"]);
    assert_eq!(zones, "green yellow red");
    assert_eq!(completed(&["gs-ctl", "vault", "ins"]), "inspect");
}

#[test]
fn other_shells_are_told_every_command() {
    for shell in ["zsh", "fish"] {
        let script = gs_ctl(&["completions", shell]);
        for command in ["status", "override", "replay", "quarantine"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    gs_ctl(&["man", "--dir", dir.path().to_str().unwrap()]);
    let page = |name: &str| {
        let path = dir.path().join(format!("{name}.1"));
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    for name in [
        "gs-ctl",
        "gs-ctl-override",
        "gs-ctl-vault-cat",
        "gs-ctl-certs-init",
    ] {
        let text = page(name);
        assert!(
            text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"),
            "{name}"
        );
    }
    // Roff's own characters are escaped.
    assert!(page("gs-ctl-override").contains("\\-\\-reason"));
    assert_eq!(gs_ctl(&["man"]), page("gs-ctl"));
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let output = Command::new(GS_CTL)
        .args(["man", "--dir", "/nowhere/at/all"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("cannot write to /nowhere/at/all"),
        "{message}"
    );
}

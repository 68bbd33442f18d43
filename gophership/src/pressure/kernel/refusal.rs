//! Why the kernel refused the kernel half, in words that help.
//!
//! The kernel itself says "invalid argument" and prints how the verifier went. Nothing is ruled out
//! beforehand: vendors bring features to older versions. What is known about the running kernel
//! explains a refusal that has come.

use std::fs;

use super::Lockdown;

/// The oldest kernel with 64-bit compare-and-exchange for programs.
const OLDEST: (u32, u32) = (5, 12);

/// What about the running kernel explains that it refuses the kernel half, if anything does.
pub(super) fn explanation() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    too_old(&release).or_else(|| locked_down(Lockdown::current()))
}

fn too_old(release: &str) -> Option<String> {
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    let version: (u32, u32) = (next()?, next()?);
    (version < OLDEST).then(|| {
        let (major, minor) = OLDEST;
        format!("Linux {release} is too old: the kernel half needs {major}.{minor}")
    })
}

/// `confidentiality` keeps programs from reading the kernel's memory; `integrity` only keeps them
/// from writing to user space's (`include/linux/security.h`: `LOCKDOWN_BPF_READ_KERNEL`,
/// `LOCKDOWN_BPF_WRITE_USER`).
fn locked_down(mode: Option<Lockdown>) -> Option<String> {
    (mode == Some(Lockdown::Confidentiality)).then(|| {
        "the kernel's lockdown is set to confidentiality, which keeps programs from reading what \
         the kernel half measures"
            .to_owned()
    })
}

/// An error's text with no more of the verifier's log than its verdict: the last line that isn't
/// statistics.
pub(super) fn without_verifier_log(text: &str) -> String {
    const LOG: &str = "Verifier output: ";
    const STATISTICS: [&str; 4] = [
        "verification time ",
        "stack depth ",
        "processed ",
        // With a line for each subprogram from 7.x on.
        "subprog ",
    ];
    let Some((error, log)) = text.split_once(LOG) else {
        return text.to_owned();
    };
    let is_verdict =
        |line: &&str| !line.is_empty() && STATISTICS.iter().all(|start| !line.starts_with(start));
    let verdict = log.lines().map(str::trim).rfind(is_verdict);
    format!("{error}the verifier: {}", verdict.unwrap_or("says nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_too_old_is_named_with_what_is_needed() {
        let reason = too_old("5.10.0-46-amd64\n").unwrap();
        assert!(reason.contains("5.10.0-46-amd64"), "{reason}");
        assert!(reason.contains("needs 5.12"), "{reason}");
        assert!(too_old("4.18.0").is_some());
        for release in ["5.12.0", "5.15", "6.1.0-56-amd64", "10.2.1", "unknown", ""] {
            assert_eq!(too_old(release), None, "{release}");
        }
    }

    #[test]
    fn only_confidentiality_explains_a_refusal() {
        assert!(locked_down(Some(Lockdown::Confidentiality)).is_some());
        for mode in [None, Some(Lockdown::None), Some(Lockdown::Integrity)] {
            assert_eq!(locked_down(mode), None);
        }
    }

    #[test]
    fn of_the_verifiers_log_its_verdict_stays() {
        let text = "loading: invalid argument. Verifier output: 0: R1=ctx() R10=fp0\n\
                    1: (85) call bpf_probe_read#4\nunknown func bpf_probe_read#4\n\
                    verification time 4541 usec\nstack depth 104+0+0\n\
                    subprog 2 (<unknown>) static insns_self 0 insns_total 0 stack 0\n\
                    processed 46 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(
            without_verifier_log(text),
            "loading: invalid argument. the verifier: unknown func bpf_probe_read#4"
        );
        assert_eq!(without_verifier_log("no such device"), "no such device");
    }
}

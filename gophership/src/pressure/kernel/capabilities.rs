//! The privileges that the kernel half takes, told apart before the kernel says no more than
//! "operation not permitted".

use std::fs;

/// Bits of `include/uapi/linux/capability.h`. `CAP_SYS_ADMIN` includes the other two.
const CAP_SYS_ADMIN: u32 = 21;
const NEEDED: [(u32, &str); 2] = [(38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// What an XDP program takes besides. `CAP_SYS_ADMIN` doesn't include it.
const NEEDED_FOR_NETWORK: (u32, &str) = (12, "CAP_NET_ADMIN");

/// What this thread lacks of them, separated by commas; `None` if nothing, or if it can't be told.
pub(super) fn missing() -> Option<String> {
    missing_from(&fs::read_to_string("/proc/thread-self/status").ok()?)
}

/// What this thread lacks to attach to an interface; `None` if nothing, or if it can't be told.
pub(super) fn missing_for_network() -> Option<&'static str> {
    let (bit, name) = NEEDED_FOR_NETWORK;
    let effective = effective(&fs::read_to_string("/proc/thread-self/status").ok()?)?;
    (effective >> bit & 1 == 0).then_some(name)
}

fn effective(status: &str) -> Option<u64> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

fn missing_from(status: &str) -> Option<String> {
    let effective = effective(status)?;
    let has = |bit: u32| effective >> bit & 1 == 1;
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|&(bit, _)| !has(bit) && !has(CAP_SYS_ADMIN))
        .map(|(_, name)| name)
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let status = |effective: &str| format!("Name:\tgophership\nCapEff:\t{effective}\n");
        let missing = |effective| missing_from(&status(effective));
        assert_eq!(
            missing("0000000000000000").as_deref(),
            Some("CAP_PERFMON, CAP_BPF")
        );
        assert_eq!(missing("0000008000000000").as_deref(), Some("CAP_PERFMON"));
        assert_eq!(missing("000000c000000000"), None);
        assert_eq!(missing("0000000000200000"), None, "CAP_SYS_ADMIN");
        assert_eq!(missing_from("Name:\tgophership\n"), None, "can't be told");
    }
}

//! Kernel lockdown (kernel_lockdown(7)): in its stricter mode nobody may read the kernel's memory,
//! and the refusals say no more than "operation not permitted".

use std::fs;

/// Where the mode is, if securityfs is mounted.
const PATH: &str = "/sys/kernel/security/lockdown";

/// How much even root may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lockdown {
    /// Nothing is locked.
    None,
    /// The kernel can't be changed; reading it is allowed.
    Integrity,
    /// The kernel can't be read either: no perf events, no `bpf_probe_read_kernel`.
    Confidentiality,
}

impl Lockdown {
    /// The mode in force; `None` if it can't be told.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::parse(&fs::read_to_string(PATH).ok()?)
    }

    /// From text such as `none [integrity] confidentiality`.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once('[')?;
        match rest.split_once(']')?.0 {
            "none" => Some(Self::None),
            "integrity" => Some(Self::Integrity),
            "confidentiality" => Some(Self::Confidentiality),
            _ => None,
        }
    }

    /// The mode as the kernel writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Integrity => "integrity",
            Self::Confidentiality => "confidentiality",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_the_one_in_brackets() {
        for (text, mode) in [
            ("[none] integrity confidentiality\n", Some(Lockdown::None)),
            (
                "none [integrity] confidentiality\n",
                Some(Lockdown::Integrity),
            ),
            (
                "none integrity [confidentiality]\n",
                Some(Lockdown::Confidentiality),
            ),
            ("none integrity confidentiality\n", None),
            ("[other]", None),
        ] {
            assert_eq!(Lockdown::parse(text), mode, "{text}");
        }
    }
}

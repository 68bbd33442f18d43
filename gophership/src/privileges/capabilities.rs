//! Capabilities and `no_new_privs` of this thread: capabilities(7).

use nix::errno::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, no_new_privs, remove_capability_from_bounding_set,
    set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use super::Error;

/// Whether this thread may take on another user and other groups.
pub(super) fn may_change_user() -> Result<bool, Error> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    Ok(current()?.effective.contains(needed))
}

/// What is kept through the change of user; everything else goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    kept: CapabilitySet,
}

impl Kept {
    /// Nothing, or `CAP_BPF` if it is asked for and there.
    pub(super) fn new(bpf: bool) -> Result<Self, Error> {
        let wanted = if bpf {
            CapabilitySet::BPF
        } else {
            CapabilitySet::empty()
        };
        let kept = wanted & current()?.permitted;
        Ok(Self { kept })
    }

    /// Empties the ambient and the bounding set. The latter needs CAP_SETPCAP; without it,
    /// `no_new_privs` alone keeps `execve` from granting what is left there.
    pub(super) fn before_the_user(self) -> Result<(), Error> {
        clear_ambient_capability_set().map_err(refused("clearing the ambient capabilities"))?;
        if current()?.effective.contains(CapabilitySet::SETPCAP) {
            empty_bounding_set()?;
        }
        if !self.kept.is_empty() {
            set_keep_capabilities(true).map_err(refused("PR_SET_KEEPCAPS"))?;
        }
        Ok(())
    }

    /// Empties what is left, sets `no_new_privs`, and sees that it is so.
    pub(super) fn after_the_user(self) -> Result<(), Error> {
        let sets = CapabilitySets {
            effective: self.kept,
            permitted: self.kept,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets).map_err(refused("capset"))?;
        set_keep_capabilities(false).map_err(refused("PR_SET_KEEPCAPS"))?;
        set_no_new_privs(true).map_err(refused("PR_SET_NO_NEW_PRIVS"))?;
        let (found, sealed) = (current()?, no_new_privs());
        if found != sets {
            return Err(Error::Left(format!("{found:?}")));
        }
        match sealed {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Left("no_new_privs is not set".to_owned())),
            Err(error) => Err(refused("PR_GET_NO_NEW_PRIVS")(error)),
        }
    }

    /// Names of what is kept.
    pub(super) fn names(self) -> String {
        let names: Vec<_> = self
            .kept
            .iter_names()
            .map(|(name, _)| format!("CAP_{name}"))
            .collect();
        names.join(", ")
    }
}

fn empty_bounding_set() -> Result<(), Error> {
    for bit in 0..u64::BITS {
        // Newer kernels know more than we have names for.
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)
                .map_err(refused("PR_CAPBSET_DROP"))?,
            Ok(false) => {}
            // Beyond the last one this kernel has.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(refused("PR_CAPBSET_READ")(error)),
        }
    }
    Ok(())
}

fn current() -> Result<CapabilitySets, Error> {
    capabilities(None).map_err(refused("capget"))
}

fn refused(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::system(what)(Errno::from_raw(errno.raw_os_error()))
}

//! What the service user would find, without becoming it for good.

use std::{io, panic, path::PathBuf, thread};

use nix::errno::Errno;
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Error, Identity, Needs, Service, capabilities::Kept, paths};

impl Service {
    /// Whether the service user could write to what it `needs`, tried by a thread that becomes it and
    /// ends; what is missing isn't made. Returns the files that it couldn't read again.
    ///
    /// # Errors
    /// As [`Service::enter`].
    pub fn rehearse(&self, needs: &Needs) -> Result<Vec<(PathBuf, io::Error)>, Error> {
        let look = || {
            if self.changes_user {
                become_on_this_thread(&self.user)?;
            }
            Kept::new(false)?.after_the_user()?;
            paths::check_written(needs, &self.user)?;
            Ok(paths::unreadable(needs))
        };
        let looked = thread::scope(|scope| scope.spawn(look).join());
        looked.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }
}

/// By the system calls themselves: the C library's functions change every thread.
fn become_on_this_thread(user: &Identity) -> Result<(), Error> {
    let refused = |what: &'static str| {
        move |errno: rustix::io::Errno| Error::system(what)(Errno::from_raw(errno.raw_os_error()))
    };
    let groups: Vec<_> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&groups).map_err(refused("setgroups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(refused("setresgid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(refused("setresuid"))
}

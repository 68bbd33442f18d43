//! From root to a service that can only do its work: one user, no capabilities, its own directories.
//!
//! Capabilities, `no_new_privs` and Landlock belong to threads and are inherited by those that are
//! started later. So the order is: [`prepare`] what the service user will write to, open whatever
//! needs privileges, [`Service::enter`] while there is one thread (which is checked), and only then
//! start threads.
//!
//! Invariants
//! - After [`Service::enter`] every set of capabilities is empty (but for `CAP_BPF`, where a kernel
//!   before 5.19 wants it), also where the user stays root; nothing can be gained back by `execve`.
//! - What is missing is made for the service user. What exists is never given away: if the service
//!   user can't write to it, the start is refused, naming it and the `chown` that helps.

mod accounts;
mod capabilities;
mod landlock;
mod paths;
mod rehearsal;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

pub use self::{
    accounts::Identity,
    landlock::{Enforcement, probe as probe_landlock},
    paths::{Needs, Written, prepare},
};

/// Whom to run as, and how confined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The service user.
    pub user: User,
    /// Confinement to the files of the configuration.
    pub landlock: LandlockMode,
}

/// The service user as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// `gophership`, if root starts the daemon and there is such a user; else whoever starts it.
    Auto,
    /// An entry of `/etc/passwd`.
    Named(String),
    /// By number; without a group it is the user's own, or the one of the same number.
    Numeric {
        /// User id.
        uid: u32,
        /// Group id.
        gid: Option<u32>,
    },
}

/// Whether Landlock must confine the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandlockMode {
    /// As far as the kernel can.
    Auto,
    /// Refuse to start without it.
    Required,
    /// Don't.
    Off,
}

/// Why the daemon can't become the service it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A user was named that isn't there.
    #[error("service.user: there is no user {name:?} in /etc/passwd")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// The list of users can't be read.
    #[error("{path}: {source}")]
    Accounts {
        /// The file.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Only root can become somebody else.
    #[error(
        "service.user: uid {from} may not become {to}: start as root (or with CAP_SETUID and CAP_SETGID), or \
         leave service.user out"
    )]
    NotPermitted {
        /// Who we are.
        from: u32,
        /// Who we should be.
        to: Identity,
    },
    /// A directory or file for the service user can't be made.
    #[error("cannot make {} for the service user: {source}", path.display())]
    Make {
        /// It.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The service user can't work there.
    #[error(
        "{user} may not write to {} ({key}): {source}; `chown -R {} {}` gives it away, or set service.user",
        path.display(), user.owner(), base.display()
    )]
    NotWritable {
        /// What can't be written to.
        path: PathBuf,
        /// What of the configuration it belongs to.
        base: PathBuf,
        /// The configuration key.
        key: &'static str,
        /// Who can't.
        user: Box<Identity>,
        /// What the system said.
        source: io::Error,
    },
    /// The service user doesn't even get there: giving it the files away wouldn't help.
    #[error(
        "{user} may not pass through {} on the way to {} ({key}); `chmod o+x {}` lets it, or choose another place",
        directory.display(), base.display(), directory.display()
    )]
    NotReachable {
        /// What it can't pass.
        directory: PathBuf,
        /// What of the configuration lies behind.
        base: PathBuf,
        /// The configuration key.
        key: &'static str,
        /// Who can't.
        user: Box<Identity>,
    },
    /// More than one thread is running: the others would keep their privileges.
    #[error("{threads} threads are running before the privileges are dropped, instead of one")]
    Threads {
        /// How many.
        threads: usize,
    },
    /// The system refused a step.
    #[error("{what}: {source}")]
    System {
        /// The step.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Every step succeeded, and yet privileges are left.
    #[error("privileges are left after the drop: {0}")]
    Left(String),
    /// `service.landlock: required`, and it can't be enforced.
    #[error("service.landlock is required, but {0}")]
    LandlockRequired(String),
}

impl Error {
    fn system(what: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::System {
            what,
            source: errno.into(),
        }
    }
}

/// What is left after the drop.
#[derive(Debug)]
pub struct Dropped {
    /// Who runs now.
    pub user: Identity,
    /// Names of the capabilities that were kept, separated by commas; empty if none.
    pub capabilities: String,
    /// What Landlock does.
    pub landlock: Enforcement,
    /// Files a reload will want and the service user can't read, and why.
    pub unreadable: Vec<(PathBuf, io::Error)>,
}

/// Raises RLIMIT_MEMLOCK, which registered io_uring buffers and, before 5.11, maps are charged to,
/// and which counts once CAP_IPC_LOCK is gone. Without the right to, up to the hard limit. And
/// RLIMIT_NOFILE up to the hard limit: each connection takes a descriptor.
pub fn raise_limits() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    let to_the_hard_one = |limit| {
        if let Ok((_, hard)) = getrlimit(limit) {
            // What doesn't suffice is reported by whom it doesn't suffice for.
            let _ = setrlimit(limit, hard, hard);
        }
    };
    let memlock = Resource::RLIMIT_MEMLOCK;
    if setrlimit(memlock, RLIM_INFINITY, RLIM_INFINITY).is_err() {
        to_the_hard_one(memlock);
    }
    to_the_hard_one(Resource::RLIMIT_NOFILE);
}

/// Descriptors that this process may have open; 0 if that can't be known.
#[must_use]
pub fn files_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// The service user, found and possible.
#[derive(Debug, Clone)]
pub struct Service {
    user: Identity,
    changes_user: bool,
    landlock: LandlockMode,
}

impl Service {
    /// Finds the service user.
    ///
    /// # Errors
    /// [`Error::UnknownUser`], [`Error::Accounts`], and [`Error::NotPermitted`] if this process may
    /// not become it.
    pub fn find(config: &Config) -> Result<Self, Error> {
        let own = (geteuid().as_raw(), getegid().as_raw());
        let may_change = capabilities::may_change_user()?;
        let user = accounts::find(&config.user, own, may_change)?;
        let changes_user = (user.uid, user.gid) != own;
        if changes_user && !may_change {
            return Err(Error::NotPermitted {
                from: own.0,
                to: user,
            });
        }
        Ok(Self {
            user,
            changes_user,
            landlock: config.landlock,
        })
    }

    /// Who it is.
    #[must_use]
    pub fn user(&self) -> &Identity {
        &self.user
    }

    /// Makes this process the service, for good. `keep_bpf` keeps `CAP_BPF`.
    ///
    /// # Errors
    /// If another thread runs, the system refuses a step, or the service user can't write to what it
    /// `needs`. The process must end then: it may be between two states.
    pub fn enter(&self, needs: &Needs, keep_bpf: bool) -> Result<Dropped, Error> {
        only_one_thread()?;
        let kept = capabilities::Kept::new(keep_bpf)?;
        kept.before_the_user()?;
        self.change_user()?;
        kept.after_the_user()?;
        paths::make(needs, None)?;
        paths::check_written(needs, &self.user)?;
        let unreadable = paths::unreadable(needs);
        let landlock = landlock::enforce(self.landlock, needs)?;
        Ok(Dropped {
            user: self.user.clone(),
            capabilities: kept.names(),
            landlock,
            unreadable,
        })
    }

    fn change_user(&self) -> Result<(), Error> {
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        if self.changes_user {
            let groups: Vec<_> = self
                .user
                .groups
                .iter()
                .copied()
                .map(Gid::from_raw)
                .collect();
            setgroups(&groups).map_err(Error::system("setgroups"))?;
        }
        // Also where the user stays: real and saved ids of somebody else are a way back.
        setresgid(gid, gid, gid).map_err(Error::system("setresgid"))?;
        setresuid(uid, uid, uid).map_err(Error::system("setresuid"))
    }
}

fn only_one_thread() -> Result<(), Error> {
    let tasks = fs::read_dir(Path::new("/proc/self/task")).map_err(|source| Error::System {
        what: "/proc/self/task",
        source,
    })?;
    match tasks.count() {
        1 => Ok(()),
        threads => Err(Error::Threads { threads }),
    }
}

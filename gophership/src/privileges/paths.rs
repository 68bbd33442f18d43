//! What the service user must be able to write and read.

use std::{
    collections::BTreeSet,
    env, fs,
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::{Error, Identity, Service};

/// Levels below a directory that are checked: the vault has lanes with segments in them.
const DEPTH: usize = 2;

/// Where ext4's check puts what it finds: root's alone, and nobody else's business.
const LOST_AND_FOUND: &str = "lost+found";

/// Everything the daemon touches by path after the drop.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Written to, made if missing.
    pub written: Vec<Written>,
    /// Read again at a reload: configuration, certificates, keys.
    pub read: Vec<PathBuf>,
}

/// Something that is written to.
#[derive(Debug, Clone)]
pub enum Written {
    /// A directory and what is in it.
    Tree {
        /// The configuration key.
        key: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// A file.
    File {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Mode of its directory, if that is made when missing.
        directory_mode: Option<u32>,
    },
    /// A socket, whose directory must let it be made and removed.
    Socket {
        /// The configuration key.
        key: &'static str,
        /// The socket.
        path: PathBuf,
    },
}

impl Written {
    fn path(&self) -> &Path {
        match self {
            Self::Tree { path, .. } | Self::File { path, .. } | Self::Socket { path, .. } => path,
        }
    }

    /// What of the configuration is given to the service user.
    fn base(&self) -> &Path {
        match self {
            Self::Tree { path, .. } | Self::File { path, .. } => path,
            Self::Socket { path, .. } => parent(path),
        }
    }

    fn directory(&self) -> &Path {
        match self {
            Self::Tree { path, .. } => path,
            Self::File { path, .. } | Self::Socket { path, .. } => parent(path),
        }
    }
}

impl Needs {
    pub(super) fn written_directories(&self) -> BTreeSet<&Path> {
        self.written.iter().map(Written::directory).collect()
    }

    /// The directories of what is read, and those that symbolic links lead to: certificates are
    /// replaced by renaming, or by turning such a link.
    pub(super) fn read_directories(&self) -> BTreeSet<PathBuf> {
        let own = self.read.iter().map(|path| parent(path).to_owned());
        let real = self.read.iter().filter_map(|path| {
            let real = path.canonicalize().ok()?;
            real.parent().map(Path::to_owned)
        });
        // The authorities that the system's other programs trust, if the environment names them.
        let variable = |name| env::var_os(name).map(PathBuf::from);
        let authorities = [
            variable("SSL_CERT_DIR"),
            variable("SSL_CERT_FILE").map(|file| parent(&file).to_owned()),
        ];
        own.chain(real)
            .chain(authorities.into_iter().flatten())
            .collect()
    }
}

/// Makes what is missing and gives it to the service user; what exists stays as it is. Durably: what
/// is acknowledged must be found in it.
///
/// Where the service user owns a directory on the way, names may lead anywhere: root keeps out of
/// there, and the service user makes the rest itself ([`Service::enter`]).
///
/// # Errors
/// [`Error::Make`].
pub fn prepare(needs: &Needs, service: &Service) -> Result<(), Error> {
    make(needs, service.changes_user.then_some(&service.user))
}

/// Makes what is missing: for `owner`, or as whoever we are.
pub(super) fn make(needs: &Needs, owner: Option<&Identity>) -> Result<(), Error> {
    let is_left = |path: &Path| owner.is_some_and(|owner| leads_through_own(path, owner));
    for written in needs
        .written
        .iter()
        .filter(|written| !is_left(written.path()))
    {
        match written {
            Written::Tree { path, .. } => make_directory(path, 0o700, owner)?,
            Written::Socket { path, .. } => make_directory(parent(path), 0o755, owner)?,
            Written::File {
                path,
                directory_mode,
                ..
            } => {
                if let Some(mode) = directory_mode {
                    make_directory(parent(path), *mode, owner)?;
                }
                if let Some(owner) = owner {
                    make_file(path, owner)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether the path, or a directory or link on the way to it, is the user's.
fn leads_through_own(path: &Path, user: &Identity) -> bool {
    let is_own = |part: &Path| {
        let part = if part.as_os_str().is_empty() {
            Path::new(".")
        } else {
            part
        };
        fs::symlink_metadata(part).is_ok_and(|found| found.uid() == user.uid)
    };
    path.ancestors().any(is_own)
}

fn make_directory(path: &Path, mode: u32, owner: Option<&Identity>) -> Result<(), Error> {
    let mut missing: Vec<_> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .collect();
    missing.reverse();
    for dir in missing {
        let make = || {
            match fs::DirBuilder::new().mode(mode).create(dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
                made => made?,
            }
            if let Some(owner) = owner {
                let opened = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
                    .open(dir)?;
                fchown(&opened, Some(owner.uid), Some(owner.gid))?;
            }
            File::open(parent(dir))?.sync_all()
        };
        make().map_err(|source| Error::Make {
            path: dir.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// An empty file, where there is nothing yet. A missing directory is reported by the file's user.
fn make_file(path: &Path, owner: &Identity) -> Result<(), Error> {
    let make = || {
        let made = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        match made {
            Ok(file) => fchown(&file, Some(owner.uid), Some(owner.gid)),
            Err(error)
                if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    };
    make().map_err(|source| Error::Make {
        path: path.to_owned(),
        source,
    })
}

/// Whether whoever we are now can write to everything that exists of it.
pub(super) fn check_written(needs: &Needs, user: &Identity) -> Result<(), Error> {
    for written in &needs.written {
        let (key, checked) = match written {
            Written::Tree { key, path } => (key, check_tree(path, DEPTH)),
            Written::File { key, path, .. } => (key, check_entry(path)),
            Written::Socket { key, path } => (key, check_directory(parent(path))),
        };
        checked.map_err(|refused| not_writable(written.base(), key, user, refused))?;
    }
    Ok(())
}

fn not_writable(
    base: &Path,
    key: &'static str,
    user: &Identity,
    (path, source): (PathBuf, io::Error),
) -> Error {
    let (base, user) = (base.to_owned(), Box::new(user.clone()));
    let above: Vec<_> = base.ancestors().skip(1).collect();
    // From the root on: behind the first one that is closed, nothing can be told.
    let closed = above
        .into_iter()
        .rev()
        .find(|dir| access(*dir, AccessFlags::X_OK) == Err(Errno::EACCES));
    match closed.map(Path::to_owned) {
        Some(directory) => Error::NotReachable {
            directory,
            base,
            key,
            user,
        },
        None => Error::NotWritable {
            path,
            base,
            key,
            user,
            source,
        },
    }
}

type Checked = Result<(), (PathBuf, io::Error)>;

fn check_tree(dir: &Path, depth: usize) -> Checked {
    check_directory(dir)?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| (path, source)
    };
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        if entry.file_name() == LOST_AND_FOUND {
            continue;
        }
        let path = entry.path();
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            check_tree(&path, depth - 1)?;
        } else {
            check_entry(&path)?;
        }
    }
    Ok(())
}

fn check_directory(path: &Path) -> Checked {
    check(
        path,
        AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK,
    )
}

fn check_entry(path: &Path) -> Checked {
    check(path, AccessFlags::R_OK | AccessFlags::W_OK)
}

/// What doesn't exist can't be refused; whoever makes it reports what is wrong.
fn check(path: &Path, wanted: AccessFlags) -> Checked {
    match access(path, wanted) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err((path.to_owned(), errno.into())),
    }
}

/// What a reload couldn't read.
pub(super) fn unreadable(needs: &Needs) -> Vec<(PathBuf, io::Error)> {
    let read = |path: &PathBuf| {
        let refused = access(path, AccessFlags::R_OK).err()?;
        Some((path.clone(), refused.into()))
    };
    needs.read.iter().filter_map(read).collect()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

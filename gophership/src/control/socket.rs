//! The Unix socket, bound so that it is never more open than configured.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_fd, listen, socket,
    },
    stat::{Mode, fchmod},
};

use super::Error;

/// Callers that wait to be accepted.
const BACKLOG: i32 = 64;

/// A bound socket; its file is removed with it.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: a successor's is not ours to remove.
    file: (u64, u64),
}

/// Binds `path` with `mode`, in place of the socket that a dead daemon may have left.
pub(super) fn bind(path: &Path, mode: u32) -> Result<Socket, Error> {
    let failed = |step| {
        move |source: io::Error| Error::Socket {
            step,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        let mut dir = fs::DirBuilder::new();
        let made = dir.recursive(true).mode(0o755).create(parent);
        made.map_err(failed("make the directory of"))?;
    }
    remove_stale(path)?;
    let listener = bind_private(path, mode).map_err(failed("bind"))?;
    // The umask may have taken permissions away that the configuration gives.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(failed("set the mode of"))?;
    let metadata = fs::symlink_metadata(path).map_err(failed("look at"))?;
    Ok(Socket {
        listener,
        path: path.to_owned(),
        file: (metadata.dev(), metadata.ino()),
    })
}

/// Creates, restricts, then binds: on Linux the file gets the mode of the unbound socket's inode,
/// less the umask (`unix_bind_bsd` in net/unix/af_unix.c), so no moment leaves it open wider, and
/// the umask, which all threads share, is not touched.
fn bind_private(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::from_bits_truncate(mode))?;
    bind_fd(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(fd))
}

/// Removes a socket that nobody answers on.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let failed = |step, source| Error::Socket {
        step,
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let path = path.to_owned();
            return Err(Error::NotASocket { path });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| failed("remove the stale", error))
        }
        Err(error) => Err(failed("find out who listens on", error)),
        Ok(_) => {
            let path = path.to_owned();
            Err(Error::InUse { path })
        }
    }
}

impl Socket {
    /// The listener, for the runtime that this is called on.
    pub(super) fn listener(&self) -> Result<tokio::net::UnixListener, Error> {
        let listener = self.listener.try_clone();
        listener
            .and_then(tokio::net::UnixListener::from_std)
            .map_err(|source| Error::Socket {
                step: "listen on",
                path: self.path.clone(),
                source,
            })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours {
            // Best effort: what stays is stale, and the next daemon replaces it.
            drop(fs::remove_file(&self.path));
        }
    }
}

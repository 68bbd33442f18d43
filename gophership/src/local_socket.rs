//! A Unix socket, bound so that it is never more open than configured; operators' and producers'.

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

/// A socket can't be offered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon answers on it.
    #[error("{} answers: another daemon is running on it", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that isn't a socket is in the way; it is left alone.
    #[error("{} is not a socket; move it away or set {key}", path.display())]
    NotASocket {
        /// The configuration key.
        key: &'static str,
        /// It.
        path: PathBuf,
    },
    /// It can't be made.
    #[error("cannot {step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A bound socket; its file is removed with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: a successor's is not ours to remove.
    file: (u64, u64),
}

/// Binds `path`, the value of `key`, with `mode`, in place of the socket that a dead daemon may have left. Up to
/// `backlog` callers wait to be accepted; the kernel's `net.core.somaxconn` is the limit.
///
/// # Errors
/// [`Error`].
pub fn bind(key: &'static str, path: &Path, mode: u32, backlog: i32) -> Result<Socket, Error> {
    let failed = |step| {
        move |source: io::Error| Error::Io {
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
    remove_stale(key, path)?;
    let listener = bind_private(path, mode, backlog).map_err(failed("bind"))?;
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
fn bind_private(path: &Path, mode: u32, backlog: i32) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::from_bits_truncate(mode))?;
    bind_fd(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(backlog)?)?;
    Ok(UnixListener::from(fd))
}

/// Removes a socket that nobody answers on.
fn remove_stale(key: &'static str, path: &Path) -> Result<(), Error> {
    let failed = |step, source| Error::Io {
        step,
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let path = path.to_owned();
            return Err(Error::NotASocket { key, path });
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
    ///
    /// # Errors
    /// [`Error::Io`]: the runtime can't watch it.
    pub fn listener(&self) -> Result<tokio::net::UnixListener, Error> {
        let listener = self.listener.try_clone();
        listener
            .and_then(tokio::net::UnixListener::from_std)
            .map_err(|source| Error::Io {
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

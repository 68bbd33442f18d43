//! What ends a command early, and the exit codes.

use std::process::ExitCode;

use tonic::{Code, Status};

/// Exit codes; part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Asked for, and failed.
    Failed = 1,
    /// Asked for wrongly.
    Usage = 2,
    /// The daemon can't be reached.
    CannotConnect = 3,
    /// The daemon, or the socket's mode, says no.
    NotPermitted = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended early; the text says what to do about it where we know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
    /// It makes no sense as asked.
    #[error("{0}")]
    Usage(String),
    /// The daemon can't be reached.
    #[error("{0}")]
    CannotConnect(String),
    /// We may not.
    #[error("{0}")]
    NotPermitted(String),
}

impl Failure {
    /// The exit code for it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Failed(_) => Exit::Failed,
            Self::Usage(_) => Exit::Usage,
            Self::CannotConnect(_) => Exit::CannotConnect,
            Self::NotPermitted(_) => Exit::NotPermitted,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => Self::NotPermitted(format!("not permitted: {message}")),
            Code::InvalidArgument => Self::Usage(message),
            Code::Cancelled | Code::DeadlineExceeded => Self::CannotConnect(format!(
                "the daemon took the connection but does not answer: is it stopped? ({message})"
            )),
            Code::Unavailable => Self::CannotConnect(format!("the daemon hung up: {message}")),
            Code::Unimplemented => Self::Failed(format!(
                "the daemon does not know this call; is it older than gs-ctl {}? ({message})",
                env!("CARGO_PKG_VERSION")
            )),
            _ => Self::Failed(message),
        }
    }
}

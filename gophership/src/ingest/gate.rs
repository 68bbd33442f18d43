//! Below TLS: a socket that isn't read while the ingest budget is spent, so that the pressure stands in the kernel's
//! queues, where the kernel half sees it.
//!
//! A connection that is finishing an admitted request goes on, since only what is finished gives its bytes back. The
//! gate is no bound of memory (a connection's charge covers what it may hold); so each [`TICK`] every stopped reader
//! is let through once, and nobody starves behind those who keep sending.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::State;

/// How often connections are looked after.
pub const TICK: Duration = Duration::from_secs(1);

/// A connection's socket.
pub(super) struct Gated<S> {
    socket: S,
    state: Rc<State>,
}

impl<S> Gated<S> {
    pub(super) const fn new(socket: S, state: Rc<State>) -> Self {
        Self { socket, state }
    }

    fn noted<T>(&self, written: Poll<T>) -> Poll<T> {
        self.state.writes(written.is_ready());
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.state.may_read(cx) {
            return Poll::Pending;
        }
        let had = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        self.state.reads(buffer.filled().len() > had);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

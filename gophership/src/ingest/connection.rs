//! One producer's connection: TLS handshake, HTTP, requests until it closes.

use std::{
    cell::RefCell,
    convert::Infallible,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::Request;
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Mode,
    acceptor::{Accepted, Peer, Socket},
    grpc, http,
    inflate::Inflater,
    tls::refused::Refused,
};
use crate::{
    somatic::Reflex,
    telemetry::{
        counters::{Protocol, WorkerCounters},
        throttle::Throttle,
    },
};

/// Bytes that a peer may send on one connection before the daemon reads.
pub const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Bytes that a peer may send on one stream before the daemon reads.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Clients that use larger frames than 16 KiB spare both sides work.
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
const STREAMS_MAX: u32 = 256;
const HEADERS_MAX: usize = 64;
/// What HTTP/1.1 may read ahead of the handler; the head of a request must fit.
const HTTP1_BUFFER_BYTES_MAX: usize = 512 * 1024;
/// A request's head must be here within this; it also ends a connection that idles between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Room that a pipelining peer surely has when the daemon stops reading: HTTP/2 windows are
/// re-opened when half of them is spent, so between half and all of it is left.
pub const STALLED_WINDOW_BYTES: u32 = CONNECTION_WINDOW_BYTES / 2;

/// What the connections of one worker share.
pub struct Context {
    /// Where requests go.
    pub reflex: Reflex,
    /// The worker's counters.
    pub counters: Arc<WorkerCounters>,
    /// Bytes of requests being received, over all workers.
    pub budget: Arc<Semaphore>,
    /// Largest message, compressed and decompressed, in bytes.
    pub max_request_bytes: usize,
    /// Decompression, with its buffer.
    pub inflater: Inflater,
    /// Anybody can have their handshake refused, as often as they like.
    pub refusals_told: RefCell<Throttle>,
}

impl Context {
    fn refused(&self, peer: Peer, refused: &Refused) {
        self.counters.handshake_failed(refused.failure);
        if let Some(left_out) = self.refusals_told.borrow_mut().admit(Instant::now()) {
            tracing::warn!(%peer, reason = %refused, left_out, "ingest: connection refused");
        }
    }
}

/// Runs hyper's stream tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Serves one connection until it closes, or until the mode changes and its requests are
/// answered. Without `tls` it is served in plaintext.
pub async fn serve(
    accepted: Accepted,
    tls: Option<TlsAcceptor>,
    context: Rc<Context>,
    mut mode: watch::Receiver<Mode>,
) {
    let Accepted {
        socket,
        peer,
        protocol,
    } = accepted;
    let _counted = Counted(Arc::clone(&context.counters));
    match (socket, tls) {
        (Socket::Unix(socket), _) => match UnixStream::from_std(socket) {
            Ok(stream) => serve_http(stream, peer, protocol, context, mode).await,
            Err(error) => tracing::warn!(%peer, %error, "ingest: connection lost"),
        },
        (Socket::Tcp(socket), None) => match TcpStream::from_std(socket) {
            Ok(stream) => serve_http(stream, peer, protocol, context, mode).await,
            Err(error) => tracing::warn!(%peer, %error, "ingest: connection lost"),
        },
        (Socket::Tcp(socket), Some(tls)) => {
            let handshake = tokio::select! {
                handshake = handshake(socket, tls) => handshake,
                () = not_serving(&mut mode) => return,
            };
            match handshake {
                Ok(stream) => serve_http(stream, peer, protocol, context, mode).await,
                Err(refused) => context.refused(peer, &refused),
            }
        }
    }
}

/// Completes when requests are taken no more, and keeps no look at the mode: as long as somebody has one,
/// it can't change again, and whoever changes it waits.
async fn not_serving(mode: &mut watch::Receiver<Mode>) {
    drop(mode.wait_for(|mode| *mode != Mode::Serving).await);
}

struct Counted(Arc<WorkerCounters>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0
            .connections
            .fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

async fn handshake(
    socket: std::net::TcpStream,
    tls: TlsAcceptor,
) -> Result<TlsStream<TcpStream>, Refused> {
    let stream = TcpStream::from_std(socket).map_err(|error| Refused::because_of(&error))?;
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(done) => done.map_err(|error| Refused::because_of(&error)),
        Err(_) => Err(Refused::too_slow(HANDSHAKE_TIMEOUT)),
    }
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static {}
impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static> Stream for S {}

async fn serve_http(
    stream: impl Stream,
    peer: Peer,
    protocol: Protocol,
    context: Rc<Context>,
    mode: watch::Receiver<Mode>,
) {
    let ended = match protocol {
        Protocol::Grpc => serve_grpc(stream, context, mode).await,
        Protocol::Http => serve_otlp_http(stream, context, mode).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error, "ingest: connection ended");
    }
}

async fn serve_grpc(
    stream: impl Stream,
    context: Rc<Context>,
    mut mode: watch::Receiver<Mode>,
) -> Result<(), String> {
    let service = service_fn(move |request: Request<Incoming>| {
        let context = Rc::clone(&context);
        async move { Ok::<_, Infallible>(grpc::respond(&context, request).await) }
    });
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = not_serving(&mut mode) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(|error| error.to_string())
}

/// HTTP/1.1 or HTTP/2, whichever the client begins with.
async fn serve_otlp_http(
    stream: impl Stream,
    context: Rc<Context>,
    mut mode: watch::Receiver<Mode>,
) -> Result<(), String> {
    let service = service_fn(move |request: Request<Incoming>| {
        let context = Rc::clone(&context);
        async move { Ok::<_, Infallible>(http::respond(&context, request).await) }
    });
    let mut builder = auto::Builder::new(LocalExecutor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = not_serving(&mut mode) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(|error| error.to_string())
}

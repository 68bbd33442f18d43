//! One producer's connection: TLS handshake, HTTP, requests until it closes.

use std::{
    cell::RefCell,
    convert::Infallible,
    fmt::Display,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Mode,
    acceptor::{Accepted, Peer, Socket},
    budget::Budget,
    frames::Screened,
    gate::Gated,
    grpc, http,
    needs::Needs,
    room::Seat,
    state::{Connections, State},
    tls::refused::Refused,
    unpack::Unpacker,
    window::Windows,
};
use crate::{
    somatic::Reflex,
    telemetry::{
        counters::{Protocol, WorkerCounters},
        throttle::Throttle,
    },
};

const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// A request's head must be here within this; it also ends a connection that idles between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams that a peer opened and reset before they were looked at; more end the connection.
const RESET_STREAMS_MAX: usize = 20;
/// Streams that a peer has had reset by its errors; more end the connection.
const ERROR_STREAMS_MAX: usize = 256;
/// An answer has some hundred bytes.
const SEND_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// rustls' buffer of what is to be sent.
const TLS_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// A connection that has to go, and has no request, takes leave within this.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Room that a pipelining peer surely has when the daemon stops reading; the socket's own buffer is as small for
/// peers with smaller windows.
pub const STALLED_WINDOW_BYTES: u32 = Windows::LARGEST.stalled();

/// What the connections of one worker share.
pub struct Context {
    /// Where requests go.
    pub reflex: Reflex,
    /// The worker's counters.
    pub counters: Arc<WorkerCounters>,
    /// Bytes of connections and of requests being received, over all workers.
    pub budget: Arc<Budget>,
    /// Every connection of the worker.
    pub connections: Connections,
    /// What requests may have, and need of the budget.
    pub needs: Needs,
    /// What makes plain protobuf of the rest, with its buffers.
    pub unpacker: Unpacker,
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

/// HTTP/2's limits, for both kinds of builders.
macro_rules! limits {
    ($builder:expr, $windows:expr) => {
        $builder
            .timer(TokioTimer::new())
            .initial_connection_window_size($windows.connection)
            .initial_stream_window_size($windows.stream())
            .max_frame_size($windows.frame())
            .max_concurrent_streams($windows.streams())
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .max_local_error_reset_streams(ERROR_STREAMS_MAX)
            .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
    };
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

/// Serves one connection until it closes, has to leave, or until the mode changes and its requests are
/// answered. Without `tls` it is served in plaintext.
pub async fn serve(
    accepted: Accepted,
    tls: Option<TlsAcceptor>,
    context: Rc<Context>,
    mode: watch::Receiver<Mode>,
) {
    let Accepted {
        socket,
        peer,
        protocol,
        seat,
    } = accepted;
    let _counted = Counted(Arc::clone(&context.counters));
    let state = State::new(Rc::clone(&context), Arc::clone(seat.presence()));
    seat.shake_hands();
    let served = match socket {
        Socket::Unix(socket) => match UnixStream::from_std(socket) {
            Ok(stream) => {
                let stream = Gated::new(stream, Rc::clone(&state));
                serve_http(stream, protocol, &seat, state, mode).await
            }
            Err(error) => Err(Ended::Broken(error.to_string())),
        },
        Socket::Tcp(socket) => match TcpStream::from_std(socket) {
            Ok(stream) => serve_tcp(stream, tls, protocol, seat, state, mode).await,
            Err(error) => Err(Ended::Broken(error.to_string())),
        },
    };
    match served {
        Ok(()) => {}
        Err(Ended::Refused(refused)) => context.refused(peer, &refused),
        Err(Ended::Broken(error)) => tracing::debug!(%peer, error, "ingest: connection ended"),
    }
}

/// Why a connection ended otherwise than by its peer's good-bye.
enum Ended {
    /// By its handshake.
    Refused(Refused),
    /// While it was served.
    Broken(String),
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

async fn serve_tcp(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    protocol: Protocol,
    seat: Seat,
    state: Rc<State>,
    mut mode: watch::Receiver<Mode>,
) -> Result<(), Ended> {
    let stream = Gated::new(stream, Rc::clone(&state));
    let Some(tls) = tls else {
        return serve_http(stream, protocol, &seat, state, mode).await;
    };
    let stream = tokio::select! {
        biased;
        handshake = handshake(stream, &tls) => handshake.map_err(Ended::Refused)?,
        () = state.asked_to_leave() => return Err(Ended::Refused(Refused::for_another())),
        () = not_serving(&mut mode) => return Ok(()),
    };
    serve_http(stream, protocol, &seat, state, mode).await
}

async fn handshake<S>(stream: S, tls: &TlsAcceptor) -> Result<TlsStream<S>, Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(mut stream)) => {
            let (_, session) = stream.get_mut();
            session.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
            Ok(stream)
        }
        Ok(Err(error)) => Err(Refused::because_of(&error)),
        Err(_) => Err(Refused::too_slow(HANDSHAKE_TIMEOUT)),
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    protocol: Protocol,
    seat: &Seat,
    state: Rc<State>,
    mode: watch::Receiver<Mode>,
) -> Result<(), Ended> {
    let stream = Screened::new(stream, Rc::clone(&state));
    match protocol {
        Protocol::Grpc => serve_grpc(stream, seat.windows(), state, mode).await,
        Protocol::Http => serve_otlp_http(stream, seat.windows(), state, mode).await,
    }
}

async fn serve_grpc(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    windows: Windows,
    state: Rc<State>,
    mode: watch::Receiver<Mode>,
) -> Result<(), Ended> {
    let of = Rc::clone(&state);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let begun = of.begin();
        async move {
            let response = grpc::respond(&begun, request).await;
            Ok::<_, Infallible>(begun.answer(response))
        }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    limits!(builder, windows);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let connection = std::pin::pin!(connection);
    let shut = |connection: Pin<&mut http2::Connection<_, _, _>>| connection.graceful_shutdown();
    until_closed(connection, shut, &state, mode).await
}

/// HTTP/1.1 or HTTP/2, whichever the client begins with.
async fn serve_otlp_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    windows: Windows,
    state: Rc<State>,
    mode: watch::Receiver<Mode>,
) -> Result<(), Ended> {
    let of = Rc::clone(&state);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let begun = of.begin();
        async move {
            let response = http::respond(&begun, request).await;
            Ok::<_, Infallible>(begun.answer(response))
        }
    });
    let mut builder = auto::Builder::new(LocalExecutor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(windows.http1_buffer())
        .max_headers(HEADERS_MAX);
    limits!(builder.http2(), windows);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let connection = std::pin::pin!(connection);
    let shut = |connection: Pin<&mut auto::Connection<'_, _, _, _>>| connection.graceful_shutdown();
    until_closed(connection, shut, &state, mode).await
}

/// Drives a connection to its end, which the daemon may ask for.
async fn until_closed<C, E>(
    mut connection: Pin<&mut C>,
    shut: impl Fn(Pin<&mut C>),
    state: &State,
    mut mode: watch::Receiver<Mode>,
) -> Result<(), Ended>
where
    C: Future<Output = Result<(), E>>,
    E: Display,
{
    let ended = |ended: Result<(), E>| ended.map_err(|error| Ended::Broken(error.to_string()));
    let is_for_another = tokio::select! {
        done = connection.as_mut() => return ended(done),
        () = state.asked_to_leave() => true,
        () = not_serving(&mut mode) => false,
    };
    if state.is_cut_off() {
        let why = "the peer takes no answers, or sends nothing";
        return Err(Ended::Broken(why.to_owned()));
    }
    // Who hasn't greeted is owed no good-bye.
    if is_for_another && !state.has_been_heard() {
        return Err(Ended::Refused(Refused::for_another()));
    }
    shut(connection.as_mut());
    // A peer that has no request may not answer the good-bye either.
    loop {
        match tokio::time::timeout(LEAVE_TIMEOUT, connection.as_mut()).await {
            Ok(done) => return ended(done),
            Err(_) if state.is_idle() || state.is_cut_off() => return Ok(()),
            Err(_) => {}
        }
    }
}

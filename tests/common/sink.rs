//! An OTLP/gRPC destination that keeps what it accepted, byte for byte, and misbehaves on demand.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use prost::Message as _;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime,
    sync::{oneshot, watch},
};
use tonic::Code;

use super::{certs::Certs, producer};

/// What the sink says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It stores the request, then answers OK.
    Accept,
    /// A gRPC error.
    Refuse(Code),
    /// A gRPC error with `RetryInfo`.
    RefuseFor(Code, Duration),
    /// The stream is reset; nothing is stored.
    Reset,
    /// It stores the request, and then resets the stream.
    StoreAndReset,
    /// It stores the request, then answers with a partial success: so many of its records are rejected.
    AcceptLess(u32),
    /// It takes this long to store the request and to answer OK.
    AcceptAfter(Duration),
    /// `INVALID_ARGUMENT` to requests that contain these bytes; it stores the others.
    RejectWith(&'static [u8]),
    /// `UNAVAILABLE` to requests that contain these bytes; it stores the others.
    FailAt(&'static [u8]),
    /// Nothing, until the answer is another one.
    Hold,
}

#[derive(Debug)]
struct State {
    answer: watch::Sender<Answer>,
    stored: Mutex<Vec<Bytes>>,
    /// Of those, requests whose caller may not know.
    doubtful: Mutex<Vec<Bytes>>,
    seen: AtomicUsize,
    holding: AtomicUsize,
    /// Why connections ended, to explain a failure.
    ended: Mutex<Vec<String>>,
}

impl State {
    fn note(&self, reason: String) {
        self.ended
            .lock()
            .expect("the sink didn't panic")
            .push(reason);
    }
}

/// A destination on a port of its own, which it keeps from its making on.
#[derive(Debug)]
pub(crate) struct Sink {
    address: SocketAddr,
    tls: Option<Certs>,
    state: Arc<State>,
    listen: Option<oneshot::Sender<()>>,
    _stop: oneshot::Sender<()>,
}

impl Sink {
    /// A plaintext sink that is up.
    pub(crate) fn up() -> Self {
        let mut sink = Self::down();
        sink.come_up();
        sink
    }

    /// A plaintext sink that refuses connections until [`Self::come_up`].
    pub(crate) fn down() -> Self {
        Self::bind(None)
    }

    /// A TLS sink that refuses connections until [`Self::come_up`] and demands client certificates.
    pub(crate) fn down_with_tls(certs: &Certs) -> Self {
        Self::bind(Some(certs.clone()))
    }

    fn bind(tls: Option<Certs>) -> Self {
        let (answer, _) = watch::channel(Answer::Accept);
        let state = Arc::new(State {
            answer,
            stored: Mutex::default(),
            doubtful: Mutex::default(),
            seen: AtomicUsize::new(0),
            holding: AtomicUsize::new(0),
            ended: Mutex::default(),
        });
        let (listen, may_listen) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        // A socket that is bound but doesn't listen refuses connections, and nobody takes its port.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .expect("a port on loopback");
        let address = socket.local_addr().expect("the bound address");
        let (config, shared) = (tls.as_ref().map(Certs::server), Arc::clone(&state));
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime for the sink");
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    result = serve(socket, may_listen, config, Arc::clone(&shared)) => {
                        if let Err(e) = result {
                            shared.note(format!("the sink itself failed: {e}"));
                        }
                    }
                }
            });
        });
        Self {
            address,
            tls,
            state,
            listen: Some(listen),
            _stop: stop,
        }
    }

    /// Starts to listen.
    pub(crate) fn come_up(&mut self) {
        if let Some(listen) = self.listen.take() {
            listen.send(()).expect("the sink's thread runs");
        }
    }

    /// Answers this way from now on, also to requests that are held.
    pub(crate) fn answer(&self, answer: Answer) {
        self.state.answer.send_replace(answer);
    }

    /// Requests that arrived whole, whatever the answer.
    pub(crate) fn seen(&self) -> usize {
        self.state.seen.load(Ordering::SeqCst)
    }

    /// Requests whose caller waits for an answer at this moment.
    pub(crate) fn holding(&self) -> usize {
        self.state.holding.load(Ordering::SeqCst)
    }

    /// Every accepted request's message bytes, in the order of acceptance.
    pub(crate) fn stored(&self) -> Vec<Bytes> {
        self.state
            .stored
            .lock()
            .expect("the sink didn't panic")
            .clone()
    }

    /// Those of [`Self::stored`] that weren't answered, or not at once: whoever sent them may have given up.
    pub(crate) fn doubtful(&self) -> Vec<Bytes> {
        let doubtful = self.state.doubtful.lock();
        doubtful.expect("the sink didn't panic").clone()
    }

    /// Number of accepted requests.
    pub(crate) fn stored_count(&self) -> usize {
        self.state
            .stored
            .lock()
            .expect("the sink didn't panic")
            .len()
    }

    /// The destination `name` in a configuration.
    pub(crate) fn destination(&self, name: &str, timeout: &str) -> String {
        let port = self.address.port();
        match &self.tls {
            None => format!(
                "{{ name: {name}, otlp: {{ endpoint: \"http://127.0.0.1:{port}\", \
                 timeout: {timeout}, tls: {{ insecure: true }} }} }}"
            ),
            Some(certs) => format!(
                "{{ name: {name}, otlp: {{ endpoint: \"https://localhost:{port}\", \
                 timeout: {timeout}, tls: {{ ca: \"{}\", cert: \"{}\", key: \"{}\" }} }} }}",
                certs.path("ca.pem").display(),
                certs.path("client.pem").display(),
                certs.path("client.key").display(),
            ),
        }
    }

    /// Where it listens or will.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let ended = self.state.ended.lock();
        eprintln!(
            "=== sink {}: {} requests seen, {} held, {} stored; connections that broke: {:?}",
            self.address,
            self.seen(),
            self.holding(),
            self.state.stored.lock().map_or(0, |stored| stored.len()),
            ended.as_deref().map_or(&[][..], Vec::as_slice),
        );
    }
}

async fn serve(
    socket: TcpSocket,
    may_listen: oneshot::Receiver<()>,
    tls: Option<Arc<ServerConfig>>,
    state: Arc<State>,
) -> io::Result<()> {
    if may_listen.await.is_err() {
        return Ok(());
    }
    let listener: TcpListener = socket.listen(128)?;
    let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let (acceptor, state) = (acceptor.clone(), state.clone());
        tokio::spawn(async move {
            let result = match acceptor {
                None => converse(tcp, Arc::clone(&state)).await,
                Some(acceptor) => match acceptor.accept(tcp).await {
                    Ok(stream) => converse(stream, Arc::clone(&state)).await,
                    Err(e) => Err(format!("TLS: {e}")),
                },
            };
            if let Err(reason) = result {
                state.note(reason);
            }
        });
    }
}

async fn converse(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    state: Arc<State>,
) -> Result<(), String> {
    let service = service_fn(move |request| handle(request, state.clone()));
    http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|e| format!("{e:?}"))
}

type Body = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// Why a stream is reset.
type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn handle(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, Broken> {
    let known = request.uri().path() == producer::LOGS;
    let gzip = request
        .headers()
        .get("grpc-encoding")
        .is_some_and(|e| e == "gzip");
    let framed = request.into_body().collect().await?.to_bytes();
    let said = match message(&framed, gzip) {
        _ if !known => Said::Code(Code::Unimplemented),
        None => Said::Code(Code::InvalidArgument),
        Some(message) => {
            state.seen.fetch_add(1, Ordering::SeqCst);
            decide(&state, message).await
        }
    };
    match said {
        Said::Code(code) => Ok(respond(0, producer::status_trailers(code))),
        Said::Less(rejected) => Ok(respond(rejected, producer::status_trailers(Code::Ok))),
        Said::ComeAgain(code, delay) => Ok(respond(0, producer::retry_trailers(code, delay))),
        Said::Nothing => Err("the test resets the stream".into()),
    }
}

/// How a request is answered.
enum Said {
    Code(Code),
    Less(u32),
    ComeAgain(Code, Duration),
    Nothing,
}

/// Follows the answer that is set, through holds, to a status.
async fn decide(state: &Arc<State>, message: Bytes) -> Said {
    let store = |list: &Mutex<Vec<Bytes>>| {
        let mut list = list.lock().expect("the sink didn't panic");
        list.push(message.clone());
    };
    let mut answers = state.answer.subscribe();
    let mut has_waited = false;
    loop {
        let answer = *answers.borrow_and_update();
        match answer {
            Answer::RejectWith(mark) if message.windows(mark.len()).any(|w| w == mark) => {
                return Said::Code(Code::InvalidArgument);
            }
            Answer::FailAt(mark) if message.windows(mark.len()).any(|w| w == mark) => {
                return Said::Code(Code::Unavailable);
            }
            Answer::Accept | Answer::RejectWith(_) | Answer::FailAt(_) | Answer::AcceptLess(_) => {
                if has_waited {
                    store(&state.doubtful);
                }
                store(&state.stored);
                return match answer {
                    Answer::AcceptLess(rejected) => Said::Less(rejected),
                    _ => Said::Code(Code::Ok),
                };
            }
            Answer::AcceptAfter(delay) => {
                tokio::time::sleep(delay).await;
                store(&state.doubtful);
                store(&state.stored);
                return Said::Code(Code::Ok);
            }
            Answer::StoreAndReset => {
                store(&state.doubtful);
                store(&state.stored);
                return Said::Nothing;
            }
            Answer::Reset => return Said::Nothing,
            Answer::Refuse(code) => return Said::Code(code),
            Answer::RefuseFor(code, delay) => return Said::ComeAgain(code, delay),
            Answer::Hold => {
                has_waited = true;
                let _held = Held::new(state.clone());
                if answers.changed().await.is_err() {
                    return Said::Code(Code::Aborted);
                }
            }
        }
    }
}

/// Counts a held request for as long as its caller waits.
struct Held(Arc<State>);

impl Held {
    fn new(state: Arc<State>) -> Self {
        state.holding.fetch_add(1, Ordering::SeqCst);
        Self(state)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.holding.fetch_sub(1, Ordering::SeqCst);
    }
}

fn message(framed: &Bytes, gzip: bool) -> Option<Bytes> {
    let head: [u8; 5] = framed.get(..5)?.try_into().ok()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let message = framed.slice(5..);
    if message.len() as u64 != u64::from(length) {
        return None;
    }
    match (head[0], gzip) {
        (0, _) => Some(message),
        (1, true) => {
            let mut plain = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(message.as_ref());
            io::Read::read_to_end(&mut decoder, &mut plain).ok()?;
            Some(plain.into())
        }
        _ => None,
    }
}

fn respond(rejected: u32, trailers: HeaderMap) -> Response<Body> {
    let mut frames = Vec::new();
    if trailers.get("grpc-status").is_some_and(|code| code == "0") {
        let partial = (rejected != 0).then(|| ExportLogsPartialSuccess {
            rejected_log_records: rejected.into(),
            error_message: "the test rejects some".to_owned(),
        });
        let response = ExportLogsServiceResponse {
            partial_success: partial,
        };
        let framed = producer::frame(&response.encode_to_vec(), false);
        frames.push(Ok(Frame::data(framed)));
    }
    frames.push(Ok(Frame::trailers(trailers)));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(StreamBody::new(tokio_stream::iter(frames)))
        .expect("a valid response")
}

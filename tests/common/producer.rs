//! An OTLP/gRPC producer over TLS that knows the exact bytes it sends and is told every outcome.
//!
//! It speaks gRPC by hand over hyper's HTTP/2, because a gRPC library would hide what is tested
//! here: the bytes of a frame, the trailers, and the end of a connection (there are no retries).

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    runtime,
    sync::oneshot,
};
use tonic::{Code, Status};

/// Path of the logs service.
pub(crate) const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// Longest wait for any answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Why a request is not known to be acknowledged.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server answered with a gRPC error.
    Status(Status),
    /// The connection broke before an answer: the request may have been taken or not.
    Connection(String),
}

impl Failure {
    /// The gRPC error, if it is one.
    #[track_caller]
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Status(status) => status,
            Self::Connection(reason) => panic!("expected a gRPC status, but {reason}"),
        }
    }
}

/// The response message, or why there is none.
pub(crate) type Reply = Result<Bytes, Failure>;

/// One request, with what is unusual about it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    path: &'static str,
    message: Bytes,
    encoding: Option<&'static str>,
}

impl Call {
    /// A plain `Export` of logs.
    pub(crate) fn logs(message: Bytes) -> Self {
        Self {
            path: LOGS,
            message,
            encoding: None,
        }
    }

    /// To another method.
    pub(crate) fn to(path: &'static str, message: Bytes) -> Self {
        Self {
            path,
            message,
            encoding: None,
        }
    }

    /// The message is already compressed with `encoding`.
    pub(crate) fn compressed(mut self, encoding: &'static str) -> Self {
        self.encoding = Some(encoding);
        self
    }
}

/// A request that was sent and may not be answered yet.
#[derive(Debug)]
pub(crate) struct Pending(mpsc::Receiver<Reply>);

impl Pending {
    /// The answer, if it came.
    pub(crate) fn poll(&self) -> Option<Reply> {
        match self.0.try_recv() {
            Ok(reply) => Some(reply),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(producer_gone())),
        }
    }

    /// Waits for the answer.
    pub(crate) fn wait(&self) -> Reply {
        match self.0.recv_timeout(ANSWER_WITHIN) {
            Ok(reply) => reply,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Failure::Connection(format!(
                "there was no answer within {ANSWER_WITHIN:?}"
            ))),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(producer_gone()),
        }
    }
}

fn producer_gone() -> Failure {
    Failure::Connection("the producer was dropped".to_owned())
}

/// One connection, driven by a thread of its own.
#[derive(Debug)]
pub(crate) struct Producer {
    runtime: runtime::Handle,
    connection: http2::SendRequest<Full<Bytes>>,
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Producer {
    /// Connects; the error is the handshake's.
    pub(crate) fn connect(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Self, String> {
        Self::over(address, open(address, tls))
    }

    /// Connects without TLS.
    pub(crate) fn connect_plaintext(address: SocketAddr) -> Result<Self, String> {
        Self::over(address, async move {
            let tcp = TcpStream::connect(address).await;
            handshake(tcp.map_err(|e| e.to_string())?).await
        })
    }

    /// Connects to a Unix socket.
    pub(crate) fn connect_unix(path: PathBuf) -> Result<Self, String> {
        // The address is only what requests call the server.
        Self::over(SocketAddr::from(([127, 0, 0, 1], 0)), async move {
            let stream = UnixStream::connect(&path).await;
            handshake(stream.map_err(|e| e.to_string())?).await
        })
    }

    fn over(
        address: SocketAddr,
        opening: impl Future<Output = Opened> + Send + 'static,
    ) -> Result<Self, String> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, connected) = mpsc::channel();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime for the producer");
            runtime.block_on(async {
                let connection = opening.await;
                let handle = runtime::Handle::current();
                if ready.send(connection.map(|c| (handle, c))).is_ok() {
                    // Ends with an error when the producer is dropped, which is the signal.
                    drop(stopped.await);
                }
            });
        });
        let (runtime, connection) = connected
            .recv_timeout(ANSWER_WITHIN)
            .map_err(|e| format!("connecting to {address}: {e}"))??;
        Ok(Self {
            runtime,
            connection,
            address,
            _stop: stop,
        })
    }

    /// Sends a call without waiting for its answer.
    pub(crate) fn start(&self, call: Call) -> Pending {
        let (answer, pending) = mpsc::channel();
        let (connection, address) = (self.connection.clone(), self.address);
        self.runtime.spawn(async move {
            // The test may no longer want to know.
            drop(answer.send(exchange(connection, address, call).await));
        });
        Pending(pending)
    }

    /// Sends a logs message and waits for the answer.
    pub(crate) fn export(&self, message: Bytes) -> Reply {
        self.start(Call::logs(message)).wait()
    }

    /// Sends messages one after the other, all of which must be acknowledged.
    #[track_caller]
    pub(crate) fn export_all(&self, messages: &[Bytes]) {
        for (number, message) in messages.iter().enumerate() {
            if let Err(failure) = self.export(message.clone()) {
                panic!("message {number} was not acknowledged: {failure:?}");
            }
        }
    }
}

/// A connection, or why there is none.
type Opened = Result<http2::SendRequest<Full<Bytes>>, String>;

/// Opens one HTTP/2 connection over TLS and drives it on the current runtime.
pub(crate) async fn open(address: SocketAddr, tls: Arc<ClientConfig>) -> Opened {
    let name = ServerName::try_from("localhost").expect("a valid name");
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|e| format!("connect to {address}: {e}"))?;
    let stream = tokio_rustls::TlsConnector::from(tls)
        .connect(name, tcp)
        .await
        .map_err(|e| format!("TLS handshake with {address}: {e}"))?;
    let opened = handshake(stream).await;
    opened.map_err(|e| format!("HTTP/2 with {address}: {e}"))
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Opened {
    // Until the server has said how many streams it takes, which isn't done with the handshake, one must do: it resets
    // what is too many.
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_max_send_streams(1)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    // Its error reaches the requests.
    tokio::spawn(connection);
    sender.ready().await.map_err(|e| e.to_string())?;
    Ok(sender)
}

/// One unary call.
pub(crate) async fn exchange(
    mut connection: http2::SendRequest<Full<Bytes>>,
    address: SocketAddr,
    call: Call,
) -> Reply {
    let broken = |e: hyper::Error| Failure::Connection(format!("the connection broke: {e:?}"));
    let mut request = Request::post(format!("https://localhost:{}{}", address.port(), call.path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "gophership-tests");
    if let Some(encoding) = call.encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let request = request
        .body(Full::new(frame(&call.message, call.encoding.is_some())))
        .expect("a valid request");
    connection.ready().await.map_err(broken)?;
    let response = connection.send_request(request).await.map_err(broken)?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(broken)?;
    let status = body
        .trailers()
        .and_then(Status::from_header_map)
        .or_else(|| Status::from_header_map(&head.headers));
    match status {
        Some(status) if status.code() == Code::Ok => unframe(&body.to_bytes()),
        Some(status) => Err(Failure::Status(status)),
        None => Err(Failure::Connection(format!(
            "HTTP {} without a grpc-status; headers {:?}",
            head.status, head.headers
        ))),
    }
}

/// A gRPC frame: compressed flag, big-endian length, message.
pub(crate) fn frame(message: &[u8], compressed: bool) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(u8::from(compressed));
    framed.put_u32(u32::try_from(message.len()).expect("a message below 4 GiB"));
    framed.put_slice(message);
    framed.freeze()
}

fn unframe(body: &Bytes) -> Reply {
    let length = body
        .get(1..5)
        .map(|l| u32::from_be_bytes(l.try_into().expect("four bytes")));
    match length {
        Some(length) if body.len() as u64 == u64::from(length) + 5 => Ok(body.slice(5..)),
        _ => Err(Failure::Connection(format!(
            "OK, but the body is not one gRPC message: {body:?}"
        ))),
    }
}

/// `google.rpc.Status`, which `grpc-status-details-bin` holds.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The delay of the status's `google.rpc.RetryInfo`, if it has one.
pub(crate) fn retry_delay(status: &Status) -> Option<Duration> {
    let details = RpcStatus::decode(status.details()).expect("grpc-status-details-bin decodes");
    let any = details
        .details
        .iter()
        .find(|any| any.type_url.ends_with("google.rpc.RetryInfo"))?;
    let info = RetryInfo::decode(any.value.as_slice()).expect("RetryInfo decodes");
    let delay = info.retry_delay.expect("RetryInfo names a delay");
    Some(Duration::try_from(delay).expect("a delay that isn't negative"))
}

/// The headers of a gRPC error, for a server that answers by hand.
pub(crate) fn status_trailers(code: Code) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", (code as i32).into());
    trailers
}

/// The headers of a gRPC error with `RetryInfo`.
pub(crate) fn retry_trailers(code: Code, delay: Duration) -> HeaderMap {
    let info = RetryInfo {
        retry_delay: Some(delay.try_into().expect("a short delay")),
    };
    let details = RpcStatus {
        code: code as i32,
        message: String::new(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: info.encode_to_vec(),
        }],
    };
    let details = Status::with_details(code, "come again", details.encode_to_vec().into());
    let mut trailers = HeaderMap::new();
    details.add_header(&mut trailers).expect("valid headers");
    trailers
}

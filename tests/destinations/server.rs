//! A scripted gRPC and HTTP server: says what it was sent, and answers as told.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::Notify,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// How the server answers every call.
#[derive(Clone)]
pub(crate) enum Script {
    /// OK with this response message.
    Message(Vec<u8>),
    /// This gRPC status in the trailers, after the headers.
    Trailers(HeaderMap),
    /// This gRPC status in the headers: "trailers only".
    HeadersOnly(HeaderMap),
    /// An HTTP status with a page, as proxies send.
    Page(StatusCode),
    /// An HTTP status with `Retry-After: 7` and a body in protobuf, as OTLP/HTTP answers.
    Protobuf(StatusCode, Vec<u8>),
    /// HTTP 200 with a body of this type.
    Typed(&'static str, Vec<u8>),
    /// HTTP 200 in protobuf, without an end.
    Endless,
    /// HTTP 200 and then the end, without any gRPC status.
    Nothing,
    /// No answer ever.
    Silence,
}

/// One call as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) peer: SocketAddr,
    pub(crate) path: String,
    pub(crate) version: Version,
    pub(crate) scheme: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens on `port` (0: one the OS picks).
    pub(crate) fn start(port: u16, tls: Option<Arc<ServerConfig>>, script: Script) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, port).into(), tls, script)
    }

    pub(crate) fn start_at(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        script: Script,
    ) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::default();
        let stop = Arc::new(Notify::new());
        let serving = serve(listener, tls, script, Arc::clone(&calls), Arc::clone(&stop));
        Self {
            address,
            calls,
            stop,
            task: tokio::spawn(serving),
        }
    }

    /// Stops listening and cuts all connections.
    pub(crate) async fn stop(self) {
        self.stop.notify_one();
        self.task.await.unwrap();
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    script: Script,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Arc<Notify>,
) {
    // Dropped with its connections when the server stops.
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            () = stop.notified() => return,
        };
        let (tls, script, calls) = (tls.clone(), script.clone(), Arc::clone(&calls));
        connections.spawn(async move {
            match tls {
                None => connection(stream, peer, script, calls).await,
                Some(tls) => {
                    if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                        connection(stream, peer, script, calls).await;
                    }
                }
            }
        });
    }
}

async fn connection<S>(stream: S, peer: SocketAddr, script: Script, calls: Arc<Mutex<Vec<Call>>>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (script, calls) = (script.clone(), Arc::clone(&calls));
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            calls.lock().unwrap().push(Call {
                peer,
                path: head.uri.path().to_owned(),
                version: head.version,
                scheme: head.uri.scheme_str().map(ToOwned::to_owned),
                headers: head.headers,
                body,
            });
            answer(script).await
        }
    });
    // An error here is the client going away.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

async fn answer(script: Script) -> Result<Answer, Infallible> {
    let mut head = Response::builder().header("content-type", "application/grpc");
    let frames = match script {
        Script::Message(message) => vec![
            Frame::data(framed(&message)),
            Frame::trailers(status(0, "")),
        ],
        Script::Trailers(trailers) => vec![Frame::trailers(trailers)],
        Script::HeadersOnly(headers) => {
            head.headers_mut().unwrap().extend(headers);
            vec![]
        }
        Script::Page(status) => {
            head = Response::builder()
                .status(status)
                .header("retry-after", "7");
            vec![Frame::data(Bytes::from_static(b"<html>"))]
        }
        Script::Protobuf(status, body) => {
            head = Response::builder()
                .status(status)
                .header("content-type", "application/x-protobuf")
                .header("retry-after", "7");
            vec![Frame::data(body.into())]
        }
        Script::Typed(kind, body) => {
            head = Response::builder().header("content-type", kind);
            vec![Frame::data(body.into())]
        }
        Script::Endless => {
            let head = Response::builder().header("content-type", "application/x-protobuf");
            let chunk = || Ok(Frame::data(Bytes::from_static(&[0xff; 4096])));
            let chunks = tokio_stream::iter(std::iter::repeat_with(chunk));
            return Ok(head.body(BodyExt::boxed(StreamBody::new(chunks))).unwrap());
        }
        Script::Nothing => vec![],
        Script::Silence => std::future::pending().await,
    };
    let frames = tokio_stream::iter(frames.into_iter().map(Ok));
    Ok(head.body(BodyExt::boxed(StreamBody::new(frames))).unwrap())
}

/// A message as gRPC sends it.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.put_slice(message);
    framed.freeze()
}

/// A gRPC status as headers or trailers.
pub(crate) fn status(code: i32, message: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", code.into());
    headers.insert("grpc-message", message.parse().unwrap());
    headers
}

/// A certificate authority, a server and a client certificate by it, as files.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) client: (PathBuf, PathBuf),
    server: (String, String),
}

impl Certificates {
    pub(crate) fn create(directory: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (
                params.signed_by(&key, &authority).unwrap().pem(),
                key.serialize_pem(),
            )
        };
        let write = |name: &str, content: &str| {
            let path = directory.join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let client = issue("client");
        Self {
            ca: write("ca.pem", &authority.pem()),
            client: (
                write("client.pem", &client.0),
                write("client.key", &client.1),
            ),
            server: issue("localhost"),
        }
    }

    /// What a server with these certificates needs; it demands a client certificate by the same authority.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server_that_offers(&["h2"])
    }

    /// The same with these protocols (ALPN).
    pub(crate) fn server_that_offers(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let chain = rustls_pki_types::CertificateDer::pem_slice_iter(self.server.0.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(rustls_pki_types::CertificateDer::from_pem_file(&self.ca).unwrap())
            .unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
        config.alpn_protocols = protocols.collect();
        Arc::new(config)
    }
}

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

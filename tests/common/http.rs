//! An OTLP/HTTP client that sends exactly what it is told to, and shows the whole answer.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::{self, Runtime},
};

/// Longest wait for any answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

type Body = BoxBody<Bytes, Infallible>;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A request without its URI's host.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    method: &'static str,
    path: &'static str,
    headers: HeaderMap,
    body: Bytes,
    /// In pieces of so many bytes, and without a length.
    chunks: Option<usize>,
}

impl Post {
    /// `POST /v1/logs`.
    pub(crate) fn logs(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            method: "POST",
            path: "/v1/logs",
            headers: HeaderMap::new(),
            body: body.into(),
            chunks: None,
        }
        .with("content-type", content_type)
    }

    /// With a header.
    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        let name = HeaderName::from_static(name);
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    /// Its content type, without parameters and in lower case.
    pub(crate) fn content_type(&self) -> String {
        let given = self.headers.get("content-type");
        let given = given.map_or("", |value| value.to_str().expect("a header in ASCII"));
        let essence = given.split(';').next().unwrap_or_default();
        essence.to_ascii_lowercase()
    }

    /// Without a header.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// By another method, to another path.
    pub(crate) fn to(mut self, method: &'static str, path: &'static str) -> Self {
        (self.method, self.path) = (method, path);
        self
    }

    /// In pieces of `bytes`, and without a length.
    pub(crate) fn in_chunks_of(mut self, bytes: usize) -> Self {
        self.chunks = Some(bytes);
        self
    }

    fn request(self, address: SocketAddr, version: Version) -> Request<Body> {
        let host = format!("localhost:{}", address.port());
        let mut request = Request::builder().method(self.method);
        *request.headers_mut().expect("a valid request") = self.headers;
        request = match version {
            Version::Http1 => request.uri(self.path).header("host", host),
            Version::Http2 => request.uri(format!("http://{host}{}", self.path)),
        };
        let body = match self.chunks {
            None => Full::new(self.body).boxed(),
            Some(bytes) => {
                let chunks: Vec<_> = self
                    .body
                    .chunks(bytes)
                    .map(|chunk| Ok(Frame::data(self.body.slice_ref(chunk))))
                    .collect();
                StreamBody::new(tokio_stream::iter(chunks)).boxed()
            }
        };
        request.body(body).expect("a valid request")
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header's text; empty without it.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("a header in ASCII"))
    }
}

enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// One connection; it makes progress while a request is under way.
pub(crate) struct HttpClient {
    runtime: Runtime,
    connection: Connection,
    address: SocketAddr,
}

impl HttpClient {
    /// Connects, in plaintext without `tls`.
    #[track_caller]
    pub(crate) fn connect(
        address: SocketAddr,
        tls: Option<Arc<ClientConfig>>,
        version: Version,
    ) -> Self {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime for the client");
        let connection = runtime.block_on(async {
            let tcp = TcpStream::connect(address).await.expect("it connects");
            match tls {
                None => handshake(tcp, version).await,
                Some(tls) => {
                    let mut tls = Arc::unwrap_or_clone(tls);
                    tls.alpn_protocols = vec![match version {
                        Version::Http1 => b"http/1.1".to_vec(),
                        Version::Http2 => b"h2".to_vec(),
                    }];
                    let name = ServerName::try_from("localhost").expect("a valid name");
                    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
                        .connect(name, tcp)
                        .await
                        .expect("the TLS handshake succeeds");
                    let spoken = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                    assert!(spoken.is_some(), "the server chose no protocol");
                    handshake(stream, version).await
                }
            }
        });
        Self {
            runtime,
            connection,
            address,
        }
    }

    /// Sends a request and waits for its answer.
    #[track_caller]
    pub(crate) fn send(&mut self, post: Post) -> Answer {
        match self.try_send(post) {
            Ok(answer) => answer,
            Err(error) => panic!("there was no answer: {error}"),
        }
    }

    /// Sends a request; the error is that of the connection.
    pub(crate) fn try_send(&mut self, post: Post) -> Result<Answer, String> {
        let version = match self.connection {
            Connection::Http1(_) => Version::Http1,
            Connection::Http2(_) => Version::Http2,
        };
        let request = post.request(self.address, version);
        let connection = &mut self.connection;
        let exchange = async {
            let response = connection.send(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body,
            })
        };
        self.runtime.block_on(async {
            match tokio::time::timeout(ANSWER_WITHIN, exchange).await {
                Ok(answered) => answered.map_err(|error: hyper::Error| format!("{error:?}")),
                Err(_) => Err(format!("nothing came within {ANSWER_WITHIN:?}")),
            }
        })
    }
}

impl Connection {
    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::Http1(connection) => {
                connection.ready().await?;
                connection.send_request(request).await
            }
            Self::Http2(connection) => {
                connection.ready().await?;
                connection.send_request(request).await
            }
        }
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: Version,
) -> Connection {
    let io = TokioIo::new(stream);
    // The connections' errors reach the requests.
    match version {
        Version::Http1 => {
            let (sender, connection) = http1::handshake(io).await.expect("HTTP/1.1 begins");
            tokio::spawn(connection);
            Connection::Http1(sender)
        }
        Version::Http2 => {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("HTTP/2 begins");
            tokio::spawn(connection);
            Connection::Http2(sender)
        }
    }
}

//! One HTTP/2 connection and the gRPC calls on it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

/// Path of the logs service.
const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// What is below HTTP/2.
#[derive(Clone)]
pub(crate) enum Transport {
    /// Nothing, with prior knowledge.
    Plaintext,
    /// TLS for `localhost`.
    Tls(Arc<ClientConfig>),
}

/// Where calls are sent; clones share the connection.
#[derive(Clone)]
pub(super) struct Sender {
    http2: http2::SendRequest<Chunks>,
    uri: String,
    frame_bytes: usize,
}

/// What a call came to.
pub(super) enum Outcome {
    Acked,
    Refused(String),
}

impl Sender {
    /// Connects, and has the current runtime drive the connection. DATA frames have at most
    /// `frame_bytes`, and what the server allows.
    pub(super) async fn connect(
        address: SocketAddr,
        transport: &Transport,
        frame_bytes: usize,
    ) -> Result<Self> {
        let tcp = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        tcp.set_nodelay(true)?;
        let (http2, scheme) = match transport {
            Transport::Plaintext => (handshake(tcp).await?, "http"),
            Transport::Tls(config) => {
                let name = ServerName::try_from("localhost")?;
                let tls = tokio_rustls::TlsConnector::from(Arc::clone(config));
                let stream = tls.connect(name, tcp).await.context("TLS handshake")?;
                (handshake(stream).await?, "https")
            }
        };
        Ok(Self {
            http2,
            uri: format!("{scheme}://localhost:{}{LOGS}", address.port()),
            frame_bytes,
        })
    }

    /// One call. An error means that the connection is of no more use.
    pub(super) async fn call(&mut self, framed: Bytes) -> Result<Outcome> {
        let request = Request::post(&self.uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "gophership-bench")
            .body(Chunks {
                rest: framed,
                at_most: self.frame_bytes,
            })?;
        self.http2.ready().await?;
        let response = self.http2.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let status = body
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"))
            .or_else(|| head.headers.get("grpc-status"));
        Ok(match status {
            Some(status) if status == "0" => Outcome::Acked,
            Some(status) => Outcome::Refused(format!("grpc-status {status:?}")),
            None => Outcome::Refused(format!("HTTP {} without grpc-status", head.status)),
        })
    }
}

async fn handshake<S>(stream: S) -> Result<http2::SendRequest<Chunks>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .context("HTTP/2 handshake")?;
    // Its error reaches the calls.
    tokio::spawn(connection);
    Ok(sender)
}

/// A body in pieces, each of which becomes at least one DATA frame.
struct Chunks {
    rest: Bytes,
    at_most: usize,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(self.at_most);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

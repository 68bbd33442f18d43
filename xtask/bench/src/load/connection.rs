//! One connection and the calls on it: gRPC over HTTP/2, or OTLP/HTTP over HTTP/1.1.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::Plan;

/// Path of the logs service.
const GRPC_LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
const HTTP_LOGS: &str = "/v1/logs";

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP in protobuf over HTTP/1.1.
    Http,
}

/// What is below HTTP/2.
#[derive(Clone)]
pub(crate) enum Transport {
    /// Nothing; HTTP/2 with prior knowledge.
    Plaintext,
    /// TLS for `localhost`.
    Tls(Arc<ClientConfig>),
}

/// Where one call at a time is sent.
pub(super) enum Sender {
    /// Those of one connection share it.
    Grpc(http2::SendRequest<Chunks>, Target),
    Http(http1::SendRequest<Chunks>, Target),
}

#[derive(Clone)]
pub(super) struct Target {
    uri: String,
    frame_bytes: usize,
}

/// What a call came to.
pub(super) enum Outcome {
    Acked,
    Refused(String),
}

impl Sender {
    /// Shakes hands, and has the current runtime drive the connection; a sender for each call that it may have in flight.
    pub(super) async fn connect(plan: &Plan, socket: std::net::TcpStream) -> Result<Vec<Self>> {
        let target = Target {
            uri: match (plan.protocol, &plan.transport) {
                (Protocol::Http, _) => HTTP_LOGS.to_owned(),
                (_, Transport::Plaintext) => format!("http://localhost{GRPC_LOGS}"),
                (_, Transport::Tls(_)) => format!("https://localhost{GRPC_LOGS}"),
            },
            frame_bytes: plan.frame_bytes,
        };
        let io = TokioIo::new(stream(plan, socket).await?);
        match plan.protocol {
            Protocol::Grpc => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    // As many as any server takes, until it says how many it does.
                    .initial_max_send_streams(1)
                    .handshake(io)
                    .await
                    .context("HTTP/2 handshake")?;
                // Its error reaches the calls.
                tokio::spawn(connection);
                let sender = || Self::Grpc(sender.clone(), target.clone());
                Ok(std::iter::repeat_with(sender)
                    .take(plan.in_flight)
                    .collect())
            }
            Protocol::Http => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Ok(vec![Self::Http(sender, target)])
            }
        }
    }

    /// One call. An error means that the connection is of no more use.
    pub(super) async fn call(&mut self, message: Bytes) -> Result<Outcome> {
        match self {
            Self::Grpc(sender, target) => {
                let request = target
                    .post("application/grpc")
                    .header("te", "trailers")
                    .body(target.body(message))?;
                sender.ready().await?;
                let (head, body) = sender.send_request(request).await?.into_parts();
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
            Self::Http(sender, target) => {
                let request = target
                    .post("application/x-protobuf")
                    .header("host", "localhost")
                    .body(target.body(message))?;
                sender.ready().await?;
                let (head, body) = sender.send_request(request).await?.into_parts();
                body.collect().await?;
                Ok(match head.status {
                    http::StatusCode::OK => Outcome::Acked,
                    status => Outcome::Refused(format!("HTTP {status}")),
                })
            }
        }
    }
}

impl Target {
    fn post(&self, content_type: &str) -> http::request::Builder {
        Request::post(&self.uri)
            .header("content-type", content_type)
            .header("user-agent", "gophership-bench")
    }

    /// DATA frames have at most so many bytes, and what the server allows.
    const fn body(&self, message: Bytes) -> Chunks {
        Chunks {
            rest: message,
            at_most: self.frame_bytes,
        }
    }
}

/// A socket, or TLS over one.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn stream(plan: &Plan, socket: std::net::TcpStream) -> Result<Box<dyn Stream>> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    let tcp = TcpStream::from_std(socket)?;
    let Transport::Tls(config) = &plan.transport else {
        return Ok(Box::new(tcp));
    };
    let mut config = ClientConfig::clone(config);
    config.alpn_protocols = vec![match plan.protocol {
        Protocol::Grpc => b"h2".to_vec(),
        Protocol::Http => b"http/1.1".to_vec(),
    }];
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost")?;
    let stream = tls.connect(name, tcp).await.context("TLS handshake")?;
    Ok(Box::new(stream))
}

/// A body in pieces, each of which becomes at least one DATA frame.
pub(super) struct Chunks {
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

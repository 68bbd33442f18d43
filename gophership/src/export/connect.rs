//! Connections to servers: TCP, through a proxy if one is configured, and TLS.

use std::{
    error::Error as StdError,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Uri, uri::Scheme};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
    rt::TokioIo,
};
use rustls::ClientConfig;
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower::{Service, ServiceExt};

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// Longest wait for a TCP connection and TLS handshake; less if the timeout of a call is shorter.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// An idle connection is probed this often by TCP (not by HTTP/2: gRPC servers close on pings without calls).
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// The HTTP CONNECT proxy on the way to a server.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) uri: Uri,
    /// `proxy-authorization`, if the configured URL has credentials.
    pub(super) authorization: Option<HeaderValue>,
}

/// How the servers of a destination are connected to.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) proxy: Option<Proxy>,
    /// Of servers whose scheme is https.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Nothing but HTTP/2 will do.
    pub(super) needs_h2: bool,
    /// Of one call.
    pub(super) timeout: Duration,
}

impl Connector {
    async fn open(self, uri: Uri) -> Result<TokioIo<Stream>, BoxError> {
        let limit = CONNECT_TIMEOUT_MAX.min(self.timeout);
        match timeout(limit, self.handshake(uri)).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("no connection within {limit:?}").into()),
        }
    }

    async fn handshake(&self, uri: Uri) -> Result<TokioIo<Stream>, BoxError> {
        let tls = match &self.tls {
            Some(config) if uri.scheme() == Some(&Scheme::HTTPS) => {
                Some((config, server_name(&uri)?))
            }
            _ => None,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        let tcp: TcpStream = match &self.proxy {
            None => tcp.oneshot(uri).await?,
            Some(proxy) => {
                let tunnel = Tunnel::new(proxy.uri.clone(), tcp);
                let tunnel = match &proxy.authorization {
                    Some(authorization) => tunnel.with_auth(authorization.clone()),
                    None => tunnel,
                };
                let through = |error| format!("proxy {}: {}", proxy.uri, cause_chain(&error));
                tunnel.oneshot(uri).await.map_err(through)?
            }
        }
        .into_inner();
        let Some((config, name)) = tls else {
            return Ok(TokioIo::new(Stream {
                io: Box::new(tcp),
                is_h2: false,
            }));
        };
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name, tcp)
            .await?;
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if self.needs_h2 && !is_h2 {
            return Err("the server doesn't offer HTTP/2 (ALPN h2), so it isn't gRPC".into());
        }
        Ok(TokioIo::new(Stream {
            io: Box::new(stream),
            is_h2,
        }))
    }
}

/// What the server's certificate must be for.
pub(super) fn server_name(uri: &Uri) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned())
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().open(uri))
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A byte stream to a server, TLS or not.
pub(super) struct Stream {
    io: Box<dyn Io>,
    /// TLS has agreed on it.
    is_h2: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self.is_h2 {
            true => Connected::new().negotiated_h2(),
            false => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }
}

/// The error and its causes, without those that repeat what was said.
pub(super) fn cause_chain(error: &(dyn StdError + 'static)) -> String {
    let mut chain = String::new();
    let causes = std::iter::successors(Some(error), |&error| error.source());
    for cause in causes.map(ToString::to_string) {
        if chain.contains(&cause) {
            continue;
        }
        if !chain.is_empty() {
            chain.push_str(": ");
        }
        chain.push_str(&cause);
    }
    chain
}

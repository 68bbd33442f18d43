//! The `otlp` destination: one OTLP/gRPC server over one lazily opened HTTP/2 connection a runtime.
//!
//! A batch's bytes are the message, unchanged and uncopied. A failed connection is opened anew by the next delivery.

use std::{
    convert::Infallible,
    error::Error as StdError,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, uri::Scheme};
use http_body::{Body, Frame};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt, service_fn};

use super::{Batch, Error, OtlpConfig, Outcome, answer::Answer, tls};

const EXPORT_PATH: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// Longest wait for a TCP connection and TLS handshake; less if the timeout of a call is shorter.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// A connection that is silent this long while calls are open is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(10);

/// … and closed if none comes within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// An idle connection is probed this often by TCP (not by HTTP/2: gRPC servers close on pings without calls).
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

type BoxError = Box<dyn StdError + Send + Sync>;

/// One OTLP/gRPC server, as one runtime uses it.
#[derive(Debug, Clone)]
pub struct OtlpDestination {
    server: Arc<OtlpServer>,
    channel: Channel,
}

impl OtlpDestination {
    /// Sends one batch, once.
    ///
    /// If the returned future is dropped, the batch may or may not have arrived.
    pub async fn deliver(&self, batch: Batch) -> Outcome {
        let server = &*self.server;
        let Some(request) = server.request(batch.bytes) else {
            return Outcome::Rejected {
                reason: "larger than a gRPC message can be (4 GiB)".to_owned(),
            };
        };
        let failure = match timeout(server.timeout, self.call(request)).await {
            Ok(Ok(answer)) => return answer.outcome(&server.endpoint, batch.records),
            Ok(Err(error)) if !timed_out(&*error) => cause_chain(&*error),
            // Ours, or the channel's own, which goes by the header for the server.
            Ok(Err(_)) | Err(_) => format!("no answer within {:?}", server.timeout),
        };
        Outcome::Retry {
            after: None,
            reason: format!("{}: {failure}", server.endpoint),
        }
    }

    async fn call(&self, request: Request<tonic::body::Body>) -> Result<Answer, BoxError> {
        let mut channel = self.channel.clone();
        let response = channel.ready().await?.call(request).await?;
        Ok(Answer::read(response).await?)
    }

    /// The destination's configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.server.name
    }
}

/// How a server is reached: checked once, shared by the runtimes.
#[derive(Debug)]
pub(super) struct OtlpServer {
    name: String,
    /// As configured, for reasons.
    endpoint: String,
    uri: Uri,
    channel: Endpoint,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    headers: HeaderMap,
    timeout: Duration,
}

impl OtlpServer {
    pub(super) fn new(name: &str, config: &OtlpConfig) -> Result<Self, Error> {
        let wrong = |what| Error::Endpoint {
            name: name.to_owned(),
            endpoint: config.endpoint.clone(),
            what,
        };
        let uri: Uri = config.endpoint.parse().map_err(|_| wrong("not a URL"))?;
        let host = uri.host().ok_or_else(|| wrong("it has no host"))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong(
                "OTLP/gRPC has no path; give scheme, host and port only",
            ));
        }
        let tls = if uri.scheme() == Some(&Scheme::HTTPS) {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let server = ServerName::try_from(bare.to_owned())
                .map_err(|_| wrong("its host is neither a DNS name nor an address"))?;
            Some((tls::client_config(name, config)?, server))
        } else if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(wrong("its scheme is neither https nor http"));
        } else if !config.insecure {
            return Err(wrong("plaintext needs tls.insecure: true"));
        } else {
            None
        };
        Ok(Self {
            name: name.to_owned(),
            endpoint: config.endpoint.clone(),
            channel: channel_settings(&uri, config.timeout).ok_or_else(|| wrong("not a URL"))?,
            uri,
            tls,
            headers: headers(name, config)?,
            timeout: config.timeout,
        })
    }

    /// A channel of its own for the current runtime; it connects with the first delivery.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn connect(server: &Arc<Self>) -> OtlpDestination {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        let connecting = Arc::clone(server);
        let connector = service_fn(move |_| {
            let (server, tcp) = (Arc::clone(&connecting), tcp.clone());
            async move { server.open(tcp).await }
        });
        OtlpDestination {
            server: Arc::clone(server),
            channel: server.channel.connect_with_connector_lazy(connector),
        }
    }

    async fn open(&self, tcp: HttpConnector) -> Result<TokioIo<Box<dyn Io>>, BoxError> {
        let tcp: TcpStream = tcp.oneshot(self.uri.clone()).await?.into_inner();
        let Some((config, name)) = &self.tls else {
            return Ok(TokioIo::new(Box::new(tcp)));
        };
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), tcp)
            .await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("the server doesn't offer HTTP/2 (ALPN h2), so it isn't gRPC".into());
        }
        Ok(TokioIo::new(Box::new(stream)))
    }

    /// `None` if the message is too long for its prefix.
    fn request(&self, message: Bytes) -> Option<Request<tonic::body::Body>> {
        let length = u32::try_from(message.len()).ok()?;
        let mut prefix = BytesMut::with_capacity(5);
        prefix.put_u8(0); // not compressed
        prefix.put_u32(length);
        let body = MessageBody([Some(prefix.freeze()), Some(message)]);
        let mut request = Request::new(tonic::body::Body::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(EXPORT_PATH);
        *request.headers_mut() = self.headers.clone();
        Some(request)
    }
}

/// A byte stream to a server, TLS or not.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

fn channel_settings(uri: &Uri, timeout: Duration) -> Option<Endpoint> {
    // tonic insists on doing TLS itself for `https`, with less choice: it is told `http` and, for the requests'
    // `:scheme`, the truth.
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    let connect_to = Uri::from_parts(parts).ok()?;
    let settings = Endpoint::from(connect_to)
        .origin(uri.clone())
        .connect_timeout(CONNECT_TIMEOUT_MAX.min(timeout))
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
        .user_agent(concat!("gophership/", env!("CARGO_PKG_VERSION")))
        .ok()?;
    Some(settings)
}

/// The headers of every request: gRPC's own and the configured ones.
fn headers(name: &str, config: &OtlpConfig) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (header, value) in &config.headers {
        let wrong = |what| Error::Header {
            name: name.to_owned(),
            header: header.clone(),
            what,
        };
        let key: HeaderName = header.parse().map_err(|_| wrong("not a header name"))?;
        let reserved = [
            header::CONTENT_TYPE,
            header::TE,
            header::USER_AGENT,
            header::HOST,
        ];
        if reserved.contains(&key) || key.as_str().starts_with("grpc-") {
            return Err(wrong("set by gRPC itself"));
        }
        if key.as_str().ends_with("-bin") {
            return Err(wrong("binary metadata (-bin) is not supported"));
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| wrong("its value has characters that a header can't hold"))?;
        // Tokens: kept out of HPACK's tables and of debug output.
        value.set_sensitive(true);
        headers.append(key, value);
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    // The unit with the widest range that 8 digits may need: a day has 86,400,000 ms.
    let millis = config.timeout.as_millis().clamp(1, 99_999_999);
    let limit = HeaderValue::from_str(&format!("{millis}m"));
    if let Ok(limit) = limit {
        headers.insert("grpc-timeout", limit);
    }
    Ok(headers)
}

/// The prefix of a gRPC message and the message.
struct MessageBody([Option<Bytes>; 2]);

impl Body for MessageBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.iter_mut().find_map(Option::take);
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

fn timed_out(error: &(dyn StdError + 'static)) -> bool {
    sources(error).any(<dyn StdError>::is::<tonic::TimeoutExpired>)
}

/// The error and its causes, without those that repeat what was said.
fn cause_chain(error: &(dyn StdError + 'static)) -> String {
    let mut chain = String::new();
    for cause in sources(error).map(ToString::to_string) {
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

fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

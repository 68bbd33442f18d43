//! The `otlp` destination: a server, or one of several, by gRPC or HTTP, over lazily opened connections of each runtime.
//!
//! A batch goes to one server after the other until one takes it or has a verdict on it, each being asked once. A batch's bytes are the message; uncompressed, they go out unchanged and uncopied. gRPC, and HTTP where the server
//! offers HTTP/2, send all calls over one connection. A failed connection is opened anew by the next delivery.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    uri::{PathAndQuery, Scheme},
};
use http_body::{Body, Frame, SizeHint};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

use super::{
    Batch, Compression, Error, OtlpConfig, Outcome, Protocol,
    answer::Answer,
    clients::{Clients, OtlpClient},
    compress::compress,
    connect::{BoxError, Connector, Proxy, cause_chain, server_name},
    endpoints::Endpoints,
    headers::{encoding, headers},
    http_answer::HttpAnswer,
    tls,
};
use crate::telemetry::throttle::Throttle;

const GRPC_PATH: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// What the specification appends to an endpoint that serves all signals.
/// Source: <https://opentelemetry.io/docs/specs/otel/protocol/exporter/#endpoint-urls-for-otlphttp>.
const HTTP_PATH: &str = "v1/logs";

/// A connection that is silent this long while calls are open is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(10);

/// … and closed if none comes within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// One OTLP server, or several, as one runtime uses them.
#[derive(Debug, Clone)]
pub struct OtlpDestination {
    server: Arc<OtlpServer>,
    clients: Clients,
}

impl OtlpDestination {
    /// Sends one batch to the first server that takes it; each is asked at most once.
    ///
    /// If the returned future is dropped, the batch may or may not have arrived.
    pub async fn deliver(&self, batch: Batch) -> Outcome {
        let server = &*self.server;
        self.clients.follow_the_names(&self.server);
        let compressed = compress(server.compression, &batch.bytes).await;
        let message = Encoded {
            is_compressed: compressed.is_some(),
            bytes: compressed.unwrap_or(batch.bytes),
        };
        let mut failures = Vec::new();
        let mut asked = None;
        for index in server.endpoints.order() {
            if !server.endpoints.claim(index) {
                continue;
            }
            let seen = server.endpoints.failures(index);
            match self.ask(index, &message, batch.records).await {
                Outcome::Retry { after, reason } => {
                    server.endpoints.failed(index, after, seen);
                    asked = after;
                    failures.push(reason);
                }
                verdict => {
                    server.endpoints.works(index);
                    return verdict;
                }
            }
        }
        if failures.is_empty() {
            // One of them may be on trial, and work in a moment.
            return Outcome::Retry {
                after: None,
                reason: "no endpoint is due for another try".to_owned(),
            };
        }
        let after = match server.targets.len() {
            1 => asked,
            _ => Some(server.endpoints.wait()),
        };
        Outcome::Retry {
            after,
            reason: failures.join("; "),
        }
    }

    /// Sends one batch to one server, once.
    async fn ask(&self, index: usize, message: &Encoded, records: u64) -> Outcome {
        let server = &*self.server;
        let target = &server.targets[index];
        let Some(request) = server.request(target, message) else {
            return Outcome::Rejected {
                reason: "larger than a gRPC message can be (4 GiB)".to_owned(),
            };
        };
        let call = self.call(request, target, records);
        let failure = match timeout(server.timeout, call).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(error)) => cause_chain(&*error),
            Err(_) => format!("no answer within {:?}", server.timeout),
        };
        Outcome::Retry {
            after: None,
            reason: format!("{}: {failure}", target.shown),
        }
    }

    async fn call(
        &self,
        request: Request<MessageBody>,
        target: &Target,
        records: u64,
    ) -> Result<Outcome, BoxError> {
        let response = self.clients.current().request(request).await?;
        Ok(match self.server.protocol {
            Protocol::Grpc => Answer::read(response).await?.outcome(target, records),
            Protocol::Http => HttpAnswer::read(response).await?.outcome(target, records),
        })
    }

    /// The destination's configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.server.name
    }

    /// Whether a batch may be on its way twice: as it is, and compressed.
    #[must_use]
    pub fn compresses(&self) -> bool {
        self.server.compression != Compression::None
    }
}

/// A message as it is sent.
struct Encoded {
    bytes: Bytes,
    is_compressed: bool,
}

/// How the servers are reached: checked once, shared by the runtimes.
#[derive(Debug)]
pub(super) struct OtlpServer {
    name: String,
    pub(super) targets: Box<[Target]>,
    endpoints: Endpoints,
    protocol: Protocol,
    compression: Compression,
    pub(super) connector: Connector,
    headers: HeaderMap,
    timeout: Duration,
    pub(super) resolve_every: Duration,
}

/// One server.
#[derive(Debug)]
pub(super) struct Target {
    /// As configured, for reasons.
    shown: String,
    pub(super) uri: Uri,
    /// Of records that it rejects.
    told: Mutex<Throttle>,
}

impl OtlpServer {
    pub(super) fn new(name: &str, config: &OtlpConfig) -> Result<Self, Error> {
        let targets: Box<[_]> = config
            .endpoints
            .iter()
            .map(|endpoint| Target::new(name, endpoint, config))
            .collect::<Result<_, _>>()?;
        let has_tls = |target: &Target| target.uri.scheme() == Some(&Scheme::HTTPS);
        let tls = match targets.iter().any(has_tls) {
            true => Some(tls::client_config(name, config)?),
            false => None,
        };
        let connector = Connector {
            proxy: proxy(name, config)?,
            tls,
            needs_h2: config.protocol == Protocol::Grpc,
            timeout: config.timeout,
        };
        let endpoints = Endpoints::new(targets.len(), config.balance, config.retry, config.timeout);
        Ok(Self {
            name: name.to_owned(),
            targets,
            endpoints,
            protocol: config.protocol,
            compression: config.compression,
            connector,
            headers: headers(name, config)?,
            timeout: config.timeout,
            resolve_every: config.resolve_every,
        })
    }

    /// Connections of its own for the current runtime; the first delivery opens one.
    pub(super) fn connect(server: &Arc<Self>) -> OtlpDestination {
        OtlpDestination {
            server: Arc::clone(server),
            clients: Clients::new(server),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A client without connections.
    pub(super) fn client(&self) -> OtlpClient {
        Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_only(self.protocol == Protocol::Grpc)
            .http2_keep_alive_interval(PING_AFTER)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(false)
            .build(self.connector.clone())
    }

    /// `None` if the message is too long for its prefix.
    fn request(&self, target: &Target, message: &Encoded) -> Option<Request<MessageBody>> {
        let mut headers = self.headers.clone();
        let is_compressed = message.is_compressed;
        if is_compressed && let Some((header, name)) = encoding(self.protocol, self.compression) {
            headers.insert(header, name);
        }
        let message = message.bytes.clone();
        let prefix = match self.protocol {
            Protocol::Grpc => {
                let length = u32::try_from(message.len()).ok()?;
                let mut prefix = BytesMut::with_capacity(5);
                prefix.put_u8(u8::from(is_compressed));
                prefix.put_u32(length);
                Some(prefix.freeze())
            }
            Protocol::Http => None,
        };
        let mut request = Request::new(MessageBody([prefix, Some(message)]));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.uri.clone();
        *request.headers_mut() = headers;
        Some(request)
    }
}

impl Target {
    fn new(name: &str, endpoint: &str, config: &OtlpConfig) -> Result<Self, Error> {
        let wrong = |what| Error::Endpoint {
            name: name.to_owned(),
            endpoint: endpoint.to_owned(),
            what,
        };
        let uri: Uri = endpoint.parse().map_err(|_| wrong("not a URL"))?;
        if uri.host().is_none() {
            return Err(wrong("it has no host"));
        }
        if uri.scheme() == Some(&Scheme::HTTPS) {
            server_name(&uri)
                .map_err(|_| wrong("its host is neither a DNS name nor an address"))?;
        } else if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(wrong("its scheme is neither https nor http"));
        } else if !config.insecure {
            return Err(wrong("plaintext needs tls.insecure: true"));
        }
        Ok(Self {
            shown: endpoint.to_owned(),
            uri: with_path(&uri, config.protocol).map_err(wrong)?,
            told: Mutex::new(Throttle::new(Instant::now())),
        })
    }

    /// As configured.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether the log has room for one more line on rejected records, and how many it had none for.
    pub(super) fn admit_a_line(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.admit(now)
    }
}

/// The endpoint with the path that the protocol has.
fn with_path(endpoint: &Uri, protocol: Protocol) -> Result<Uri, &'static str> {
    if endpoint.query().is_some() {
        return Err("it has a query");
    }
    let path = match protocol {
        Protocol::Grpc if !matches!(endpoint.path(), "" | "/") => {
            return Err("OTLP/gRPC has no path; give scheme, host and port only");
        }
        Protocol::Grpc => PathAndQuery::from_static(GRPC_PATH),
        Protocol::Http => {
            let base = endpoint.path().trim_end_matches('/');
            let path = format!("{base}/{HTTP_PATH}");
            PathAndQuery::try_from(path).map_err(|_| "not a URL")?
        }
    };
    let mut parts = endpoint.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| "not a URL")
}

/// The configured proxy, its credentials taken out of its URL.
fn proxy(name: &str, config: &OtlpConfig) -> Result<Option<Proxy>, Error> {
    let Some(url) = &config.proxy else {
        return Ok(None);
    };
    // Without the URL: it may have a password in it.
    let wrong = |what| Error::Proxy {
        name: name.to_owned(),
        what,
    };
    let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err(wrong("its scheme isn't http"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
    let (credentials, host) = match authority.as_str().rsplit_once('@') {
        Some((credentials, host)) => (Some(credentials), host),
        None => (None, authority.as_str()),
    };
    let authorization = credentials
        .map(|credentials| {
            let plain: Vec<u8> = percent_encoding::percent_decode_str(credentials).collect();
            let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(plain)))?;
            value.set_sensitive(true);
            Ok(value)
        })
        .transpose()
        .map_err(|_: http::header::InvalidHeaderValue| wrong("its credentials can't be sent"))?;
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(host)
        .path_and_query("/")
        .build()
        .map_err(|_| wrong("not a URL"))?;
    Ok(Some(Proxy { uri, authorization }))
}

/// The prefix of a gRPC message and the message.
#[derive(Debug)]
pub(super) struct MessageBody([Option<Bytes>; 2]);

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

    fn size_hint(&self) -> SizeHint {
        let left = self.0.iter().flatten().map(|bytes| bytes.len() as u64);
        SizeHint::with_exact(left.sum())
    }
}

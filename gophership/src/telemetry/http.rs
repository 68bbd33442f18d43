//! `/metrics`, `/healthz` and `/readyz` over plain HTTP/1.1, loopback unless configured.

use std::{
    convert::Infallible, future::Future, net::SocketAddr, rc::Rc, sync::Arc, time::Duration,
};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

/// Scrapers and probes are few; more connections than this wait in the backlog.
const CONNECTIONS_MAX: usize = 32;
/// A request's headers must be here within this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the pages show.
pub trait Source: 'static {
    /// The metrics in the text exposition format.
    fn metrics(&self) -> Result<String, String>;
    /// Why the daemon is not ready; `None` if it is.
    fn not_ready(&self) -> Option<String>;
}

/// Serves the pages until `shutdown` completes. Runs on a current-thread runtime's `LocalSet`.
pub async fn serve(
    listener: TcpListener,
    source: Rc<dyn Source>,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let source = Rc::clone(&source);
                    tokio::task::spawn_local(async move {
                        serve_one(TokioIo::new(stream), peer, source).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "telemetry: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
}

async fn serve_one(io: TokioIo<tokio::net::TcpStream>, peer: SocketAddr, source: Rc<dyn Source>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &*source);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(io, service);
    if let Err(error) = connection.await {
        tracing::debug!(%peer, %error, "telemetry: connection ended");
    }
}

fn respond(request: &Request<Incoming>, source: &dyn Source) -> Response<Full<bytes::Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are served here\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/metrics" => match source.metrics() {
            Ok(body) => text(StatusCode::OK, body),
            Err(reason) => text(StatusCode::INTERNAL_SERVER_ERROR, reason),
        },
        "/healthz" => text(StatusCode::OK, "alive\n".to_owned()),
        "/readyz" => match source.not_ready() {
            None => text(StatusCode::OK, "ready\n".to_owned()),
            Some(reason) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {reason}\n"),
            ),
        },
        path => text(
            StatusCode::NOT_FOUND,
            format!("no page {path}; there are /metrics, /healthz and /readyz\n"),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<bytes::Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

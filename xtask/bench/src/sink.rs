//! A destination that accepts everything and keeps nothing: the fastest there can be, on loopback,
//! without TLS.

use std::{convert::Infallible, net::SocketAddr, sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, runtime, sync::oneshot};

/// So large that the exporting side never waits for it.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// Runs on a thread of its own until it is dropped.
pub(crate) struct Sink {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Sink {
    pub(crate) fn start() -> Result<Self> {
        Self::start_away(Duration::ZERO)
    }

    /// One that answers so much later.
    pub(crate) fn start_away(away: Duration) -> Result<Self> {
        let (bound, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || {
                let result = runtime::Builder::new_current_thread().enable_all().build();
                let Ok(runtime) = result else { return };
                runtime.block_on(async {
                    let Ok(listener) = TcpListener::bind(("127.0.0.1", 0)).await else {
                        return;
                    };
                    // Without anybody to tell there is nobody to serve either.
                    let _ = listener.local_addr().map(|address| bound.send(address));
                    tokio::select! {
                        () = serve(listener, away) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        let address = address
            .recv_timeout(Duration::from_secs(10))
            .context("the sink doesn't listen")?;
        Ok(Self {
            address,
            _stop: stop,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: TcpListener, away: Duration) {
    while let Ok((tcp, _)) = listener.accept().await {
        // Only costs time where it fails.
        let _ = tcp.set_nodelay(true);
        tokio::spawn(async move {
            let connection = http2::Builder::new(TokioExecutor::new())
                .initial_connection_window_size(WINDOW_BYTES)
                .initial_stream_window_size(WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES_MAX)
                .serve_connection(
                    TokioIo::new(tcp),
                    service_fn(move |request| accept(request, away)),
                );
            // The daemon has gone; the next one connects anew.
            let _ = connection.await;
        });
    }
}

type Frames = tokio_stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>;

async fn accept(
    request: Request<Incoming>,
    away: Duration,
) -> Result<Response<StreamBody<Frames>>, hyper::Error> {
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        drop(frame?);
    }
    if !away.is_zero() {
        tokio::time::sleep(away).await;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    // An ExportLogsServiceResponse without partial success is empty.
    let frames = [
        Ok(Frame::data(Bytes::from_static(&[0; 5]))),
        Ok(Frame::trailers(trailers)),
    ];
    let mut response = Response::new(StreamBody::new(tokio_stream::iter(frames)));
    let content_type = http::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", content_type);
    Ok(response)
}

//! Producers that send, as fast as they are answered or at a pace, until they are stopped or their connection breaks.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use rustls::ClientConfig;
use tokio::{
    runtime,
    time::{Interval, MissedTickBehavior},
};

use super::{
    messages::{Messages, Shape},
    producer::{self, Call, Failure},
};

/// What became of the requests so far.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Messages the daemon answered with OK.
    pub(crate) acked: Vec<Bytes>,
    /// Messages whose connection ended before their answer came.
    pub(crate) unanswered: Vec<Bytes>,
    /// gRPC errors, in words.
    pub(crate) refused: Vec<String>,
    /// Why a connection ended.
    pub(crate) broken: Vec<String>,
}

/// Connections under load, each with `in_flight` requests at any time.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

/// How much load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intensity {
    /// Connections, each with its own thread.
    pub(crate) connections: u64,
    /// Requests in flight on each.
    pub(crate) in_flight: u64,
    /// Requests a second on each, at most; none: as fast as they are answered.
    pub(crate) pace: Option<u64>,
    /// Size of the requests.
    pub(crate) shape: Shape,
    /// Seed of the messages.
    pub(crate) seed: u64,
}

impl Load {
    /// Starts to send.
    pub(crate) fn start(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        intensity: Intensity,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let threads = (0..intensity.connections)
            .map(|connection| {
                let (tls, stop, tally) = (tls.clone(), stop.clone(), tally.clone());
                thread::spawn(move || {
                    run_connection(address, tls, intensity, connection, &stop, &tally);
                })
            })
            .collect();
        Self {
            stop,
            tally,
            threads,
        }
    }

    /// How many messages are acknowledged so far.
    pub(crate) fn acked(&self) -> usize {
        self.tally.lock().expect("no producer panicked").acked.len()
    }

    /// Lets the requests in flight end, and tells what became of all.
    pub(crate) fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the producer's thread didn't panic");
        }
        self.tally.lock().expect("no producer panicked").clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run_connection(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    intensity: Intensity,
    connection: u64,
    stop: &Arc<AtomicBool>,
    tally: &Arc<Mutex<Tally>>,
) {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the producer");
    runtime.block_on(async {
        let sender = match producer::open(address, tls).await {
            Ok(sender) => sender,
            Err(reason) => {
                let mut tally = tally.lock().expect("no producer panicked");
                tally.broken.push(reason);
                return;
            }
        };
        let pace = intensity.pace.map(|pace| {
            let mut interval = tokio::time::interval(Duration::from_nanos(1_000_000_000 / pace));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Arc::new(tokio::sync::Mutex::new(interval))
        });
        let streams: Vec<_> = (0..intensity.in_flight)
            .map(|stream| {
                let seed = intensity.seed * 10_000 + connection * 100 + stream;
                tokio::spawn(run_stream(
                    sender.clone(),
                    address,
                    Messages::new(seed, intensity.shape),
                    pace.clone(),
                    stop.clone(),
                    tally.clone(),
                ))
            })
            .collect();
        for stream in streams {
            stream.await.expect("the stream of requests didn't panic");
        }
    });
}

async fn run_stream(
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    mut messages: Messages,
    pace: Option<Arc<tokio::sync::Mutex<Interval>>>,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(pace) = &pace {
            pace.lock().await.tick().await;
        }
        let message = messages.message();
        let reply = producer::exchange(sender.clone(), address, Call::logs(message.clone())).await;
        let mut tally = tally.lock().expect("no producer panicked");
        match reply {
            Ok(_) => tally.acked.push(message),
            Err(Failure::Status(status)) => tally.refused.push(status.to_string()),
            Err(Failure::Connection(reason)) => {
                tally.unanswered.push(message);
                tally.broken.push(reason);
                return;
            }
        }
    }
}

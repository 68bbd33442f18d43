//! The connection to the daemon.

use std::{
    io::{self, ErrorKind},
    path::Path,
    sync::Mutex,
    time::Duration,
};

use gophership::control::pb::control_client::ControlClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{cli, failure::Failure};

/// A call must begin to be answered within this; followed progress may then take its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Connects once.
pub(crate) async fn connect(endpoint: &cli::Endpoint) -> Result<ControlClient<Channel>, Failure> {
    // Connected here and not by the channel, which would hide the reason in nested errors.
    let stream = UnixStream::connect(&endpoint.path)
        .await
        .map_err(|error| unreachable(&endpoint.path, &error))?;
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().map(|mut stream| stream.take());
        let stream = stream.ok().flatten();
        let lost = || io::Error::new(ErrorKind::ConnectionReset, "the daemon hung up");
        std::future::ready(stream.ok_or_else(lost))
    });
    // The authority is not used on a Unix socket, but HTTP/2 demands one.
    let channel = Endpoint::from_static("http://localhost")
        .timeout(ANSWER_LIMIT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            let path = endpoint.path.display();
            Failure::CannotConnect(format!("{path}: not a control socket? ({error})"))
        })?;
    Ok(ControlClient::new(channel))
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => Failure::CannotConnect(format!(
            "no socket at {path}: start the daemon with `gophership run`, or name its \
             control.unix.path with --endpoint unix:PATH"
        )),
        ErrorKind::ConnectionRefused => Failure::CannotConnect(format!(
            "nobody listens on {path}: the daemon that made it is gone; start it with \
             `gophership run`"
        )),
        ErrorKind::PermissionDenied => Failure::NotPermitted(format!(
            "uid {} may not open {path}: run as a user that control.unix.mode lets in",
            nix::unistd::geteuid()
        )),
        _ => Failure::CannotConnect(format!("cannot connect to {path}: {error}")),
    }
}

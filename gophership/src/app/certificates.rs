//! The ingest certificates are kept up to date: by their own thread, and at SIGHUP.

use tokio::{signal::unix::Signal, sync::watch};

use super::Error;
use crate::ingest::tls::{
    Tls,
    reload::{Handle, Loaded},
};

/// Starts to. Gives the set in force and the handle on its reloads, if there are certificates.
pub(super) fn keep(
    loaded: Option<Loaded>,
    hangup: Signal,
) -> Result<(Option<watch::Receiver<Tls>>, Option<Handle>), Error> {
    let kept = loaded.map(Loaded::keep).transpose();
    let (tls, handle) = kept
        .map_err(Error::system("the thread that reloads certificates"))?
        .unzip();
    tokio::task::spawn_local(reload_on(hangup, handle.clone()));
    Ok((tls, handle))
}

/// Asks for a reload at each SIGHUP, as long as the daemon runs. The configuration is read at the start alone.
async fn reload_on(mut hangup: Signal, tls: Option<Handle>) {
    while hangup.recv().await.is_some() {
        let Some(tls) = &tls else {
            tracing::info!(
                "SIGHUP: there are no certificates to reload, and the configuration isn't"
            );
            continue;
        };
        tracing::info!("SIGHUP: the ingest certificates are reloaded, the configuration isn't");
        tls.reload();
    }
}

//! The replay thread.

use std::{cell::RefCell, rc::Rc, sync::Arc, thread::JoinHandle};

use tokio::task::JoinSet;

use super::{
    Config, Error, Handle,
    aside::Aside,
    control::Control,
    course::{Common, Course, ON_THE_WAY_MAX},
    dead_letter::DeadLetters,
    identity::Identity,
};
use crate::{
    export::Destinations,
    otel::Enrichment,
    pipeline::{Member, circuit::Circuit},
    pressure::Verdict,
    vault::Vault,
};

/// Message bytes of a batch that is worth its while, however many destinations share the memory.
const BATCH_BYTES_MIN: usize = 64 << 10;

/// What the replay works with.
#[derive(Debug)]
pub struct Parts {
    /// When and how fast.
    pub config: Config,
    /// Most message bytes of one batch.
    pub batch_max_bytes: usize,
    /// Most message bytes of one entry, decompressed.
    pub max_entry_bytes: usize,
    /// What is owed.
    pub vault: Vault,
    /// The zone.
    pub verdict: Verdict,
    /// Where it goes; the thread has connections of its own.
    pub destinations: Destinations,
    /// What the entries' requests are enriched with.
    pub enrichment: Arc<Enrichment>,
    /// The destinations' states, in their order.
    pub circuits: Vec<Arc<Circuit>>,
    /// Where dead letters go.
    pub dead_letters: DeadLetters,
}

/// Starts the thread. It ends when ordered to stop.
///
/// # Errors
/// If the thread can't be made.
pub fn spawn(parts: Parts) -> Result<(Handle, JoinHandle<()>), Error> {
    let names = parts
        .circuits
        .iter()
        .map(|circuit| circuit.name().to_owned());
    let control = Arc::new(Control::new(
        &names.collect::<Vec<_>>(),
        parts.config.max_bytes_per_second,
        parts.dead_letters.held(),
    ));
    let handle = Arc::clone(&control);
    let thread = std::thread::Builder::new()
        .name("replay".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .thread_name("replay-read")
                .build();
            match runtime {
                Ok(runtime) => {
                    tokio::task::LocalSet::new().block_on(&runtime, run(parts, control));
                }
                Err(error) => {
                    tracing::error!(%error, "replay: no runtime; the vault is not replayed");
                }
            }
        })?;
    Ok((handle, thread))
}

/// A course for each destination, until all have ended.
async fn run(parts: Parts, control: Handle) {
    let bit_of = |name: &str| parts.vault.mask_of(name);
    let members = Member::connect(&parts.destinations, &parts.circuits, bit_of);
    let aside = Aside::new(
        parts.dead_letters,
        parts.vault.clone(),
        Arc::clone(&control),
    );
    // What is on its way to all of them is as much as one batch of the live way.
    let share = parts.batch_max_bytes / members.len().max(1) / ON_THE_WAY_MAX;
    let identity = parts.config.identity;
    let common = Rc::new(Common {
        config: parts.config,
        batch_max_bytes: share.max(BATCH_BYTES_MIN).min(parts.batch_max_bytes),
        max_entry_bytes: parts.max_entry_bytes,
        enrichment: parts.enrichment,
        identity: identity.then(|| Identity::new(parts.vault.host_id())),
        vault: parts.vault,
        verdict: parts.verdict,
        aside: RefCell::new(aside),
        control,
    });
    let mut courses = JoinSet::new();
    for (index, member) in members.into_iter().enumerate() {
        courses.spawn_local(Course::new(Rc::clone(&common), index, member).run());
    }
    while let Some(ended) = courses.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "replay: to one destination it has ended");
        }
    }
}

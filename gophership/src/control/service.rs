//! The gRPC service: who calls, what the call means, and the audit line for it.

use std::{pin::Pin, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};

use super::{
    audit::{Caller, Line, Log, Verdict},
    engine::{ControlError, Engine},
    events, pb, request,
};

/// How often a follower hears of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Who may call.
#[derive(Debug)]
pub(super) struct Allowed {
    /// Users.
    pub(super) uids: Vec<u32>,
    /// Primary groups.
    pub(super) gids: Vec<u32>,
}

impl Allowed {
    fn permits(&self, caller: Caller) -> bool {
        self.uids.contains(&caller.uid) || self.gids.contains(&caller.gid)
    }
}

/// The service.
pub(super) struct Service {
    engine: Arc<dyn Engine>,
    allowed: Allowed,
    audit: Log,
    stopping: watch::Receiver<bool>,
}

type Followed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(super) fn new(
        engine: Arc<dyn Engine>,
        allowed: Allowed,
        audit: Log,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            engine,
            allowed,
            audit,
            stopping,
        }
    }

    /// The caller, if the call is permitted; else the refusal, which is audited.
    async fn permit<T>(
        &self,
        request: &Request<T>,
        what: &'static str,
        arguments: &Value,
    ) -> Result<Caller, Status> {
        let caller = caller(request);
        let refusal = match caller {
            Some(caller) if self.allowed.permits(caller) => return Ok(caller),
            Some(Caller { uid, gid, .. }) => format!(
                "uid {uid} (gid {gid}) is not allowed: add it to control.unix.allow_uids or \
                 control.unix.allow_gids"
            ),
            None => "the caller's credentials can't be told".to_owned(),
        };
        let error = Some(refusal.clone());
        let arguments = arguments.clone();
        let line = Line::new(caller, what, arguments, Verdict::NotPermitted, error);
        if let Err(error) = self.audit.append(line).await {
            tracing::error!(%error, what, "a refused call could not be audited");
        }
        Err(Status::permission_denied(refusal))
    }

    /// Runs a call that changes something, and audits it whatever comes of it.
    async fn change<T, R>(
        &self,
        request: Request<T>,
        what: &'static str,
        arguments: Value,
        call: impl FnOnce(&dyn Engine, Caller, T) -> Result<R, ControlError> + Send + 'static,
    ) -> Result<R, Status>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        let caller = self.permit(&request, what, &arguments).await?;
        let (engine, asked) = (Arc::clone(&self.engine), request.into_inner());
        // What it keeps goes to a disk that may hang, and this thread answers everybody.
        let called = tokio::task::spawn_blocking(move || call(&*engine, caller, asked)).await;
        let result = called.map_err(|error| Status::internal(format!("{what}: {error}")))?;
        let (verdict, error) = match &result {
            Ok(_) => (Verdict::Ok, None),
            Err(error) => (Verdict::Failed, Some(error.to_string())),
        };
        let line = Line::new(Some(caller), what, arguments, verdict, error);
        let audited = self.audit.append(line).await;
        if let Err(error) = &audited {
            tracing::error!(%error, what, "a call could not be audited");
        }
        let reply = result?;
        audited.map_err(|error| Status::internal(format!("{what} is done, but: {error}")))?;
        Ok(reply)
    }

    /// Sends what `progress` returns, at intervals, until it is the last or we stop.
    fn follow<T: Send + 'static>(
        &self,
        progress: impl Fn(&dyn Engine) -> T + Send + 'static,
        is_last: impl Fn(&T) -> bool + Send + 'static,
    ) -> Followed<T> {
        let engine = Arc::clone(&self.engine);
        let mut stopping = self.stopping.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut stop = false;
            while !stop {
                tokio::select! {
                    _ = tick.tick() => {}
                    _ = stopping.wait_for(|stopping| *stopping) => stop = true,
                }
                let now = progress(&*engine);
                stop |= is_last(&now);
                // The caller may hang up; what it followed goes on.
                stop |= sender.send(now).await.is_err();
            }
        });
        Box::pin(ReceiverStream::new(receiver).map(Ok))
    }
}

#[tonic::async_trait]
impl pb::control_server::Control for Service {
    type EventsStream = Followed<pb::Event>;
    type VaultListStream = Followed<pb::VaultListReply>;
    type ReplayStatusStream = Followed<pb::ReplayProgress>;
    type PlanReplayStream = Followed<pb::ReplayPlan>;
    type DrainStream = Followed<pb::DrainProgress>;

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        self.permit(&request, "status", &json!({})).await?;
        Ok(Response::new(self.engine.status()?))
    }

    async fn sockets(
        &self,
        request: Request<pb::SocketsRequest>,
    ) -> Result<Response<pb::SocketsReply>, Status> {
        self.permit(&request, "sockets", &json!({})).await?;
        let spec = request::sockets_spec(request.into_inner())?;
        let engine = Arc::clone(&self.engine);
        let listed = tokio::task::spawn_blocking(move || engine.sockets(spec)).await;
        let listed = listed.map_err(|error| Status::internal(format!("sockets: {error}")))?;
        Ok(Response::new(listed?))
    }

    async fn events(
        &self,
        request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        self.permit(&request, "events", &json!({})).await?;
        let asked = request::events_asked(request.into_inner())?;
        let (sender, receiver) = tokio::sync::mpsc::channel(events::IN_FLIGHT_MAX);
        let (engine, stopping) = (Arc::clone(&self.engine), self.stopping.clone());
        tokio::spawn(events::send(engine, asked, sender, stopping));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn vault_list(
        &self,
        request: Request<pb::VaultListRequest>,
    ) -> Result<Response<Self::VaultListStream>, Status> {
        self.permit(&request, "vault_list", &json!({})).await?;
        let engine = Arc::clone(&self.engine);
        let listed = tokio::task::spawn_blocking(move || engine.vault_list()).await;
        let listed = listed.map_err(|error| Status::internal(format!("vault_list: {error}")))?;
        let parts = tokio_stream::iter(listed).map(Ok);
        Ok(Response::new(Box::pin(parts)))
    }

    async fn vault_quarantine(
        &self,
        request: Request<pb::VaultQuarantineRequest>,
    ) -> Result<Response<pb::VaultQuarantineReply>, Status> {
        let asked = request.get_ref();
        let arguments = json!({
            "segment": format!("{:016x}", asked.number),
            "release": asked.release,
            "reason": asked.reason,
        });
        let call = |engine: &dyn Engine, caller: Caller, asked| {
            engine.vault_quarantine(request::quarantine_spec(asked, by(caller))?)
        };
        let segment = self
            .change(request, "vault_quarantine", arguments, call)
            .await?;
        let segment = Some(segment);
        Ok(Response::new(pb::VaultQuarantineReply { segment }))
    }

    async fn set_override(
        &self,
        request: Request<pb::SetOverrideRequest>,
    ) -> Result<Response<pb::SetOverrideReply>, Status> {
        let asked = request.get_ref();
        let arguments = json!({
            "zone": request::zone_name(asked.zone()),
            "for_seconds": asked.duration.map(|duration| duration.seconds),
            "reason": asked.reason,
        });
        let call = |engine: &dyn Engine, caller: Caller, asked| {
            engine.set_override(request::override_spec(asked, by(caller))?)
        };
        let held = self
            .change(request, "set_override", arguments, call)
            .await?;
        let r#override = Some(held);
        Ok(Response::new(pb::SetOverrideReply { r#override }))
    }

    async fn clear_override(
        &self,
        request: Request<pb::ClearOverrideRequest>,
    ) -> Result<Response<pb::ClearOverrideReply>, Status> {
        let call = |engine: &dyn Engine, caller: Caller, _| engine.clear_override(&by(caller));
        let cleared = self
            .change(request, "clear_override", json!({}), call)
            .await?;
        Ok(Response::new(pb::ClearOverrideReply { cleared }))
    }

    async fn replay(
        &self,
        request: Request<pb::ReplayRequest>,
    ) -> Result<Response<pb::ReplayReply>, Status> {
        let asked = request.get_ref();
        let arguments = json!({
            "action": asked.action().as_str_name(),
            "max_bytes_per_second": asked.max_bytes_per_second,
            "destination": asked.destination,
            "selection": asked.selection.as_ref().map(|selection| json!({
                "from_seconds": selection.from.map(|from| from.seconds),
                "to_seconds": selection.to.map(|to| to.seconds),
                "lane": selection.lane,
                "newest_first": selection.newest_first,
            })),
        });
        let call = |engine: &dyn Engine, _, asked| engine.replay(request::replay_spec(asked)?);
        let progress = self.change(request, "replay", arguments, call).await?;
        let progress = Some(progress);
        Ok(Response::new(pb::ReplayReply { progress }))
    }

    async fn replay_status(
        &self,
        request: Request<pb::ReplayStatusRequest>,
    ) -> Result<Response<Self::ReplayStatusStream>, Status> {
        self.permit(&request, "replay_status", &json!({})).await?;
        let asked = request.into_inner();
        let state = move |progress: &pb::ReplayProgress| {
            let mut destinations = progress.destinations.iter();
            match destinations.find(|to| to.destination == asked.destination) {
                Some(to) => Some((to.state(), to.ordered)),
                None if asked.destination.is_empty() => Some((progress.state(), progress.ordered)),
                None => None,
            }
        };
        if state(&self.engine.replay_status()).is_none() {
            return Err(Status::invalid_argument("there is no such destination"));
        }
        let over = move |progress: &pb::ReplayProgress| match state(progress) {
            Some((pb::ReplayState::Running | pb::ReplayState::Waiting, ordered)) => {
                asked.ordered && !ordered
            }
            Some((_, _)) | None => true,
        };
        Ok(Response::new(self.follow(Engine::replay_status, over)))
    }

    async fn plan_replay(
        &self,
        request: Request<pb::PlanReplayRequest>,
    ) -> Result<Response<Self::PlanReplayStream>, Status> {
        self.permit(&request, "plan_replay", &json!({})).await?;
        let spec = request::plan_spec(request.into_inner())?;
        let (engine, stopping) = (Arc::clone(&self.engine), self.stopping.clone());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            let mut tell = |plan| !*stopping.borrow() && sender.blocking_send(Ok(plan)).is_ok();
            if let Err(error) = engine.plan_replay(spec, &mut tell) {
                // The caller may have hung up.
                let _ = sender.blocking_send(Err(error.into()));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn drain(
        &self,
        request: Request<pb::DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        let asked = request.get_ref();
        let arguments = json!({
            "timeout_seconds": asked.timeout.map(|timeout| timeout.seconds),
            "exit": asked.exit,
            "cancel": asked.cancel,
        });
        let call = |engine: &dyn Engine, _, asked| engine.drain(request::drain_spec(asked)?);
        self.change(request, "drain", arguments, call).await?;
        let over = |progress: &pb::DrainProgress| {
            matches!(
                progress.phase(),
                pb::DrainPhase::Accepting
                    | pb::DrainPhase::Drained
                    | pb::DrainPhase::TimedOut
                    | pb::DrainPhase::Unspecified
            )
        };
        Ok(Response::new(self.follow(Engine::drain_progress, over)))
    }
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Invalid(message) => Self::invalid_argument(message),
            ControlError::NotNow(message) => Self::failed_precondition(message),
            ControlError::Failed(message) => Self::internal(message),
        }
    }
}

/// The peer, as the kernel noted it when it connected.
fn caller<T>(request: &Request<T>) -> Option<Caller> {
    let peer = request.extensions().get::<UdsConnectInfo>()?.peer_cred?;
    Some(Caller {
        uid: peer.uid(),
        gid: peer.gid(),
        pid: peer.pid(),
    })
}

fn by(caller: Caller) -> String {
    format!("uid {}", caller.uid)
}

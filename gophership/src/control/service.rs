//! The gRPC service: who calls, what the call means, and the audit line for it.

use std::{pin::Pin, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};

use super::{
    audit::{Caller, Line, Log, Verdict},
    engine::{ControlError, DrainSpec, Engine, OverrideSpec, ReplayCommand},
    pb,
};

/// How often a follower hears of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A drain waits this long for the pipeline unless the caller says otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Reasons are for people to read.
const REASON_BYTES_MAX: usize = 1024;

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
        call: impl FnOnce(&dyn Engine, Caller, T) -> Result<R, ControlError> + Send,
    ) -> Result<R, Status> {
        let caller = self.permit(&request, what, &arguments).await?;
        let result = call(&*self.engine, caller, request.into_inner());
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
    type ReplayStatusStream = Followed<pb::ReplayProgress>;
    type DrainStream = Followed<pb::DrainProgress>;

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        self.permit(&request, "status", &json!({})).await?;
        Ok(Response::new(self.engine.status()?))
    }

    async fn set_override(
        &self,
        request: Request<pb::SetOverrideRequest>,
    ) -> Result<Response<pb::SetOverrideReply>, Status> {
        let asked = request.get_ref();
        let arguments = json!({
            "zone": zone_name(asked.zone()),
            "for_seconds": asked.duration.map(|duration| duration.seconds),
            "reason": asked.reason,
        });
        let call = |engine: &dyn Engine, caller: Caller, asked| {
            engine.set_override(override_spec(asked, caller)?)
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
        });
        let call = |engine: &dyn Engine, _, asked| engine.replay(replay_command(asked)?);
        let progress = self.change(request, "replay", arguments, call).await?;
        let progress = Some(progress);
        Ok(Response::new(pb::ReplayReply { progress }))
    }

    async fn replay_status(
        &self,
        request: Request<pb::ReplayStatusRequest>,
    ) -> Result<Response<Self::ReplayStatusStream>, Status> {
        self.permit(&request, "replay_status", &json!({})).await?;
        let over = |progress: &pb::ReplayProgress| {
            matches!(
                progress.state(),
                pb::ReplayState::Idle | pb::ReplayState::Paused | pb::ReplayState::Unspecified
            )
        };
        Ok(Response::new(self.follow(Engine::replay_status, over)))
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
        let call = |engine: &dyn Engine, _, asked| engine.drain(drain_spec(asked)?);
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

fn zone_name(zone: pb::Zone) -> &'static str {
    match zone {
        pb::Zone::Unspecified => "unspecified",
        pb::Zone::Green => "green",
        pb::Zone::Yellow => "yellow",
        pb::Zone::Red => "red",
    }
}

fn override_spec(
    asked: pb::SetOverrideRequest,
    caller: Caller,
) -> Result<OverrideSpec, ControlError> {
    let zone = asked.zone();
    if zone == pb::Zone::Unspecified {
        return Err(invalid("zone must be green, yellow or red"));
    }
    if asked.reason.len() > REASON_BYTES_MAX {
        let message = format!("reason is longer than {REASON_BYTES_MAX} bytes");
        return Err(ControlError::Invalid(message));
    }
    let duration = asked.duration.map(positive).transpose()?;
    Ok(OverrideSpec {
        zone,
        duration,
        reason: asked.reason,
        by: by(caller),
    })
}

fn replay_command(asked: pb::ReplayRequest) -> Result<ReplayCommand, ControlError> {
    let rate = asked.max_bytes_per_second;
    match (asked.action(), rate) {
        (pb::ReplayAction::Start, 0) => Ok(ReplayCommand::Start {
            max_bytes_per_second: None,
        }),
        (pb::ReplayAction::Start, rate) => Ok(ReplayCommand::Start {
            max_bytes_per_second: Some(rate),
        }),
        (pb::ReplayAction::Pause, 0) => Ok(ReplayCommand::Pause),
        (pb::ReplayAction::Resume, 0) => Ok(ReplayCommand::Resume),
        (pb::ReplayAction::Pause | pb::ReplayAction::Resume, _) => {
            Err(invalid("max_bytes_per_second goes with START only"))
        }
        (pb::ReplayAction::Unspecified, _) => Err(invalid("action must be set")),
    }
}

fn drain_spec(asked: pb::DrainRequest) -> Result<DrainSpec, ControlError> {
    if !asked.cancel {
        let timeout = asked.timeout.map(positive).transpose()?;
        return Ok(DrainSpec::Start {
            timeout: timeout.unwrap_or(DRAIN_TIMEOUT),
            exit: asked.exit,
        });
    }
    if asked.exit || asked.timeout.is_some() {
        return Err(invalid("cancel goes without exit and timeout"));
    }
    Ok(DrainSpec::Cancel)
}

fn positive(duration: prost_types::Duration) -> Result<Duration, ControlError> {
    Duration::try_from(duration)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| invalid("durations must be longer than 0"))
}

fn invalid(message: &str) -> ControlError {
    ControlError::Invalid(message.to_owned())
}

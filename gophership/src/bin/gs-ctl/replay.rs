//! `gs-ctl replay`: starts, stops, watches and counts the way from the vault to the destinations.

use gophership::control::pb;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::{
    cli::ReplayArgs,
    commands::{Daemon, follow},
    failure::Failure,
    human::{bytes, counted},
    json as shown,
    output::Sink,
    view,
};

/// Runs the command.
pub(crate) async fn run(daemon: Daemon, sink: &mut Sink, args: &ReplayArgs) -> Result<(), Failure> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        return Err(Failure::Usage(format!(
            "--from {from} must lie before --to {to}"
        )));
    }
    match args.dry_run {
        true => plan(daemon, sink, args).await,
        false => steer(daemon, sink, args).await,
    }
}

async fn steer(mut daemon: Daemon, sink: &mut Sink, args: &ReplayArgs) -> Result<(), Failure> {
    let action = match (args.pause, args.resume) {
        (true, _) => pb::ReplayAction::Pause,
        (_, true) => pb::ReplayAction::Resume,
        (false, false) => pb::ReplayAction::Start,
    };
    let destination = args.destination.clone().unwrap_or_default();
    let request = pb::ReplayRequest {
        action: action.into(),
        max_bytes_per_second: args.rate.unwrap_or(0),
        destination: destination.clone(),
        selection: selection(args),
    };
    let reply = daemon.replay(request).await?.into_inner();
    let wrap = |progress: &pb::ReplayProgress| json!({ "replay": shown::replay(progress) });
    let line = |progress: &pb::ReplayProgress| match &*destination {
        "" => view::replay(progress),
        name => view::replay_to(progress, name),
    };
    if !args.follow {
        let progress = reply.progress.unwrap_or_default();
        return sink.result(&wrap(&progress), || {
            format!("replay: {}\n", line(&progress))
        });
    }
    let request = pb::ReplayStatusRequest {
        destination: destination.clone(),
        ordered: action == pb::ReplayAction::Start,
    };
    let stream = daemon.replay_status(request).await?;
    follow(stream.into_inner(), sink, wrap, line).await?;
    Ok(())
}

async fn plan(mut daemon: Daemon, sink: &mut Sink, args: &ReplayArgs) -> Result<(), Failure> {
    let request = pb::PlanReplayRequest {
        destination: args.destination.clone().unwrap_or_default(),
        selection: selection(args),
    };
    let mut stream = daemon.plan_replay(request).await?.into_inner();
    let mut plan = pb::ReplayPlan::default();
    while let Some(counted) = stream.message().await? {
        plan = counted;
    }
    if !plan.complete {
        return Err(Failure::CannotConnect("the daemon has stopped".to_owned()));
    }
    let to = |to: &pb::DestinationPlan| {
        let value = json!({ "entries": to.entries, "records": to.records, "bytes": to.bytes });
        (to.destination.clone(), value)
    };
    let destinations: Map<String, Value> = plan.destinations.iter().map(to).collect();
    sink.result(&json!({ "plan": { "destinations": destinations } }), || {
        let line = |to: &pb::DestinationPlan| {
            format!(
                "to {}: {}, {}, {}\n",
                to.destination,
                counted(to.entries, "entry"),
                counted(to.records, "record"),
                bytes(to.bytes)
            )
        };
        plan.destinations.iter().map(line).collect()
    })
}

/// What is asked for, unless it is everything.
fn selection(args: &ReplayArgs) -> Option<pb::ReplaySelection> {
    let stamp = |time: OffsetDateTime| prost_types::Timestamp {
        seconds: time.unix_timestamp(),
        nanos: i32::try_from(time.nanosecond()).unwrap_or(0),
    };
    let selection = pb::ReplaySelection {
        from: args.from.map(stamp),
        to: args.to.map(stamp),
        lane: args.lane.map(u32::from),
        newest_first: args.newest_first,
    };
    (selection != pb::ReplaySelection::default()).then_some(selection)
}

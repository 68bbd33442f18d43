//! Each command: one call, and what it says.

use std::time::Duration;

use gophership::control::pb::{self, control_client::ControlClient};
use serde_json::{Value, json};
use tonic::{Streaming, transport::Channel};

use crate::{
    certs,
    cli::{CertsCommand, Cli, Command, DrainArgs, EventsArgs, OverrideArgs, SocketsArgs},
    client, events,
    failure::Failure,
    generate, json as shown,
    output::Sink,
    replay, sockets, top, vault, view,
};

/// Runs the command.
pub(crate) async fn run(cli: &Cli) -> Result<(), Failure> {
    let sink = &mut Sink::new(cli.output);
    match &cli.command {
        Command::Certs(CertsCommand::Init { dir, hosts }) => certs::init(sink, dir, hosts),
        Command::Certs(CertsCommand::Show { file }) => certs::show(sink, file),
        Command::Completions { shell } => generate::completions(*shell),
        Command::Man { dir } => generate::man(dir.as_deref()),
        Command::Top(args) => top::run(cli, args, sink).await,
        Command::Vault(command) => vault::run(cli, command, sink).await,
        command => {
            let daemon = client::connect(&cli.endpoint).await?;
            match command {
                Command::Override(args) if args.clear => clear_override(daemon, sink).await,
                Command::Override(args) => set_override(daemon, sink, args).await,
                Command::Replay(args) => replay::run(daemon, sink, args).await,
                Command::Drain(args) => drain(daemon, sink, args).await,
                Command::Events(args) => events(daemon, sink, args).await,
                Command::Sockets(args) => sockets(daemon, sink, args).await,
                Command::Status
                | Command::Certs(_)
                | Command::Completions { .. }
                | Command::Man { .. }
                | Command::Top(_)
                | Command::Vault(_) => status(daemon, sink).await,
            }
        }
    }
}

pub(crate) type Daemon = ControlClient<Channel>;

async fn status(mut daemon: Daemon, sink: &mut Sink) -> Result<(), Failure> {
    let reply = daemon.status(pb::StatusRequest {}).await?.into_inner();
    let colour = sink.colour();
    sink.result(&shown::status(&reply), || view::status(&reply, colour))
}

async fn sockets(mut daemon: Daemon, sink: &mut Sink, args: &SocketsArgs) -> Result<(), Failure> {
    let request = pb::SocketsRequest {
        limit: args.limit,
        order: pb::SocketOrder::from(args.sort).into(),
    };
    let reply = daemon.sockets(request).await?.into_inner();
    let colour = sink.colour();
    sink.result(&sockets::value(&reply), || sockets::page(&reply, colour))
}

async fn events(mut daemon: Daemon, sink: &mut Sink, args: &EventsArgs) -> Result<(), Failure> {
    const ALL: u32 = 100_000;
    const BEFORE_FOLLOWING: u32 = 10;
    let usual = match (args.since, args.follow) {
        (Some(_), _) => ALL,
        (None, true) => BEFORE_FOLLOWING,
        (None, false) => 0,
    };
    let request = pb::EventsRequest {
        since: args.since.map(|since| prost_types::Timestamp {
            seconds: since.unix_timestamp(),
            nanos: i32::try_from(since.nanosecond()).unwrap_or(0),
        }),
        limit: args.limit.unwrap_or(usual),
        follow: args.follow,
    };
    let mut stream = daemon.events(request).await?.into_inner();
    let colour = sink.colour();
    let mut listed = Vec::new();
    while let Some(event) = stream.message().await? {
        match args.follow {
            true => sink.entry(&events::value(&event), || events::line(&event, colour))?,
            false => listed.push(event),
        }
    }
    if args.follow {
        return Err(Failure::CannotConnect("the daemon has stopped".to_owned()));
    }
    let value = json!({ "events": listed.iter().map(events::value).collect::<Value>() });
    sink.result(&value, || {
        let lines = listed
            .iter()
            .map(|event| events::line(event, colour) + "\n");
        match listed.is_empty() {
            true => "no events\n".to_owned(),
            false => lines.collect(),
        }
    })
}

async fn set_override(
    mut daemon: Daemon,
    sink: &mut Sink,
    args: &OverrideArgs,
) -> Result<(), Failure> {
    let zone = args.zone.map_or(pb::Zone::Unspecified, pb::Zone::from);
    let request = pb::SetOverrideRequest {
        zone: zone.into(),
        duration: args.duration.0.map(wire_duration).transpose()?,
        reason: args.reason.clone(),
    };
    let reply = daemon.set_override(request).await?.into_inner();
    let held = reply.r#override.unwrap_or_default();
    let value = json!({ "override": shown::held(&held) });
    sink.result(&value, || format!("override: {}\n", view::held(&held)))
}

async fn clear_override(mut daemon: Daemon, sink: &mut Sink) -> Result<(), Failure> {
    let reply = daemon.clear_override(pb::ClearOverrideRequest {}).await?;
    let cleared = reply.into_inner().cleared;
    let value = json!({ "override": null, "cleared": cleared.as_ref().map(shown::held) });
    sink.result(&value, || match &cleared {
        Some(cleared) => format!("override ended: {}\n", view::held_until(cleared)),
        None => "there was no override\n".to_owned(),
    })
}

async fn drain(mut daemon: Daemon, sink: &mut Sink, args: &DrainArgs) -> Result<(), Failure> {
    let timeout = (!args.cancel).then(|| wire_duration(args.timeout));
    let request = pb::DrainRequest {
        timeout: timeout.transpose()?,
        exit: args.exit,
        cancel: args.cancel,
    };
    let stream = daemon.drain(request).await?.into_inner();
    let wrap = |progress: &pb::DrainProgress| json!({ "drain": shown::drain(progress) });
    let last = follow(stream, sink, wrap, view::drain).await?;
    let phase = last.map_or(pb::DrainPhase::Unspecified, |last| last.phase());
    match (phase, args.cancel) {
        (pb::DrainPhase::Drained, false) | (pb::DrainPhase::Accepting, true) => Ok(()),
        (pb::DrainPhase::TimedOut, false) => Err(Failure::Failed(
            "the time was up before the pipeline was empty; what was left is in the vault"
                .to_owned(),
        )),
        (pb::DrainPhase::Accepting, false) => Err(Failure::Failed(
            "the drain was taken back by another call".to_owned(),
        )),
        (phase, _) => Err(Failure::Failed(format!(
            "the daemon hung up in phase {}",
            shown::drain_phase(phase)
        ))),
    }
}

/// Shows every change until the daemon ends the stream; returns the last message.
pub(crate) async fn follow<T: PartialEq>(
    mut stream: Streaming<T>,
    sink: &mut Sink,
    value: impl Fn(&T) -> Value,
    line: impl Fn(&T) -> String,
) -> Result<Option<T>, Failure> {
    let mut last = None;
    let ended = loop {
        match stream.message().await {
            Ok(Some(progress)) => {
                if last.as_ref() != Some(&progress) {
                    sink.progress(&value(&progress), || line(&progress))?;
                }
                last = Some(progress);
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    sink.progress_ended()?;
    ended?;
    Ok(last)
}

fn wire_duration(duration: Duration) -> Result<prost_types::Duration, Failure> {
    duration
        .try_into()
        .map_err(|_| Failure::Usage("the duration is too long".to_owned()))
}

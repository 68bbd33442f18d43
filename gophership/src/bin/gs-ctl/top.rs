//! `top`: zone, newest events, signals and the deepest sockets, again and again.

use std::time::Duration;

use gophership::control::pb::{self, control_client::ControlClient};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, timeout},
};
use tonic::transport::Channel;

use crate::{
    cli::{Cli, TopArgs},
    client, events,
    failure::Failure,
    human::plain,
    json as shown,
    output::Sink,
    sockets, view,
};

/// Events shown.
const EVENTS: u32 = 5;
/// Sockets shown.
const SOCKETS: u32 = 5;
/// A daemon that takes longer is shown as not answering.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What one look gave.
struct Look {
    status: pb::StatusReply,
    /// Or why they can't be listed.
    sockets: Result<pb::SocketsReply, Failure>,
    /// The newest events, or why there are none.
    events: Result<Vec<pb::Event>, Failure>,
}

/// Shows a block an interval, until `--count` of them are shown or a signal says to end.
pub(crate) async fn run(cli: &Cli, args: &TopArgs, sink: &mut Sink) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    // A daemon that was never there is a mistake; one that goes away comes back.
    let daemon = client::connect(&cli.endpoint).await?;
    let screen = sink.take_screen()?;
    let ended = tokio::select! {
        ended = show(cli, args, sink, daemon) => ended,
        () = stop.asked() => Ok(()),
    };
    drop(screen);
    ended
}

async fn show(
    cli: &Cli,
    args: &TopArgs,
    sink: &mut Sink,
    daemon: ControlClient<Channel>,
) -> Result<(), Failure> {
    let mut interval = tokio::time::interval(args.interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut daemon = Some(daemon);
    let mut blocks = 0;
    loop {
        interval.tick().await;
        let looked = timeout(ANSWER_LIMIT, look(cli, &mut daemon)).await;
        let looked = looked.unwrap_or_else(|_| {
            let limit = ANSWER_LIMIT.as_secs();
            let message = format!("the daemon doesn't answer within {limit} s: is it stopped?");
            Err(Failure::CannotConnect(message))
        });
        let colour = sink.colour();
        match &looked {
            Ok(look) => sink.frame(&value(look), || block(look, colour))?,
            Err(Failure::NotPermitted(_)) => return looked.map(drop),
            Err(failure) => {
                daemon = None;
                let why = failure.to_string();
                sink.frame(&json!({ "time": now(), "reconnecting": why }), || {
                    format!("{}  reconnecting: {}\n", now(), plain(&why))
                })?;
            }
        }
        blocks += 1;
        if args.count.is_some_and(|count| blocks >= count) {
            return looked.map(drop);
        }
    }
}

async fn look(cli: &Cli, daemon: &mut Option<ControlClient<Channel>>) -> Result<Look, Failure> {
    let client = match daemon {
        Some(client) => client,
        None => daemon.insert(client::connect(&cli.endpoint).await?),
    };
    let status = client.status(pb::StatusRequest {}).await?.into_inner();
    let request = pb::SocketsRequest {
        limit: SOCKETS,
        order: pb::SocketOrder::Depth.into(),
    };
    let sockets = match client.sockets(request).await {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) => Err(status.into()),
    };
    let events = recent(client).await;
    Ok(Look {
        status,
        sockets,
        events,
    })
}

async fn recent(client: &mut ControlClient<Channel>) -> Result<Vec<pb::Event>, Failure> {
    let request = pb::EventsRequest {
        limit: EVENTS,
        ..pb::EventsRequest::default()
    };
    let mut stream = client.events(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        events.push(event);
    }
    Ok(events)
}

fn value(look: &Look) -> Value {
    let sockets = match &look.sockets {
        Ok(reply) => sockets::value(reply),
        Err(failure) => json!({ "error": failure.to_string() }),
    };
    json!({
        "time": now(),
        "status": shown::status(&look.status),
        "sockets": sockets,
        "events": match &look.events {
            Ok(events) => events.iter().map(events::value).collect::<Value>(),
            Err(failure) => json!({ "error": failure.to_string() }),
        },
    })
}

fn block(look: &Look, colour: bool) -> String {
    let mut out = format!("{}  gophership {}\n", now(), plain(&look.status.version));
    out.push_str(&view::verdict(&look.status, colour));
    out.push('\n');
    match &look.events {
        Ok(events) => {
            let lines = events
                .iter()
                .map(|event| events::line(event, colour) + "\n");
            out.extend(lines);
        }
        Err(failure) => out.push_str(&format!("events: {}\n", plain(&failure.to_string()))),
    }
    out.push('\n');
    out.push_str(&view::signals(&look.status.signals));
    out.push('\n');
    match &look.sockets {
        Ok(reply) => {
            out.push_str(&sockets::notes(reply));
            out.push_str(&sockets::table(reply, colour));
            let listed = reply.sockets.len();
            out.push_str(&format!("{listed} of {} connections\n", reply.total));
        }
        Err(failure) => out.push_str(&format!("sockets: {}\n", plain(&failure.to_string()))),
    }
    out
}

/// Now, to the second.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let whole = now.replace_nanosecond(0).unwrap_or(now);
    // Formatting fails for years beyond 9999 only.
    whole.format(&Rfc3339).unwrap_or_default()
}

/// The signals that end a command which would else go on for ever.
struct Stop([Signal; 3]);

impl Stop {
    fn listen() -> Result<Self, Failure> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let failed = |error| Failure::Failed(format!("cannot listen for signals: {error}"));
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([
            interrupt.map_err(failed)?,
            terminate.map_err(failed)?,
            hangup.map_err(failed)?,
        ]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

//! How soon the zone follows a queue that grows while the daemon is stopped.
//!
//! Each round: a connection to the ingest port; SIGSTOP; bytes up to just below the Yellow level; then
//! one `send` at a time, each with enough time to show what it did, until Yellow, until the Red level,
//! and on to Red; SIGCONT. Nobody reads meanwhile.
//!
//! *Yellow, upper bound*: from this program's clock before the `send` that crossed the level to the
//! kernel's own time of the verdict. It includes the system call, the copy, TCP's output, the loopback
//! and the receiving stack up to the probe. The probe runs before the segment is queued, so the time
//! from the enqueue itself is not positive.
//! *Yellow, seen*: the same beginning, up to when this program has read the word by `bpf()`.
//! *Red*: between two times of the kernel's: the probe that saw the level crossed and the verdict.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gophership::pressure::monotonic_ns;
use gophership_common::{Cause, Signal, VerdictPage, Zone};
use serde_json::json;

use super::{
    Bench,
    loaded::{Maps, reading, stalled_since_ns},
};
use crate::{
    daemon::{Daemon, Settings, UNDISTURBED},
    report::Spread,
};

const TICK_MS: u64 = 10;
const FOR_MS: u64 = 5;
const YELLOW_WITHIN: Duration = Duration::from_millis(1);
/// One `send`.
const STEP_BYTES: usize = 4 * 1024;
/// How far below the Yellow level the bytes that go before end.
const MARGIN_BYTES: usize = 8 * 1024;
/// More than any window takes.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Longest wait for an effect that must come.
const WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for an effect that a `send` may not have.
const EFFECT_WITHIN: Duration = Duration::from_millis(3);

/// One round's times.
struct Round {
    yellow_event_ns: u64,
    yellow_seen_ns: u64,
    red_event_ns: u64,
    red_upper_ns: u64,
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let rounds = if bench.quick { 40 } else { 250 };
    eprintln!("latency: {rounds} rounds against a stopped daemon");
    let pressure = format!(
        "{UNDISTURBED}\n  tick: {TICK_MS}ms\n  hold: 20ms\n  receive_queue: {{ yellow: 50%, red: 80%, for: {FOR_MS}ms }}"
    );
    let daemon = Daemon::start(
        bench.site,
        &Settings {
            kernel: "required",
            pressure: &pressure,
            ..Settings::new(bench.sink.address())
        },
    )?;
    let maps = Maps::of(daemon.pid())?;
    let yellow_bytes = calibrate(&daemon, &maps)?;
    let before = yellow_bytes.saturating_sub(MARGIN_BYTES);
    let mut measured = Vec::new();
    let mut discarded = 0_u64;
    for _ in 0..rounds {
        match frozen(&daemon, &maps, |socket| round(&maps, socket, before))? {
            Some(round) => measured.push(round),
            None => discarded += 1,
        }
    }
    tell(bench, &measured, discarded, yellow_bytes)
}

/// Bytes that cross the Yellow level of a fresh connection.
fn calibrate(daemon: &Daemon, maps: &Maps) -> Result<usize> {
    let crossing = frozen(daemon, maps, |socket| {
        let mut sent = 0;
        while sent < MOST_BYTES {
            sent += send(socket, STEP_BYTES)?;
            if holds_within(EFFECT_WITHIN, || Ok(maps.word()?.zone() != Zone::Green))? {
                return Ok(Some(sent));
            }
        }
        Ok(None)
    })?;
    crossing.with_context(|| format!("{MOST_BYTES} unread bytes are no reason for Yellow"))
}

/// Has a connection and the daemon stopped while `during` runs; Green before.
fn frozen<T>(
    daemon: &Daemon,
    maps: &Maps,
    during: impl FnOnce(&mut TcpStream) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let green = holds_within(WITHIN, || Ok(maps.word()?.zone() == Zone::Green))?;
    ensure!(green, "not Green within {WITHIN:?}: {:?}", maps.word()?);
    let mut socket = connect(daemon.grpc())?;
    daemon.freeze()?;
    let result = during(&mut socket);
    daemon.thaw()?;
    result
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    // A full window must end the round, not the measurement.
    socket.set_write_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// `None` if the round doesn't show what it should: the level was crossed too early or not at all.
fn round(maps: &Maps, socket: &mut TcpStream, before: usize) -> Result<Option<Round>> {
    let mut sent = 0;
    while sent < before {
        sent += send(socket, STEP_BYTES.min(before - sent))?;
    }
    let arrived = holds_within(WITHIN, || {
        let unread = reading(&maps.signals()?, Signal::ReceiveQueueBytes);
        Ok(unread.is_some_and(|unread| unread >= sent as u64))
    })?;
    ensure!(arrived, "{sent} bytes didn't arrive within {WITHIN:?}");
    if maps.word()?.zone() != Zone::Green {
        return Ok(None);
    }
    let Some((sent_at_ns, seen_at_ns, page)) = cross_yellow(maps, socket)? else {
        return Ok(None);
    };
    let Some((red_sent_at_ns, stalled_since_ns)) = cross_red(maps, socket)? else {
        return Ok(None);
    };
    let mut red = page;
    let turned = holds_within(WITHIN, || {
        red = maps.verdict()?;
        Ok(red.word.zone() == Zone::Red)
    })?;
    ensure!(turned, "not Red within {WITHIN:?}");
    // `since_ns` is stored right after the word.
    let settled = holds_within(WITHIN, || {
        red = maps.verdict()?;
        Ok(red.since_ns > stalled_since_ns)
    })?;
    if !settled || red.word.cause() != Cause::ReceiveQueue {
        return Ok(None);
    }
    Ok(Some(Round {
        yellow_event_ns: page.since_ns - sent_at_ns,
        yellow_seen_ns: seen_at_ns - sent_at_ns,
        red_event_ns: red.since_ns - stalled_since_ns,
        red_upper_ns: red.since_ns - red_sent_at_ns,
    }))
}

/// Sends until Yellow. Gives when the last `send` began, when Yellow was seen, and the verdict.
fn cross_yellow(maps: &Maps, socket: &mut TcpStream) -> Result<Option<(u64, u64, VerdictPage)>> {
    for _ in 0..MOST_BYTES / STEP_BYTES {
        let sent_at_ns = monotonic_ns();
        send(socket, STEP_BYTES)?;
        let deadline = Instant::now() + EFFECT_WITHIN;
        while Instant::now() < deadline {
            let page = maps.verdict()?;
            let seen_at_ns = monotonic_ns();
            // The time of the verdict is stored right after the word.
            if page.word.zone() != Zone::Green && page.since_ns >= sent_at_ns {
                let expected = (Zone::Yellow, Cause::ReceiveQueue);
                let is_expected = (page.word.zone(), page.word.cause()) == expected;
                // The signal comes with it.
                let counted = maps.signals()?.aggregates.above_yellow >= 1;
                return Ok((is_expected && counted).then_some((sent_at_ns, seen_at_ns, page)));
            }
        }
    }
    Ok(None)
}

/// Sends until the probe has seen the Red level crossed. Gives when the last `send` began and the
/// kernel's time of the crossing.
fn cross_red(maps: &Maps, socket: &mut TcpStream) -> Result<Option<(u64, u64)>> {
    for _ in 0..MOST_BYTES / STEP_BYTES {
        let sent_at_ns = monotonic_ns();
        send(socket, STEP_BYTES)?;
        let mut since = None;
        holds_within(EFFECT_WITHIN, || {
            since = stalled_since_ns(&maps.signals()?);
            Ok(since.is_some())
        })?;
        if let Some(since_ns) = since {
            return Ok((since_ns >= sent_at_ns).then_some((sent_at_ns, since_ns)));
        }
    }
    Ok(None)
}

fn send(socket: &mut TcpStream, length: usize) -> Result<usize> {
    let bytes = [0x16; STEP_BYTES];
    socket
        .write_all(&bytes[..length])
        .context("the socket takes no more")?;
    Ok(length)
}

/// Looks often, but lets others run.
fn holds_within(limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + limit;
    while !holds()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(true)
}

fn tell(
    bench: &mut Bench<'_>,
    rounds: &[Round],
    discarded: u64,
    yellow_bytes: usize,
) -> Result<()> {
    let spread = |of: fn(&Round) -> u64| {
        Spread::of(rounds.iter().map(of).collect()).context("no round could be measured")
    };
    let yellow = spread(|round| round.yellow_event_ns)?;
    let seen = spread(|round| round.yellow_seen_ns)?;
    let red = spread(|round| round.red_event_ns)?;
    let red_upper = spread(|round| round.red_upper_ns)?;
    let us = |ns: u64| ns as f64 / 1e3;
    eprintln!(
        "    Yellow after the send began: p50 {:.1} us, p99 {:.1} us, max {:.1} us; read by p99 {:.1} us",
        us(yellow.p50),
        us(yellow.p99),
        us(yellow.max),
        us(seen.p99)
    );
    eprintln!(
        "    Red after the level was crossed: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({discarded} rounds discarded)",
        us(red.p50) / 1e3,
        us(red.p99) / 1e3,
        us(red.max) / 1e3
    );
    let limit = Duration::from_millis(FOR_MS + TICK_MS);
    let late = rounds
        .iter()
        .filter(|round| Duration::from_nanos(round.red_event_ns) > limit)
        .count();
    let mut figures = json!({
        "rounds_measured_count": rounds.len(),
        "rounds_discarded_count": discarded,
        "yellow_level_bytes": yellow_bytes,
        "tick_ms": TICK_MS,
        "red_for_ms": FOR_MS,
        "red_beyond_for_plus_tick_count": late,
    });
    yellow.add_to(&mut figures, "yellow_from_send", "ns");
    seen.add_to(&mut figures, "yellow_read_from_send", "ns");
    red.add_to(&mut figures, "red_from_crossing", "ns");
    red_upper.add_to(&mut figures, "red_from_send", "ns");
    figures["bars"] = json!([
        bench.report.bar(
            "signal and Yellow within 1 ms of the send that crossed the level (p99)",
            Duration::from_nanos(yellow.p99) < YELLOW_WITHIN,
        ),
        bench.report.bar(
            "Red within receive_queue.for + one tick of the crossing (p99)",
            Duration::from_nanos(red.p99) <= limit,
        ),
    ]);
    bench.report.emit("kernel.latency", &figures);
    Ok(())
}

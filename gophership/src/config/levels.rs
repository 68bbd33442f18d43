//! `pressure`: when the zone turns, and who says so; with `xdp`, the kernel half's other part.

use std::time::Duration;

use super::{
    formats::Format,
    schema::{self, Key},
    settings::Settings,
    units::exact_permille,
    xdp,
};
use crate::pressure;

/// A worker that hasn't reported for this long is stalled.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(1);

/// The thresholds and sources; None if a problem is noted.
pub(super) fn config(s: &mut Settings) -> Option<pressure::Config> {
    let kernel = s.get(&schema::PRESSURE_KERNEL);
    let tick = s.get(&schema::PRESSURE_TICK);
    let sample_every = s.get(&schema::PRESSURE_SAMPLE_EVERY);
    let hold = s.get(&schema::PRESSURE_HOLD);
    let receive_queue_for = s.get(&schema::PRESSURE_RECEIVE_QUEUE_FOR);
    let receive_queue = rising(
        s,
        &schema::PRESSURE_RECEIVE_QUEUE_YELLOW,
        &schema::PRESSURE_RECEIVE_QUEUE_RED,
    );
    let listen_backlog = rising(
        s,
        &schema::PRESSURE_LISTEN_BACKLOG_YELLOW,
        &schema::PRESSURE_LISTEN_BACKLOG_RED,
    );
    let memory_stall = rising(
        s,
        &schema::PRESSURE_MEMORY_STALL_YELLOW,
        &schema::PRESSURE_MEMORY_STALL_RED,
    );
    let memory_available = falling(s);
    let cpu_wait = rising(
        s,
        &schema::PRESSURE_CPU_WAIT_YELLOW,
        &schema::PRESSURE_CPU_WAIT_RED,
    );
    let disk_latency = s.get(&schema::PRESSURE_DISK_LATENCY_YELLOW);
    let ingress_horizon = s.get(&schema::PRESSURE_INGRESS_HORIZON);
    let budget = rising(
        s,
        &schema::PRESSURE_BUDGET_YELLOW,
        &schema::PRESSURE_BUDGET_RED,
    );
    let xdp = xdp::config(s);
    let ticks = Duration::from_millis(1)..=Duration::from_secs(1);
    if let Some(tick) = tick.filter(|tick| !ticks.contains(tick)) {
        let message = format!("pressure.tick = {tick:?} must be from 1ms to 1s");
        s.conflict(&["pressure.tick"], message);
    }
    Some(pressure::Config {
        kernel: kernel?,
        tick: tick?,
        sample_every: sample_every?.get(),
        hold: hold?,
        receive_queue: receive_queue?,
        receive_queue_for: receive_queue_for?,
        listen_backlog: listen_backlog?,
        memory_stall: memory_stall?,
        memory_available: memory_available?,
        cpu_wait: cpu_wait?,
        disk_latency: disk_latency?,
        ingress_horizon: ingress_horizon?,
        budget: budget?,
        heartbeat_limit: HEARTBEAT_LIMIT,
        xdp: xdp?,
    })
}

/// Levels of a signal of which much is bad.
fn rising<F: Format<Value = u32>>(
    s: &mut Settings,
    yellow: &Key<F>,
    red: &Key<F>,
) -> Option<pressure::Levels> {
    let levels = levels(s, yellow, red)?;
    // What is off is above all.
    if levels.yellow_permille >= levels.red_permille && levels.red_permille != pressure::Levels::OFF
    {
        order(s, yellow, red, levels, "less than");
    }
    Some(levels)
}

/// Levels of the available memory, of which little is bad.
fn falling(s: &mut Settings) -> Option<pressure::Levels> {
    let yellow = &schema::PRESSURE_MEMORY_AVAILABLE_YELLOW;
    let red = &schema::PRESSURE_MEMORY_AVAILABLE_RED;
    let levels = levels(s, yellow, red)?;
    if levels.yellow_permille <= levels.red_permille {
        order(s, yellow, red, levels, "more than");
    }
    Some(levels)
}

fn levels<F: Format<Value = u32>>(
    s: &mut Settings,
    yellow: &Key<F>,
    red: &Key<F>,
) -> Option<pressure::Levels> {
    let (yellow, red) = (s.get(yellow), s.get(red));
    Some(pressure::Levels {
        yellow_permille: yellow?,
        red_permille: red?,
    })
}

fn order<F: Format<Value = u32>>(
    s: &mut Settings,
    yellow: &Key<F>,
    red: &Key<F>,
    levels: pressure::Levels,
    relation: &str,
) {
    let exact_permille = |level: u32| match level {
        pressure::Levels::OFF => "off".to_owned(),
        share => exact_permille(share),
    };
    let message = format!(
        "{} = {} must be {relation} {} = {}",
        yellow.entry.path,
        exact_permille(levels.yellow_permille),
        red.entry.path,
        exact_permille(levels.red_permille)
    );
    s.conflict(&[yellow.entry.path, red.entry.path], message);
}

//! What the daemon tells the event timeline: every event, and what each stay in a zone amounts to.

use std::{sync::Mutex, time::Duration};

use gophership_common::{Cause, Zone};

use super::daemon::{Daemon, lock};
use crate::{
    pressure::{Occurrence, Source, Transition, monotonic_ns},
    somatic::overrides::Override,
    telemetry::{
        counters::Totals,
        timeline::{
            Amount, Event, Held, Moment, Place, SignalAt, Stay, Timeline, Verdict, ZoneCause,
        },
    },
};

/// Longest that a stop waits for the timeline's disk.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// The timeline, and the stay that isn't over.
pub(super) struct Chronicle {
    pub(super) timeline: Timeline,
    open: Mutex<Open>,
}

/// The present stay, and what was there before it began.
struct Open {
    zone: Zone,
    cause: Cause,
    since_ns: u64,
    /// Told of earlier stays, by zone. Workers divert by the zone that they see, which user space may
    /// hear of a little later: so what counts as this stay's is all that no earlier one was told of.
    diverted: [Amount; 3],
    /// Delivered before the stay.
    delivered: Amount,
}

impl Chronicle {
    /// Before anything was judged: Green, since `since_ns` of the kernel's clock.
    pub(super) fn new(timeline: Timeline, since_ns: u64) -> Self {
        Self {
            timeline,
            open: Mutex::new(Open {
                zone: Zone::Green,
                cause: Cause::None,
                since_ns,
                diverted: Default::default(),
                delivered: Amount::default(),
            }),
        }
    }

    fn record(&self, ktime_ns: u64, event: Event) {
        self.timeline
            .record(Moment::of(ktime_ns, monotonic_ns()), event);
    }
}

impl Open {
    fn stay(&self, until_ns: u64, totals: &Totals) -> Stay {
        let zone = self.zone as usize;
        Stay {
            zone: self.zone,
            cause: self.cause.as_str().to_owned(),
            seconds: Duration::from_nanos(until_ns.saturating_sub(self.since_ns)).as_secs_f64(),
            diverted: totals.diverted[zone].since(self.diverted[zone]),
            delivered: totals.delivered().since(self.delivered),
        }
    }
}

impl Daemon {
    /// The first event of a run.
    pub(super) fn tell_started(&self) {
        let judged = self.pressure.snapshot();
        let since_ns = lock(&self.chronicle.open).since_ns;
        self.chronicle.record(
            since_ns,
            Event::Start {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                source: judged.source.as_str().to_owned(),
                reason: judged.why_not_kernel.unwrap_or_default(),
                after_crash: self.chronicle.timeline.after_crash(),
            },
        );
    }

    /// The last event of a run, on stable storage if the disk lets it.
    pub(super) fn tell_stopped(&self) {
        let now_ns = monotonic_ns();
        let previous = self.stay_at(now_ns);
        self.chronicle.record(now_ns, Event::Stop { previous });
        if !self.chronicle.timeline.flush(FLUSH_LIMIT) {
            tracing::warn!("events: the last ones may not be on stable storage");
        }
    }

    /// What the judge has to tell.
    pub(super) fn tell(&self, occurrence: &Occurrence) {
        let (ktime_ns, event) = match occurrence {
            Occurrence::Transition(transition) => return self.tell_verdict(transition),
            Occurrence::OomKill { ours, ktime_ns } => (*ktime_ns, Event::OomKill { ours: *ours }),
            Occurrence::Source {
                why_not_kernel,
                ktime_ns,
            } => {
                let source = match why_not_kernel {
                    None => Source::Kernel,
                    Some(_) => Source::Stochastic,
                };
                let event = Event::Source {
                    source: source.as_str().to_owned(),
                    reason: why_not_kernel.clone().unwrap_or_default(),
                };
                (*ktime_ns, event)
            }
            Occurrence::EventsLost { events, ktime_ns } => {
                let (events, place) = (*events, Place::Kernel);
                (*ktime_ns, Event::Lost { events, place })
            }
        };
        self.chronicle.record(ktime_ns, event);
    }

    fn tell_verdict(&self, transition: &Transition) {
        let Transition {
            from, to, ktime_ns, ..
        } = *transition;
        let held = to
            .overridden()
            .then(|| lock(&self.overridden).as_ref().map(held))
            .flatten();
        if from.overridden() && !to.overridden() {
            self.tell_expired(ktime_ns);
        }
        let levels = self.config.pressure.receive_queue;
        let signals = transition.explained(levels).into_iter();
        let signals = signals.map(|explained| SignalAt {
            name: explained.signal.as_str().to_owned(),
            value: explained.value,
            unit: explained.unit.to_owned(),
            yellow: explained.yellow,
            red: explained.red,
            reaches: explained.reaches,
            holds: explained.holds,
        });
        let falls = to.zone() < from.zone() && !to.overridden() && !from.overridden();
        let verdict = Verdict {
            from: zone_cause(from.zone(), from.cause()),
            to: zone_cause(to.zone(), to.cause()),
            slow_disk: to.slow_disk(),
            held,
            hold_seconds: falls.then_some(self.config.pressure.hold.as_secs_f64()),
            signals: signals.collect(),
            previous: self.enter(to.zone(), to.cause(), ktime_ns),
        };
        self.chronicle
            .record(ktime_ns, Event::Verdict(Box::new(verdict)));
    }

    /// Ends the present stay and begins another, unless the zone stays the same.
    fn enter(&self, zone: Zone, cause: Cause, ktime_ns: u64) -> Option<Stay> {
        let mut open = lock(&self.chronicle.open);
        if open.zone == zone {
            open.cause = cause;
            return None;
        }
        let totals = self.totals();
        let stay = open.stay(ktime_ns, &totals);
        let ended = open.zone as usize;
        open.diverted[ended] = totals.diverted[ended];
        open.delivered = totals.delivered();
        (open.zone, open.cause, open.since_ns) = (zone, cause, ktime_ns);
        Some(stay)
    }

    /// Since when the present stay lasts, and what it has come to.
    pub(super) fn present_stay(&self) -> (u64, Stay) {
        let since_ns = lock(&self.chronicle.open).since_ns;
        (since_ns, self.stay_at(monotonic_ns()))
    }

    fn stay_at(&self, now_ns: u64) -> Stay {
        let totals = self.totals();
        lock(&self.chronicle.open).stay(now_ns, &totals)
    }

    pub(super) fn tell_override(&self, kept: &Override) {
        let event = Event::OverrideSet(held(kept));
        self.chronicle.record(monotonic_ns(), event);
    }

    pub(super) fn tell_restored(&self, kept: &Override) {
        let event = Event::OverrideRestored(held(kept));
        self.chronicle.record(monotonic_ns(), event);
    }

    pub(super) fn tell_cleared(&self, kept: &Override, by: &str) {
        let event = Event::OverrideCleared {
            held: held(kept),
            by: by.to_owned(),
        };
        self.chronicle.record(monotonic_ns(), event);
    }

    /// An override that was cleared isn't known any more when the judge hears of it, and one that was
    /// set meanwhile isn't over.
    fn tell_expired(&self, ktime_ns: u64) {
        let expired = lock(&self.overridden).take_if(|kept| kept.is_expired());
        if let Some(kept) = expired {
            let event = Event::OverrideExpired(held(&kept));
            self.chronicle.record(ktime_ns, event);
        }
    }
}

fn held(kept: &Override) -> Held {
    Held {
        zone: kept.zone,
        until_unix_ms: kept.until_unix_ms,
        by: kept.by.clone(),
        reason: kept.reason.clone(),
    }
}

fn zone_cause(zone: Zone, cause: Cause) -> ZoneCause {
    ZoneCause {
        zone,
        cause: cause.as_str().to_owned(),
    }
}

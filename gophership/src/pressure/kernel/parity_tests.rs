use aya::maps::Array;
use gophership_common::{
    Cause, DISKS_MAX, Levels, MAP_RECORDED, OVERRIDE_FOREVER, OVERRIDE_NONE, PORTS_MAX,
    PROGRAM_JUDGE_RECORDED, Policy, RecordedPage, Signal, Signals, State, Thresholds, Word, Zone,
};

use super::{super::stochastic, *};

const MS: u64 = 1_000_000;

const fn levels(yellow_permille: u32, red_permille: u32) -> Levels {
    Levels {
        yellow_permille,
        red_permille,
    }
}

fn policy() -> Policy {
    let thresholds = Thresholds {
        receive_queue: levels(500, 800),
        receive_queue_for_us: 5_000,
        listen_backlog: levels(500, 900),
        memory_stall: levels(50, 200),
        memory_available: levels(150, 70),
        cpu_wait: levels(300, 700),
        disk_latency_us: Some(50_000),
        ingress_horizon_us: Some(1_000_000),
        budget: levels(800, 950),
        heartbeat_us: 1_000_000,
    };
    Policy {
        tick_ns: 10 * MS,
        hold_ns: 200 * MS,
        receive_queue_for_ns: 5 * MS,
        override_until_ns: 0,
        measured: u64::MAX,
        ingress_horizon_ns: 1000 * MS,
        rules: thresholds.rules(),
        receive_queue: thresholds.receive_queue,
        disks: [0; DISKS_MAX],
        override_zone: OVERRIDE_NONE,
        h2_window_bytes: 0,
        netns_inum: 0,
        workers: 1,
        port_count: 0,
        disk_count: 0,
        ports: [0; PORTS_MAX],
    }
}

/// What happens in one step of a recorded series.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A reading: this signal has that value, all others are calm.
    Reads(Signal, u64),
    /// A probe raises between two readings.
    Raised(Zone),
    /// The operator chooses.
    Chosen(u32),
}

/// The kernel's copy of the judge, and what its tick would keep.
struct InKernel {
    page: Array<MapData, RecordedPage>,
    program: std::os::fd::OwnedFd,
    /// Holds the program.
    _kernel: Kernel,
    word: Word,
    state: State,
}

impl InKernel {
    fn load() -> Option<Self> {
        match Kernel::load(&XdpConfig::default()) {
            Ok((mut kernel, _, _)) => {
                let program: &mut RawTracePoint = kernel
                    .ebpf
                    .program_mut(PROGRAM_JUDGE_RECORDED)
                    .unwrap()
                    .try_into()
                    .unwrap();
                program.load().unwrap();
                let program = program.fd().unwrap().as_fd().try_clone_to_owned().unwrap();
                let page = kernel.ebpf.take_map(MAP_RECORDED).unwrap();
                Some(Self {
                    page: Array::try_from(page).unwrap(),
                    program,
                    _kernel: kernel,
                    word: Word::default(),
                    state: State::START,
                })
            }
            Err(error) => {
                let required = std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL");
                let required = required.is_some_and(|value| value == "1");
                assert!(!required, "GOPHERSHIP_REQUIRE_KERNEL=1, but: {error}");
                None
            }
        }
    }

    /// Judges as the tick does, around the recorded judge.
    fn judge(&mut self, policy: &Policy, signals: &Signals, now_ns: u64) {
        let before = self.state.adopt(self.word);
        let page = RecordedPage {
            now_ns,
            before: before.word(),
            clocks_before_ns: before.clocks_ns(),
            outcome: Word::default(),
            after: Word::default(),
            clocks_after_ns: [0; 3],
            signals: *signals,
            policy: *policy,
        };
        self.page.set(0, page, 0).unwrap();
        assert_eq!(enlist::test_run(self.program.as_fd(), 0).unwrap(), 0);
        let page = self.page.get(&0, 0).unwrap();
        self.state = State::of(page.after, page.clocks_after_ns);
        if !page.outcome.same_verdict(self.word) {
            let verdict = page.outcome;
            let epoch = self.word.epoch().wrapping_add(1);
            self.word = Word::new(verdict.zone(), verdict.cause(), verdict.flags(), epoch);
        }
    }
}

/// Calm, but for one signal.
fn reading(signal: Signal, value: u64) -> Signals {
    let mut signals = Signals::NONE;
    for signal in Signal::ALL {
        signals.set(signal, if signal.falling() { 1 << 40 } else { 0 });
    }
    signals.set(signal, value);
    signals
}

/// An hour of trouble, shortened: every cause comes and goes, with raises and choices in between.
fn series() -> Vec<Step> {
    let mut steps = Vec::new();
    for (number, signal) in Signal::ALL.into_iter().enumerate() {
        let bad = if signal.falling() { 0 } else { 1 << 30 };
        steps.extend([Step::Reads(signal, bad); 3]);
        if number % 3 == 0 {
            steps.push(Step::Raised(Zone::Red));
        }
        if number % 4 == 1 {
            steps.extend([Step::Chosen(2), Step::Reads(signal, bad)]);
        }
        // From just short of the hold to beyond it.
        steps.extend([Step::Reads(Signal::DiskDepth, 1); 3]);
        if number % 5 == 2 {
            steps.push(Step::Raised(Zone::Yellow));
        }
        if number % 4 == 2 {
            steps.extend([Step::Chosen(0), Step::Reads(signal, bad)]);
            steps.push(Step::Chosen(OVERRIDE_NONE));
        }
        steps.extend([Step::Reads(Signal::DiskDepth, 1); 4]);
    }
    steps
}

#[test]
fn a_recorded_series_leaves_the_same_words_in_both_halves() {
    let Some(mut kernel) = InKernel::load() else {
        return;
    };
    let fallback = Pages::anonymous().unwrap();
    let here = || Word(fallback.verdict_at(std::mem::offset_of!(VerdictPage, word)));
    let mut policy = policy();
    let mut now_ns = 1_000_000 * MS;
    let mut zones = [0; 3];
    for (number, step) in series().into_iter().enumerate() {
        match step {
            Step::Reads(signal, value) => {
                now_ns += 67 * MS;
                let signals = reading(signal, value);
                stochastic::judge_once(&fallback, &policy, &signals, now_ns);
                kernel.judge(&policy, &signals, now_ns);
            }
            Step::Raised(zone) => {
                let from = kernel.word;
                if from.zone() < zone && !from.overridden() {
                    let epoch = from.epoch().wrapping_add(1);
                    kernel.word = Word::new(zone, Cause::ReceiveQueue, from.flags(), epoch);
                    let word = fallback.word();
                    word.store(kernel.word.0, std::sync::atomic::Ordering::Release);
                }
            }
            Step::Chosen(zone) => {
                policy.override_zone = zone;
                policy.override_until_ns = OVERRIDE_FOREVER;
            }
        }
        assert_eq!(here(), kernel.word, "step {number}: {step:?}");
        assert_eq!(fallback.state(), kernel.state, "step {number}: {step:?}");
        zones[kernel.word.zone() as usize] += 1;
    }
    // Otherwise this proves little.
    assert!(zones.iter().all(|&zone| zone > 10), "{zones:?}");
    assert!(kernel.word.epoch() > 50, "{:?}", kernel.word);
}
